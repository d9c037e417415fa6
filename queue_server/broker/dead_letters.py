"""Lists dead letters, removes them, and moves them back to a queue.

A move pushes a copy to the end of the partition with the transaction id `dlq:<id of the entry>`
and removes the entry, in one transaction. So it happens once: who comes second finds the entry
gone, and a repetition after a COMMIT whose answer was lost finds its own message.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

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
from queue_server.storage.dead_letters import DeadLetter, DeadLetterFilter
from queue_server.storage.messages import StoredId, find_ids
from queue_server.storage.transactions import Connection, Transactions

_ATTEMPTS_MAX = 5


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
    duplicate_count: int
    remaining_count: int


class Purged(msgspec.Struct, frozen=True):
    """What became of a filtered set; `remaining` match the filter still."""

    deleted_count: int
    remaining_count: int


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
        self, filter_: DeadLetterFilter, limit: int, creator: Grants | None = None
    ) -> Redriven:
        """Move up to *limit* dead letters back, oldest failure first, in bounded batches.

        Duplicates on the way do not count: many of them must not keep the others from being moved.
        Nor do those that are encrypted and cannot be read: they stay.
        *creator*: what bounds the labels of a queue that was deleted meanwhile and is made anew.

        Errors: `QueueFull` when nothing could be moved.
        """
        filter_ = self._with_keys(filter_)
        moved_count = duplicate_count = 0
        after: DeadLetter | None = None
        while (left := limit - moved_count) > 0:
            run = await dead_letters.next_run(self._transactions, filter_, after, left)
            if not run:
                break
            after = run[-1]
            readable = [one for one in map(self._opened, run) if one.payload is not None]
            try:
                moved, duplicates = await self._move_run(readable, creator)
            except QueueFull:
                if moved_count == 0:
                    raise
                break
            moved_count += moved
            duplicate_count += duplicates
        return Redriven(
            moved_count,
            duplicate_count,
            await dead_letters.count(self._transactions, filter_),
        )

    async def _move_run(self, run: Sequence[DeadLetter], creator: Grants | None) -> tuple[int, int]:
        """Move a run together; one by one when some of its copies are stored already."""
        left = {letter.id: letter for letter in run}
        while left:
            letters = list(left.values())
            try:
                await self._move(
                    letters, [_copy(letter, Destination()) for letter in letters], creator
                )
            except _Taken as taken:
                left = {id_: letter for id_, letter in left.items() if id_ not in taken.ids}
            except DuplicatePush:
                replays = [await self._replay(letter, Destination(), creator) for letter in letters]
                done = [replay for replay in replays if replay is not None]
                moved = sum(replay.moved for replay in done)
                return moved, len(done) - moved
            else:
                return len(letters), 0
        return 0, 0

    async def _replay(
        self, letter: DeadLetter, destination: Destination, creator: Grants | None = None
    ) -> Replay | None:
        message = _copy(letter, destination)
        try:
            results = await self._move([letter], [message], creator)
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
        letters: Sequence[DeadLetter],
        messages: Sequence[NewMessage],
        creator: Grants | None,
    ) -> list[PushResult]:
        """Push *messages* and remove *letters* in one transaction. They keep their producers.

        Errors: `_Taken`, `DuplicatePush`: nothing was done.
        """
        ids = [letter.id for letter in letters]
        producer_subs = [letter.producer_sub for letter in letters]
        for _ in range(_ATTEMPTS_MAX):
            request = await self._pusher.prepare(messages, producer_subs, creator=creator)
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
