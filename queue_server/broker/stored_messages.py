"""Shows operators the messages of the log, and takes single ones or all of them out of it.

A listing reads backwards in time, segment by segment, and opens only those whose messages are on
the page: its cost follows from the page, not from what is stored.
"""

from __future__ import annotations

import datetime
import time

import msgspec

from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import BadRequest
from queue_server.domain.names import PartitionId, PartitionKey, PartitionName, QueueName
from queue_server.domain.retention import RetentionType
from queue_server.domain.segment import CODEC_ENCRYPTED
from queue_server.domain.status import Consumption, MessageStatus
from queue_server.storage import groups, queues, retention, stored_messages
from queue_server.storage.messages import read_segments
from queue_server.storage.retention import Expired, Span
from queue_server.storage.stored_messages import (
    MessageFilter,
    MessageView,
    PartitionView,
    QueueConfig,
    Range,
    SegmentPlace,
    open_segment,
)
from queue_server.storage.transactions import Transactions

# How often a listing looks again, at twice as many segments, because there were holes.
_LOOKS_MAX = 4
# Segments that one batch of a clear deletes, and how long a call goes on with it. What is left is
# out of delivery already, and deleted by the clean-up service.
_CLEAR_SEGMENTS = 1000
_CLEAR_S = 10.0
# How long a transaction id alone is looked for, and how many of its places are told.
_SEARCH_S = 5.0
_PLACES_MAX = 10
# How far apart messages are pushed that count as related.
_RELATED = datetime.timedelta(hours=1)
# Beyond the end of every log.
_END = (1 << 63) - 1


class Listed(msgspec.Struct, frozen=True):
    """A message of a listing, with the groups of its partition."""

    message: MessageView
    consumption: Consumption

    @property
    def status(self) -> MessageStatus:
        return self.consumption.status(self.message.offset, is_dead=self.message.death is not None)


class Detail(msgspec.Struct, frozen=True):
    """A single message with its queue's options."""

    listed: Listed
    config: QueueConfig


class AmbiguousId(Exception):
    """Messages of several partitions have this transaction id; *places* are some of them."""

    def __init__(self, places: list[PartitionView]) -> None:
        self.places = places


class _Slot(msgspec.Struct, frozen=True, gc=False):
    """A place on a page: a message of a segment."""

    segment: SegmentPlace
    offset: int


class StoredMessages:
    """Administers messages."""

    def __init__(self, transactions: Transactions, keyring: Keyring) -> None:
        self._transactions = transactions
        self._keyring = keyring

    # -- look --

    async def page(self, filter_: MessageFilter, limit: int, offset: int) -> list[Listed]:
        """Messages, newest first."""
        if filter_.status is MessageStatus.DEAD_LETTER:
            views = await stored_messages.dead_messages(
                self._transactions, filter_, limit, offset, self._keyring
            )
        else:
            views = await self._browse(filter_, limit, offset)
        consumptions = await stored_messages.consumptions(
            self._transactions, list({view.partition.id for view in views})
        )
        return [Listed(view, consumptions[view.partition.id]) for view in views]

    async def mode(self, filter_: MessageFilter) -> tuple[bool, int]:
        """Whether the queues of a listing are consumed in queue mode; how many named groups."""
        return await stored_messages.consumption_mode(
            self._transactions, filter_.queue, filter_.partition
        )

    async def _browse(self, filter_: MessageFilter, limit: int, offset: int) -> list[MessageView]:
        wanted = offset + limit
        segment_limit = wanted
        for _ in range(_LOOKS_MAX):
            partitions, ranges, segments = await stored_messages.browse(
                self._transactions, filter_, segment_limit
            )
            if not segments:
                return []
            covers = [Range(s.partition_id, s.base_offset, s.next_offset) for s in segments]
            holes = await stored_messages.holes(self._transactions, covers)
            deaths = await stored_messages.deaths(self._transactions, covers)
            skipped = holes if filter_.status is None else holes | deaths.keys()
            slots: list[_Slot] = []
            for segment in segments:
                own = ranges[segment.partition_id]
                first = max(segment.base_offset, own.start)
                slots += [
                    _Slot(segment, place)
                    for place in range(min(segment.next_offset, own.end) - 1, first - 1, -1)
                    if (segment.partition_id, place) not in skipped
                ]
                if len(slots) >= wanted:
                    break
            if len(slots) >= wanted or len(segments) < segment_limit:
                break
            segment_limit *= 2
        views: list[MessageView] = []
        opened_key: tuple[PartitionId, int] | None = None
        opened = None
        is_encrypted = False
        for slot in slots[offset:wanted]:
            key = (slot.segment.partition_id, slot.segment.base_offset)
            if key != opened_key:
                stored = await read_segments(self._transactions, [key])
                opened_key = key
                opened = open_segment(stored[0], self._keyring) if stored else None
                is_encrypted = bool(stored and stored[0].codec & CODEC_ENCRYPTED)
            if opened is None:
                continue  # dropped since
            views.append(
                stored_messages.view(
                    partitions[slot.segment.partition_id],
                    slot.segment,
                    slot.offset,
                    opened.message(slot.offset),
                    is_encrypted=is_encrypted,
                    death=deaths.get((slot.segment.partition_id, slot.offset)),
                )
            )
        return views

    async def get(self, partition_id: PartitionId, transaction_id: str) -> Detail | None:
        """A message from the log, or, when it is no longer there, from its dead letter."""
        found = await stored_messages.find_partition(self._transactions, partition_id)
        if found is None:
            return None
        partition, config = found
        message = await stored_messages.get(
            self._transactions, partition, transaction_id, self._keyring
        )
        if message is None:
            return None
        consumptions = await stored_messages.consumptions(self._transactions, [partition_id])
        return Detail(Listed(message, consumptions[partition_id]), config)

    async def locate(self, transaction_id: str, within_s: float = _SEARCH_S) -> PartitionId | None:
        """The partition with the only message of this id, in its log or among its dead letters.

        Every partition is asked, as ids are unique in their partition alone: about 4 µs each.
        Shape: None when no partition has one.
        Errors: `AmbiguousId`; `BadRequest` when *within_s* seconds were too few.
        """
        deadline = time.monotonic() + within_s
        found = set(
            await stored_messages.dead_letter_partitions(
                self._transactions, transaction_id, _PLACES_MAX
            )
        )
        after: PartitionId | None = PartitionId(0)
        while after is not None and len(found) < _PLACES_MAX:
            if time.monotonic() >= deadline:
                raise BadRequest(
                    "there are more partitions than can be searched for a transaction id alone in"
                    f" {within_s:g} s: name the message by /api/v1/messages/:partitionId"
                    "/:transactionId"
                )
            partition_ids, after = await stored_messages.search(
                self._transactions, transaction_id, after
            )
            found.update(partition_ids)
        if len(found) > 1:
            places = await stored_messages.view_partitions(self._transactions, sorted(found))
            raise AmbiguousId(places[:_PLACES_MAX])
        return next(iter(found), None)

    async def related(self, detail: Detail, limit: int) -> list[Listed]:
        """Other messages of the same partition, pushed within an hour of this one; newest first."""
        message = detail.listed.message
        listed = await self.page(
            MessageFilter(
                start=message.created_at - _RELATED,
                end=message.created_at + _RELATED,
                queue=message.partition.queue,
                partition=message.partition.partition,
            ),
            limit + 1,
            0,
        )
        return [one for one in listed if one.message.id != message.id][:limit]

    # -- take out --

    async def delete(self, partition_id: PartitionId, transaction_id: str) -> int | None:
        """Delete a message with its dead letters. Shape: how many those were; None = no message."""
        letters, stored = await stored_messages.delete(
            self._transactions, partition_id, transaction_id
        )
        return letters if letters or stored else None

    async def bury(self, partition_id: PartitionId, transaction_id: str) -> list[str] | None:
        """Move a message to the dead letters of the groups that have not consumed it.

        Shape: those groups; None when there is no such message in the log.
        Errors: `NotPending`.
        """
        found = await stored_messages.find_partition(self._transactions, partition_id)
        if found is None:
            return None
        return await stored_messages.bury(self._transactions, *found, transaction_id, self._keyring)

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
        raised, count = await retention.raise_low_watermarks(
            self._transactions,
            [Expired(queue_id, id_, _END, RetentionType.CLEAR) for id_ in partition_ids],
        )
        spans += raised
        if not raised:
            return 0
        return count - await stored_messages.count_holes(
            self._transactions, [Range(s.partition_id, s.start, s.end) for s in raised]
        )
