"""What an acknowledgement does to a group's place in a partition.

This is the long way: item by item, for nacks, partial acks out of order, acks without a lease and
resent ones. It is pure; storage/settle.py feeds it a locked cursor and writes back what it decides.
(The short way, `queen.ack`, compares bytes and agrees with this on what it takes.)

Source: wire-api 2.7 and 2.8.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Sequence

import msgspec


class AckStatus(enum.Enum):
    """What became of a message."""

    COMPLETED = "completed"
    FAILED = "failed"  # redeliver, charge the retry budget
    RETRY = "retry"  # redeliver, charge nothing
    DEAD_LETTER = "dlq"


ACK_STATUSES = {
    "completed": AckStatus.COMPLETED,
    "success": AckStatus.COMPLETED,
    "acked": AckStatus.COMPLETED,
    "ok": AckStatus.COMPLETED,
    "failed": AckStatus.FAILED,
    "retry": AckStatus.RETRY,
    "dlq": AckStatus.DEAD_LETTER,
}

# Should a call name a message twice.
_PRECEDENCE = {
    AckStatus.DEAD_LETTER: 0,
    AckStatus.FAILED: 1,
    AckStatus.RETRY: 2,
    AckStatus.COMPLETED: 3,
}

UNRESOLVABLE = "Message not found: unresolvable transactionId"
STALE_LEASE = "Invalid or expired lease"
ALREADY_COMMITTED = "already committed"
RETRIES_EXHAUSTED = "Retries exhausted"


class Cursor(msgspec.Struct):
    """A group's place in a partition; the row of `queen.cursors`, with the clock already applied.

    The lease fields are None when there is no lease; `lease_live` is False when it has expired.
    """

    committed_offset: int
    lease_id: uuid.UUID | None
    lease_end: int | None
    lease_live: bool
    attempt: int
    attempt_offset: int
    retry_count: int
    retry_offset: int
    settled_lease_id: uuid.UUID | None
    settled_from: int | None
    settled_end: int | None


class AckItem(msgspec.Struct, frozen=True, gc=False):
    """One message of an acknowledgement. `offset` is None when no stored message has its id."""

    offset: int | None
    status: AckStatus
    lease_id: uuid.UUID | None = None  # None = not fenced
    error: str | None = None


class AckResult(msgspec.Struct):
    """The answer to one item."""

    success: bool
    error: str | None = None
    lease_released: bool = False
    dead_letter: bool = False
    noop: bool = False


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A message that leaves for the dead letters."""

    offset: int
    error: str
    retry_count: int


class Settlement(msgspec.Struct):
    """What follows: the cursor as it is to be, the answers in request order, the dead letters."""

    cursor: Cursor
    results: list[AckResult]
    dead_letters: list[DeadLetter]
    changed: bool = False
    released: bool = False
    # The item whose message is to be redelivered, if one is.
    nacked_by: int | None = None


def settle(
    cursor: Cursor, items: Sequence[AckItem], retry_limit: int, *, allow_resend: bool = True
) -> Settlement:
    """Apply the items of one call to the cursor of their partition and group.

    Shape: results are aligned with *items*. *cursor* is changed in place and returned. Inside a
    transaction a resent ack is not allowed: the transaction is judged anew.
    """
    settlement = Settlement(cursor, [AckResult(True) for _ in items], [])
    in_range = _check(cursor, items, settlement.results, allow_resend)
    if not in_range:
        return settlement
    if cursor.lease_id is not None and not cursor.lease_live:
        # It ended by itself. What is acknowledged now is acknowledged without a lease.
        cursor.lease_id = cursor.lease_end = None
    _apply(settlement, items, in_range, retry_limit)
    return settlement


def _check(
    cursor: Cursor, items: Sequence[AckItem], results: list[AckResult], allow_resend: bool
) -> list[int]:
    """Answer the items that need no lock-step decision; return the indexes of the others."""
    in_range: list[int] = []
    for i, item in enumerate(items):
        result = results[i]
        if item.lease_id is not None and not (
            cursor.lease_live and item.lease_id == cursor.lease_id
        ):
            if not (allow_resend and _is_resend(cursor, item)):
                result.success, result.error = False, STALE_LEASE
            else:
                result.lease_released = True
        elif item.offset is None:
            result.success, result.error = False, UNRESOLVABLE
        elif item.offset < cursor.committed_offset:
            if item.status is AckStatus.COMPLETED:
                result.noop = True
            else:
                result.success, result.error = False, ALREADY_COMMITTED
        elif cursor.lease_live and cursor.lease_end is not None and item.offset >= cursor.lease_end:
            result.success, result.error = False, UNRESOLVABLE
        else:
            in_range.append(i)
    return in_range


def _is_resend(cursor: Cursor, item: AckItem) -> bool:
    """Whether the ack that finished this lease comes a second time, its answer having been lost."""
    return (
        item.status is AckStatus.COMPLETED
        and item.offset is not None
        and item.lease_id == cursor.settled_lease_id
        and cursor.settled_from is not None
        and cursor.settled_end is not None
        and cursor.settled_from <= item.offset < cursor.settled_end
    )


def _apply(
    settlement: Settlement, items: Sequence[AckItem], in_range: list[int], retry_limit: int
) -> None:
    cursor = settlement.cursor
    lease_id, lease_end = cursor.lease_id, cursor.lease_end
    start = cursor.committed_offset
    completed_offset_max = max(
        (items[i].offset or 0 for i in in_range if items[i].status is AckStatus.COMPLETED),
        default=-1,
    )
    charged = exhausted = stopped = False
    redelivers = False

    in_range.sort(key=lambda i: (items[i].offset or 0, _PRECEDENCE[items[i].status]))
    position = -1
    for i in in_range:
        item, result = items[i], settlement.results[i]
        assert item.offset is not None
        if stopped:
            continue  # it is redelivered with the rest; the call was carried out
        if item.offset == position:
            continue  # named twice: the stronger status has been applied
        position = item.offset

        if item.status is AckStatus.COMPLETED:
            _commit(settlement, item.offset + 1)
            continue
        if lease_id is None:
            # Nothing is out for delivery that could be given back.
            continue
        if (
            settlement.dead_letters
            and item.offset > cursor.committed_offset
            and item.offset > completed_offset_max
        ):
            # A second dead letter behind a message that the call does not mention: going on would
            # commit that one silently.
            stopped = redelivers = True
            settlement.nacked_by = i
            continue

        if item.status is AckStatus.RETRY:
            stopped = redelivers = True
            settlement.nacked_by = i
        elif item.status is AckStatus.DEAD_LETTER:
            _bury(settlement, item, item.offset, result)
        # The budget belongs to the message at which the group is stuck: it is given back when
        # the cursor passes that message.
        elif exhausted or (not charged and cursor.retry_count >= retry_limit):
            exhausted = True
            _bury(settlement, item, item.offset, result)
        else:
            if not charged:
                cursor.retry_count += 1
                cursor.retry_offset = item.offset
                charged = True
            settlement.changed = stopped = redelivers = True
            settlement.nacked_by = i

    finished = lease_end is not None and cursor.committed_offset >= lease_end
    settlement.released = lease_id is not None and (
        finished or redelivers or bool(settlement.dead_letters)
    )
    if finished or settlement.dead_letters:
        cursor.attempt, cursor.attempt_offset = 0, -1
    elif cursor.committed_offset != start and lease_id is not None:
        # What is left of the batch keeps its count. Without a lease there is no batch.
        cursor.attempt_offset = cursor.committed_offset
    if finished:
        cursor.settled_lease_id = lease_id
        cursor.settled_from, cursor.settled_end = start, cursor.committed_offset
    if settlement.released:
        settlement.changed = True
        cursor.lease_id = cursor.lease_end = None
        cursor.lease_live = False
        for i in in_range:
            settlement.results[i].lease_released = True


def _commit(settlement: Settlement, offset: int) -> None:
    cursor = settlement.cursor
    cursor.committed_offset = offset
    settlement.changed = True
    if cursor.retry_offset < offset:
        cursor.retry_count, cursor.retry_offset = 0, -1


def _bury(settlement: Settlement, item: AckItem, offset: int, result: AckResult) -> None:
    result.dead_letter = True
    # Of several in one call the first has used up the budget, and passing it gives it back.
    retry_count = settlement.cursor.retry_count
    if settlement.dead_letters and item.status is AckStatus.FAILED:
        retry_count = max(retry_count, settlement.dead_letters[0].retry_count)
    settlement.dead_letters.append(DeadLetter(offset, item.error or RETRIES_EXHAUSTED, retry_count))
    _commit(settlement, offset + 1)
