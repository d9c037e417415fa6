"""Large pushes: what it costs to take messages in when requests are well filled.

1000 a request is what the official clients' buffers send. Ten partitions, as in the analysis, and
ten connections, one for each, so that its order can be checked. Messages are `{"id": n}` with
UUIDv7 transaction ids, as the clients mint them: deduplication is on and looks at every one. A
million of them take two seconds or more. They are read back and checked after the clock stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.check import Shares
from bench.loads import Pushes
from bench.scenarios import Context, Run, Scenario, Target

_PARTITIONS = 10
_BATCH = 1000


@dataclass(frozen=True)
class _Size:
    messages: int


_SIZES = {"small": _Size(10_000), "quick": _Size(300_000), "full": _Size(1_000_000)}


def run(context: Context) -> Run:
    found = Run()
    shares = Shares(context.pick(_SIZES).messages, _PARTITIONS)
    with context.server() as server:
        queue = context.queue(server, "push-1000")
        found.add(context.push(server, "push", Pushes(queue, shares.lanes, _BATCH, _PARTITIONS)))
        context.drain(server, found, "push", queue, shares.lanes)
    return found


SCENARIO = Scenario(
    2,
    "push-1000",
    "push 1000 a request",
    run,
    _SIZES,
    (Target("push: msg/s", at_least=600_000), Target("push: core-s/M", at_most=2.5)),
    {"partitions": _PARTITIONS, "messages a request": _BATCH, "connections": _PARTITIONS},
)
