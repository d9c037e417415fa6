"""Middling pushes by many producers: where the cost of a request begins to count.

64 connections and as many partitions, one for each, so that its order can be checked. 100 messages
`{"id": n}` a request, with UUIDv7 transaction ids. More than about ten requests in flight only
wait; 64 are there to see whether the server gains from gathering them into one commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.check import Shares
from bench.loads import Pushes
from bench.scenarios import Context, Run, Scenario, Target

_CONNECTIONS = 64
_BATCH = 100


@dataclass(frozen=True)
class _Size:
    messages: int


_SIZES = {"small": _Size(6_400), "quick": _Size(192_000), "full": _Size(960_000)}


def run(context: Context) -> Run:
    found = Run()
    shares = Shares(context.pick(_SIZES).messages, _CONNECTIONS)
    with context.server() as server:
        queue = context.queue(server, "push-100")
        push = context.push(server, "push", Pushes(queue, shares.lanes, _BATCH, _CONNECTIONS))
        context.drain(server, found, "push", queue, shares.lanes)
    found.add(push)
    found.figures["requests a commit"] = push.counters.get("push_requests", 0) / max(
        1, push.counters.get("push_transactions", 0)
    )
    return found


SCENARIO = Scenario(
    3,
    "push-100",
    "push 100 a request, 64 connections",
    run,
    _SIZES,
    (Target("push: msg/s", at_least=250_000), Target("push: core-s/M", at_most=6)),
    {"partitions": _CONNECTIONS, "messages a request": _BATCH, "connections": _CONNECTIONS},
)
