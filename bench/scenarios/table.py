"""All scenarios by name, in the order they run."""

from bench.scenarios import (
    Scenario,
    backlog,
    canonical,
    fan_out,
    latency,
    modes,
    parked,
    partitions,
    peers,
    push_100,
    push_1000,
    root_cause,
    single,
    slow_readers,
)

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (
        root_cause, push_1000, push_100, canonical, single, latency, modes, partitions, backlog,
        parked, slow_readers, fan_out, peers,
    )
}  # fmt: skip
