"""Lists dead letters, removes them, and moves them back to a queue.

A move pushes a copy to the end of the partition with the transaction id `dlq:<id of the entry>`
and removes the entry, in one transaction. So it happens once: who comes second finds the entry
gone, and a repetition after a COMMIT whose answer was lost finds its own message.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from queue_server.broker.push import (
    DuplicatePush,
    PartitionsChanged,
    Pusher,
    PushResult,
)
from queue_server.broker.stored_messages import PAGE_BYTES
from queue_server.domain.access import Grants
from queue_server.domain.encryption import Keyring, Unreadable
from queue_server.domain.errors import QueueFull, Unavailable
from queue_server.domain.ids import id_keys
from queue_server.domain.message import NewMessage, message_id
from queue_server.domain.names import PartitionId
from queue_server.storage import dead_letters
from queue_server.storage.dead_letters import DeadLetter, DeadLetterFilter, RedrivePreview
from queue_server.storage.messages import StoredId, find_ids
from queue_server.storage.transactions import Connection, Transactions

_ATTEMPTS_MAX = 5
# Of a redrive by ids, which reads them with their payloads.
_RUN_IDS = 100


class Page(msgspec.Struct, frozen=True):
    """A page of dead letters, and how many there are on all pages."""

    letters: list[DeadLetter]
    total: int


class Destination(msgspec.Struct, frozen=True):
    """Where a dead letter goes; None = where it came from."""

    queue: str | None = None
    partition: str | None = None


class Replay(msgspec.Struct, frozen=True):
    """A dead letter that was moved, or not, because its copy is stored already."""

    letter: DeadLetter
    message: NewMessage
    pushed: PushResult
    moved: bool


class Redriven(msgspec.Struct, frozen=True):
    """What became of a filtered set; `remaining` match the filter still, duplicates among them."""

    moved_count: int
    message_count: int  # pushed for these
    duplicate_count: int
    remaining_count: int


class Purged(msgspec.Struct, frozen=True):
    """What became of a filtered set; `remaining` match the filter still."""

    deleted_count: int
    remaining_count: int


class _Move(msgspec.Struct, frozen=True):
    """A dead letter that is moved, and others of the same message that go with it."""

    letter: DeadLetter
    others: Sequence[uuid.UUID] = ()

    @property
    def ids(self) -> list[uuid.UUID]:
        return [self.letter.id, *self.others]


class _Taken(Exception):
    """Dead letters of a move are gone: somebody was faster."""

    def __init__(self, ids: set[uuid.UUID]) -> None:
        self.ids = ids


class DeadLetters:
    """Administers dead letters."""

    def __init__(
        self, transactions: Transactions, reads: Transactions, pusher: Pusher, keyring: Keyring
    ) -> None:
        self._transactions = transactions
        self._reads = reads
        self._pusher = pusher
        self._keyring = keyring

    async def page(self, filter_: DeadLetterFilter, limit: int, offset: int) -> Page:
        """Read dead letters, newest failure first. A page ends early behind `PAGE_BYTES`."""
        filter_ = self._with_keys(filter_)
        found, total = await dead_letters.page(self._reads, filter_, limit, offset, PAGE_BYTES)
        letters = [self._opened(letter) for letter in found]
        if offset > 0 or total == limit:
            total = await dead_letters.count(self._reads, filter_)
        return Page(letters, total)

    async def get(
        self, id_: uuid.UUID, is_visible: Callable[[str], bool] = lambda _: True
    ) -> DeadLetter | None:
        """One dead letter; None also when its queue is not visible."""
        letter = await dead_letters.get(self._reads, id_)
        return self._opened(letter) if letter is not None and is_visible(letter.queue) else None

    def _with_keys(self, filter_: DeadLetterFilter) -> DeadLetterFilter:
        """The filter, so that it finds a sealed error as well."""
        if filter_.error is None:
            return filter_
        keys = self._keyring.reason_keys(filter_.error)
        return msgspec.structs.replace(filter_, error_keys=keys)

    def _opened(self, letter: DeadLetter) -> DeadLetter:
        """A dead letter as a listing shows it, without what cannot be read of it."""
        try:
            return dead_letters.opened(letter, self._keyring)
        except Unreadable:
            return msgspec.structs.replace(
                letter, payload=None, error_message=None, sealed_error=None
            )

    async def purge(self, filter_: DeadLetterFilter, limit: int | None) -> Purged:
        """Remove what the filter lets through, oldest failure first, at most *limit*."""
        filter_ = self._with_keys(filter_)
        deleted = await dead_letters.purge(self._transactions, filter_, limit)
        return Purged(deleted, await dead_letters.count(self._transactions, filter_))

    async def replay(self, id_: uuid.UUID, destination: Destination) -> Replay | None:
        """Move one dead letter. Shape: None when it does not exist (any more).

        Errors: `QueueFull`, `BadRequest` for a name that cannot exist; `Unreadable`.
        """
        letter = await dead_letters.get(self._transactions, id_)
        if letter is None:
            return None
        return await self._replay(dead_letters.opened(letter, self._keyring), destination)

    async def retry(
        self, partition_id: PartitionId, transaction_id: str, creator: Grants | None = None
    ) -> Replay | None:
        """Move the newest dead letter of a message back. Shape, Errors: as `replay`.

        *creator*: as of `redrive`.
        """
        letters = await dead_letters.of_message(self._transactions, partition_id, transaction_id)
        if not letters:
            return None
        letter = dead_letters.opened(letters[0], self._keyring)
        return await self._replay(letter, Destination(), creator)

    async def redrive(
        self,
        filter_: DeadLetterFilter,
        limit: int,
        creator: Grants | None = None,
        ids: Sequence[uuid.UUID] | None = None,
    ) -> Redriven:
        """Move up to *limit* dead letters back, oldest failure first, in bounded batches.

        Shape: *ids* are these alone, of those that the filter lets through.
        A message that several groups gave up is pushed once, as every group reads the copy: its
        other dead letters go with the first, also beyond *limit*.
        Duplicates on the way do not count: many of them must not keep the others from being moved.
        Nor do those that are encrypted and cannot be read: they stay.
        *creator*: what bounds the labels of a queue that was deleted meanwhile and is made anew.

        Errors: `QueueFull` when nothing could be moved.
        """
        filter_ = self._with_keys(filter_)
        moved_count = message_count = duplicate_count = 0
        async for run in self._runs(filter_, ids, limit):
            readable = [one for one in map(self._opened, run) if one.payload is not None]
            moves = await self._by_message(readable, filter_, ids)
            try:
                while moves and moved_count < limit:
                    some = moves[: limit - moved_count]
                    moves = moves[len(some) :]
                    moved, messages, duplicates = await self._move_run(some, creator)
                    moved_count += moved
                    message_count += messages
                    duplicate_count += duplicates
            except QueueFull:
                if moved_count == 0:
                    raise
                break
            if moved_count >= limit:
                break
        return Redriven(
            moved_count,
            message_count,
            duplicate_count,
            await dead_letters.count(self._transactions, filter_),
        )

    async def _runs(
        self, filter_: DeadLetterFilter, ids: Sequence[uuid.UUID] | None, limit: int
    ) -> AsyncIterator[list[DeadLetter]]:
        """Read what a redrive moves, oldest failure first, run by run."""
        if ids is not None:
            for start in range(0, len(ids), _RUN_IDS):
                some = ids[start : start + _RUN_IDS]
                yield await dead_letters.by_id(self._transactions, filter_, some)
            return
        after: DeadLetter | None = None
        while run := await dead_letters.next_run(self._transactions, filter_, after, limit):
            yield run
            after = run[-1]

    async def preview(self, filter_: DeadLetterFilter) -> RedrivePreview:
        """Return what a redrive of all that the filter lets through would do."""
        return await dead_letters.preview_redrive(self._reads, self._with_keys(filter_))

    async def _by_message(
        self,
        letters: Sequence[DeadLetter],
        filter_: DeadLetterFilter,
        ids: Sequence[uuid.UUID] | None,
    ) -> list[_Move]:
        """One move for each message of *letters*, the first of each with all the others."""
        same = await dead_letters.of_same_messages(
            self._transactions, filter_, [letter.id for letter in letters]
        )
        wanted = None if ids is None else set(ids)
        moves = []
        covered: set[uuid.UUID] = set()
        for letter in letters:
            if letter.id not in covered:
                others = [
                    id_
                    for id_ in same.get(letter.id, ())
                    if id_ != letter.id and (wanted is None or id_ in wanted)
                ]
                moves.append(_Move(letter, others))
                covered.update(others)
        return moves

    async def _move_run(self, run: Sequence[_Move], creator: Grants | None) -> tuple[int, int, int]:
        """Move a run together; one by one when some of its copies are stored already.

        Shape: dead letters that were moved, messages pushed, and dead letters that stay because
        their message is stored.
        """
        moves = list(run)
        while moves:
            messages = [_copy(move.letter, Destination()) for move in moves]
            try:
                await self._move(moves, messages, creator)
            except _Taken as taken:
                moves = [
                    _Move(move.letter, [id_ for id_ in move.others if id_ not in taken.ids])
                    for move in moves
                    if move.letter.id not in taken.ids
                ]
            except DuplicatePush:
                moved = pushed = duplicates = 0
                for move in moves:
                    replay = await self._replay(move.letter, Destination(), creator, move.others)
                    if replay is not None and replay.moved:
                        moved += len(move.ids)
                        pushed += 1
                    elif replay is not None:
                        duplicates += 1
                return moved, pushed, duplicates
            else:
                return sum(len(move.ids) for move in moves), len(moves), 0
        return 0, 0, 0

    async def _replay(
        self,
        letter: DeadLetter,
        destination: Destination,
        creator: Grants | None = None,
        others: Sequence[uuid.UUID] = (),
    ) -> Replay | None:
        message = _copy(letter, destination)
        try:
            results = await self._move([_Move(letter, others)], [message], creator)
        except _Taken:
            return None
        except DuplicatePush:
            stored = await self._find(message)
            if stored is None or await dead_letters.get(self._transactions, letter.id) is None:
                return None
            return Replay(letter, message, stored, moved=False)
        return Replay(letter, message, results[0], moved=True)

    async def _move(
        self,
        moves: Sequence[_Move],
        messages: Sequence[NewMessage],
        creator: Grants | None,
    ) -> list[PushResult]:
        """Push *messages* and remove the dead letters of *moves* in one transaction.

        They keep their producers, and the transaction ids that they had.

        Errors: `_Taken`, `DuplicatePush`: nothing was done.
        """
        ids = [id_ for move in moves for id_ in move.ids]
        producer_subs = [move.letter.producer_sub for move in moves]
        original_ids = [move.letter.first_transaction_id for move in moves]
        for _ in range(_ATTEMPTS_MAX):
            request = await self._pusher.prepare(
                messages, producer_subs, creator=creator, original_ids=original_ids
            )
            runs = 0

            async def work(connection: Connection) -> Callable[[], None]:
                nonlocal runs
                runs += 1
                await self._pusher.create_in(connection, [request])  # noqa: B023
                # An operator's own push: maintenance does not hold it back.
                note = await self._pusher.push_in(
                    connection, [request], past_holding=True  # noqa: B023
                )  # fmt: skip
                taken = set(ids) - await dead_letters.delete_in(connection, ids)
                if taken:
                    raise _Taken(taken)
                return note

            try:
                note = await self._transactions.run(work)
            except PartitionsChanged:
                continue
            except (_Taken, DuplicatePush):
                # An earlier run of this transaction may have committed, and its answer been lost.
                own = await self._own(messages, ids) if runs > 1 else None
                if own is None:
                    raise
                return own
            note()
            return [result for result in request.results if result is not None]
        raise Unavailable("the queue is being deleted again and again; try later")

    async def _own(
        self, messages: Sequence[NewMessage], ids: Sequence[uuid.UUID]
    ) -> list[PushResult] | None:
        """The results of a move that was done, if it was."""
        results = [await self._find(message) for message in messages]
        for id_ in ids:
            if await dead_letters.get(self._transactions, id_) is not None:
                return None
        found = [
            msgspec.structs.replace(result, status="queued", index=index)
            for index, result in enumerate(results)
            if result is not None
        ]
        return found if len(found) == len(messages) else None

    async def _find(self, message: NewMessage) -> PushResult | None:
        """The stored message with this one's transaction id, as a push answers it."""
        known = (await self._pusher.prepare([message], [None])).known
        if not known:
            return None
        partition, _ = known[0]
        assert message.transaction_id is not None
        keys = id_keys([message.transaction_id])

        async def work(connection: Connection) -> list[StoredId]:
            return await find_ids(connection, [(partition.id, keys)])

        places = await self._transactions.run(work)
        if not places:
            return None
        place = max(places, key=lambda p: (not p.gone, p.offset))
        return PushResult(
            0,
            "duplicate",
            message.transaction_id,
            place.offset,
            message_id(place.first_message_id, place.index),
            str(partition.id),
            message.trace_id,
            message.queue,
        )


def _copy(letter: DeadLetter, destination: Destination) -> NewMessage:
    assert letter.payload is not None, "what is moved was opened"
    if destination.partition is not None:
        partition = destination.partition
    else:
        partition = letter.partition if destination.queue is None else "Default"
    return NewMessage(
        queue=destination.queue or letter.queue,
        payload=msgspec.Raw(letter.payload),
        partition=partition,
        transaction_id=f"dlq:{letter.id}",
        trace_id=None if letter.trace_id is None else uuid.UUID(letter.trace_id),
    )
