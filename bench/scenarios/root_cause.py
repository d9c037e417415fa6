"""The three tests of the original root-cause analysis: one worker, a cluster, many consumers.

The server of the analysis moved 161 k msg/s with one worker, was expected to move ten times that
with ten, and fell to 2.2 k msg/s when its consumers stopped naming partitions: they took turns
behind partition locks. Hence four works, each with a queue of its own:

- one worker: partition mode, consumer i names partition i;
- cluster: the same with two workers, as many as the machine has cores;
- cluster, many consumers: 40 consumers, four for each partition, pop the queue without naming one.
  This is what collapsed;
- cluster, autoAck: partition mode, committed on delivery, which is what a pop costs by itself.

Sizes are those of the analysis: a million messages `{"id": n}` in 10 partitions, pushed and popped
10,000 at a time, every message acknowledged by its id. A smaller run is over before the server is
warm. Four pushes are in flight: enough to keep two workers busy, with one waiting at each. The
order of the cluster's works turns round from run to run, so that whatever drifts favours none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.check import Shares
from bench.driver import Subscription
from bench.loads import Pushes
from bench.measure import Measured
from bench.scenarios import Context, Run, Scenario, Target, each_partition
from bench.server import Server

_PARTITIONS = 10
_CONNECTIONS = 4
_MANY = 40
_BATCH = 10_000


@dataclass(frozen=True)
class _Size:
    messages: int


_SIZES = {"small": _Size(2_000), "quick": _Size(300_000), "full": _Size(1_000_000)}


def run(context: Context) -> Run:
    found = Run()
    with context.server(workers=1) as server:
        found.add(*_pass(context, server, found, "one worker"))
    with context.server() as server:
        names = ["cluster", "cluster, many consumers", "cluster, autoAck"]
        passes = {
            name: _pass(context, server, found, name)
            for name in (names if context.number % 2 == 0 else names[::-1])
        }
    for name in names:
        found.add(*passes[name])
    rates = {work.name: work.rate for work in found.works}
    found.figures["many consumers / cluster"] = rates[names[1]] / rates[names[0]]
    found.figures["cluster / one worker"] = rates[names[0]] / rates["one worker"]
    found.scaling["messages a second with more workers"] = (
        "workers",
        {"partition mode": [(1, rates["one worker"]), (context.workers, rates["cluster"])]},
    )
    return found


def _pass(context: Context, server: Server, found: Run, name: str) -> Sequence[Measured]:
    size = context.pick(_SIZES)
    batch = min(_BATCH, size.messages // (_PARTITIONS * _PARTITIONS))
    shares = Shares(size.messages, _PARTITIONS)
    queue = context.queue(server, name.replace(" ", "-"))
    push = context.push(server, f"push, {name}", Pushes(queue, shares.lanes, batch, _CONNECTIONS))
    auto_ack = name.endswith("autoAck")
    if name.endswith("many consumers"):
        subscriptions = [Subscription(queue, batch)] * _MANY
    else:
        subscriptions = each_partition(queue, batch, shares.partitions, auto_ack)
    pop = context.consume(server, name, subscriptions, size.messages)
    context.verify(found, name, shares.lanes, pop)
    return push, pop


SCENARIO = Scenario(
    1,
    "root-cause",
    "the three tests of the original analysis",
    run,
    _SIZES,
    (
        Target("one worker: msg/s", at_least=600_000),
        Target("cluster: msg/s", at_least=1_000_000),
        Target("cluster, many consumers: msg/s", at_least=1_000_000),
        Target("cluster, autoAck: msg/s", at_least=1_600_000),
        Target("cluster: core-s/M", at_most=1.2),
        Target("cluster, many consumers: core-s/M", at_most=1.2),
    ),
    {
        "partitions": _PARTITIONS,
        "messages a request": _BATCH,
        "pushes in flight": _CONNECTIONS,
        "consumers": f"{_PARTITIONS}, many: {_MANY}",
    },
)
