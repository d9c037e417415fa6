"""The services that make old messages go: retention, eviction, and the clean-up behind them.

They run beside pushes and pops and must not be felt by them: everything is done in batches of a
few milliseconds, a batch is followed by a pause as long as it took, and a pass visits a bounded
number of partitions and goes on there the next time.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence

from queue_server.broker.groups import Groups
from queue_server.broker.wakeup import Rooms, wake_freed
from queue_server.domain.names import PartitionId
from queue_server.domain.options import QueueOptions
from queue_server.domain.retention import Rule
from queue_server.storage import leases, retention, series
from queue_server.storage.retention import QueueRule, Span
from queue_server.storage.transactions import Transactions

# Partitions that one statement visits. One with nothing to drop costs about 5 microseconds.
STEP_PARTITIONS = 1000
# Leases that one statement visits, at about 3 microseconds each.
STEP_LEASES = 1000
SWEEP_INTERVAL_S = 3600
# Partitions that one pass visits: with more, a round takes several passes, each of some 50 ms.
PASS_PARTITIONS = 20_000

DAY_S = 24 * 3600
HISTORY_AGE_S = 90 * DAY_S
# A group that popped a queue which does not exist, and has not asked again since.
EXPECTED_GROUP_AGE_S = 7 * DAY_S

_BEGIN = PartitionId(0)


async def _pause(begin: float) -> None:
    """Rest as long as the work since *begin* took: at most half of one connection's time."""
    await asyncio.sleep(time.perf_counter() - begin)


async def drop_all(transactions: Transactions, spans: Sequence[Span], batch_size: int) -> int:
    """Drop *spans* batch by batch; how many segments went."""
    count = 0
    while spans:
        begin = time.perf_counter()
        dropped = await retention.drop(transactions, spans, batch_size)
        count += dropped.segment_count
        spans = dropped.left
        await _pause(begin)
    return count


class MessageRetention:
    """Applies one kind of rule to the queues that have one.

    Interval: RETENTION_INTERVAL or EVICTION_INTERVAL. Batch: *batch_size* segments.
    """

    def __init__(
        self,
        name: str,
        transactions: Transactions,
        rooms: Rooms,
        rule_of: Callable[[QueueOptions], Rule | None],
        batch_size: int,
    ) -> None:
        self.name = name
        self._transactions = transactions
        self._rooms = rooms
        self._rule_of = rule_of
        self._batch_size = batch_size
        # Where the next pass begins: a queue, and the partition it goes on behind.
        self._queue_id = ""
        self._after = _BEGIN

    async def run_once(self) -> Mapping[str, int]:
        """Visit up to PASS_PARTITIONS partitions; messages taken out, segments dropped."""
        queues = [
            QueueRule(queue_id, rule)
            for queue_id, options in await retention.queues_with_rules(self._transactions)
            if (rule := self._rule_of(options)) is not None and queue_id >= self._queue_id
        ]
        after = self._after if queues and queues[0].queue_id == self._queue_id else _BEGIN
        self._queue_id, self._after = "", _BEGIN
        messages = segments = 0
        for _ in range(0, PASS_PARTITIONS, STEP_PARTITIONS):
            if not queues:
                break
            begin = time.perf_counter()
            expired, place = await retention.find_expired(
                self._transactions, queues, after, STEP_PARTITIONS
            )
            if expired:
                raised = await retention.raise_low_watermarks(self._transactions, expired)
                messages += raised.message_count
                await wake_freed(self._transactions, self._rooms, raised.freed)
                await _pause(begin)
                segments += await drop_all(self._transactions, raised.spans, self._batch_size)
            else:
                await _pause(begin)
            queues = [] if place is None else queues[place.queue :]
            after = _BEGIN if place is None else place.after
        if queues:
            self._queue_id, self._after = queues[0].queue_id, after
        return {"messages": messages, "segments": segments}


class Cleanup:
    """Removes what is of no more use: idle partitions, old traces and figures, what crashes left.

    Interval: a minute. Batch: *batch_size* segments, traces or entries.
    """

    name = "cleanup"

    def __init__(
        self,
        transactions: Transactions,
        groups: Groups,
        *,
        idle_days: int,
        group_expire_s: int,
        trace_age_s: int,
        series_age_s: int,
        batch_size: int,
    ) -> None:
        self._transactions = transactions
        self._groups = groups
        self._idle_s = idle_days * DAY_S  # 0 = partitions stay
        self._group_expire_s = group_expire_s  # 0 = groups stay
        self._trace_age_s = trace_age_s
        self._series_age_s = series_age_s
        self._batch_size = batch_size
        self._after = _BEGIN
        self._sweep_due = 0.0

    async def run_once(self) -> Mapping[str, int]:
        """Visit up to PASS_PARTITIONS partitions, and delete what is old beside them."""
        segments = partitions = 0
        for _ in range(0, PASS_PARTITIONS, STEP_PARTITIONS):
            begin = time.perf_counter()
            spans, place = await retention.find_leftovers(
                self._transactions, self._after, STEP_PARTITIONS
            )
            segments += await drop_all(self._transactions, spans, self._batch_size)
            if self._idle_s:
                removed, _ = await retention.remove_idle_partitions(
                    self._transactions, self._after, STEP_PARTITIONS, self._idle_s
                )
                partitions += removed
            await _pause(begin)
            self._after = _BEGIN if place is None else place
            if place is None:
                break
        return {
            "segments": segments,
            "partitions": partitions,
            "groups": await self._groups.expire(self._group_expire_s)
            if self._group_expire_s
            else 0,
            "cursors": await self._groups.clear_remains(),
            "traces": await self._delete_all(retention.delete_old_traces, self._trace_age_s),
            "history": await self._delete_all(retention.delete_old_history, HISTORY_AGE_S),
            "expected_groups": await self._delete_all(
                retention.delete_old_expected_groups, EXPECTED_GROUP_AGE_S
            ),
            "minutes": await self._delete_all(series.delete_old_worker_minutes, self._series_age_s)
            + await self._delete_all(series.delete_old_queue_minutes, self._series_age_s),
            "leases": await self._sweep_leases(),
        }

    async def _sweep_leases(self) -> int:
        """All of them, once an hour, as few are left behind.

        While an old snapshot is kept it also passes over what was deleted since, so it comes last.
        """
        if time.monotonic() < self._sweep_due:
            return 0
        self._sweep_due = time.monotonic() + SWEEP_INTERVAL_S
        total = 0
        after: uuid.UUID | None = None
        while True:
            begin = time.perf_counter()
            count, after = await leases.sweep(self._transactions, after, STEP_LEASES)
            total += count
            if after is None:
                return total
            await _pause(begin)

    async def _delete_all(
        self, delete: Callable[[Transactions, int, int], Awaitable[int]], age_s: int
    ) -> int:
        total = 0
        while True:
            begin = time.perf_counter()
            count = await delete(self._transactions, age_s, self._batch_size)
            total += count
            if count < self._batch_size:
                return total
            await _pause(begin)
