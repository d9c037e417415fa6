"""Push the messages of the root-cause scenario and tell how fast they were stored.

    python bench/producer.py --url http://127.0.0.1:6632

1,000,000 messages `{"id": n}` go into 10 partitions, 10,000 a request, several requests at once but
one at a time for each partition, so that ids rise inside a partition. Every message carries a
UUIDv7 transaction id, as official clients send it.

Request bodies are encoded before the clock starts (`--encode live` includes it): what a producer
spends on its own messages is not the server's speed, and here it would take the server's cores. The
clock runs from the first push to the last answer; an answer must say of each item that it was
stored.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

if __package__ in (None, ""):  # run by its path: the folder above is where `bench` is
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import msgspec
from rich.console import Console

from bench import report, wire
from bench.check import Shares
from bench.client import Connection, RequestFailed, check_status, fetch, head_of, parse_url
from bench.core_seconds import CoreSeconds, Meter, find_supervisor
from bench.load import Board, Driven, Gate, drive

PUSH_PATH = "/api/v1/push"
DEFAULT_QUEUE = "benchmark-queue-01"


@dataclass(frozen=True)
class PushOptions:
    """A push of *shares* of messages into *queue*."""

    url: str
    queue: str
    shares: Shares
    batch: int
    connections: int = 4
    processes: int = 1
    encode: str = "ahead"  # or "live"


class PushShare(msgspec.Struct):
    """What one process did; times by the monotonic clock, which all processes share."""

    begin_ns: int
    end_ns: int
    bytes_sent: int
    push_ms: list[float]


@dataclass(frozen=True)
class PushResult:
    """What all of them did together."""

    message_count: int
    seconds: float
    bytes_sent: int
    push_ms: list[float]
    load_core_seconds: float
    server: CoreSeconds | None  # None when it runs elsewhere

    @property
    def rate(self) -> float:
        return self.message_count / self.seconds


def run(options: PushOptions, console: Console, meter: Meter | None) -> PushResult:
    """Push everything. Errors: `RequestFailed`."""
    read = meter.read if meter else CoreSeconds

    async def work(number: int, board: Board, gate: Gate) -> PushShare:
        return await _Process(options, number, board).run(gate)

    process_count = min(options.processes, options.shares.partition_count)
    driven: Driven[PushShare, CoreSeconds] = drive(
        work, process_count, options.shares.message_count, "push", console, read
    )
    parts = driven.results
    return PushResult(
        message_count=options.shares.message_count,
        seconds=(max(p.end_ns for p in parts) - min(p.begin_ns for p in parts)) / 1e9,
        bytes_sent=sum(p.bytes_sent for p in parts),
        push_ms=[ms for p in parts for ms in p.push_ms],
        load_core_seconds=driven.load_core_seconds,
        server=driven.after - driven.before if meter else None,
    )


class _Push(msgspec.Struct):
    """One request to make; `body` is None until it is encoded."""

    partition: int
    numbers: range
    body: bytes | None


_Lane = deque[_Push]  # what is left to push into one partition


class _Process:
    """One process's share: every n-th partition, over connections of its own."""

    def __init__(self, options: PushOptions, number: int, board: Board) -> None:
        self._options = options
        self._number = number
        self._board = board
        self._url = parse_url(options.url)
        self._mint = wire.IdMint()
        self._push_ms: list[float] = []
        self._bytes_sent = 0

    async def run(self, gate: Gate) -> PushShare:
        options = self._options
        partitions = range(self._number, options.shares.partition_count, options.processes)
        self._lanes = deque(self._lane(partition) for partition in partitions)
        count = max(1, min(options.connections // options.processes, len(self._lanes)))
        connections = [await Connection.open(self._url) for _ in range(count)]
        gate.pass_together()
        begin_ns = time.monotonic_ns()
        try:
            await asyncio.gather(*map(self._push_all, connections))
            return PushShare(begin_ns, time.monotonic_ns(), self._bytes_sent, self._push_ms)
        finally:
            for connection in connections:
                connection.close()

    def _lane(self, partition: int) -> _Lane:
        ids = self._options.shares.ids(partition)
        lane: _Lane = deque()
        for start in range(0, len(ids), self._options.batch):
            push = _Push(partition, ids[start : start + self._options.batch], None)
            if self._options.encode == "ahead":
                push.body = self._encode(push)
            lane.append(push)
        return lane

    def _encode(self, push: _Push) -> bytes:
        ids = self._mint.mint(len(push.numbers))
        return wire.push_body(self._options.queue, str(push.partition), push.numbers, ids)

    async def _push_all(self, connection: Connection) -> None:
        # A lane is out of the round while a push of it is under way: that keeps its order.
        while self._lanes:
            lane = self._lanes.popleft()
            if lane:
                await self._push(connection, lane.popleft())
                self._lanes.append(lane)

    async def _push(self, connection: Connection, push: _Push) -> None:
        body = push.body or self._encode(push)
        begin_ns = time.monotonic_ns()
        answer = await connection.request(head_of(self._url, "POST", PUSH_PATH, len(body)), body)
        self._push_ms.append((time.monotonic_ns() - begin_ns) / 1e6)
        check_status(answer, "push", 201)
        stored = wire.queued_count(answer.body)
        if stored != len(push.numbers):
            text = answer.body[:300].decode(errors="replace")
            raise RequestFailed(f"a push of {len(push.numbers)} messages stored {stored}: {text}")
        self._bytes_sent += len(body)
        self._board.add(self._number, stored)


def tables(options: PushOptions, result: PushResult) -> list[report.Table]:
    summary = report.Table(f"push into {options.queue!r}", ["", "value"])
    summary.rows = [
        ["messages", f"{result.message_count:,}"],
        ["seconds", f"{result.seconds:.2f}"],
        ["msg/s", f"{result.rate:,.0f}"],
        ["MB/s sent", f"{result.bytes_sent / result.seconds / 1e6:,.1f}"],
        *core_rows(result.message_count, result.load_core_seconds, result.server),
    ]
    latency = report.Table(f"{options.batch:,} a request", report.LATENCY_COLUMNS)
    latency.rows = [report.latency_row("push", result.push_ms)]
    return [summary, latency]


def core_rows(message_count: int, load: float, server: CoreSeconds | None) -> list[report.Row]:
    """Rows with the core-seconds per million messages of everybody that took part."""

    def row(name: str, seconds: float) -> report.Row:
        return [name, f"{report.per_million(seconds, message_count):.2f}"]

    rows = [row("core-seconds per million: load generator", load)]
    if server is not None:
        rows += [
            row("  supervisor and workers", server.python),
            row("  PostgreSQL", server.postgres),
            row("  others on the machine", max(0.0, server.machine - server.server - load)),
            ["busiest worker's share of the workers", f"{server.busiest_worker_share():.0%}"],
        ]
    return rows


def data(result: PushResult) -> dict[str, Any]:
    """The machine-readable form."""
    return {
        "messages_per_second": round(result.rate),
        "seconds": round(result.seconds, 4),
        "push_ms": report.quantiles(result.push_ms),
        "bytes_sent": result.bytes_sent,
        **core_data(result.load_core_seconds, result.server),
    }


def core_data(load: float, server: CoreSeconds | None) -> dict[str, Any]:
    """Core-seconds of everybody that took part, in all, not per million."""
    if server is None:
        return {"core_seconds": {"load_generator": round(load, 3)}}
    return {
        "core_seconds": {
            "load_generator": round(load, 3),
            "supervisor_and_workers": round(server.python, 3),
            "postgres": round(server.postgres, 3),
            "whole_machine": round(server.machine, 3),
        },
        "busiest_worker_share": round(server.busiest_worker_share(), 3),
    }


def local_meter(url: str) -> Meter | None:
    """A meter for the server at *url* when it runs on this machine, as far as one can see."""
    port = parse_url(url).port or 80
    supervisor = find_supervisor(port) if parse_url(url).hostname in _LOCAL else None
    return Meter(supervisor) if supervisor is not None else None


_LOCAL = ("127.0.0.1", "localhost", "::1")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that producer and consumer share, and must be given alike."""
    parser.add_argument("--url", default="http://127.0.0.1:6632", help="the server (%(default)s)")
    parser.add_argument("--queue", default=DEFAULT_QUEUE, help="%(default)s")
    parser.add_argument("--partitions", type=positive, default=10, help="%(default)s")
    parser.add_argument("--messages", type=positive, default=1_000_000, help="%(default)s in all")
    parser.add_argument("--batch", type=positive, default=10_000, help="%(default)s a request")
    parser.add_argument(
        "--processes", type=positive, default=1, help="of the load generator (%(default)s)"
    )


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench/producer.py", description="Push the messages of the root-cause scenario."
    )
    add_common_options(parser)
    parser.add_argument(
        "--connections", type=positive, default=4, help="pushes in flight (%(default)s)"
    )
    parser.add_argument(
        "--encode", choices=("ahead", "live"), default="ahead",
        help="make request bodies before the clock starts, or within (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="delete the queue first")
    given = parser.parse_args(arguments)
    console = Console()
    options = PushOptions(
        url=given.url,
        queue=given.queue,
        shares=Shares(given.messages, given.partitions),
        batch=given.batch,
        connections=given.connections,
        processes=given.processes,
        encode=given.encode,
    )
    try:
        url = parse_url(options.url)
        if given.fresh:
            path = f"/api/v1/resources/queues/{quote(options.queue, safe='')}"
            asyncio.run(fetch(url, "DELETE", path, 200, 204, 404))
        result = run(options, console, local_meter(options.url))
    except (RequestFailed, ValueError) as exc:
        console.print(f"FAILED: {exc}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    for table in tables(options, result):
        table.print(console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
