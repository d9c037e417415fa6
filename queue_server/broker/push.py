"""Appends what producers push, many requests in one transaction.

A flush puts the messages of all its requests into one *lane* for each partition, makes segments of
them and appends all in one call. The database tells when ids are stored already; nothing was
written then, the lane leaves them out, and the call is made again. An append whose COMMIT answer
was lost is repeated by storage/transactions.py and finds its own ids: they carry the message ids
that this flush minted, which is how they are told from somebody else's.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

import msgspec

from queue_server.broker.activity import Activity
from queue_server.broker.coalescer import Coalescer, Turns
from queue_server.broker.directory import Directory
from queue_server.broker.wakeup import News, Rooms
from queue_server.domain.access import Grants
from queue_server.domain.encryption import EncryptionKeyMissing, Keyring, segment_place
from queue_server.domain.errors import BadRequest, QueueFull, Unavailable
from queue_server.domain.ids import id_keys, uuid_keys
from queue_server.domain.message import MessageIdRun, NewMessage, message_id
from queue_server.domain.names import (
    DEFAULT_PARTITION,
    TRANSACTION_ID_BYTES_MAX,
    PartitionId,
    PartitionKey,
    PartitionName,
    PartitionRef,
    QueueName,
)
from queue_server.domain.numerals import numerals
from queue_server.domain.segment import (
    SEGMENT_MESSAGES_MAX,
    SEGMENT_RAW_BYTES_MAX,
    more_fields,
    pack,
    render,
)
from queue_server.domain.weave import json_texts, plain_texts, weave
from queue_server.observability.counters import Counter, Operation, Row
from queue_server.storage import messages as log
from queue_server.storage.messages import SegmentDraft
from queue_server.storage.queues import (
    NewPartition,
    create_partitions,
    labels_of_new,
    lock_limited_queues,
)
from queue_server.storage.transactions import Connection, Transactions

# A flush larger than this gains nothing: the commit is a small part of it already.
_FLUSH_BYTES_MAX = 8 * 1024 * 1024
# What a partition counts for at least: thirty thousand take a second or two, and pushes of so many
# follow one another, so that each is within the time that a statement may take.
_PARTITION_BYTES_MIN = 256
# An item counts at least this much: a flush of small ones keeps its worker busy for as long.
_ITEM_BYTES_MIN = 100
# What may wait for its turn in one worker, measured as received.
_WAITING_BYTES_MAX = 256 * 1024 * 1024

# How long a queue is taken to want a key that there is not, and how many such are remembered.
_KEYLESS_S = 2.0
_KEYLESS_MAX = 1000

# How often a push is tried again whose queue was deleted under it.
_RESOLVE_ATTEMPTS_MAX = 5


class PushResult(msgspec.Struct, gc=False, omit_defaults=False):
    """What became of one item; the entry of the answer as the protocol has it."""

    index: int
    status: str
    transaction_id: str
    offset: int
    message_id: str
    partition_id: str
    trace_id: uuid.UUID | None
    queueName: str  # noqa: N815


_encoder = msgspec.json.Encoder()
_Append = Callable[[Sequence[SegmentDraft]], Awaitable[log.Appended]]


class _Share(msgspec.Struct, gc=False):
    """The items of one request in one lane: messages[start, start + len(indexes))."""

    request: PushRequest
    indexes: Sequence[int]
    start: int


class PushRequest(msgspec.Struct):
    """One push: its items by partition, and room for the results."""

    items: Sequence[NewMessage]
    producer_subs: Sequence[str | None]  # who produced each item, as its credential says
    known: list[tuple[PartitionRef, Sequence[int]]]
    # What the transaction that stores the items creates before.
    missing: list[tuple[NewPartition, Sequence[int]]]
    results: list[PushResult | None]
    size_bytes: int = 0
    traceparent: str | None = None  # of the push's span, or of its producer's
    lanes: list[tuple[PartitionRef, Sequence[int]]] = []  # of all items, once all exist
    text: bytes | None = None  # all results as JSON, where they could be written at once
    # Of items that are moved back from the dead letters, the transaction ids they had; else empty.
    original_ids: Sequence[str | None] = ()
    is_held: bool = False  # maintenance holds it back: nothing of it was stored


class _Duplicate(msgspec.Struct, frozen=True, gc=False):
    """The stored message that made an item a duplicate."""

    message_id: str
    offset: int


class DuplicatePush(Exception):
    """An id of a push inside a transaction is stored already."""


class PushHeld(Exception):
    """Maintenance holds pushes to these partitions back; nothing was stored."""

    def __init__(self, partition_ids: Sequence[PartitionId] = ()) -> None:
        self.partition_ids = frozenset(partition_ids)


class PartitionsChanged(Exception):
    """What was assumed of a queue is out of date; the same transaction may succeed now."""


class _Lane:
    """What one flush puts into one partition."""

    def __init__(self, partition: PartitionRef, keyring: Keyring | None) -> None:
        self.partition = partition
        self.keyring = keyring  # None = the bodies are not to be encrypted
        self.messages: list[NewMessage] = []
        self.producer_subs: list[str | None] = []
        self.shares: list[_Share] = []
        self._given: list[str | None] = []  # the transaction ids as they came
        self._all_named = False  # none of them is missing
        self._repeats: dict[int, int] = {}  # position -> position of the first with that id
        self._duplicates: dict[int, _Duplicate] = {}
        self._own: dict[int, _Duplicate] = {}  # stored by an attempt whose answer was lost
        self._kept: Sequence[int] = ()
        # Of the messages kept, as JSON texts.
        self._message_ids: list[bytes] = []
        self._transaction_ids: list[bytes] = []
        self.drafts: list[SegmentDraft] = []

    def add(self, request: PushRequest, indexes: Sequence[int]) -> None:
        self.shares.append(_Share(request, indexes, len(self.messages)))
        items, subs = request.items, request.producer_subs
        if len(indexes) < len(items):
            items, subs = [items[i] for i in indexes], [subs[i] for i in indexes]
        self.messages.extend(items)
        self.producer_subs.extend(subs)
        self._given.extend([item.transaction_id for item in items])

    def find_repeats(self) -> None:
        """Find ids that occur more than once in this flush: the first in request order wins."""
        distinct = set(self._given)
        self._all_named = None not in distinct and "" not in distinct
        unnamed = 0
        if not self._all_named:
            distinct -= {None, ""}
            unnamed = self._given.count(None) + self._given.count("")
        if len(distinct) + unnamed == len(self._given):
            return
        first: dict[str, int] = {}
        for position, transaction_id in enumerate(self._given):
            if transaction_id:
                winner = first.setdefault(transaction_id, position)
                if winner != position:
                    self._repeats[position] = winner

    def build(self) -> None:
        """Make the segments of all messages that are to be stored."""
        if self._repeats or self._duplicates or self._own:
            self._kept = [
                position
                for position in range(len(self.messages))
                if position not in self._repeats
                and position not in self._duplicates
                and position not in self._own
            ]
            messages = [self.messages[p] for p in self._kept]
            given = [self._given[p] for p in self._kept]
            subs = [self.producer_subs[p] for p in self._kept]
        else:
            self._kept = range(len(self.messages))
            messages, given, subs = self.messages, self._given, self.producer_subs
        more = self._more_fields()
        self._message_ids.clear()
        self._transaction_ids.clear()
        self.drafts.clear()
        for start in range(0, len(messages), SEGMENT_MESSAGES_MAX):
            end = start + SEGMENT_MESSAGES_MAX
            self._draft(messages[start:end], given[start:end], subs[start:end], more[start:end])

    def _more_fields(self) -> Sequence[bytes]:
        """Further fields of the kept messages; empty when none has any."""
        requests = [share.request for share in self.shares]
        if not any(request.traceparent or request.original_ids for request in requests):
            return ()
        given = [
            more_fields(
                share.request.traceparent,
                share.request.original_ids[index] if share.request.original_ids else None,
            )
            for share in self.shares
            for index in share.indexes
        ]
        return [given[position] for position in self._kept]

    def _draft(
        self,
        messages: Sequence[NewMessage],
        given: Sequence[str | None],
        subs: Sequence[str | None],
        more: Sequence[bytes],
    ) -> None:
        run = MessageIdRun()
        message_ids = run.texts(len(messages))
        ids: Sequence[str]
        if self._all_named:
            ids = cast("Sequence[str]", given)
        else:
            ids = [
                transaction_id or message_id.decode()
                for transaction_id, message_id in zip(given, message_ids, strict=True)
            ]
        keys = uuid_keys(ids)
        if keys is not None:
            transaction_ids = plain_texts(ids)
        else:
            keys, transaction_ids = id_keys(ids), json_texts(ids)
        rendered = render(messages, message_ids, transaction_ids, subs, more)
        if len(rendered) > SEGMENT_RAW_BYTES_MAX and len(messages) > 1:
            pieces = min(len(rendered) // SEGMENT_RAW_BYTES_MAX + 1, len(messages))
            size = -(-len(messages) // pieces)
            for start in range(0, len(messages), size):
                end = start + size
                self._draft(messages[start:end], given[start:end], subs[start:end], more[start:end])
            return
        place = b""
        if self.keyring is not None:
            place = segment_place(self.partition.queue, self.partition.id, run.first, len(messages))
        codec, body = pack(rendered, self.keyring, place)
        self._message_ids += message_ids
        self._transaction_ids += transaction_ids
        self.drafts.append(
            SegmentDraft(
                partition_id=self.partition.id,
                first_message_id=run.first,
                message_count=len(messages),
                raw_bytes=len(rendered),
                codec=codec,
                ids=keys,
                body=body,
            )
        )

    def note_stored(
        self, draft_index: int, position: int, first_message_id: uuid.UUID, index: int, offset: int
    ) -> None:
        """Note that an item of a draft is stored already."""
        before = sum(draft.message_count for draft in self.drafts[:draft_index])
        place = _Duplicate(message_id(first_message_id, index), offset)
        own = any(draft.first_message_id == first_message_id for draft in self.drafts)
        (self._own if own else self._duplicates)[self._kept[before + position]] = place

    @property
    def stored_count(self) -> int:
        """How many messages this flush stored, attempts with a lost answer included."""
        return len(self._kept) + len(self._own)

    def report(self, base_offset: int, *, as_text: bool = False) -> None:
        """Write the results of all shares. *base_offset* is that of the first message stored.

        *as_text*: write those of a whole request as its answer, where they are alike.
        """
        if len(self._kept) == len(self.messages):
            for share in self.shares:
                if as_text and len(share.request.lanes) == 1:
                    share.request.text = self._text(share, base_offset + share.start)
                else:
                    self._report_share(share, base_offset)
            return

        placed: dict[int, tuple[str, _Duplicate]] = {
            position: ("queued", _Duplicate(self._message_ids[i].decode(), base_offset + i))
            for i, position in enumerate(self._kept)
        }
        placed |= {position: ("queued", place) for position, place in self._own.items()}
        placed |= {position: ("duplicate", place) for position, place in self._duplicates.items()}
        for position, winner in self._repeats.items():
            placed[position] = ("duplicate", placed[winner][1])
        for share in self.shares:
            for place, index in enumerate(share.indexes):
                status, stored = placed[share.start + place]
                self._report_item(share, index, status, stored.message_id, stored.offset)

    def _report_share(self, share: _Share, base_offset: int) -> None:
        """Write the results of a share all of which was stored."""
        for position, index in enumerate(share.indexes, share.start):
            message_id_ = self._message_ids[position].decode()
            self._report_item(share, index, "queued", message_id_, base_offset + position)

    def _report_item(
        self, share: _Share, index: int, status: str, message_id_: str, offset: int
    ) -> None:
        item = share.request.items[index]
        share.request.results[index] = PushResult(
            index, status, item.transaction_id or message_id_, offset, message_id_,
            str(self.partition.id), item.trace_id, self.partition.queue,
        )  # fmt: skip

    def _text(self, share: _Share, offset: int) -> bytes:
        """The results of a whole request all of which was stored, as JSON. *offset*: its first."""
        count = len(share.indexes)
        span = slice(share.start, share.start + count)
        traces: bytes | list[bytes] = b"null"
        trace_ids = [item.trace_id for item in share.request.items]
        if any(trace_ids):
            traces = [_encoder.encode(trace_id) for trace_id in trace_ids]
        rows = weave(
            count,
            b'{"index":', numerals(0, count),
            b',"status":"queued","transaction_id":"', self._transaction_ids[span],
            b'","offset":', numerals(offset, offset + count),
            b',"message_id":"', self._message_ids[span],
            b'","partition_id":"%s","trace_id":' % str(self.partition.id).encode(), traces,
            b',"queueName":%s}' % _encoder.encode(self.partition.queue), separator=b",",
        )  # fmt: skip
        return b"[" + rows + b"]"


class Pusher:
    """Stores pushes."""

    def __init__(
        self,
        transactions: Transactions,
        directory: Directory,
        rooms: Rooms,
        counters: Row,
        keyring: Keyring,
        activity: Activity | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._activity = activity or Activity()
        self._transactions = transactions
        self._keyring = keyring
        self._directory = directory
        self._rooms = rooms
        self._counters = counters
        # Encrypted queues whose pushes were refused for want of a key, and until when they are.
        self._keyless: dict[str, float] = {}
        # None: partitions were deleted under the flush.
        self._coalescer: Coalescer[PushRequest, bytes | None] = Coalescer(
            "push",
            self._flush,
            weight=_weight,
            flush_weight_max=_FLUSH_BYTES_MAX,
            waiting_weight_max=_WAITING_BYTES_MAX,
            on_flush=functools.partial(counters.observe_flush, Operation.PUSH),
            turns=turns,
        )

    async def push(
        self,
        items: Sequence[NewMessage],
        size_bytes: int,
        producer_sub: str | None = None,
        traceparent: str | None = None,
        creator: Grants | None = None,
    ) -> bytes:
        """Store *items*, all or none.

        Shape: JSON text, a `PushResult` for each in request order. *size_bytes* is the size of the
        request as received, *producer_sub* who sent it, *traceparent* what consumers are told of
        its span, *creator* what bounds the labels of a queue that is new.
        Errors: `BadRequest`, `NameTooLong`, `PushHeld`: nothing was stored or created.
        `Unavailable`: the outcome is unknown, the same items may be pushed again.
        """
        if not items:
            return b"[]"
        check_ids(items)
        self._refuse_keyless(items)
        for _ in range(_RESOLVE_ATTEMPTS_MAX):
            request = await self.prepare(
                items, [producer_sub] * len(items), traceparent, creator, size_bytes
            )
            answer = await self._coalescer.submit(request)
            if answer is not None:
                return answer
            if request.is_held:
                raise PushHeld
        raise Unavailable("the queue is being deleted again and again; try later")

    def _refuse_keyless(self, items: Sequence[NewMessage]) -> None:
        """Refuse pushes to queues for which there was no key a moment ago.

        A refusal in a flush makes the requests that share it go alone, so it is not repeated.
        Errors: `EncryptionKeyMissing`.
        """
        if not self._keyless:
            return
        now = time.monotonic()
        self._keyless = {queue: until for queue, until in self._keyless.items() if until > now}
        for queue in {item.queue for item in items} & self._keyless.keys():
            self._keyring.require_key(queue)

    async def prepare(
        self,
        items: Sequence[NewMessage],
        producer_subs: Sequence[str | None],
        traceparent: str | None = None,
        creator: Grants | None = None,
        size_bytes: int = 0,
        original_ids: Sequence[str | None] = (),
    ) -> PushRequest:
        """Group *items* by partition, and find out which partitions there are.

        Nothing is created before the transaction that stores the items: what is refused leaves no
        queue and no partition behind.
        Errors: `BadRequest`, `NameTooLong`.
        """
        lookup = self._directory.known_partition
        known: list[tuple[PartitionRef, Sequence[int]]] = []
        unknown: list[tuple[PartitionKey, Sequence[int]]] = []
        for (queue, partition), indexes in _by_partition(items).items():
            name = DEFAULT_PARTITION if partition is None else partition
            ref = lookup(queue, name)
            if ref is None:
                key = PartitionKey(QueueName(queue), PartitionName(name))
                unknown.append((key, indexes))
            else:
                known.append((ref, indexes))
        missing: list[tuple[NewPartition, Sequence[int]]] = []
        if unknown:
            found = await self._directory.find_partitions([key for key, _ in unknown])
            for key, indexes in unknown:
                ref = found.get((key.queue, key.partition))
                if ref is None:
                    labels = labels_of_new(key.queue, creator)
                    missing.append((NewPartition(key.queue, key.partition, *labels), indexes))
                else:
                    known.append((ref, indexes))
        return PushRequest(
            items, producer_subs, known, missing, [None] * len(items), size_bytes, traceparent,
            original_ids=original_ids,
        )  # fmt: skip

    async def _flush(self, requests: Sequence[PushRequest]) -> list[bytes | None]:
        pending = requests
        while pending:
            try:
                lanes = await self._commit(pending)
            except PartitionsChanged:
                return [None] * len(requests)
            except PushHeld as held:
                # Each alone would cost a transaction for each of the others.
                for request in pending:
                    request.is_held = any(
                        partition.id in held.partition_ids for partition, _ in request.lanes
                    )
                pending = [request for request in pending if not request.is_held]
                continue
            self._note_stored(lanes)
            for request in pending:
                self._activity.count_push([partition.queue for partition, _ in request.lanes])
            break
        return [
            None if request.is_held else request.text or _encoder.encode(request.results)
            for request in requests
        ]

    async def _commit(self, requests: Sequence[PushRequest]) -> list[_Lane]:
        """Store *requests*: by one call, or by a transaction that creates partitions before.

        Errors: as `_store`.
        """
        creating = False
        for request in requests:
            request.lanes = request.known
            request.is_held = False
            creating = creating or bool(request.missing)
        if not creating:

            async def append(drafts: Sequence[SegmentDraft]) -> log.Appended:
                return await log.append(
                    self._transactions, drafts, can_encrypt=not self._keyring.may_store_plain
                )

            return await self._store(requests, append, as_text=True)

        async def work(connection: Connection) -> list[_Lane]:
            await self.create_in(connection, requests)
            return await self._store(requests, self._appender(connection), as_text=True)

        lanes = await self._transactions.run(work)
        self._remember_created(requests)
        return lanes

    async def create_in(self, connection: Connection, requests: Sequence[PushRequest]) -> None:
        """Create what *requests* miss, as the first step of a transaction that pushes them.

        Queues with a maxSize are locked before, as the lock order has it.
        """
        queue_ids = {ref.queue_id for request in requests for ref, _ in request.known}
        missing = {new for request in requests for new, _ in request.missing}
        if queue_ids or missing:
            await lock_limited_queues(
                connection, sorted(queue_ids), sorted({new.queue for new in missing})
            )
        created: dict[tuple[str, str], PartitionRef] = {}
        if missing:
            created = {
                (ref.queue, ref.partition): ref
                for ref in await create_partitions(connection, missing)
            }
        for request in requests:
            request.lanes = request.known + [
                (created[new.queue, new.name], indexes) for new, indexes in request.missing
            ]

    async def push_in(
        self,
        connection: Connection,
        requests: Sequence[PushRequest],
        *,
        leave_out_duplicates: bool = False,
        past_holding: bool = False,
    ) -> Callable[[], None]:
        """Store *requests* as a part of a transaction, after `create_in`.

        Shape: what to call after the commit; the results are those of the requests.
        Errors: `DuplicatePush` when an id is stored already and is not to be left out; `QueueFull`,
        `PartitionsChanged`; `PushHeld` in maintenance, but for *past_holding*: roll back then.
        """
        lanes = await self._store(
            requests,
            self._appender(connection, past_holding=past_holding),
            leave_out_duplicates=leave_out_duplicates,
        )

        def note() -> None:
            self._remember_created(requests)
            self._note_stored(lanes)

        return note

    def _appender(self, connection: Connection, *, past_holding: bool = False) -> _Append:
        async def append(drafts: Sequence[SegmentDraft]) -> log.Appended:
            return await log.append_in(
                connection,
                drafts,
                can_encrypt=not self._keyring.may_store_plain,
                past_holding=past_holding,
            )

        return append

    async def _store(
        self,
        requests: Sequence[PushRequest],
        append: _Append,
        *,
        leave_out_duplicates: bool = True,
        as_text: bool = False,
    ) -> list[_Lane]:
        """Store *requests* and write their results.

        Errors: `PartitionsChanged`, `PushHeld`, `QueueFull`, `DuplicatePush`: nothing was stored.
        """
        lanes = self._fill_lanes(requests)
        places: dict[PartitionId, log.Place] = {}
        while drafts := [draft for lane in lanes for draft in lane.drafts]:
            appended = await append(drafts)
            if appended.missing:
                self._forget(lanes, appended.missing)
                raise PartitionsChanged
            if appended.held:
                raise PushHeld(appended.held)
            if appended.full:
                raise self._full(lanes, appended.full[0])
            if appended.mistaken:
                self._correct_encryption(lanes, appended.mistaken)
            elif appended.duplicates:
                if not leave_out_duplicates:
                    raise DuplicatePush
                self._leave_out(lanes, appended.duplicates)
            else:
                places = appended.places
                break
        for lane in lanes:
            lane.report(
                places[lane.partition.id].base_offset if lane.drafts else 0, as_text=as_text
            )
        return lanes

    def _remember_created(self, requests: Sequence[PushRequest]) -> None:
        self._directory.remember(
            [ref for request in requests for ref, _ in request.lanes[len(request.known) :]]
        )

    def _fill_lanes(self, requests: Sequence[PushRequest]) -> list[_Lane]:
        lanes: dict[PartitionId, _Lane] = {}
        for request in requests:
            for partition, indexes in request.lanes:
                lane = lanes.get(partition.id)
                if lane is None:
                    lane = lanes[partition.id] = _Lane(partition, self._keyring_for(partition))
                lane.add(request, indexes)
        ordered = [lanes[partition_id] for partition_id in sorted(lanes)]
        for lane in ordered:
            lane.find_repeats()
            lane.build()
        return ordered

    def _keyring_for(self, partition: PartitionRef) -> Keyring | None:
        encrypted = partition.queue in self._directory.encrypted_queues and self._keyring.can_seal
        return self._keyring if encrypted else None

    def _forget(self, lanes: Sequence[_Lane], partition_ids: Sequence[PartitionId]) -> None:
        """Forget partitions that are gone, with their queues."""
        gone = set(partition_ids)
        self._directory.forget_queues(
            {lane.partition.queue for lane in lanes if lane.partition.id in gone}
        )

    def _correct_encryption(
        self, lanes: Sequence[_Lane], partition_ids: Sequence[PartitionId]
    ) -> None:
        """Remember that the queues of these want the opposite of what the lanes did.

        Errors: `EncryptionKeyMissing` when one wants its messages encrypted and there is no key.
        """
        encrypted_queues = self._directory.encrypted_queues
        mistaken = set(partition_ids)
        for lane in lanes:
            if lane.partition.id in mistaken:
                if lane.keyring is None:
                    self._require_key(lane.partition.queue)
                    encrypted_queues.add(lane.partition.queue)
                else:
                    encrypted_queues.discard(lane.partition.queue)
        for lane in lanes:
            keyring = self._keyring_for(lane.partition)
            if keyring is not lane.keyring:
                lane.keyring = keyring
                lane.build()

    def _require_key(self, queue: str) -> None:
        try:
            self._keyring.require_key(queue)
        except EncryptionKeyMissing:
            if len(self._keyless) < _KEYLESS_MAX:
                self._keyless[queue] = time.monotonic() + _KEYLESS_S
            raise

    @staticmethod
    def _full(lanes: Sequence[_Lane], full: log.FullQueue) -> QueueFull:
        queue = next(
            lane.partition.queue for lane in lanes if lane.partition.id == full.partition_id
        )
        batch = sum(len(lane.messages) for lane in lanes if lane.partition.queue == queue)
        return QueueFull(
            f"Queue '{queue}' would exceed max capacity ({full.message_count_max}). "
            f"Current: {full.message_count}, Batch: {batch}"
        )

    def _note_stored(self, lanes: Sequence[_Lane]) -> None:
        """Count and tell what was stored; after the commit."""
        stored_count = sum(lane.stored_count for lane in lanes)
        total_count = sum(len(lane.messages) for lane in lanes)
        self._counters.add(Counter.PUSH_TRANSACTIONS)
        self._counters.add(Counter.MESSAGES_PUSHED, stored_count)
        self._counters.add(Counter.MESSAGES_DUPLICATE, total_count - stored_count)
        for lane in lanes:
            self._activity.of(lane.partition.queue).push_messages += lane.stored_count
        self._rooms.tell(
            [
                News(lane.partition.queue, lane.partition.partition)
                for lane in lanes
                if lane.stored_count
            ]
        )

    @staticmethod
    def _leave_out(lanes: Sequence[_Lane], duplicates: Sequence[log.StoredId]) -> None:
        owners = [(lane, i) for lane in lanes for i in range(len(lane.drafts))]
        changed: set[PartitionId] = set()
        for duplicate in duplicates:
            lane, draft_index = owners[duplicate.list]
            lane.note_stored(
                draft_index, duplicate.position, duplicate.first_message_id, duplicate.index,
                duplicate.offset,
            )  # fmt: skip
            changed.add(lane.partition.id)
        for lane in lanes:
            if lane.partition.id in changed:
                lane.build()


def _weight(request: PushRequest) -> int:
    partition_count = len(request.known) + len(request.missing)
    return max(
        request.size_bytes,
        _ITEM_BYTES_MIN * len(request.items),
        _PARTITION_BYTES_MIN * partition_count,
    )


def _by_partition(
    items: Sequence[NewMessage],
) -> Mapping[tuple[str, str | None], Sequence[int]]:
    """The indexes of the items for each queue and partition."""
    if not items:
        return {}
    first, last = items[0], items[-1]
    if (first.queue, first.partition) == (last.queue, last.partition):
        # Most pushes are for one partition; this finds out in a third of the time.
        count = len(items)
        if [item.queue for item in items].count(first.queue) == count and [
            item.partition for item in items
        ].count(first.partition) == count:
            return {(first.queue, first.partition): range(count)}
    groups: dict[tuple[str, str | None], list[int]] = {}
    for index, item in enumerate(items):
        key = (item.queue, item.partition)
        group = groups.get(key)
        if group is None:
            groups[key] = [index]
        else:
            group.append(index)
    return groups


def check_ids(items: Sequence[NewMessage]) -> None:
    given = [item.transaction_id for item in items if item.transaction_id]
    # Bytes are at least characters, at most four each.
    if max(map(len, given), default=0) > TRANSACTION_ID_BYTES_MAX // 4:
        for index, item in enumerate(items):
            size_bytes = len((item.transaction_id or "").encode())
            if size_bytes > TRANSACTION_ID_BYTES_MAX:
                raise BadRequest(
                    f"items[{index}].transactionId is {size_bytes} bytes, at most "
                    f"{TRANSACTION_ID_BYTES_MAX}"
                )
    if "\x00" in "".join(given):
        raise BadRequest("transactionId must not contain a NUL character")
