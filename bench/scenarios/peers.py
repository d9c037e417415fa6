"""Our server and other brokers under the same load, on the same machine, in the same run.

The load is the canonical one: 256 bytes a message, 100 a push into one of 200 lanes, 32 pushes in
flight, 8 consumers that take at most 1000 at once and acknowledge all of them, push and pop at the
same time, until everything that was pushed is acknowledged. Everybody is durable, but for the one
that says otherwise: a push is answered when its messages are on the disk. How a batch and an
acknowledgement look is each broker's own (`bench/peers/`), and stated in the result. A peer that is
not installed is listed with what to do.

Checked after each: pushed = popped = acknowledged, nothing twice, the order of each lane where the
peer promises one, and that the peer itself holds nothing that is not acknowledged.

A broker that takes messages faster than it gives them has a backlog to drain when pushing ends,
which is part of its time. It pushes for as long as is enough to get past the start.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench import measure, report
from bench.check import judge
from bench.driver import Driver, Subscription
from bench.load import Load
from bench.loads import Pushes, consuming, endless_lanes, producing
from bench.measure import Measured
from bench.peers import SHARES, Peer, Running
from bench.peers.table import PEERS
from bench.report import Table
from bench.scenarios import Context, Run, Scenario, count_of

_PAYLOAD_BYTES = 256
_PARTITIONS = 200
_PUSH_BATCH = 100
_POP_BATCH = 1000
_POP_PARTITIONS = 10
_CONNECTIONS = 32
_IDLE_LIMIT_S = 60.0  # a queue in a table may take long for a pop from a long backlog
_OURS = "queue-server"


@dataclass(frozen=True)
class _Size:
    seconds: float
    # The tests run the small size, and must not depend on what else a machine has installed.
    peers: bool = True


_SIZES = {"small": _Size(1, peers=False), "quick": _Size(5), "full": _Size(30)}


def run(context: Context) -> Run:
    found = Run()
    with context.server() as server:
        queue = context.queue(server, "peers")
        wanted = [Subscription(queue, _POP_BATCH, partitions=_POP_PARTITIONS)] * SHARES
        load = _load(context, _OURS, queue, context.driver(server), wanted)
        work = context.measure(server, _OURS, load)
    context.verify(found, _OURS, work.pushed, work)
    _note(found, work)
    if context.pick(_SIZES).peers:
        for peer in PEERS:
            if peer.missing() is None:
                _run_peer(context, found, peer)
    return found


def _run_peer(context: Context, found: Run, peer: Peer) -> None:
    home = Path(tempfile.mkdtemp(prefix="queue-bench-peer-", dir=context.data_parent))
    try:
        with peer.running(home) as running:
            work = _measure(context, peer, running)
            unfinished = running.unfinished()
    finally:
        shutil.rmtree(home, ignore_errors=True)
    verify(found, f"{peer.name}, run {context.number + 1}", peer.is_ordered, work, unfinished)
    _note(found, work)


def _measure(context: Context, peer: Peer, running: Running) -> Measured:
    # Each consumer names its share of the lanes; a peer without shares takes no notice.
    wanted = [Subscription("bench", _POP_BATCH, str(share)) for share in range(SHARES)]
    name = f"{peer.name} {running.version}"
    load = _load(context, name, "bench", running.driver, wanted)
    before = sum(clients.read().server for clients in running.clients)
    work = measure.measure(name, load, context.console, running.broker)
    more = sum(clients.read().server for clients in running.clients) - before
    return replace(work, load_core_seconds=work.load_core_seconds + more)


def _load(
    context: Context, title: str, queue: str, driver: Driver, wanted: Sequence[Subscription]
) -> Load:
    seconds = context.pick(_SIZES).seconds
    lanes = endless_lanes(_PARTITIONS)
    pushes = Pushes(queue, lanes, _PUSH_BATCH, _CONNECTIONS, _PAYLOAD_BYTES, seconds=seconds)
    works = [
        producing(driver, pushes),
        consuming(driver, wanted, idle_limit_s=_IDLE_LIMIT_S),
    ]
    return Load(title, works, seconds=seconds)


def verify(found: Run, name: str, is_ordered: bool, work: Measured, unfinished: int) -> None:
    """Check a peer's work; *unfinished* is what the peer itself says is not acknowledged."""
    verdict = judge(work.pushed, work.deliveries)
    if not is_ordered:
        verdict = replace(verdict, disorder_count=0)
    pushed, popped = count_of(work.pushed), work.popped_count
    ok = verdict.ok and pushed == popped == work.acknowledged_count and not unfinished
    # Without an order the complaints would be about nothing else.
    lines = verdict.lines if is_ordered or not ok else verdict.lines[:1]
    order = "" if is_ordered else "; promises no order"
    found.check(
        name,
        ok,
        f"pushed {pushed:,}, popped {popped:,}, acknowledged {work.acknowledged_count:,}, "
        f"left at the peer {unfinished:,}{order}; " + "; ".join(lines),
    )


def _note(found: Run, work: Measured) -> None:
    found.add(work)
    begun, ended = min(share.begin_ns for share in work.shares), work.shares[0].end_ns
    found.figures[f"{work.name}: push msg/s"] = work.pushed_count / ((ended - begun) / 1e9)


def table(runs: Sequence[Run]) -> Table:
    """Everybody in one table; ratios are taken within a run."""
    made = Table(
        "medians; core-seconds per million messages by whom; ours / theirs within each run",
        ["system", "messages", "msg/s", "push msg/s", "broker", "database", "both", "client",
         "others", "ours / theirs: msg/s", "core-s"],
    )  # fmt: skip
    for at, first in enumerate(runs[0].works):
        works = [run.works[at] for run in runs]
        ours = [run.works[0] for run in runs]
        costs = [work.costs() for work in works]
        pairs = list(zip(ours, works, strict=True))
        rates = [mine.rate / theirs.rate for mine, theirs in pairs]
        ratios = [mine.server_cost / max(theirs.server_cost, 1e-9) for mine, theirs in pairs]
        pushes = [run.figures[f"{first.name}: push msg/s"] for run in runs]
        made.rows.append(
            [first.name, f"{median(work.message_count for work in works):,.0f}",
             f"{median(work.rate for work in works):,.0f}",
             f"{median(pushes):,.0f}",
             *(f"{median(cost[who] for cost in costs):.2f}" for who in costs[0]),
             report.number(median(rates)), report.number(median(ratios))]
        )  # fmt: skip
    measured = {work.name.rpartition(" ")[0] for work in runs[0].works}  # without versions
    for peer in PEERS:
        if peer.name not in measured:
            how = peer.missing()
            text = f"not installed: {how}" if how else "not at this size"
            made.rows.append([f"{peer.name} ({text})", *["-"] * (len(made.columns) - 1)])
    return made


SCENARIO = Scenario(
    13,
    "peers",
    "other brokers under the canonical load",
    run,
    _SIZES,
    settings={
        "payload bytes": _PAYLOAD_BYTES,
        "messages a push": _PUSH_BATCH,
        "pushes in flight": _CONNECTIONS,
        "consumers": SHARES,
        _OURS: f"fsync on, synchronous_commit on, deduplication on; a pop takes {_POP_BATCH} of at "
        f"most {_POP_PARTITIONS} partitions, every message acknowledged by its id in one request",
        **{peer.name: peer.settings for peer in PEERS},
    },
    table=table,
)
