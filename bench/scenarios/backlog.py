"""A long backlog, and a transaction that stays open: what makes row-per-message queues slow down.

**Backlog.** Pushing beside two million unread messages (ten million at the size `long`, 4 GB of
disk) and draining them, both against the same on an empty queue of the same server: 1000 a push,
10,000 a pop, every message acknowledged by its id, 10 partitions. The rate beside the backlog is
that of a fifth of the backlog's size, pushed after it.

**Pinned xmin.** Somebody opens a REPEATABLE READ transaction, takes a snapshot and stays (a
pg_dump, a forgotten session): from then on PostgreSQL may remove no dead row version. Meanwhile
messages are pushed, popped, acknowledged and removed by retention (one second after they were
completed), 100 a request so that rows change often. It is compared with the same on another fresh
server without the pin; the order turns round. Dead versions are counted at the end of each. While
the pin lasts they can only grow, so what is bounded is how many each request leaves: an update for
each push, pop and ack, and the deletion of a segment and of its range of ids later are about two a
request. After the pin is gone a vacuum has to get rid of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import psycopg

from bench.check import Lanes
from bench.client import fetch, parse_url
from bench.driver import Subscription
from bench.load import Load
from bench.loads import Pushes, consuming, endless_lanes, producing
from bench.measure import Measured
from bench.scenarios import Context, Run, Scenario, Target, count_of, each_partition
from bench.server import Server

_PARTITIONS = 10
_PUSH_BATCH = 1000
_POP_BATCH = 10_000
_CONNECTIONS = 10

_SMALL_BATCH = 100  # of the pinned part
_PINNED_CONSUMERS = 4
_RETENTION = {"retentionEnabled": True, "completedRetentionSeconds": 1}


@dataclass(frozen=True)
class _Size:
    backlog: int
    pinned_seconds: float


_SIZES = {
    "small": _Size(10_000, 1.5),
    "quick": _Size(500_000, 10),
    "full": _Size(2_000_000, 40),
    "long": _Size(10_000_000, 300),
}


def run(context: Context) -> Run:
    found = Run()
    with context.server() as server:
        _backlog(context, server, found)
    _pinned(context, found)
    return found


def _backlog(context: Context, server: Server, found: Run) -> None:
    backlog = context.pick(_SIZES).backlog
    probe = backlog // 5
    queue = context.queue(server, "short")
    lanes = _lanes(0, probe)
    empty = context.push(server, "push, empty queue", _pushes(queue, lanes))
    short = _drain(context, server, found, queue, lanes, "drain, short queue")

    queue = context.queue(server, "long")
    # Encoded live: ten million messages would not fit in memory.
    pushes = _pushes(queue, _lanes(0, backlog), encode_ahead=False)
    context.push(server, "push the backlog", pushes)
    beside = context.push(
        server, "push beside the backlog", _pushes(queue, _lanes(backlog, backlog + probe))
    )
    lanes = _lanes(0, backlog + probe)
    long = _drain(context, server, found, queue, lanes, "drain the backlog")
    found.add(empty, short, beside, long)
    found.figures["push beside the backlog / empty queue"] = beside.rate / empty.rate
    found.figures["drain the backlog / short queue"] = long.rate / short.rate


def _lanes(start: int, stop: int) -> Lanes:
    """Messages *start* to *stop* of the queue, shared out evenly."""
    return {
        name: ids[start // _PARTITIONS : stop // _PARTITIONS]
        for name, ids in endless_lanes(_PARTITIONS).items()
    }


def _pushes(queue: str, lanes: Lanes, encode_ahead: bool = True) -> Pushes:
    return Pushes(queue, lanes, _PUSH_BATCH, _CONNECTIONS, encode_ahead=encode_ahead)


def _drain(
    context: Context, server: Server, found: Run, queue: str, lanes: Lanes, name: str
) -> Measured:
    pop = context.consume(
        server, name, each_partition(queue, _POP_BATCH, list(lanes)), count_of(lanes)
    )
    context.verify(found, name, lanes, pop)
    return pop


def _pinned(context: Context, found: Run) -> None:
    if context.number % 2 == 0:
        free, dead_free = _free(context, found)
        pinned, dead, dead_after = _under_pin(context, found)
    else:
        pinned, dead, dead_after = _under_pin(context, found)
        free, dead_free = _free(context, found)
    requests = sum(pinned.counters.get(f"{verb}_requests", 0) for verb in ("push", "pop", "ack"))
    found.add(free, pinned)
    found.figures["pinned xmin / without"] = pinned.rate / free.rate
    found.figures["dead rows without a pin"] = dead_free
    found.figures["dead rows under the pin"] = dead
    found.figures["dead rows a request under the pin"] = dead / max(1, requests)
    found.figures["dead rows after the pin and a vacuum"] = dead_after


def _free(context: Context, found: Run) -> tuple[Measured, int]:
    with context.server() as server:
        return _traffic(context, server, found, "without a pin"), _dead_rows(server)


def _under_pin(context: Context, found: Run) -> tuple[Measured, int, int]:
    with context.server() as server:
        with _pin(server):
            pinned = _traffic(context, server, found, "pinned xmin")
            dead = _dead_rows(server)
        with psycopg.connect(server.conninfo, autocommit=True) as connection:
            connection.execute("VACUUM")
        return pinned, dead, _dead_rows(server)


def _traffic(context: Context, server: Server, found: Run, name: str) -> Measured:
    """Push, pop and acknowledge at once, while retention removes what is done with."""
    seconds = context.pick(_SIZES).pinned_seconds
    queue = context.queue(server, name.replace(" ", "-"))
    body = msgspec.json.encode({"queue": queue, "options": _RETENTION})
    asyncio.run(fetch(parse_url(server.url), "POST", "/api/v1/configure", 200, 201, body=body))
    lanes = endless_lanes(_PARTITIONS)
    pushes = Pushes(queue, lanes, _SMALL_BATCH, _CONNECTIONS, seconds=seconds)
    wanted = Subscription(queue, _SMALL_BATCH)
    driver = context.driver(server)
    load = Load(
        name,
        [producing(driver, pushes), consuming(driver, [wanted] * _PINNED_CONSUMERS)],
        seconds=seconds,
    )
    work = context.measure(server, name, load)
    context.verify(found, name, work.pushed, work)
    return work


@contextmanager
def _pin(server: Server) -> Iterator[None]:
    """Hold a snapshot, and with it every row version that was visible when it was taken."""
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT pg_current_snapshot()")
        yield
        connection.execute("COMMIT")


def _dead_rows(server: Server) -> int:
    """Dead row versions of all of the server's tables, by PostgreSQL's own statistics."""
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        # Sessions report what they did with up to a second's delay (pgstat.c, PGSTAT_MIN_INTERVAL).
        time.sleep(1.1)
        row = connection.execute(
            "SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE schemaname = 'queen'"
        ).fetchone()
        assert row is not None
        return int(row[0] or 0)


SCENARIO = Scenario(
    9,
    "backlog",
    "a long backlog, and a pinned xmin with retention on",
    run,
    _SIZES,
    (
        Target("push beside the backlog / empty queue", at_least=0.8),
        Target("drain the backlog / short queue", at_least=0.8),
        Target("pinned xmin / without", at_least=0.8),
        Target("dead rows a request under the pin", at_most=3),
    ),
    {
        "partitions": _PARTITIONS,
        "messages a push": _PUSH_BATCH,
        "messages a pop": _POP_BATCH,
        "messages a request of the pinned part": _SMALL_BATCH,
    },
)
