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
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

if __package__ in (None, ""):  # run by its path: the folder above is where `bench` is
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import bench  # noqa: F401  # checks the installation, before packages are imported

from rich.console import Console

from bench import report
from bench.check import Shares
from bench.client import RequestFailed, fetch, parse_url
from bench.core_seconds import Meter, find_supervisor
from bench.load import Load
from bench.loads import Pushes, part_of, producing
from bench.measure import Measured, measure
from bench.queen import Queen

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


def run(options: PushOptions, console: Console) -> Measured:
    """Push everything. Errors: `RequestFailed`."""
    parse_url(options.url)
    count = min(options.processes, options.shares.partition_count)
    works = [
        producing(
            Queen(options.url),
            Pushes(
                options.queue,
                part_of(options.shares.lanes, part, count),
                options.batch,
                max(1, options.connections // count),
                encode_ahead=options.encode == "ahead",
            ),
        )
        for part in range(count)
    ]
    load = Load("push", works, options.shares.message_count)
    return measure("push", load, console, local_meter(options.url))


def tables(options: PushOptions, result: Measured) -> list[report.Table]:
    summary = report.Table(f"push into {options.queue!r}", ["", "value"])
    summary.rows = summary_rows(result)
    latency = report.Table(f"{options.batch:,} a request", report.LATENCY_COLUMNS)
    latency.rows = [report.latency_row("push", result.latencies_ms()["push"])]
    return [summary, latency]


def summary_rows(result: Measured) -> list[report.Row]:
    """How many, how fast, and the core-seconds per million messages of everybody."""
    rows = [
        ["messages", f"{result.message_count:,}"],
        ["seconds", f"{result.seconds:.2f}"],
        ["msg/s", f"{result.rate:,.0f}"],
        ["MB/s", f"{result.bytes_moved / result.seconds / 1e6:,.1f}"],
    ]
    costs = result.costs()
    rows.append(["core-seconds per million: load generator", f"{costs['load_generator']:.2f}"])
    if result.server is not None:
        rows += [
            ["  supervisor and workers", f"{costs['workers']:.2f}"],
            ["  PostgreSQL", f"{costs['postgres']:.2f}"],
            ["  others on the machine", f"{costs['others']:.2f}"],
            [
                "busiest worker's share of the workers",
                f"{result.server.busiest_worker_share():.0%}",
            ],
            ["largest worker, MB", f"{result.worker_peak_bytes / 1e6:.0f}"],
        ]
    return rows


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
        result = run(options, console)
    except (RequestFailed, ValueError) as exc:
        console.print(f"FAILED: {exc}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    for table in tables(options, result):
        table.print(console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
