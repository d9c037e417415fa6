"""Consume what the producer pushed, check every message, and tell how fast it went.

    python bench/consumer.py --url http://127.0.0.1:6632 --mode partition

Ten consumers pop 10,000 messages at a time with a long poll and acknowledge each message by its id.
`--mode partition`: consumer i names partition i. `--mode queue`: all pop the queue and the server
shares its partitions out. That is the case in which the server of the original analysis collapsed.

The clock runs from the first pop to the last answer to an acknowledgement (with `--auto-ack`, to
the last message). The exit code is 1 when a message was lost, came twice or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the folder above is where `bench` is
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import msgspec
from rich.console import Console

from bench import report, wire
from bench.check import Checker, Delivery, Shares, Verdict, runs_of
from bench.client import Connection, RequestFailed, check_status, fetch, head_of, parse_url
from bench.core_seconds import CoreSeconds, Meter
from bench.load import Board, Driven, Gate, drive
from bench.producer import add_common_options, core_data, core_rows, local_meter, positive

ACK_PATH = "/api/v1/ack/batch"
MODES = ("partition", "queue")
PHASES = ("wait", "lease", "query", "decode", "decrypt", "send")

_WATCH_S = 0.02  # how soon a process notices that all is done; no part of the measured time


@dataclass(frozen=True)
class PopOptions:
    """Consumption of *shares* of messages from *queue*."""

    url: str
    queue: str
    shares: Shares
    batch: int
    mode: str
    consumers: int = 10
    group: str | None = None
    auto_ack: bool = False
    wait_ms: int = 30_000
    idle_limit_s: float = 30.0
    processes: int = 1


class ConsumerShare(msgspec.Struct):
    """What one consumer did."""

    number: int
    message_count: int = 0
    bytes_received: int = 0
    empty_count: int = 0
    pop_ms: list[float] = []
    ack_ms: list[float] = []
    deliveries: list[Delivery] = []


class PopShare(msgspec.Struct):
    """What one process did; times by the monotonic clock, which all processes share."""

    begin_ns: int
    end_ns: int
    consumers: list[ConsumerShare]


class Metrics(msgspec.Struct):
    """What of GET /metrics is of interest here: totals since the server started."""

    popPhasesMs: dict[str, float]  # noqa: N815
    counters: dict[str, int] = {}


@dataclass(frozen=True)
class PopResult:
    """What all of them did together."""

    seconds: float
    consumers: list[ConsumerShare]
    phases_ms: dict[str, float]
    verdict: Verdict
    load_core_seconds: float
    server: CoreSeconds | None  # None when it runs elsewhere

    @property
    def message_count(self) -> int:
        return sum(consumer.message_count for consumer in self.consumers)

    @property
    def pop_count(self) -> int:
        """Pops that brought messages."""
        return sum(len(consumer.pop_ms) for consumer in self.consumers)

    @property
    def rate(self) -> float:
        return self.message_count / self.seconds


def run(options: PopOptions, console: Console, meter: Meter | None) -> PopResult:
    """Consume everything, or until nothing more comes. Errors: `RequestFailed`."""
    url = parse_url(options.url)

    def metrics() -> Metrics:
        body = asyncio.run(fetch(url, "GET", "/metrics", 200))
        return msgspec.json.decode(body, type=Metrics)

    def read() -> tuple[CoreSeconds, Metrics]:
        return (meter.read() if meter else CoreSeconds(), metrics())

    async def work(number: int, board: Board, gate: Gate) -> PopShare:
        return await _Process(options, number, board).run(gate)

    driven: Driven[PopShare, tuple[CoreSeconds, Metrics]] = drive(
        work,
        min(options.processes, options.consumers),
        options.shares.message_count,
        f"pop, {options.mode} mode",
        console,
        read,
    )
    (cores_before, metrics_before), (cores_after, metrics_after) = driven.before, driven.after
    parts = driven.results
    consumers = sorted((c for p in parts for c in p.consumers), key=lambda c: c.number)
    checker = Checker(options.shares, handover=options.mode == "partition" or not options.auto_ack)
    checker.add_all(delivery for c in consumers for delivery in c.deliveries)
    return PopResult(
        seconds=(max(p.end_ns for p in parts) - min(p.begin_ns for p in parts)) / 1e9,
        consumers=consumers,
        phases_ms={
            phase: metrics_after.popPhasesMs[phase] - metrics_before.popPhasesMs[phase]
            for phase in PHASES
        },
        verdict=checker.finish(),
        load_core_seconds=driven.load_core_seconds,
        server=cores_after - cores_before if meter else None,
    )


class _Process:
    """One process's share: every n-th consumer, each with a connection of its own."""

    def __init__(self, options: PopOptions, number: int, board: Board) -> None:
        self._options = options
        self._number = number
        self._board = board
        self._url = parse_url(options.url)
        self._end_ns = 0

    async def run(self, gate: Gate) -> PopShare:
        numbers = range(self._number, self._options.consumers, self._options.processes)
        shares = [ConsumerShare(number, pop_ms=[], ack_ms=[], deliveries=[]) for number in numbers]
        connections = [await Connection.open(self._url) for _ in shares]
        gate.pass_together()
        begin_ns = self._end_ns = time.monotonic_ns()
        consumers = [
            asyncio.create_task(self._consume(share, connection))
            for share, connection in zip(shares, connections, strict=True)
        ]
        watch = asyncio.create_task(self._watch())
        try:
            # Consumers never end by themselves: the first task to end is the watch or a failure.
            done, _ = await asyncio.wait([watch, *consumers], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for connection in connections:
                connection.close()  # the server takes back what a parked pop may be given
            for task in (watch, *consumers):
                task.cancel()
            await asyncio.gather(watch, *consumers, return_exceptions=True)
        return PopShare(begin_ns, self._end_ns, shares)

    async def _watch(self) -> None:
        """Wait until all messages are consumed, by whichever process, or nothing more comes."""
        options = self._options
        seen, seen_at = 0, time.monotonic()
        while (total := self._board.total()) < options.shares.message_count:
            if total != seen:
                seen, seen_at = total, time.monotonic()
            elif time.monotonic() - seen_at > options.idle_limit_s:
                return
            await asyncio.sleep(_WATCH_S)

    async def _consume(self, share: ConsumerShare, connection: Connection) -> None:
        options = self._options
        partition = None
        if options.mode == "partition":
            partition = str(share.number % options.shares.partition_count)
        head = head_of(
            self._url,
            "GET",
            wire.pop_path(
                options.queue, partition, batch=options.batch, group=options.group,
                wait_ms=options.wait_ms, auto_ack=options.auto_ack,
            ),
        )  # fmt: skip
        while True:
            begin_ns = time.monotonic_ns()
            answer = await connection.request(head)
            received_ns = time.monotonic_ns()
            check_status(answer, "pop", 200, 204)
            if answer.status == 204:
                share.empty_count += 1
                continue
            share.pop_ms.append((received_ns - begin_ns) / 1e6)
            share.bytes_received += len(answer.body)
            delivery = wire.pop_decoder.decode(answer.body)
            if delivery.partitionsClaimed != 1:
                raise RequestFailed(f"a pop claimed {delivery.partitionsClaimed} partitions, not 1")
            runs = runs_of([message.data.id for message in delivery.messages])
            share.deliveries.append(Delivery(received_ns, share.number, delivery.partition, runs))
            if not options.auto_ack:
                await self._acknowledge(share, connection, delivery)
            self._end_ns = time.monotonic_ns()
            share.message_count += len(delivery.messages)
            self._board.add(self._number, len(delivery.messages))

    async def _acknowledge(
        self, share: ConsumerShare, connection: Connection, delivery: wire.PopAnswer
    ) -> None:
        body = wire.ack_body(delivery, self._options.group)
        begin_ns = time.monotonic_ns()
        answer = await connection.request(head_of(self._url, "POST", ACK_PATH, len(body)), body)
        share.ack_ms.append((time.monotonic_ns() - begin_ns) / 1e6)
        check_status(answer, "ack", 200)
        succeeded = wire.succeeded_count(answer.body)
        if succeeded != len(delivery.messages):
            text = answer.body[:300].decode(errors="replace")
            raise RequestFailed(
                f"{succeeded} of {len(delivery.messages)} acknowledgements succeeded: {text}"
            )


def tables(options: PopOptions, result: PopResult) -> list[report.Table]:
    received = sum(consumer.bytes_received for consumer in result.consumers)
    how = "committed on delivery" if options.auto_ack else "every message acknowledged by id"
    summary = report.Table(
        f"consumption of {options.queue!r}, {options.mode} mode, {how}", ["", "value"]
    )
    summary.rows = [
        ["messages", f"{result.message_count:,}"],
        ["seconds", f"{result.seconds:.2f}"],
        ["msg/s", f"{result.rate:,.0f}"],
        ["MB/s received", f"{received / result.seconds / 1e6:,.1f}"],
        *core_rows(result.message_count, result.load_core_seconds, result.server),
    ]
    latency = report.Table(f"{options.batch:,} a request", report.LATENCY_COLUMNS)
    latency.rows = [
        report.latency_row("pop", [ms for c in result.consumers for ms in c.pop_ms]),
        report.latency_row("ack", [ms for c in result.consumers for ms in c.ack_ms]),
    ]
    each = report.Table(
        "each consumer",
        ["consumer", "messages", "pops", "empty", "pop p50", "pop p99", "ack p50", "ack p99"],
    )
    for consumer in result.consumers:
        pop, ack = report.quantiles(consumer.pop_ms), report.quantiles(consumer.ack_ms)
        each.rows.append(
            [str(consumer.number), f"{consumer.message_count:,}", f"{len(consumer.pop_ms):,}",
             f"{consumer.empty_count:,}", f"{pop['p50']:.1f}", f"{pop['p99']:.1f}",
             f"{ack['p50']:.1f}", f"{ack['p99']:.1f}"]
        )  # fmt: skip
    return [summary, latency, each, phases_table(result)]


def phases_table(result: PopResult) -> report.Table:
    """Where the server says its pops spent their time; they run beside each other."""
    table = report.Table(
        "the server's pop phases", ["phase", "ms in all", "ms a pop", "s per million"]
    )
    for phase in PHASES:
        ms = result.phases_ms[phase]
        table.rows.append(
            [phase, f"{ms:,.0f}", f"{ms / max(result.pop_count, 1):,.2f}",
             f"{report.per_million(ms / 1000, result.message_count):,.2f}"]
        )  # fmt: skip
    return table


def data(result: PopResult) -> dict[str, Any]:
    """The machine-readable form."""
    return {
        "messages_per_second": round(result.rate),
        "seconds": round(result.seconds, 4),
        "pop_ms": report.quantiles([ms for c in result.consumers for ms in c.pop_ms]),
        "ack_ms": report.quantiles([ms for c in result.consumers for ms in c.ack_ms]),
        "empty_pops": sum(c.empty_count for c in result.consumers),
        "messages_of_consumer": [c.message_count for c in result.consumers],
        "server_pop_phases_ms": {name: round(ms, 1) for name, ms in result.phases_ms.items()},
        **core_data(result.load_core_seconds, result.server),
    }


def verdict_lines(verdict: Verdict) -> list[str]:
    return [
        f"{verdict.seen_count:,} messages seen: {verdict.lost_count:,} lost, "
        f"{verdict.duplicate_count:,} duplicates, {verdict.disorder_count:,} out of order, "
        f"{verdict.foreign_count:,} unexpected",
        *verdict.complaints,
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench/consumer.py", description="Consume and check what bench/producer.py pushed."
    )
    add_common_options(parser)
    parser.add_argument("--mode", choices=MODES, default="partition", help="%(default)s")
    parser.add_argument("--consumers", type=positive, default=10, help="%(default)s")
    parser.add_argument("--group", help="consumer group (none)")
    parser.add_argument("--auto-ack", action="store_true", help="commit on delivery")
    parser.add_argument(
        "--timeout", type=positive, default=30_000, help="of the long poll, in ms (%(default)s)"
    )
    parser.add_argument(
        "--idle-limit", type=float, default=30.0,
        help="seconds without a message after which the rest counts as lost (%(default)s)",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    if given.mode == "partition" and given.consumers < given.partitions:
        parser.error("partition mode needs a consumer for each partition")
    console = Console()
    options = PopOptions(
        url=given.url,
        queue=given.queue,
        shares=Shares(given.messages, given.partitions),
        batch=given.batch,
        mode=given.mode,
        consumers=given.consumers,
        group=given.group,
        auto_ack=given.auto_ack,
        wait_ms=given.timeout,
        idle_limit_s=given.idle_limit,
        processes=given.processes,
    )
    try:
        result = run(options, console, local_meter(options.url))
    except (RequestFailed, ValueError) as exc:
        console.print(f"FAILED: {exc}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    for table in tables(options, result):
        table.print(console)
    for line in verdict_lines(result.verdict):
        console.print(line, highlight=False, soft_wrap=True)
    return 0 if result.verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
