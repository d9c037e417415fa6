"""Single-message requests: where everything but the message is the cost.

How fast could any server in this language answer? A handler that does nothing (`baseline.py`), with
as many processes, the same event loop, the same requests and an answer of the same form, is
measured in the same run; the order turns round from run to run. Its rate is the ceiling, and the
ratio says what storing a message durably takes of it.

64 connections and as many partitions. In the cycle each connection pushes a message into its
partition, pops it and acknowledges it, one after the other: 64 requests are under way at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench import baseline
from bench.driver import Driver
from bench.load import Load
from bench.loads import Pushes, cycling, endless_lanes, producing
from bench.measure import Measured, measure
from bench.queen import Queen
from bench.scenarios import Context, Run, Scenario, Target
from bench.server import Server

_CONNECTIONS = 64


@dataclass(frozen=True)
class _Size:
    seconds: float


_SIZES = {"small": _Size(0.5), "quick": _Size(4), "full": _Size(15)}


def run(context: Context) -> Run:
    found = Run()
    size = context.pick(_SIZES)
    with context.server() as server:
        queue = context.queue(server, "single")
        if context.number % 2 == 0:
            nothing = _do_nothing(context)
            push = _push(context, server, queue)
        else:
            push = _push(context, server, queue)
            nothing = _do_nothing(context)
        context.drain(server, found, "push", queue, push.pushed)
        queue = context.queue(server, "cycle")
        pushes = Pushes(queue, endless_lanes(_CONNECTIONS), 1, _CONNECTIONS)
        work = cycling(context.driver(server), pushes, size.seconds)
        load = Load("push, pop, ack", [work], seconds=size.seconds)
        cycle = context.measure(server, "push, pop, ack", load)
    context.verify(found, "push, pop, ack", cycle.pushed, cycle)
    found.add(push, cycle, nothing)
    found.figures["push / do-nothing handler"] = push.rate / nothing.rate
    found.figures["requests a commit"] = push.counters.get("push_requests", 0) / max(
        1, push.counters.get("push_transactions", 0)
    )
    return found


def _push(context: Context, server: Server, queue: str) -> Measured:
    load = _load(context, context.driver(server), queue)
    return context.measure(server, "push", load)


def _do_nothing(context: Context) -> Measured:
    with baseline.running(context.workers) as (url, meter):
        load = _load(context, Queen(url), "nothing")
        return measure("do-nothing handler", load, context.console, meter)


def _load(context: Context, driver: Driver, queue: str) -> Load:
    seconds = context.pick(_SIZES).seconds
    pushes = Pushes(queue, endless_lanes(_CONNECTIONS), 1, _CONNECTIONS, seconds=seconds)
    return Load("push", [producing(driver, pushes)], seconds=seconds)


SCENARIO = Scenario(
    5,
    "single",
    "single-message requests, 64 connections",
    run,
    _SIZES,
    (
        Target("push: msg/s", at_least=12_000),
        Target("push / do-nothing handler", at_least=0.35),
        Target("push, pop, ack: msg/s", at_least=4_000),
    ),
    {"partitions": _CONNECTIONS, "messages a request": 1, "connections": _CONNECTIONS},
)
