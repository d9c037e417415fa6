"""Hands out messages: try, wait for a wake-up or the deadline, try again.

No database connection is held while a consumer waits or while its answer is sent. A claim whose
consumer has gone is given back, so a message is never leased to nobody.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

import msgspec

from queue_server.broker.activity import Activity
from queue_server.broker.coalescer import Coalescer, Turns
from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.unreadable import UnreadablePartitions
from queue_server.broker.wakeup import News, Room, RoomKey, Rooms
from queue_server.domain.access import Grants, Use
from queue_server.domain.encryption import (
    EncryptionKeyMissing,
    Keyring,
    Unreadable,
    missing_key_text,
    segment_place,
)
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
from queue_server.domain.segment import CODEC_ENCRYPTED, OpenSegment, decrypt
from queue_server.domain.subscription import Start
from queue_server.observability.counters import Counter, Operation, Row
from queue_server.observability.logging import client_text
from queue_server.storage import leases, queues
from queue_server.storage.leases import (
    ANY_PARTITION,
    Claim,
    Claimed,
    ClaimRequest,
    MissingKey,
    Run,
    Waiting,
)
from queue_server.storage.messages import read_segments
from queue_server.storage.queues import Subscription
from queue_server.storage.settle import bury_exhausted
from queue_server.storage.transactions import Connection, Transactions

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
# How soon it looks for those who have just begun to wait.
_NEWCOMER_PAUSE_S = 0.05
# The floor poll may take this part of a core, whatever the number of rooms. But it takes long also
# when the machine is busy, and then who waits must not wait for ever longer.
_FLOOR_POLL_SHARE = 0.02
_FLOOR_POLL_REST_MAX_S = 2.0
# How often groups in use forget idle partitions, how many at a time, and how long that may take.
_SWEEP_S = 5.0
_SWEEP_PARTITIONS_MAX = 1000
_SWEEP_TIME_S = 0.25

# Groups whose round over the partitions is remembered.
_ROUNDS_MAX = 10_000

_RESOLVE_ATTEMPTS_MAX = 5
# How often a pop looks further when it met only what it cannot read, a thousand partitions at most.
_UNREADABLE_ATTEMPTS_MAX = 20
# A pop of a partition that does not exist yet, or during an outage, looks again this often; with
# many of them each looks less often, so that all together ask no more than this a second.
_UNRESOLVED_NAP_S = 2.0
_UNRESOLVED_RATE_MAX = 50.0

# How often a queue that does not exist is logged, and how many of them are remembered.
_MISSING_LOG_S = 60.0
_MISSING_MAX = 1000


# A label pop leases from so many queues at most.
_LABEL_QUEUES_MAX = 16


class PopRequest(msgspec.Struct, frozen=True):
    """What a consumer asks for.

    `queue` None = every queue with these labels; `partition` None = any; a limit that is None is
    left to the server; `wait_ms` 0 = do not wait.
    """

    queue: QueueName | None
    group: ConsumerGroup
    start: Start
    partition: PartitionName | None = None
    namespace: str | None = None
    task: str | None = None
    grants: Grants | None = None  # of a pop by labels: only these queues
    message_limit: int | None = 1
    partition_limit: int | None = 1
    lease_seconds: int = 0
    auto_ack: bool = False
    conflation: bool = False
    wait_ms: int = 0


class Delivery(msgspec.Struct):
    """Messages leased to a consumer; `lease_id` is None when they are committed already."""

    lease_id: uuid.UUID | None
    claims: list[Claim]
    partitions: dict[PartitionId, PartitionRef]
    # What was used where the consumer left a limit to the server.
    message_limit: int = 0
    partition_limit: int = 0
    # The segment of the first run, so that it is known to be there; `chunks` takes it.
    opened: OpenSegment | None = None

    @property
    def message_count(self) -> int:
        return sum(run.end - run.start for claim in self.claims for run in claim.runs)

    @property
    def inline_bytes(self) -> int:
        """Bytes of the bodies that came with the claims and are not handed out yet."""
        return sum(len(run.body or b"") for claim in self.claims for run in claim.runs)


class PopAnswer(msgspec.Struct, frozen=True):
    """`delivery` None = there is nothing; `conflation` = the group's stored policy."""

    delivery: Delivery | None
    conflation: bool
    missing: Literal["queue", "partition"] | None = None  # what the pop named and does not exist


class _Target(msgspec.Struct, frozen=True):
    """A group's registration on one of the queues that a pop sees."""

    queue: QueueName
    subscription: Subscription
    partition_id: PartitionId = ANY_PARTITION


# The lease id of a pop and what it got from each of its targets.
_Answer = tuple[uuid.UUID, list[Claimed]]


class Popper:
    """Serves pops."""

    def __init__(
        self,
        transactions: Transactions,
        directory: Directory,
        rooms: Rooms,
        counters: Row,
        keyring: Keyring,
        pace: Pace,
        worker_count: int = 1,
        activity: Activity | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._activity = activity or Activity()
        # Asked before each look: in maintenance pops bring nothing.
        self.are_pops_paused: Callable[[], bool] = lambda: False
        self._keyring = keyring
        self._pace = pace
        self._worker_count = worker_count
        self._transactions = transactions
        self._directory = directory
        self._rooms = rooms
        self._counters = counters
        self._coalescer: Coalescer[Sequence[ClaimRequest], _Answer] = Coalescer(
            "pop",
            self._flush,
            weight=len,
            flush_weight_max=_FLUSH_POPS_MAX,
            waiting_weight_max=_WAITING_POPS_MAX,
            abandon=self._abandon,
            on_flush=functools.partial(counters.observe_flush, Operation.POP),
            turns=turns,
        )
        self._segments = SegmentCache(_CACHE_BYTES_MAX)
        self.unreadable = UnreadablePartitions(counters)
        # Where each group's round over the partitions goes on in this worker.
        self._rounds: dict[SubscriptionId, PartitionId] = {}
        self._in_use: set[SubscriptionId] = set()
        self._missing_since: dict[str, float] = {}  # queues that do not exist, when last logged
        self._unresolved = 0  # pops that wait for something to come into being
        self._tasks: set[asyncio.Task[None]] = set()

    # -- a pop --

    async def pop(self, request: PopRequest) -> PopAnswer:
        """Lease messages to a consumer, waiting for them when it asked to.

        Shape: no delivery when there is nothing, for every reason. The caller must `give_back` a
        delivery that it could not send.
        Units: the wait ends after `request.wait_ms`.
        Errors: `Unavailable`.
        """
        deadline = time.monotonic() + request.wait_ms / 1000
        key = RoomKey(
            request.queue,
            request.group,
            request.partition,
            request.namespace,
            request.task,
            request.grants,
        )
        conflation = False
        missing: Literal["queue", "partition"] | None = None
        with self._rooms.enter(key) as room:
            while True:
                news_count = room.news_count
                nap_s: float | None = None
                try:
                    if self.are_pops_paused():
                        if not self._may_wait(deadline):
                            return PopAnswer(None, request.conflation)
                        await room.sleep(news_count, deadline - time.monotonic())
                        continue
                    resolved = await self._resolve(request, room)
                    delivery, targets = await self._claim(request, room, resolved)
                    self._activity.contacts.popped.update(room.subscription_ids)
                    # Where there is nothing yet, the wish is what will be stored.
                    conflation = request.conflation
                    missing = None
                    if not targets and request.queue is not None:
                        missing = "queue" if request.partition is None else "partition"
                    if targets:
                        conflation = all(t.subscription.conflation for t in targets)
                    if not targets or request.queue is None:
                        # The first push to a partition tells of it, but a queue with these labels
                        # may come into being unnoticed.
                        nap_s = _UNRESOLVED_NAP_S
                except Unavailable:
                    # The database is away for a moment: who asked to wait waits for its return.
                    if not self._may_wait(deadline):
                        raise
                    delivery = None
                    nap_s = _UNRESOLVED_NAP_S
                if delivery is not None or not self._may_wait(deadline):
                    return PopAnswer(delivery, conflation, missing)
                left_s = deadline - time.monotonic()
                if nap_s is not None:
                    nap_s = max(nap_s, self._unresolved / _UNRESOLVED_RATE_MAX)
                    left_s = min(left_s, nap_s * random.uniform(0.5, 1))
                begin = time.perf_counter_ns()
                self._unresolved += nap_s is not None
                try:
                    await room.sleep(news_count, left_s)
                finally:
                    self._unresolved -= nap_s is not None
                self._spend(Counter.POP_WAIT_US, begin)
                if not self._may_wait(deadline):
                    return PopAnswer(None, conflation, missing)

    def _may_wait(self, deadline: float) -> bool:
        return not self._rooms.draining and time.monotonic() < deadline

    async def _resolve(self, request: PopRequest, room: Room) -> list[_Target]:
        """Where to look, registering the group; nothing when there is no such thing yet."""
        directory = self._directory
        targets: list[_Target] = []
        if request.queue is None:
            ranks = await queues.find_queues(self._transactions, request.namespace, request.task)
            if request.grants is not None:
                ranks = [rank for rank in ranks if request.grants.allow(Use.POP, rank.name)]
            self._rooms.listen(room, [rank.name for rank in ranks])
            found: list[queues.QueueRank] = []
            for rank in ranks:
                subscription = await directory.subscribe(
                    rank.name, request.group, request.start, conflation=request.conflation
                )
                if subscription is not None:  # not deleted meanwhile
                    targets.append(_Target(rank.name, subscription))
                    found.append(rank)
            targets = await self._in_order(targets, found)
        elif request.partition is None:
            subscription = await directory.subscribe(
                request.queue, request.group, request.start, conflation=request.conflation
            )
            if subscription is None:
                self._note_missing(request.queue)
            else:
                targets.append(_Target(request.queue, subscription))
        else:
            policy: Subscription | None = None
            if request.conflation:
                # The policy belongs to the queue, so here the group does register on it.
                policy = await directory.subscribe(
                    request.queue, request.group, request.start, conflation=True
                )
            # Again when what was remembered turns out to be gone: it may have been made anew.
            for _ in range(2):
                partition = await directory.find_partition(
                    PartitionKey(request.queue, request.partition)
                )
                if partition is None:
                    break
                policy = policy or await directory.subscribe_to_partition(
                    partition, request.group, request.start
                )
                if policy is not None:
                    targets.append(_Target(request.queue, policy, partition.id))
                    break
        room.subscription_ids = [target.subscription.id for target in targets]
        room.partition_id = targets[0].partition_id if targets else ANY_PARTITION
        return targets

    def _note_missing(self, queue: QueueName) -> None:
        """Log a pop of a queue that does not exist, once a minute for each name."""
        now = time.monotonic()
        if self._missing_since.get(queue, -math.inf) > now - _MISSING_LOG_S:
            return
        if len(self._missing_since) >= _MISSING_MAX:
            self._missing_since.clear()
        self._missing_since[queue] = now
        logger.info(
            "a pop of queue '%s', which does not exist: it waits for the first push",
            client_text(queue),
            extra={"event": "queue_missing"},
        )

    async def _in_order(
        self, targets: list[_Target], ranks: Sequence[queues.QueueRank]
    ) -> list[_Target]:
        """The queues of a label pop that have something: by priority, then the longest waiting."""
        if not targets:
            return targets
        answers = await leases.claimable(
            self._transactions,
            [Waiting(target.subscription.id, ANY_PARTITION, 1) for target in targets],
            left_out=self.unreadable.left_out(),
            with_oldest=True,
        )
        ready = [
            (-rank.priority, answer.oldest_at, random.random(), target)
            for target, rank, answer in zip(targets, ranks, answers, strict=True)
            if answer.count and answer.oldest_at is not None
        ]
        ready.sort(key=lambda entry: entry[:3])
        # With nothing ready all are looked at once more: somebody may have pushed meanwhile.
        return [target for *_, target in ready][:_LABEL_QUEUES_MAX] or targets[:_LABEL_QUEUES_MAX]

    async def _claim(
        self, request: PopRequest, room: Room, targets: Sequence[_Target]
    ) -> tuple[Delivery | None, Sequence[_Target]]:
        """What is there, and the targets as they are: what was remembered of them may be over."""
        unreadable_attempts = attempts = 0
        while attempts < _RESOLVE_ATTEMPTS_MAX:
            if not targets or targets[0].partition_id in self.unreadable:
                return None, targets
            requests = self._claim_requests(request, room, targets)
            answer = await self._coalescer.submit(requests)
            try:
                delivery, again = await self._deliver(request, targets, requests, answer)
            except BaseException:
                self._abandon(answer)
                raise
            if delivery is not None or not again:
                return delivery, targets
            if any(one.unreadable for one in answer[1]):
                unreadable_attempts += 1
                if unreadable_attempts >= _UNREADABLE_ATTEMPTS_MAX:
                    return None, targets  # the next pop goes on from there
                continue
            attempts += 1
            targets = await self._resolve(request, room)
        raise Unavailable("the queue is being deleted or emptied again and again; try later")

    async def _deliver(
        self,
        request: PopRequest,
        targets: Sequence[_Target],
        requests: Sequence[ClaimRequest],
        answer: _Answer,
    ) -> tuple[Delivery | None, bool]:
        """Make a delivery of an answer, and see to what the answer says of its targets.

        Shape: the delivery, and when there is none whether to look again.
        """
        lease_id, answers = answer
        again = False
        for target, one in zip(targets, answers, strict=True):
            if one.unknown_subscription:
                self._directory.forget_queue(target.queue)
                again = True
            elif one.no_cursor:
                if not await queues.name_partitions(self._transactions, [target.partition_id]):
                    # It was idle for long and was removed; it may have been made anew.
                    self._directory.forget_queue(target.queue)
                await queues.seed_cursor(
                    self._transactions, target.subscription.id, target.partition_id, request.start
                )
                again = True
            elif one.exhausted:
                await self._bury(one.exhausted)
                again = True
            if one.unreadable:
                await self._leave_out(one.unreadable)
                last = one.unreadable[-1].partition_id
                self._note_round(target.subscription.id, last)
                again = True
            if one.claims:
                self._in_use.add(target.subscription.id)
                self._note_round(target.subscription.id, one.claims[-1].partition_id)
                if request.auto_ack:
                    self._activity.contacts.acked.add(target.subscription.id)
        claims = [claim for one in answers for claim in one.claims]
        if not claims:
            return None, again
        delivery = Delivery(
            None if request.auto_ack else lease_id,
            claims,
            {},
            requests[0].message_limit,
            max(one.partition_limit for one in answers),
        )
        await self._name_partitions(delivery)
        if not delivery.claims:
            return None, False
        if await self._open_first(delivery):
            return delivery, False
        # What there is now, if anything, is behind what was dropped.
        if delivery.lease_id is not None:
            await self._release_now(delivery.lease_id)
        return None, True

    def _note_round(self, subscription_id: SubscriptionId, partition_id: PartitionId) -> None:
        if subscription_id not in self._rounds and len(self._rounds) >= _ROUNDS_MAX:
            # The oldest goes; its round begins anew.
            del self._rounds[next(iter(self._rounds))]
        self._rounds[subscription_id] = partition_id

    def _claim_requests(
        self, request: PopRequest, room: Room, targets: Sequence[_Target]
    ) -> list[ClaimRequest]:
        lease_id = uuid.uuid4()
        message_limit = request.message_limit
        if message_limit is None:
            message_limit = self._pace.message_limit(targets[0].subscription.id)
        partition_limit = request.partition_limit
        if partition_limit is None:
            # Shared among the pops under way. With several here, the other workers are taken to
            # have about as many; one alone is taken for the only one.
            workers = self._worker_count if room.occupants > 1 else 1
            partition_limit = -room.occupants * workers
        return [
            ClaimRequest(
                subscription_id=target.subscription.id,
                partition_id=target.partition_id,
                start_after=self._rounds.get(target.subscription.id, ANY_PARTITION),
                message_limit=message_limit,
                partition_limit=partition_limit,
                lease_seconds=request.lease_seconds,
                lease_id=lease_id,
                auto_ack=request.auto_ack,
            )
            for target in targets
        ]

    async def _name_partitions(self, delivery: Delivery) -> None:
        delivery.partitions = await self._directory.name_partitions(
            [claim.partition_id for claim in delivery.claims]
        )
        # A queue that was deleted since has nothing to deliver.
        delivery.claims = [c for c in delivery.claims if c.partition_id in delivery.partitions]

    async def _open_first(self, delivery: Delivery) -> bool:
        """Pass over what was dropped since the claim, and open the first segment that was not.

        Shape: False when nothing is left of the delivery.
        """
        while delivery.claims:
            claim = delivery.claims[0]
            while claim.runs:
                try:
                    delivery.opened = await self._open(delivery, claim, claim.runs[0])
                except Unreadable as exc:
                    await self._take_back(delivery, claim, 0, exc)
                    break
                if delivery.opened is not None:
                    return True
                del claim.runs[0]
            del delivery.claims[0]
        return False

    async def _leave_out(self, missing: Sequence[MissingKey]) -> None:
        """Leave partitions out whose key this server does not have. Nothing was claimed there."""
        partitions = await self._directory.name_partitions([one.partition_id for one in missing])
        for one in missing:
            partition = partitions.get(one.partition_id)
            if partition is not None:
                exc = EncryptionKeyMissing(missing_key_text(one.key_id), one.key_id)
                self.unreadable.note(partition, exc, one.offset)

    async def _take_back(
        self, delivery: Delivery, claim: Claim, number: int, exc: Unreadable
    ) -> None:
        """Take what cannot be read out of a delivery: the runs of *claim* from *number* on.

        Nothing is lost by it: they are not delivered, and not committed. A lease whose first
        messages go out ends by itself.
        """
        start, end = claim.runs[number].start, claim.runs[-1].end
        del claim.runs[number:]
        partition = delivery.partitions[claim.partition_id]
        self.unreadable.note(partition, exc, start)
        if number and delivery.lease_id is not None:
            return
        try:
            done = await leases.take_back(self._transactions, delivery.lease_id, claim, start, end)
        except QueueServerError as failure:
            logger.warning("a claim is left to expire", extra={"error": failure.message})
            done = delivery.lease_id is not None
        if not done and delivery.lease_id is None:
            logger.error(
                "messages that cannot be read were committed on delivery, and the group has gone on"
                " from there: they are passed over",
                extra={
                    "queue": partition.queue,
                    "partition": partition.partition,
                    "start": start,
                    "end": end,
                },
            )

    async def _flush(self, batch: Sequence[Sequence[ClaimRequest]]) -> list[_Answer]:
        begin = time.perf_counter_ns()
        # Those of one group beside each other: what they may have is looked for once.
        order = sorted(range(len(batch)), key=lambda i: _group_first(batch[i]))
        answers = await leases.claim(
            self._transactions,
            [r for i in order for r in batch[i]],
            self._keyring.key_ids,
            self.unreadable.left_out(),
        )
        self._counters.add(Counter.POP_TRANSACTIONS)
        self._spend(Counter.POP_LEASE_US, begin)
        claims = [claim for answer in answers for claim in answer.claims]
        self._counters.add(Counter.LEASES_TAKEN_OVER, sum(claim.taken_over for claim in claims))
        split: list[_Answer] = [(requests[0].lease_id, []) for requests in batch]
        start = 0
        for i in order:
            end = start + len(batch[i])
            split[i][1].extend(answers[start:end])
            if not batch[i][0].auto_ack:
                granted = sum(len(answer.claims) for answer in split[i][1])
                self._counters.add(Counter.LEASES_GRANTED, granted)
            start = end
        return split

    async def _bury(self, exhausted: Sequence[leases.Exhausted]) -> None:
        """Make dead letters of messages that were claimed too often, each in its transaction."""
        partitions = await self._directory.name_partitions([e.partition_id for e in exhausted])
        for one in exhausted:
            partition = partitions.get(one.partition_id)
            if partition is None:
                continue

            async def work(
                connection: Connection,
                one: leases.Exhausted = one,
                partition: PartitionRef = partition,
            ) -> bool:
                return await bury_exhausted(connection, one, partition, self._keyring)

            try:
                buried = await self._transactions.run(work)
            except Unreadable as exc:
                self.unreadable.note(partition, exc, one.offset)
                continue
            if buried:
                self._counters.add(Counter.MESSAGES_DEAD_LETTERED)
                self._activity.of(partition.queue).dead_letters += 1

    # -- an answer --

    def note_sent(self, delivery: Delivery) -> None:
        """Count a delivery that goes out; by commit on delivery it is acknowledged with that."""
        message_count = delivery.message_count
        self._counters.add(Counter.MESSAGES_POPPED, message_count)
        if delivery.lease_id is None:
            self._counters.add(Counter.MESSAGES_ACKED, message_count)
        now = time.time()
        queues_seen: set[str] = set()
        for claim in delivery.claims:
            queue = delivery.partitions[claim.partition_id].queue
            activity = self._activity.of(queue)
            if queue not in queues_seen:
                queues_seen.add(queue)
                activity.pop_requests += 1
            for run in claim.runs:
                count = run.end - run.start
                activity.delivered(count, int((now - run.created_at.timestamp()) * 1000))
                if delivery.lease_id is None:
                    activity.ack_success += count

    def note_empty(self, queue: QueueName | None) -> None:
        """Count a pop that ends without a message."""
        self._counters.add(Counter.POP_REQUESTS_EMPTY)
        if queue is not None:
            activity = self._activity.of(queue)
            activity.pop_requests += 1
            activity.pop_empty += 1

    async def chunks(
        self, delivery: Delivery, claim_text: Callable[[Claim, Run], bytes]
    ) -> AsyncIterator[bytes]:
        """The messages of a delivery, a bounded number at a time.

        Shape: comma-separated JSON objects; *claim_text* gives what all messages of a run have in
        common. At most one opened segment is held while the consumer takes a chunk.
        Errors: `Unavailable` when a body cannot be read.
        """
        separator = b""
        opened, delivery.opened = delivery.opened, None
        for claim in delivery.claims:
            for number, run in enumerate(claim.runs.copy()):
                segment, opened = opened, None
                if segment is None:
                    try:
                        segment = await self._open(delivery, claim, run)
                    except Unreadable as exc:
                        await self._take_back(delivery, claim, number, exc)
                        break
                if segment is None:
                    continue  # dropped since: nothing to hand out
                begin = time.perf_counter_ns()
                text = segment.run(run.start, run.end, claim_text(claim, run), separator)
                self._spend(Counter.POP_DECODE_US, begin)
                del segment
                yield text
                separator = b","

    async def _open(self, delivery: Delivery, claim: Claim, run: Run) -> OpenSegment | None:
        """The segment of a run; None when it was dropped. Errors: those of `Keyring.open`."""
        key = (claim.partition_id, run.base_offset)
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
        codec = run.codec
        if codec & CODEC_ENCRYPTED:
            place = segment_place(
                delivery.partitions[claim.partition_id].queue,
                claim.partition_id,
                run.first_message_id,
                run.next_offset - run.base_offset,
            )
            codec, body = decrypt(codec, body, self._keyring, place)
        self._spend(Counter.POP_DECRYPT_US, begin)
        begin = time.perf_counter_ns()
        segment = OpenSegment(run.base_offset, run.next_offset, codec, body)
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

    def _abandon(self, answer: _Answer) -> None:
        lease_id, claimed = answer
        if any(one.claims for one in claimed):
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
        except Exception:
            logger.exception("a lease is left to expire")
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
        rest_s = 0.0
        swept_at = time.monotonic()
        while True:
            await self._pause(pause_s, rest_s)
            begin = time.monotonic()
            readable_in_s = None
            try:
                readable_in_s = await self._poll()
                # Only the poll comes oftener with more to do; the sweep has a time of its own.
                cost_s = time.monotonic() - begin
                rest_s = min(cost_s / _FLOOR_POLL_SHARE, _FLOOR_POLL_REST_MAX_S)
                if begin - swept_at > _SWEEP_S:
                    swept_at = begin
                    await self._sweep()
            except QueueServerError as exc:
                logger.warning("the floor poll failed", extra={"error": str(exc)})
            except Exception:
                # Nothing else wakes these pops, so it goes on whatever it was.
                logger.exception("the floor poll failed")
            pause_s = max(_FLOOR_POLL_S, rest_s)
            if readable_in_s is not None:
                # Look again right after the lease or the delay has ended.
                pause_s = max(rest_s, min(pause_s, readable_in_s + 0.005))

    async def _pause(self, pause_s: float, rest_s: float) -> None:
        """Wait for the next floor poll; it comes soon when somebody goes to sleep meanwhile.

        What hides a message from the newcomer (a lease, a delay) may end long before *pause_s*.
        """
        self._rooms.slept.clear()
        try:
            # Jitter: workers and hosts that started together drift apart.
            async with asyncio.timeout(pause_s * random.uniform(0.9, 1.1)):
                await self._rooms.slept.wait()
                await asyncio.sleep(max(_NEWCOMER_PAUSE_S, rest_s))
        except TimeoutError:
            pass

    async def _poll(self) -> float | None:
        waiting = [
            (room, Waiting(subscription_id, room.partition_id, room.sleeper_count))
            for room in self._rooms.occupied()
            for subscription_id in room.subscription_ids
            if room.partition_id not in self.unreadable
        ]
        if not waiting or self.are_pops_paused():
            return None
        self._counters.add(Counter.FLOOR_POLLS)
        answers = await leases.claimable(
            self._transactions,
            [one for _, one in waiting],
            left_out=self.unreadable.left_out(),
        )
        for (room, _), answer in zip(waiting, answers, strict=True):
            if answer.count:
                self._counters.add(Counter.FLOOR_POLL_HITS, answer.count)
                room.wake(answer.count)
        ends = [a.readable_in_s for a in answers if a.readable_in_s is not None]
        return min(ends, default=None)

    async def _sweep(self) -> None:
        """Forget the idle partitions that acknowledgements left listed because they were busy."""
        in_use, self._in_use = self._in_use, set()
        stop_at = time.monotonic() + _SWEEP_TIME_S
        for subscription_id in in_use:
            count = _SWEEP_PARTITIONS_MAX
            while count == _SWEEP_PARTITIONS_MAX and time.monotonic() < stop_at:
                count = await leases.sweep_pending(
                    self._transactions, subscription_id, _SWEEP_PARTITIONS_MAX
                )
            if count == _SWEEP_PARTITIONS_MAX:
                self._in_use.add(subscription_id)  # there may be more


def _group_first(requests: Sequence[ClaimRequest]) -> tuple[SubscriptionId, PartitionId]:
    return requests[0].subscription_id, requests[0].partition_id


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
