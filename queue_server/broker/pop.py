"""Hands out messages: try, wait for a wake-up or the deadline, try again.

No database connection is held while a consumer waits or while its answer is sent. A claim whose
consumer has gone is given back, so a message is never leased to nobody.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from queue_server.broker.coalescer import Coalescer
from queue_server.broker.directory import Directory
from queue_server.broker.wakeup import News, Room, RoomKey, Rooms
from queue_server.domain.errors import QueueServerError, Unavailable
from queue_server.domain.names import (
    ConsumerGroup,
    PartitionId,
    PartitionKey,
    PartitionName,
    PartitionRef,
    QueueName,
    SubscriptionId,
)
from queue_server.domain.segment import OpenSegment
from queue_server.domain.subscription import Start
from queue_server.observability.counters import Counter, Row
from queue_server.storage import leases, queues
from queue_server.storage.leases import ANY_PARTITION, Claim, Claimed, ClaimRequest, Run, Waiting
from queue_server.storage.messages import read_segments
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

# Pops that share a transaction. Their leases become visible together, and the first answer waits
# for the last claim, so not too many.
_FLUSH_POPS_MAX = 64
_WAITING_POPS_MAX = 20_000

# Opened segments that a worker keeps for pops much smaller than a segment.
_CACHE_BYTES_MAX = 32 * 1024 * 1024

# How long a parked pop waits at most for news that nobody told it. Also how late the end of a lease
# that another worker granted may be noticed.
_FLOOR_POLL_S = 1.0
# The floor poll may take this part of a core, whatever the number of rooms.
_FLOOR_POLL_SHARE = 0.02
# How often groups in use forget quiet partitions, and how many each time.
_SWEEP_S = 5.0
_SWEEP_PARTITIONS_MAX = 1000

_RESOLVE_ATTEMPTS_MAX = 5
# A pop of a partition that does not exist yet, or during an outage, looks again this often.
_UNRESOLVED_NAP_S = 2.0


class PopRequest(msgspec.Struct, frozen=True):
    """What a consumer asks for. `partition` None = any; `wait_ms` 0 = do not wait."""

    queue: QueueName
    group: ConsumerGroup
    partition: PartitionName | None
    start: Start
    message_limit: int
    partition_limit: int
    lease_seconds: int
    auto_ack: bool
    wait_ms: int


class Delivery(msgspec.Struct):
    """Messages leased to a consumer; `lease_id` is None when they are committed already."""

    lease_id: uuid.UUID | None
    claims: list[Claim]
    partitions: dict[PartitionId, PartitionRef]

    @property
    def message_count(self) -> int:
        return sum(run.end - run.start for claim in self.claims for run in claim.runs)


class Popper:
    """Serves pops."""

    def __init__(
        self, transactions: Transactions, directory: Directory, rooms: Rooms, counters: Row
    ) -> None:
        self._transactions = transactions
        self._directory = directory
        self._rooms = rooms
        self._counters = counters
        self._coalescer: Coalescer[ClaimRequest, tuple[uuid.UUID, Claimed]] = Coalescer(
            "pop",
            self._flush,
            flush_weight_max=_FLUSH_POPS_MAX,
            waiting_weight_max=_WAITING_POPS_MAX,
            abandon=self._abandon,
        )
        self._segments = SegmentCache(_CACHE_BYTES_MAX)
        # Where each group's round over the partitions goes on in this worker. It begins anywhere,
        # so that workers spread.
        self._rounds: dict[SubscriptionId, PartitionId] = {}
        self._in_use: set[SubscriptionId] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- a pop --

    async def pop(self, request: PopRequest) -> Delivery | None:
        """Lease messages to a consumer, waiting for them when it asked to.

        Shape: None when there is nothing, for every reason. The caller must `give_back` a delivery
        that it could not send.
        Units: the wait ends after `request.wait_ms`.
        Errors: `BadRequest` for a name that cannot exist, `Unavailable`.
        """
        deadline = time.monotonic() + request.wait_ms / 1000
        key = RoomKey(request.queue, request.group, request.partition)
        with self._rooms.enter(key) as room:
            while True:
                news_count = room.news_count
                begin = time.perf_counter_ns()
                try:
                    delivery = await self._claim(request, room)
                except Unavailable:
                    # The database is away for a moment: who asked to wait waits for its return.
                    if not self._may_wait(deadline):
                        raise
                    delivery = None
                self._spend(Counter.POP_LEASE_US, begin)
                if delivery is not None or not self._may_wait(deadline):
                    return delivery
                begin = time.perf_counter_ns()
                await room.sleep(news_count, self._nap_s(room, deadline))
                self._spend(Counter.POP_WAIT_US, begin)
                if not self._may_wait(deadline):
                    return None

    @staticmethod
    def _nap_s(room: Room, deadline: float) -> float:
        """How long to sleep before looking again without news."""
        left_s = deadline - time.monotonic()
        if room.partition_id is None or room.subscription_id is None:
            # The floor poll cannot ask for what it has no id for: look again ourselves.
            return min(left_s, _UNRESOLVED_NAP_S * random.uniform(0.5, 1))
        return left_s

    def _may_wait(self, deadline: float) -> bool:
        return not self._rooms.draining and time.monotonic() < deadline

    async def _claim(self, request: PopRequest, room: Room) -> Delivery | None:
        subscription_id: SubscriptionId | None
        for _ in range(_RESOLVE_ATTEMPTS_MAX):
            if request.partition is None:
                partition_id = ANY_PARTITION
                subscription_id = await self._directory.subscribe(
                    request.queue, request.group, request.start
                )
            else:
                partition = await self._directory.find_partition(
                    PartitionKey(request.queue, request.partition)
                )
                if partition is None:
                    return None
                partition_id = partition.id
                subscription_id = await self._directory.subscribe_to_partition(
                    partition, request.group, request.start
                )
                if subscription_id is None:
                    continue
            room.subscription_id, room.partition_id = subscription_id, partition_id
            lease_id, claimed = await self._coalescer.submit(
                ClaimRequest(
                    subscription_id=subscription_id,
                    partition_id=partition_id,
                    start_after=self._rounds.get(subscription_id, ANY_PARTITION),
                    message_limit=request.message_limit,
                    partition_limit=request.partition_limit,
                    lease_seconds=request.lease_seconds,
                    lease_id=uuid.uuid4(),
                    auto_ack=request.auto_ack,
                )
            )
            if claimed.unknown_subscription:
                self._directory.forget_queue(request.queue)
            elif claimed.no_cursor:
                await queues.seed_cursor(
                    self._transactions, subscription_id, partition_id, request.start
                )
            elif not claimed.claims:
                return None
            else:
                return await self._deliver(subscription_id, lease_id, claimed, request)
        raise Unavailable("the queue is being deleted again and again; try later")

    async def _deliver(
        self,
        subscription_id: SubscriptionId,
        lease_id: uuid.UUID,
        claimed: Claimed,
        request: PopRequest,
    ) -> Delivery | None:
        self._in_use.add(subscription_id)
        self._rounds[subscription_id] = claimed.claims[-1].partition_id
        delivery = Delivery(None if request.auto_ack else lease_id, claimed.claims, {})
        try:
            delivery.partitions = await self._directory.name_partitions(
                [claim.partition_id for claim in claimed.claims]
            )
        except BaseException:
            self.give_back(delivery)
            raise
        # A queue that was deleted since has nothing to deliver.
        delivery.claims = [c for c in delivery.claims if c.partition_id in delivery.partitions]
        return delivery if delivery.claims else None

    async def _flush(self, requests: Sequence[ClaimRequest]) -> list[tuple[uuid.UUID, Claimed]]:
        self._counters.add(Counter.POP_TRANSACTIONS)
        answers = await leases.claim(self._transactions, requests)
        return [(r.lease_id, answer) for r, answer in zip(requests, answers, strict=True)]

    # -- an answer --

    async def chunks(
        self, delivery: Delivery, claim_text: Callable[[Claim, Run], bytes]
    ) -> AsyncIterator[bytes]:
        """The messages of a delivery, a bounded number at a time.

        Shape: comma-separated JSON objects; *claim_text* gives what all messages of a run have in
        common. At most one opened segment is held while the consumer takes a chunk.
        Errors: `Unavailable` when a body cannot be read.
        """
        first = True
        for claim in delivery.claims:
            for run in claim.runs:
                segment = await self._open(claim.partition_id, run)
                if segment is None:
                    continue  # deleted since: nothing to hand out
                begin = time.perf_counter_ns()
                text = segment.run(run.start, run.end, claim_text(claim, run))
                self._spend(Counter.POP_DECODE_US, begin)
                del segment
                yield text if first else b"," + text
                first = False

    async def _open(self, partition_id: PartitionId, run: Run) -> OpenSegment | None:
        key = (partition_id, run.base_offset)
        segment = self._segments.get(key)
        if segment is not None:
            run.body = None
            return segment
        body = run.body
        run.body = None
        if body is None:
            begin = time.perf_counter_ns()
            stored = await read_segments(self._transactions, [key])
            self._spend(Counter.POP_QUERY_US, begin)
            if not stored:
                return None
            body = stored[0].body
        begin = time.perf_counter_ns()
        segment = OpenSegment(run.base_offset, run.next_offset, run.codec, body)
        self._spend(Counter.POP_DECODE_US, begin)
        if run.end < run.next_offset:
            # Somebody will ask for the rest.
            self._segments.put(key, segment)
        return segment

    # -- giving back --

    def give_back(self, delivery: Delivery) -> None:
        """Release what nobody received; it is done in the background."""
        if delivery.lease_id is not None and delivery.claims:
            self._release(delivery.lease_id)

    def _abandon(self, answer: tuple[uuid.UUID, Claimed]) -> None:
        lease_id, claimed = answer
        if claimed.claims:
            self._release(lease_id)

    def _release(self, lease_id: uuid.UUID) -> None:
        task = asyncio.create_task(self._release_now(lease_id), name="give-back")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _release_now(self, lease_id: uuid.UUID) -> None:
        try:
            released = await leases.release(self._transactions, [lease_id])
            self._counters.add(Counter.LEASES_GIVEN_BACK, len(released))
            partitions = await self._directory.name_partitions([id_ for id_, _ in released])
        except QueueServerError as exc:
            logger.warning("a lease is left to expire", extra={"error": str(exc)})
            return
        self._rooms.tell([News(p.queue, p.partition) for p in partitions.values()])

    async def finish(self) -> None:
        """Wait for what goes on in the background."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spend(self, counter: Counter, begin_ns: int) -> None:
        self._counters.add(counter, (time.perf_counter_ns() - begin_ns) // 1000)

    # -- the floor poll --

    async def watch(self) -> None:
        """Wake parked pops that could be served although nobody told them. Runs until cancelled."""
        pause_s = _FLOOR_POLL_S
        swept_at = time.monotonic()
        while True:
            # Jitter: workers and hosts that started together drift apart.
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            begin = time.monotonic()
            try:
                lease_ends_in_s = await self._poll()
                if begin - swept_at > _SWEEP_S:
                    swept_at = begin
                    await self._sweep()
            except QueueServerError as exc:
                logger.warning("the floor poll failed", extra={"error": str(exc)})
                lease_ends_in_s = None
            cost_s = time.monotonic() - begin
            pause_s = max(_FLOOR_POLL_S, cost_s / _FLOOR_POLL_SHARE)
            if lease_ends_in_s is not None:
                # Look again right after the lease has ended.
                pause_s = max(cost_s / _FLOOR_POLL_SHARE, min(pause_s, lease_ends_in_s + 0.01))

    async def _poll(self) -> float | None:
        rooms = [
            room
            for room in self._rooms.occupied()
            if room.subscription_id is not None and room.partition_id is not None
        ]
        if not rooms:
            return None
        answers = await leases.claimable(
            self._transactions,
            [
                Waiting(room.subscription_id, room.partition_id, room.sleeper_count)
                for room in rooms
                if room.subscription_id is not None and room.partition_id is not None
            ],
        )
        for room, answer in zip(rooms, answers, strict=True):
            if answer.count:
                self._counters.add(Counter.FLOOR_POLL_HITS, answer.count)
                room.wake(answer.count)
        ends = [a.lease_ends_in_s for a in answers if a.lease_ends_in_s is not None]
        return min(ends, default=None)

    async def _sweep(self) -> None:
        in_use, self._in_use = self._in_use, set()
        for subscription_id in in_use:
            count = await leases.sweep_pending(
                self._transactions, subscription_id, _SWEEP_PARTITIONS_MAX
            )
            if count == _SWEEP_PARTITIONS_MAX:
                self._in_use.add(subscription_id)  # there may be more


class SegmentCache:
    """The most recently used opened segments, bounded by their size."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._segments: OrderedDict[tuple[PartitionId, int], OpenSegment] = OrderedDict()

    def get(self, key: tuple[PartitionId, int]) -> OpenSegment | None:
        segment = self._segments.get(key)
        if segment is not None:
            self._segments.move_to_end(key)
        return segment

    def put(self, key: tuple[PartitionId, int], segment: OpenSegment) -> None:
        if key in self._segments:
            return
        self._segments[key] = segment
        self._bytes += self._size(segment)
        while self._bytes > self._bytes_max and len(self._segments) > 1:
            _, oldest = self._segments.popitem(last=False)
            self._bytes -= self._size(oldest)

    @staticmethod
    def _size(segment: OpenSegment) -> int:
        # One bytes object for each message: about 60 bytes beside the text.
        return segment.raw_bytes + 60 * (segment.next_offset - segment.base_offset)
