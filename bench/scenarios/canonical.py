"""The canonical workload: push, pop and acknowledge at the same time, as a queue in use does.

256 bytes a message, pushed 100 at a time into 200 partitions, popped 1000 at a time and every
message acknowledged by its id. These are the numbers under which a Rust broker on the same storage
idea published 22.5 core-seconds per million messages. It runs for 60 s: long enough for vacuum and
checkpoint to take part.

A pop may claim ten partitions, because a push of 100 goes to one: a consumer that wants 1000
messages at once has to gather ten of them. 32 pushes are in flight and 8 consumers wait for
whatever comes; both pace themselves by the answers. Producers and consumers are a process each. The
clock stops when everything that was pushed has been acknowledged. Bodies are encoded live (the
number of messages is not known before), which is part of the load generator's cost alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.driver import Subscription
from bench.load import Load
from bench.loads import Pushes, consuming, endless_lanes, producing
from bench.scenarios import Context, Run, Scenario, Target

_PAYLOAD_BYTES = 256
_PUSH_BATCH = 100
_POP_BATCH = 1000
_POP_PARTITIONS = 10
_CONNECTIONS = 32
_CONSUMERS = 8


@dataclass(frozen=True)
class _Size:
    seconds: float
    partitions: int = 200


_SIZES = {"small": _Size(1, 20), "quick": _Size(8), "full": _Size(60)}


def run(context: Context) -> Run:
    found = Run()
    size = context.pick(_SIZES)
    with context.server() as server:
        queue = context.queue(server, "canonical")
        pushes = Pushes(
            queue,
            endless_lanes(size.partitions),
            _PUSH_BATCH,
            _CONNECTIONS,
            _PAYLOAD_BYTES,
            seconds=size.seconds,
        )
        wanted = Subscription(queue, _POP_BATCH, partitions=_POP_PARTITIONS)
        driver = context.driver(server)
        load = Load(
            "push, pop and ack",
            [producing(driver, pushes), consuming(driver, [wanted] * _CONSUMERS)],
            seconds=size.seconds,
        )
        work = context.measure(server, "push + pop + ack", load)
    context.verify(found, "push + pop + ack", work.pushed, work)
    found.add(work)
    found.figures["messages a pop"] = work.popped_count / max(1, work.pop_count)
    begun, ended = (min(s.begin_ns for s in work.shares), work.shares[0].end_ns)
    found.figures["push: msg/s"] = work.pushed_count / ((ended - begun) / 1e9)
    return found


SCENARIO = Scenario(
    4,
    "canonical",
    "canonical: 256 B, push 100, pop 1000 with acks, 200 partitions",
    run,
    _SIZES,
    (Target("push + pop + ack: core-s/M", at_most=11),),
    {
        "payload bytes": _PAYLOAD_BYTES,
        "messages a push": _PUSH_BATCH,
        "messages a pop": f"{_POP_BATCH} of at most {_POP_PARTITIONS} partitions",
        "pushes in flight": _CONNECTIONS,
        "consumers": _CONSUMERS,
    },
)
