"""`status` and `top`: how a server is doing, once and again and again."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from queue_server.cli.client import Client
from queue_server.cli.commands.queues import (
    RATED,
    age,
    is_delayed,
    listed,
    rate,
    read_queues,
    slowest_group,
)
from queue_server.cli.exits import CliError, Exit, usage_error
from queue_server.cli.output import count, duration, screen_table, some, styled
from queue_server.cli.session import Session, server_command

# What `top` shows of many queues: those with the most to read.
_TOP_QUEUES = 30
# Its look at all queues and cursors is work for the database; the counters are free.
_TOP_INTERVAL_MIN_S = 0.5

# The server's counters, under the names that they have here.
_COUNTERS = {
    "messagesPushed": "messages_pushed",
    "messagesDuplicate": "messages_duplicate",
    "messagesPopped": "messages_popped",
    "messagesAcked": "messages_acked",
    "messagesFailed": "messages_failed",
    "messagesDeadLettered": "messages_dead_lettered",
    "requests": "requests",
    "requestsFailed": "requests_failed",
    "pushRequests": "push_requests",
    "popRequests": "pop_requests",
    "ackRequests": "ack_requests",
    "workerRestarts": "worker_restarts",
    "databaseRestarts": "database_restarts",
}
_MOVED = (
    "messagesPushed",
    "messagesDuplicate",
    "messagesPopped",
    "messagesAcked",
    "messagesFailed",
)


class Rates(msgspec.Struct, rename="camel"):
    """Messages and requests a second, in the last two seconds."""

    push: float
    pop: float
    ack: float
    failed: float
    requests: float


class Status(msgspec.Struct, rename="camel"):
    """What `status --json` writes.

    That of all servers on the database, but for what is the own of the one that is asked: how long
    it is up, its connections, and what it counted since its start.
    """

    url: str
    status: str
    version: str
    uptime_seconds: float
    servers: int
    workers: int
    connections: int
    queues: int
    partitions: int
    messages: dict[str, int]  # stored, depth, scheduled, pending, processing, completed, deadLetter
    # Of the reader that is furthest behind: messages, and seconds since the oldest was due.
    lag: dict[str, float]
    slowest_group: dict[str, Any] | None  # queue, group, lag, lagSeconds, activity, lastActiveAt
    leases: int
    counters: dict[str, int]
    last_hour: dict[str, int]  # as `counters`, but of all servers
    rates: Rates | None  # None: of a version that does not tell
    top_errors: list[dict[str, Any]]
    figures_age_seconds: int  # of a large server's messages and lag: they are not counted each time


def add_to(app: typer.Typer) -> None:
    server_command(app, "status")(status)
    server_command(app, "top")(top)


def status(session: Session) -> None:
    """Show how a server is and what it holds.

    Ends with 3 when the server cannot serve, so it can stand in a script's condition. Figures are
    those of all servers on its database, but for its uptime, its connections and `counters`, which
    count since it started; an acknowledgement counts once, however many messages before it it
    covers.

    The depth is what the slowest consumer has not acknowledged, of the groups in use and those
    without one; scheduled are those of these messages that are not due yet. Pending are the
    messages that queue mode has neither acknowledged nor leased. How far a consumer is behind
    counts from the time when its oldest message was due.

    With --json: one object, with `messages` (stored, depth, scheduled, pending, processing,
    completed, deadLetter), `counters`, `lastHour`, `rates` (a second), `lag` (seconds, messages),
    `slowestGroup`, `uptimeSeconds`, `servers`, `workers`, `leases`, `topErrors` ...

    \b
    Examples:
      queue-server status
      queue-server status --url https://queues.example --token-file ~/.queue-token
      queue-server status --json | jq .messages.depth
    """
    found = read_status(session.client)
    if session.json:
        session.out.value(found)
        return
    line, messages, counters = session.out.line, found.messages, found.counters
    line((found.url, "bold"), "  ", (found.status, "green"), f", version {found.version}")
    line(
        f"up {duration(found.uptime_seconds)}, {some(found.connections, 'connection')};"
        f" {some(found.servers, 'server')} on its database, {some(found.workers, 'worker')}"
    )
    line()
    session.out.figures(
        ["", *_COLUMNS],
        [["messages", *messages.values()]],
    )
    line()
    line(
        f"{some(found.queues, 'queue')}, {some(found.partitions, 'partition')},"
        f" {some(found.leases, 'live lease')}"
    )
    line(_slowest(found))
    line()
    # An acknowledgement covers all messages before it in its partition, and counts once.
    session.out.figures(
        ["messages", ">pushed", ">duplicates", ">popped", ">acks", ">nacks"],
        [
            ["since its start", *(counters[name] for name in _MOVED)],
            ["last hour, all servers", *(found.last_hour.get(name) for name in _MOVED)],
        ],
    )
    line()
    line(
        f"since this server started {some(counters['requests'], 'request')},"
        f" {count(counters['requestsFailed'])} of them ended with a 5xx;"
        f" {some(counters['workerRestarts'], 'worker restart')}"
    )
    if found.figures_age_seconds:
        line((f"messages and lag are {found.figures_age_seconds} s old", "dim"))
    for error in found.top_errors:
        line(("dead letters: ", "yellow"), f"{count(error['count'])} x {error['error']}")


def _slowest(found: Status) -> str:
    one = found.slowest_group
    if one is None or one["lag"] <= one["scheduled"]:
        depth = found.messages["depth"] - found.messages["scheduled"]
        return "no group is behind" + (
            f"; {some(depth, 'message')} in queues without a group" if depth else ""
        )
    return (
        f"the slowest consumer is group {one['group']!r} of queue {one['queue']!r}:"
        f" {some(one['lag'], 'message')}, {duration(one['lagSeconds'])} behind"
    )


def top(
    session: Session,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            "-i",
            min=_TOP_INTERVAL_MIN_S,
            max=3600,
            metavar="SECONDS",
            help="Time between two looks.",
        ),
    ] = 2.0,
    looks: Annotated[
        int,
        typer.Option(
            "--count", "-n", min=0, metavar="N", help="End after so many looks; 0: never."
        ),
    ] = 0,
) -> None:
    """Watch a server, live.

    Messages a second, what is stored, and the queues with the most to read, of all servers on the
    database; what others do is known as they last told. q or Ctrl-C leaves.
    With --json each look is a line: what `status --json` writes, with `topQueues`.

    \b
    Examples:
      queue-server top
      queue-server top --interval 5 --url http://10.0.0.5:6632
      queue-server top --json --count 10 | jq -c .rates
    """
    if session.json:
        for found, queues in _looks(session.client, interval, looks, _sleep):
            session.out.value(msgspec.to_builtins(found) | {"topQueues": queues})
        return
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise usage_error("top needs a terminal", "use --json, perhaps with --count")
    with _keys(), Live(console=session.out.stdout, screen=True, auto_refresh=False) as live:
        for found, queues in _looks(session.client, interval, looks, _q_was_pressed):
            live.update(_screen(found, queues, interval, *live.console.size), refresh=True)


def read_status(client: Client) -> Status:
    """Ask a server how it is. Errors: `CliError`, also when it cannot serve."""
    health = client.get_health()
    if health.get("status") != "healthy":
        raise CliError(
            f"{client.url} cannot serve: {health.get('error', 'no reason given')}",
            "queue-server doctor says what is wrong",
            exit_code=Exit.UNREACHABLE,
            status=503,
        )
    metrics = client.get("/metrics")
    overview = client.get("/api/v1/resources/overview")
    details = client.get("/api/v1/status")
    counters: Mapping[str, int] = metrics.get("counters", {})
    workers = details["workers"]
    points = details["throughput"]
    rates = metrics.get("throughput")
    return Status(
        url=client.url,
        status="healthy",
        version=str(health.get("version", "unknown")),
        uptime_seconds=metrics["uptime"],
        servers=len({(one["hostname"], one["port"]) for one in workers}),
        workers=len(workers),
        connections=metrics.get("connections", {}).get("open", 0),
        queues=overview["queues"],
        partitions=overview["partitions"],
        messages=_messages(overview),
        lag={
            "seconds": overview["lag"]["time"]["max"],
            "messages": overview["lag"]["offset"]["max"],
        },
        slowest_group=overview.get("slowestGroup"),
        leases=details["leases"]["active"],
        counters={name: counters.get(wire, 0) for name, wire in _COUNTERS.items()},
        last_hour={
            "messagesPushed": sum(point["ingested"] for point in points),
            "messagesPopped": sum(point["popMessages"] for point in points),
            "messagesAcked": sum(point["processed"] for point in points),
            "messagesFailed": details["errors"]["ackFailed"],
            "messagesDeadLettered": details["errors"]["dlqMessages"],
        },
        rates=rates and Rates(*(rates[f"{name}PerSecond"] for name in _RATES)),
        top_errors=details["deadLetterQueue"]["topErrors"],
        figures_age_seconds=max(overview.get("statsAge", 0), details.get("statsAge", 0)),
    )


# In the order of `Rates`.
_RATES = ("pushed", "popped", "acked", "failed", "requests")

_COLUMNS = (
    ">stored",
    ">depth",
    ">scheduled",
    ">pending",
    ">processing",
    ">completed",
    ">dead letters",
)


# What `top` shows of them where there is room.
_LESS = ("scheduled", "pending", "processing", "stored", "completed")


def _messages(told: Mapping[str, Any]) -> dict[str, int]:
    """The counts of the server or of a queue, under the names that they have here."""
    counts = told["messages"]
    return {
        "stored": counts["total"],
        "depth": told["depth"],
        "scheduled": told.get("scheduled", 0),
        "pending": counts["pending"],
        "processing": counts["processing"],
        "completed": counts["completed"],
        "deadLetter": counts["deadLetter"],
    }


def _looks(
    client: Client, interval_s: float, looks: int, pause: Callable[[float], bool]
) -> Iterator[tuple[Status, list[dict[str, Any]]]]:
    """Look again and again; *pause* waits so many seconds and says whether it is enough."""
    done = 0
    while True:
        looked_at = time.monotonic()
        yield read_status(client), _deepest(client)
        done += 1
        if done == looks or pause(max(0.0, looked_at + interval_s - time.monotonic())):
            return


def _deepest(client: Client) -> list[dict[str, Any]]:
    """The queues with the most to read."""
    return [
        {
            "name": queue["name"],
            "partitions": queue["partitions"],
            "slowestGroup": queue.get("slowestGroup"),
        }
        | _messages(queue)
        | {name: queue[name] for name in RATED}
        for queue in read_queues(client)[:_TOP_QUEUES]
    ]


def _screen(
    found: Status,
    queues: list[dict[str, Any]],
    interval_s: float,
    width: int,
    height: int,
) -> Group:
    head = styled(
        (found.url, "bold"),
        f"  {found.version}, up {duration(found.uptime_seconds)},"
        f" {some(found.servers, 'server')}, {some(found.workers, 'worker')}"
        f"   {time.strftime('%H:%M:%S')}",
    )
    rates = found.rates
    figures = ["-"] * 5 if rates is None else [f"{x:,.0f}" for x in msgspec.structs.astuple(rates)]
    per_second = screen_table(
        ["a second", ">pushed", ">popped", ">acks", ">nacks", ">requests"],
        [["messages", *figures]],
        width,
    )
    stored = screen_table(
        # The first ones are kept on a narrow terminal.
        ["now", ">depth", ">lag", ">dead letters", *(f">{name}" for name in _LESS)],
        [
            [
                "messages",
                found.messages["depth"],
                duration(found.lag["seconds"]),
                found.messages["deadLetter"],
                *(found.messages[name] for name in _LESS),
            ]
        ],
        width,
    )
    room = max(1, height - 13)
    delayed = is_delayed(queues)
    rows = [
        [
            queue["name"],
            Text(
                count(queue["depth"]),
                style="yellow" if queue["depth"] > queue["scheduled"] else "dim",
            ),
            *([Text(count(queue["scheduled"]), style="dim")] if delayed else ()),
            age(queue["oldestDueAt"]),
            rate(queue["pushedPerSecond"]),
            rate(queue["ackedPerSecond"]),
            *slowest_group(queue),
            Text(count(queue["deadLetter"]), style="red" if queue["deadLetter"] else "dim"),
            queue["processing"],
            queue["stored"],
            queue["partitions"],
        ]
        for queue in queues[:room]
    ]
    deepest = screen_table(listed(queues), rows, width)
    more = found.queues - len(rows)
    foot = f"every {interval_s:g} s; q leaves" + (
        f"; {count(more)} more queues" if more > 0 else ""
    )
    blank = Text("")
    return Group(head, blank, per_second, blank, stored, blank, deepest, blank, Text(foot, "dim"))


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _q_was_pressed(seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([sys.stdin], [], [], left)
        if readable and os.read(sys.stdin.fileno(), 1).lower() in (b"q", b""):
            return True
    return False


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive one by one and are not echoed; Ctrl-C stays what it is."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
