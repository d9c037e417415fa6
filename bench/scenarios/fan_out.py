"""Fan-out: ten consumer groups read the same messages.

Each group has its own progress, so ten groups are ten deliveries of every message; what is stored
once has to be read ten times. One group alone already keeps both cores busy, so ten groups cannot
be ten times as fast. What they may cost is the work of one group ten times over: together they
deliver at least 0.8 of the messages a second that one group alone is delivered.

Half a million messages `{"id": n}` in 10 partitions; each group has ten consumers that pop 1000 at
a time from whichever partition the server picks, every message acknowledged by its id. The one
group reads a queue of its own; the order of the two turns round. Both are checked for each group:
every message once and in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.check import Shares
from bench.driver import Subscription
from bench.loads import Pushes
from bench.measure import Measured
from bench.scenarios import Context, Run, Scenario, Target
from bench.server import Server

_PARTITIONS = 10
_GROUPS = 10
_CONSUMERS = 10
_BATCH = 1000
_PUSH_BATCH = 10_000
_CONNECTIONS = 4


@dataclass(frozen=True)
class _Size:
    messages: int


_SIZES = {"small": _Size(1_000), "quick": _Size(100_000), "full": _Size(500_000)}


def run(context: Context) -> Run:
    found = Run()
    with context.server() as server:
        counts = (1, _GROUPS) if context.number % 2 == 0 else (_GROUPS, 1)
        works = {count: _pass(context, server, found, count) for count in counts}
    found.add(works[1], works[_GROUPS])
    found.figures["ten groups / one group"] = works[_GROUPS].rate / works[1].rate
    return found


def _pass(context: Context, server: Server, found: Run, count: int) -> Measured:
    shares = Shares(context.pick(_SIZES).messages, _PARTITIONS)
    name = "one group" if count == 1 else "ten groups"
    queue = context.queue(server, f"groups-{count}")
    pushes = Pushes(queue, shares.lanes, min(_PUSH_BATCH, len(shares.ids(0))), _CONNECTIONS)
    context.push(server, f"push, {name}", pushes)
    groups = [f"group-{number}" for number in range(count)]
    subscriptions = [
        Subscription(queue, _BATCH, group=group) for _ in range(_CONSUMERS) for group in groups
    ]
    pop = context.consume(server, name, subscriptions, shares.message_count, count)
    context.verify(found, name, shares.lanes, pop, groups=groups)
    return pop


SCENARIO = Scenario(
    12,
    "fan-out",
    "ten groups read the same messages",
    run,
    _SIZES,
    (Target("ten groups / one group", at_least=0.8),),
    {
        "partitions": _PARTITIONS,
        "groups": _GROUPS,
        "consumers of each group": _CONSUMERS,
        "messages a pop": _BATCH,
    },
)
