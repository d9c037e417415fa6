"""Consume what the producer pushed, check every message, and tell how fast it went.

    python bench/consumer.py --url http://127.0.0.1:6632 --mode partition

Ten consumers pop 10,000 messages at a time with a long poll and acknowledge each message by its id.
`--mode partition`: consumer i names partition i. `--mode queue`: all pop the queue and the server
shares its partitions out. That is the case in which the server of the original analysis collapsed.

The clock runs from the first pop to the last answer to an acknowledgement (with `--auto-ack`, to
the last message). The exit code is 1 when a message was lost, came twice or out of order.

Several of these commands may share a queue. Each checks the order and the duplicates of what it
received; that nothing is missing the server's count says: as many messages as expected are stored,
and the group has read them all. `--alone` expects every message here.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the folder above is where `bench` is
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import bench  # noqa: F401  # checks the installation, before packages are imported

from rich.console import Console

from bench import report
from bench.check import Shares, Verdict, judge
from bench.client import RequestFailed, parse_url
from bench.driver import Subscription
from bench.load import Load
from bench.loads import consuming
from bench.measure import PHASES, Measured, measure, metrics_of
from bench.producer import add_common_options, local_meter, positive, summary_rows
from bench.queen import Queen, stored_count, unread_count

MODES = ("partition", "queue")


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
    alone: bool = False

    async def is_read(self) -> bool:
        """Ask the server whether everything expected is stored and acknowledged."""
        if await unread_count(self.url, self.queue, self.group):
            return False
        return await stored_count(self.url, self.queue) >= self.shares.message_count


def run(options: PopOptions, console: Console) -> tuple[Measured, Verdict]:
    """Consume everything, or until nothing more comes. Errors: `RequestFailed`."""
    parse_url(options.url)
    partitions = options.shares.partitions
    subscriptions = [
        Subscription(
            options.queue,
            options.batch,
            partitions[number % len(partitions)] if options.mode == "partition" else None,
            group=options.group,
            auto_ack=options.auto_ack,
            wait_ms=options.wait_ms,
        )
        for number in range(options.consumers)
    ]
    count = min(options.processes, options.consumers)
    each = [subscriptions[part::count] for part in range(count)]
    works = [
        consuming(
            Queen(options.url),
            mine,
            first_number=sum(map(len, each[:part])),
            idle_limit_s=options.idle_limit_s,
            is_read=None if options.alone else options.is_read,
        )
        for part, mine in enumerate(each)
    ]
    total = options.shares.message_count
    load = Load(f"pop, {options.mode} mode", works, total, backlog_count=total)
    measured = measure(
        f"{options.mode} mode",
        load,
        console,
        local_meter(options.url),
        lambda: metrics_of(options.url),
    )
    verdict = judge(
        options.shares.lanes,
        measured.deliveries,
        [options.group or ""],
        handover=options.mode == "partition" or not options.auto_ack,
    )
    if verdict.lost_count and not options.alone and asyncio.run(options.is_read()):
        verdict = verdict.received_elsewhere()
    return measured, verdict


def tables(options: PopOptions, result: Measured) -> list[report.Table]:
    how = "committed on delivery" if options.auto_ack else "every message acknowledged by id"
    summary = report.Table(
        f"consumption of {options.queue!r}, {options.mode} mode, {how}", ["", "value"]
    )
    summary.rows = summary_rows(result)
    consumers = sorted((c for s in result.shares for c in s.consumers), key=lambda c: c.number)
    latency = report.Table(f"{options.batch:,} a request", report.LATENCY_COLUMNS)
    latency.rows = [
        report.latency_row("pop", [ms for c in consumers for ms in c.pop_ms]),
        report.latency_row("ack", [ms for c in consumers for ms in c.ack_ms]),
    ]
    each = report.Table(
        "each consumer",
        ["consumer", "messages", "pops", "empty", "pop p50", "pop p99", "ack p50", "ack p99"],
    )
    for consumer in consumers:
        pop, ack = report.quantiles(consumer.pop_ms), report.quantiles(consumer.ack_ms)
        each.rows.append(
            [str(consumer.number), f"{consumer.message_count:,}", f"{len(consumer.pop_ms):,}",
             f"{consumer.empty_count:,}", f"{pop['p50']:.1f}", f"{pop['p99']:.1f}",
             f"{ack['p50']:.1f}", f"{ack['p99']:.1f}"]
        )  # fmt: skip
    return [summary, latency, each, phases_table(result)]


def phases_table(result: Measured) -> report.Table:
    """Where the server says its pops spent their time; they run beside each other."""
    table = report.Table(
        "the server's pop phases", ["phase", "ms in all", "ms a pop", "s per million"]
    )
    for phase in PHASES:
        ms = result.phases_ms.get(phase, 0.0)
        table.rows.append(
            [phase, f"{ms:,.0f}", f"{ms / max(result.pop_count, 1):,.2f}",
             f"{result.cost(ms / 1000):,.2f}"]
        )  # fmt: skip
    return table


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
    parser.add_argument(
        "--alone", action="store_true",
        help="no other consumer shares the queue: a message that does not come here is lost",
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
        alone=given.alone,
    )
    try:
        result, verdict = run(options, console)
    except (RequestFailed, ValueError) as exc:
        console.print(f"FAILED: {exc}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    for table in tables(options, result):
        table.print(console)
    for line in verdict.lines:
        console.print(line, highlight=False, soft_wrap=True)
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
