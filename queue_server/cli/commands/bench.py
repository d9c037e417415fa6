"""`bench`: a small load for a server that runs, to see whether it does what one expects.

It measures server, network and this one client together: threads of one Python process, which are
at their own limit long before a large server is. The project's benchmark is `make bench`.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer

from queue_server.cli.client import Client, segment
from queue_server.cli.exits import CliError
from queue_server.cli.output import count
from queue_server.cli.session import Session, server_command

_POP_BATCH = 1000


class Phase(msgspec.Struct, rename="camel"):
    """What one phase did."""

    messages: int
    requests: int
    seconds: float
    per_second: float
    request_ms: dict[str, float]  # p50, p95, p99


class _Tally:
    """What the threads of a phase did."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.messages = 0
        self.times_s: list[float] = []
        self.error: Exception | None = None

    def add(self, messages: int, took_s: float) -> None:
        with self.lock:
            self.messages += messages
            self.times_s.append(took_s)

    def phase(self, seconds: float) -> Phase:
        times = sorted(self.times_s) or [0.0]
        return Phase(
            messages=self.messages,
            requests=len(self.times_s),
            seconds=round(seconds, 3),
            per_second=round(self.messages / max(seconds, 1e-9), 1),
            request_ms={
                f"p{share}": round(times[min(len(times) - 1, len(times) * share // 100)] * 1000, 2)
                for share in (50, 95, 99)
            },
        )


def add_to(app: typer.Typer) -> None:
    server_command(app, "bench")(bench)


def bench(
    session: Session,
    messages: Annotated[
        int, typer.Option("--messages", "-n", min=1, max=1_000_000, help="So many in all.")
    ] = 10_000,
    clients: Annotated[
        int, typer.Option("--clients", "-c", min=1, max=64, help="Threads, each with a connection.")
    ] = 4,
    batch: Annotated[
        int, typer.Option("--batch", "-b", min=1, max=10_000, help="Messages of one push.")
    ] = 100,
    size: Annotated[
        int, typer.Option("--size", min=2, max=1_000_000, help="Bytes of a payload.")
    ] = 100,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, max=300, help="Give up a phase after so long.")
    ] = 30,
) -> None:
    """Put a small, bounded load on a server.

    Push, then pop and acknowledge, all counted. It works on a queue of its own, `bench-…`, with a
    partition for each client, and deletes it in the end (which needs an admin's credential). It
    measures server, network and this one client together, whose threads share one CPU: a figure to
    compare with itself. What the server can do is measured by `make bench` in a checkout
    (bench/README.md).

    With --json: `{"queue", "push", "consume"}`, each phase with `messages`, `requests`, `seconds`,
    `perSecond` and `requestMs` (p50, p95, p99).

    \b
    Examples:
      queue-server bench
      queue-server bench --messages 100000 --batch 1000 --clients 8 --url http://10.0.0.5:6632
    """
    queue = f"bench-{uuid.uuid4().hex[:12]}"
    payload = "x" * (size - 2)
    share = [messages // clients + (n < messages % clients) for n in range(clients)]

    def produce(client: Client, number: int, tally: _Tally, deadline: float) -> None:
        sent = 0
        while sent < share[number] and time.monotonic() < deadline:
            items = [
                {
                    "queue": queue,
                    "partition": f"p{number}",
                    "payload": payload,
                    "transactionId": f"{number}-{n}",
                }
                for n in range(sent, min(sent + batch, share[number]))
            ]
            began = time.monotonic()
            client.request("POST", "/api/v1/push", body={"items": items}, repeatable=True)
            tally.add(len(items), time.monotonic() - began)
            sent += len(items)

    def consume(client: Client, number: int, tally: _Tally, deadline: float) -> None:
        path = f"/api/v1/pop/queue/{segment(queue)}/partition/p{number}"
        while time.monotonic() < deadline:
            began = time.monotonic()
            answer = client.request("GET", path, {"batch": _POP_BATCH})
            if answer is None:
                return
            last = answer["messages"][-1]
            result = client.request(
                "POST",
                "/api/v1/ack",
                body={name: last[name] for name in ("transactionId", "partitionId", "leaseId")},
            )[0]
            if not result["success"]:
                raise CliError(f"an acknowledgement was refused: {result['error']}")
            tally.add(len(answer["messages"]), time.monotonic() - began)

    session.client.request("POST", "/api/v1/configure", body={"queue": queue}, repeatable=True)
    try:
        pushed = _run(session, clients, produce, seconds)
        consumed = _run(session, clients, consume, seconds)
    finally:
        with contextlib.suppress(CliError):
            session.client.request("DELETE", f"/api/v1/resources/queues/{segment(queue)}")
    if session.json:
        session.out.value({"queue": queue, "push": pushed, "consume": consumed})
    else:
        _report(session, pushed, consumed)
    if not pushed.messages == consumed.messages == messages:
        raise CliError(
            f"{count(pushed.messages)} of {count(messages)} messages were pushed and"
            f" {count(consumed.messages)} consumed",
            "a phase was given up after --seconds, or messages are missing",
        )


def _run(
    session: Session,
    clients: int,
    work: Callable[[Client, int, _Tally, float], None],
    seconds: float,
) -> Phase:
    tally = _Tally()
    began = time.monotonic()

    def run(number: int) -> None:
        client = session.new_client()
        try:
            work(client, number, tally, began + seconds)
        except Exception as exc:
            tally.error = exc
        finally:
            client.close()

    threads = [
        threading.Thread(target=run, args=(number,), daemon=True) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if tally.error is not None:
        raise tally.error
    return tally.phase(time.monotonic() - began)


def _report(session: Session, pushed: Phase, consumed: Phase) -> None:
    def row(name: str, phase: Phase) -> list[Any]:
        return [
            name,
            phase.messages,
            f"{phase.seconds:.2f}",
            f"{phase.per_second:,.0f}",
            *(f"{ms:.1f}" for ms in phase.request_ms.values()),
        ]

    session.out.figures(
        ["", ">messages", ">seconds", ">a second", ">request p50 ms", ">p95", ">p99"],
        [row("push", pushed), row("pop and ack", consumed)],
    )
    session.out.notice(
        ("server, network and this client together; make bench measures a server", "dim")
    )
