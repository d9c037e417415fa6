"""Shows operators the messages of the log, and takes single ones or all of them out of it.

A listing reads backwards in time, segment by segment, and opens only those whose messages are on
the page. Its cost follows from where the page ends and, a row or a search for each, from how many
partitions the filter names; not from what is stored in them. It leaves nothing out: what it may not
look through is refused (docs/design/log.md, "Listings").
"""

from __future__ import annotations

import contextlib
import datetime
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from queue_server.broker.wakeup import Rooms, wake_freed
from queue_server.domain.encryption import Keyring, Unreadable
from queue_server.domain.errors import BadRequest
from queue_server.domain.names import PartitionId, PartitionKey, PartitionName, QueueName
from queue_server.domain.retention import RetentionType
from queue_server.domain.segment import OpenSegment
from queue_server.domain.status import Consumption, MessageStatus
from queue_server.storage import dead_letters, groups, queues, retention, stored_messages
from queue_server.storage.messages import read_segments
from queue_server.storage.retention import Expired, Span
from queue_server.storage.stored_messages import (
    Death,
    MessageFilter,
    MessageView,
    PartitionView,
    QueueConfig,
    Range,
    SegmentPlace,
    TooManyPartitions,
    open_segment,
)
from queue_server.storage.transactions import Transactions

# How far into a listing a page may begin.
OFFSET_MAX = 10_000
# Segments that a listing looks through, as long as messages in them were taken out or are dead
# letters: some 10 MB, and 0.1 s of a worker.
_SEGMENTS_MAX = 20_000
# How much of the log one statement reads, in opened bytes; a page of small messages is one read.
_READ_BYTES = 4 << 20
# How much payload one page of a listing has. It ends behind the entry with which it is more.
PAGE_BYTES = 16 << 20
# Segments that one batch of a clear deletes, and how long a call goes on with it. What is left is
# out of delivery already, and deleted by the clean-up service.
_CLEAR_SEGMENTS = 1000
_CLEAR_S = 10.0
# How long a transaction id alone is looked for, and how many of its places are told.
_SEARCH_S = 5.0
_PLACES_MAX = 10
# How long the partitions are searched in which a window of time or a message id may lie.
_WINDOW_S = 10.0
# A message is stored a moment after it got its id, by another clock: how far the two may be apart.
_ID_TIME = datetime.timedelta(minutes=1)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# How far apart messages are pushed that count as related.
_RELATED = datetime.timedelta(hours=1)
_NO_PAYLOAD = msgspec.Raw(b"")
# Beyond the end of every log.
_END = (1 << 63) - 1


class Listed(msgspec.Struct, frozen=True):
    """A message of a listing, with the groups of its partition."""

    message: MessageView
    consumption: Consumption

    @property
    def status(self) -> MessageStatus:
        return self.consumption.status(self.message.offset, is_dead=self.message.death is not None)


class Listing(msgspec.Struct, frozen=True):
    """A page of messages; `truncated`: it ended by its bytes, and more messages follow."""

    messages: list[Listed]
    truncated: bool = False


class Detail(msgspec.Struct, frozen=True):
    """A single message with its queue's options."""

    listed: Listed
    config: QueueConfig
    # Of the groups that gave it up; None: the reason is encrypted and cannot be read.
    reasons: dict[str, str | None]


class AmbiguousId(Exception):
    """Messages of several partitions have this transaction id; *places* are some of them."""

    def __init__(self, places: list[PartitionView]) -> None:
        self.places = places


class _Piece(msgspec.Struct, frozen=True):
    """What a page shows of a segment: these offsets, newest first; one or more."""

    segment: SegmentPlace
    offsets: Sequence[int]


def _covers(segments: Sequence[SegmentPlace]) -> list[Range]:
    return [Range(s.partition_id, s.base_offset, s.next_offset) for s in segments]


def _batches(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Runs of *pieces* whose segments are read by one statement."""
    batch: list[_Piece] = []
    size_bytes = 0
    for piece in pieces:
        size_bytes += piece.segment.raw_bytes
        if batch and size_bytes > _READ_BYTES:
            yield batch
            batch, size_bytes = [], piece.segment.raw_bytes
        batch.append(piece)
    if batch:
        yield batch


class StoredMessages:
    """Administers messages."""

    def __init__(
        self, transactions: Transactions, reads: Transactions, keyring: Keyring, rooms: Rooms
    ) -> None:
        self._transactions = transactions
        self._reads = reads
        self._keyring = keyring
        self._rooms = rooms

    # -- look --

    async def page(
        self, filter_: MessageFilter, limit: int, offset: int, *, with_payloads: bool = True
    ) -> Listing:
        """Read messages, newest first. A page ends early behind `PAGE_BYTES` of payloads.

        Shape: without payloads these are empty, and a page is as long as *limit* says.
        Errors: `BadRequest` when more lies before the page than may be looked through.
        """
        if offset > OFFSET_MAX:
            raise BadRequest(
                f"offset is {offset}, but {OFFSET_MAX} at most: give from and to, or a partition"
            )
        if filter_.status is MessageStatus.DEAD_LETTER:
            views, truncated = await stored_messages.dead_messages(
                self._reads, filter_, limit, offset, PAGE_BYTES, self._keyring
            )
        else:
            views, truncated = await self._browse(filter_, limit, offset, with_payloads)
        return Listing(await self._listed(views), truncated)

    async def find(self, id_: uuid.UUID, queue: QueueName | None) -> Listed | None:
        """The message with this message id, in the log or among the dead letters; None if neither.

        *queue* None: any. The id, of version 7, says when the message was stored; it is looked for
        in every partition that was pushed to since.
        Errors: `BadRequest` when `_WINDOW_S` were too few.
        """
        try:
            minted_at = _EPOCH + datetime.timedelta(milliseconds=id_.int >> 80)
            start, end = minted_at - _ID_TIME, minted_at + _ID_TIME
        except OverflowError:
            return None  # a time that never was
        deadline = time.monotonic() + _WINDOW_S
        view = await stored_messages.dead_message(
            self._reads, id_, queue, start, end, self._keyring
        )
        after: PartitionId | None = PartitionId(0)
        while view is None and after is not None:
            if time.monotonic() >= deadline:
                raise BadRequest(
                    "there are more partitions than can be searched for a message id in"
                    f" {_WINDOW_S:g} s: name its queue"
                )
            view, after = await stored_messages.search_message(
                self._reads, id_, queue, after, start, end, self._keyring
            )
        return None if view is None else (await self._listed([view]))[0]

    async def _listed(self, views: Sequence[MessageView]) -> list[Listed]:
        consumptions = await stored_messages.consumptions(
            self._reads, list({view.partition.id for view in views})
        )
        return [Listed(view, consumptions[view.partition.id]) for view in views]

    async def mode(self, filter_: MessageFilter) -> tuple[bool, int]:
        """Whether the queues of a listing are consumed in queue mode; how many named groups."""
        return await stored_messages.consumption_mode(self._reads, filter_.queue, filter_.partition)

    async def _browse(
        self, filter_: MessageFilter, limit: int, offset: int, with_payloads: bool
    ) -> tuple[list[MessageView], bool]:
        wanted = offset + limit
        segment_limit = wanted
        while True:
            try:
                partitions, ranges, segments = await stored_messages.browse(
                    self._reads, filter_, segment_limit, _WINDOW_S
                )
            except TooManyPartitions:
                raise BadRequest(
                    "more partitions were pushed to after `to` than can be searched in"
                    f" {_WINDOW_S:g} s: name a queue or a partition, or leave `to` out"
                ) from None
            skipped = await self._skipped(filter_, segments)
            pieces: list[_Piece] = []
            passed = 0
            for segment in segments:
                own = ranges[segment.partition_id]
                first = max(segment.base_offset, own.start)
                offsets: Sequence[int] = range(min(segment.next_offset, own.end) - 1, first - 1, -1)
                gone = skipped.get(segment.partition_id)
                if gone:
                    offsets = [place for place in offsets if place not in gone]
                shown = offsets[max(offset - passed, 0) : wanted - passed]
                if shown:
                    pieces.append(_Piece(segment, shown))
                passed += len(offsets)
                if passed >= wanted:
                    break
            if passed >= wanted or len(segments) < segment_limit:
                return await self._views(filter_, partitions, pieces, with_payloads)
            if segment_limit >= _SEGMENTS_MAX:
                raise BadRequest(
                    "too many messages before this page were taken out of the log or are dead"
                    " letters: give from and to, or a partition"
                )
            segment_limit = min(segment_limit * 4, _SEGMENTS_MAX)

    async def _skipped(
        self, filter_: MessageFilter, segments: Sequence[SegmentPlace]
    ) -> dict[PartitionId, set[int]]:
        """The offsets that a listing does not show, by partition."""
        covers = _covers(segments)
        skipped: dict[PartitionId, set[int]] = defaultdict(set)
        places = await stored_messages.holes(self._reads, covers)
        if filter_.status is not None:
            places |= (await stored_messages.deaths(self._reads, covers, self._keyring)).keys()
        for partition_id, offset in places:
            skipped[partition_id].add(offset)
        return skipped

    async def _views(
        self,
        filter_: MessageFilter,
        partitions: dict[PartitionId, PartitionView],
        pieces: Sequence[_Piece],
        with_payloads: bool,
    ) -> tuple[list[MessageView], bool]:
        """Read the messages of a page, without those that were dropped since.

        Shape: also whether it ends before the last of *pieces*, because of its payloads.
        """
        deaths: dict[tuple[PartitionId, int], Death] = {}
        if filter_.status is None:
            covers = _covers([piece.segment for piece in pieces])
            deaths = await stored_messages.deaths(self._reads, covers, self._keyring)
        views: list[MessageView] = []
        size_bytes = 0
        for batch in _batches(pieces):
            keys = [(piece.segment.partition_id, piece.segment.base_offset) for piece in batch]
            read = await read_segments(self._reads, keys)
            stored = {(segment.partition_id, segment.base_offset): segment for segment in read}
            for piece, key in zip(batch, keys, strict=True):
                segment = stored.get(key)
                if segment is None:
                    continue
                partition = partitions[segment.partition_id]
                opened: OpenSegment | None = None
                # A page shows what is known of a message that cannot be read.
                with contextlib.suppress(Unreadable):
                    opened = open_segment(segment, partition.queue, self._keyring)
                for offset in piece.offsets:
                    if size_bytes > PAGE_BYTES:
                        return views, True
                    message = None if opened is None else opened.message(offset)
                    if message is not None:
                        if not with_payloads:
                            message.data = _NO_PAYLOAD
                        size_bytes += len(message.data)
                    death = deaths.get((segment.partition_id, offset))
                    views.append(stored_messages.view(partition, segment, offset, message, death))
        return views, False

    async def get(self, partition_id: PartitionId, transaction_id: str) -> Detail | None:
        """A message from the log, or, when it is no longer there, from its dead letter."""
        found = await stored_messages.find_partition(self._reads, partition_id)
        if found is None:
            return None
        partition, config = found
        message = await stored_messages.get(self._reads, partition, transaction_id, self._keyring)
        if message is None:
            return None
        consumptions = await stored_messages.consumptions(self._reads, [partition_id])
        reasons: dict[str, str | None] = {}
        for letter in await dead_letters.of_message(self._reads, partition_id, transaction_id):
            if letter.created_at == message.created_at:
                reasons[letter.consumer_group] = None
                with contextlib.suppress(Unreadable):
                    opened = dead_letters.opened(letter, self._keyring)
                    reasons[letter.consumer_group] = opened.error_message
        return Detail(Listed(message, consumptions[partition_id]), config, reasons)

    async def locate(self, transaction_id: str, within_s: float = _SEARCH_S) -> PartitionId | None:
        """The partition with the only message of this id, in its log or among its dead letters.

        Every partition is asked, as ids are unique in their partition alone: about 4 µs each.
        Shape: None when no partition has one.
        Errors: `AmbiguousId`; `BadRequest` when *within_s* seconds were too few.
        """
        deadline = time.monotonic() + within_s
        found = set(
            await stored_messages.dead_letter_partitions(self._reads, transaction_id, _PLACES_MAX)
        )
        after: PartitionId | None = PartitionId(0)
        while after is not None and len(found) < _PLACES_MAX:
            if time.monotonic() >= deadline:
                raise BadRequest(
                    "there are more partitions than can be searched for a transaction id alone in"
                    f" {within_s:g} s: name the message by /api/v1/messages/:partitionId"
                    "/:transactionId"
                )
            partition_ids, after = await stored_messages.search(self._reads, transaction_id, after)
            found.update(partition_ids)
        if len(found) > 1:
            places = await stored_messages.view_partitions(self._reads, sorted(found))
            raise AmbiguousId(places[:_PLACES_MAX])
        return next(iter(found), None)

    async def related(self, detail: Detail, limit: int) -> list[Listed]:
        """Other messages of the same partition, pushed within an hour of this one; newest first."""
        message = detail.listed.message
        page = await self.page(
            MessageFilter(
                start=message.created_at - _RELATED,
                end=message.created_at + _RELATED,
                queue=message.partition.queue,
                partition=message.partition.partition,
            ),
            limit + 1,
            0,
        )
        return [one for one in page.messages if one.message.id != message.id][:limit]

    # -- take out --

    async def delete(self, partition_id: PartitionId, transaction_id: str) -> int | None:
        """Delete a message with its dead letters. Shape: how many those were; None = no message."""
        removed = await stored_messages.delete(self._transactions, partition_id, transaction_id)
        if removed.freed:
            await wake_freed(self._transactions, self._rooms, [partition_id])
        return (
            removed.dead_letter_count if removed.was_stored or removed.dead_letter_count else None
        )

    async def bury(self, partition_id: PartitionId, transaction_id: str) -> Sequence[str] | None:
        """Move a message to the dead letters of the groups that have not consumed it.

        Shape: those groups; None when there is no such message in the log.
        Errors: `NotPending`.
        """
        found = await stored_messages.find_partition(self._transactions, partition_id)
        if found is None:
            return None
        removed = await stored_messages.bury(
            self._transactions, *found, transaction_id, self._keyring
        )
        if removed.freed:
            await wake_freed(self._transactions, self._rooms, [partition_id])
        return removed.groups if removed.was_stored else None

    async def clear(self, queue: QueueName, partition: PartitionName | None) -> int | None:
        """Delete all messages of a queue or of one partition; how many.

        Shape: None when the queue or the partition does not exist. Dead letters stay, and so do the
        places of the groups: what is pushed next has the next offset.
        """
        queue_id = await groups.find_queue(self._transactions, queue)
        if queue_id is None:
            return None
        count = 0
        spans: list[Span] = []
        if partition is not None:
            ref = await queues.find_partition(self._transactions, PartitionKey(queue, partition))
            if ref is None:
                return None
            count += await self._clear(queue_id, [ref.id], spans)
        else:
            async for partition_ids in groups.chunks(self._transactions, queue_id):
                count += await self._clear(queue_id, partition_ids, spans)
        await stored_messages.flush_commits(self._transactions)
        deadline = time.monotonic() + _CLEAR_S
        while spans and time.monotonic() < deadline:
            spans = (await retention.drop(self._transactions, spans, _CLEAR_SEGMENTS)).left
        return count

    async def _clear(
        self, queue_id: str, partition_ids: list[PartitionId], spans: list[Span]
    ) -> int:
        raised = await retention.raise_low_watermarks(
            self._transactions,
            [Expired(queue_id, id_, _END, RetentionType.CLEAR) for id_ in partition_ids],
        )
        if not raised.spans:
            return 0
        spans += raised.spans
        await wake_freed(self._transactions, self._rooms, raised.freed)
        return raised.message_count - await stored_messages.count_holes(
            self._transactions, [Range(s.partition_id, s.start, s.end) for s in raised.spans]
        )
