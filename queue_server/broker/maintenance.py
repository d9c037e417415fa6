"""Maintenance: pushes are held back, pops bring nothing.

The older brokers buffer pushes in files of the process that received them, so that they can be
accepted without a database. Here what is accepted is in the database, always: a push in maintenance
is written whole into a table of its own, committed, and answered "buffered". No queue is touched,
and what was accepted outlives every process and host. When maintenance ends one worker pushes what
was held, in order, with the transaction ids it came with, and deletes it in the same transaction.

Whether a push is stored or held is decided in the transaction that does it, and a queue for which
something is held stays held until nothing is: docs/design/maintenance.md has the argument. What a
worker remembers of the modes only spares it a vain attempt.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from queue_server.broker.activity import Activity
from queue_server.broker.push import (
    PartitionsChanged,
    Pusher,
    PushHeld,
    PushRequest,
    check_ids,
)
from queue_server.domain.access import Grants
from queue_server.domain.encryption import EncryptionKeyMissing, Keyring, held_push_place
from queue_server.domain.errors import (
    LimitReached,
    QueueFull,
    QueueServerError,
    StorageTimeout,
    StorageUnavailable,
    Unavailable,
)
from queue_server.domain.message import MessageIdRun, NewMessage
from queue_server.domain.names import DEFAULT_PARTITION, check_names
from queue_server.storage import maintenance
from queue_server.storage.maintenance import HELD_READ_MAX, HeldCounts, HeldPush, Modes
from queue_server.storage.queues import find_encrypted_queues
from queue_server.storage.transactions import Connection, Transactions

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 1.0
# What one transaction stores of several pushes that were held.
_TOGETHER_MESSAGES_MAX = 5000
# What is stored while new pushes wait, so that nothing is held any more: some tens of milliseconds.
_LAST_MESSAGES_MAX = 1000
# Passes in a row, each over what was held meanwhile.
_PASSES_MAX = 20
_ATTEMPTS_MAX = 5
# One push that takes longer has failed; those behind it go on. A million messages take a third.
_PUSH_TIME_MAX_S = 60.0
# Passes that may end with the database gone at the same push before it counts as the reason.
_OUTAGES_MAX = 5
# What may be otherwise later: a consumer reads, an operator raises a limit or brings a key back.
_WAITABLE = (QueueFull, LimitReached, EncryptionKeyMissing, Unavailable)
# How soon a worker tries a push again that failed.
_RETRY_FAILED_S = 60.0


class HeldResult(msgspec.Struct):
    """What became of one item of a push that is held; the entry of the answer."""

    index: int
    transaction_id: str
    trace_id: object
    queueName: str  # noqa: N815
    status: str = "buffered"
    offset: None = None  # not known yet
    message_id: None = None
    partition_id: None = None


class _Readable(msgspec.Struct, frozen=True):
    """A push that was held, read; without what is for queues that were deleted since."""

    push: HeldPush
    items: list[NewMessage]


class _Stored(msgspec.Struct):
    """What was stored of what was held."""

    pushes: int = 0
    messages: int = 0

    def add(self, other: _Stored) -> None:
        self.pushes += other.pushes
        self.messages += other.messages


class _Taken(Exception):
    """Of the pushes that were to be stored one is gone: another worker stored it, or a queue of it
    was deleted.
    """


class Maintenance:
    """What a worker knows of maintenance, and what it does about it."""

    def __init__(
        self,
        transactions: Transactions,
        pusher: Pusher,
        keyring: Keyring,
        activity: Activity,
        on_pops_resumed: Callable[[], None],
    ) -> None:
        self._transactions = transactions
        self._pusher = pusher
        self._keyring = keyring
        self._activity = activity
        self._on_pops_resumed = on_pops_resumed
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(list[NewMessage])
        # Of held pushes, by id: when this worker saw it fail, and how often the database was gone.
        self._failed_at: dict[int, float] = {}
        self._outages: dict[int, int] = {}
        self._waiting: set[int] = set()  # it is logged that they wait
        self.modes = Modes()

    # -- the state --

    async def look(self) -> None:
        """Errors: `Unavailable`."""
        self._apply(await maintenance.read(self._transactions))

    async def watch(self) -> None:
        """Look again and again; runs until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            try:
                await self.look()
            except QueueServerError as exc:
                # What was true a moment ago is the best guess; without a database no request
                # gets far anyway.
                logger.debug("cannot look whether there is maintenance: %s", exc.message)
            except Exception:
                logger.exception("cannot look whether there is maintenance")

    async def switch(self, *, push: bool | None = None, pop: bool | None = None) -> Modes:
        """Switch what is not None, for all workers. Errors: `Unavailable`."""
        modes = await maintenance.write(self._transactions, push=push, pop=pop)
        logger.warning(
            "maintenance is switched",
            extra={"event": "maintenance", "push": modes.push, "pop": modes.pop},
        )
        self._apply(modes)
        return modes

    def _apply(self, modes: Modes) -> None:
        resumed = self.modes.pop and not modes.pop
        self.modes = modes
        if resumed:
            self._on_pops_resumed()

    # -- pushes --

    async def push(
        self,
        items: Sequence[NewMessage],
        size_bytes: int,
        producer_sub: str | None,
        traceparent: str | None,
        creator: Grants | None = None,
    ) -> tuple[bytes, bool]:
        """Store a push, or hold it.

        Shape: JSON text, and whether it was stored; parameters and errors as `Pusher.push`.
        """
        hold_first = self.modes.push
        for _ in range(_ATTEMPTS_MAX):
            if hold_first:
                held = await self.hold(items, producer_sub, traceparent, creator)
                if held is not None:
                    return held, False
            try:
                answer = await self._pusher.push(
                    items, size_bytes, producer_sub, traceparent, creator
                )
            except PushHeld:
                hold_first = True
            else:
                return answer, True
        raise Unavailable("maintenance is switched on and off again and again; try later")

    async def hold(
        self,
        items: Sequence[NewMessage],
        producer_sub: str | None,
        traceparent: str | None,
        creator: Grants | None = None,
    ) -> bytes | None:
        """Accept a push for later, whole; None when it is to be stored now.

        Shape: JSON text, a `HeldResult` for each item in request order. *producer_sub*,
        *traceparent* and *creator* as of `Pusher.push`; they are kept with it.
        Errors: as `Pusher.push`, but that a queue is full is not known yet.
        """
        if not items:
            return b"[]"
        check_ids(items)
        for queue, partition in {(item.queue, item.partition) for item in items}:
            name = DEFAULT_PARTITION if partition is None else partition
            check_names(queue, name, "partition")
        # With its id an item is the same however often it is pushed.
        named = [
            item
            if item.transaction_id
            else msgspec.structs.replace(item, transaction_id=MessageIdRun().texts(1)[0].decode())
            for item in items
        ]
        is_held = await maintenance.hold(
            self._transactions,
            await self._sealed(named, producer_sub, None if creator is None else creator.push),
            sorted({item.queue for item in items}),
            len(items),
            producer_sub,
            traceparent,
            None if creator is None else creator.push,
        )
        if not is_held:
            return None
        return self._encoder.encode(
            [
                HeldResult(index, item.transaction_id or "", item.trace_id, item.queue)
                for index, item in enumerate(named)
            ]
        )

    async def _sealed(
        self,
        items: Sequence[NewMessage],
        producer_sub: str | None,
        push_patterns: Sequence[str] | None,
    ) -> bytes:
        """What is stored of a push that is held: sealed, whatever its queues are.

        Errors: `EncryptionKeyMissing` when a queue is encrypted and there is no key.
        """
        plain = self._encoder.encode(items)
        if self._keyring.can_seal:
            place = held_push_place(len(items), producer_sub, push_patterns)
            return self._keyring.seal(plain, place)
        if not self._keyring.may_store_plain:
            names = {item.queue for item in items}
            for queue in await find_encrypted_queues(self._transactions, names):
                self._keyring.require_key(queue)
        return plain

    async def count_held(self) -> HeldCounts:
        """How many messages are held. Errors: `Unavailable`."""
        return await maintenance.count_held(self._transactions)

    # -- what was held --

    async def push_held(self) -> Mapping[str, int]:
        """Push what is held, in order, unless there is maintenance; how much that was.

        What a full queue does not take stays, with all that came after it for that queue. What
        fails stays too, and the rest passes it.
        Errors: `Unavailable`; what was not pushed stays.
        """
        await self.look()
        total = _Stored()
        for _ in range(_PASSES_MAX):
            if self.modes.push:
                break
            newest = await maintenance.newest_held(self._transactions)
            if newest is None and not self.modes.holding:
                break
            blocked: set[str] = set()
            stored = await self._pass(newest or 0, blocked)
            if self.modes.holding and not self.modes.push:
                stored.add(await self._finish(blocked))
                await self.look()
            if not stored.messages:
                break
            total.add(stored)
        return {"pushes": total.pushes, "messages": total.messages}

    async def _pass(self, newest: int, blocked: set[str]) -> _Stored:
        """Push what is held up to *newest*; *blocked* gets the queues for which something stays."""
        stored = _Stored()
        after = 0
        while not self.modes.push:
            held = await maintenance.read_held(
                self._transactions, after, newest, blocked, self._skipped()
            )
            if not held:
                break
            after = held[-1].id
            for together in _together(await self._read(held)):
                stored.add(await self._push(together, blocked))
            await self.look()
        return stored

    def _skipped(self) -> list[int]:
        """The pushes that failed here a short while ago."""
        now = time.monotonic()
        self._failed_at = {
            id_: at for id_, at in self._failed_at.items() if now - at < _RETRY_FAILED_S
        }
        return list(self._failed_at)

    async def _read(self, held: Sequence[HeldPush]) -> list[_Readable]:
        """What can be read of *held*; the rest may be read with another key."""
        readable: list[_Readable] = []
        failed: dict[int, str] = {}
        for one in held:
            try:
                place = held_push_place(one.message_count, one.producer_sub, one.push_patterns)
                items = self._decoder.decode(self._keyring.open_payload(one.items, place))
            except (QueueServerError, msgspec.MsgspecError, RecursionError) as exc:
                failed[one.id] = exc.message if isinstance(exc, QueueServerError) else str(exc)
            else:
                if one.queues:
                    wanted = set(one.queues)
                    items = [item for item in items if item.queue in wanted]
                readable.append(_Readable(one, items))
        await self._note_failed(failed, "cannot be read")
        return readable

    async def _note_failed(self, failed: Mapping[int, str], what: str) -> None:
        """Note that these stay, and let others pass them; the log has each once."""
        self._failed_at |= dict.fromkeys(failed, time.monotonic())
        for id_ in await maintenance.note_failed(self._transactions, list(failed)):
            logger.error(
                f"a push that was held {what} and stays; the others go on",
                extra={"held_push": id_, "error": failed[id_]},
            )

    async def _push(self, pushes: Sequence[_Readable], blocked: set[str]) -> _Stored:
        """Push *pushes* together, or each alone."""
        queues = {item.queue for one in pushes for item in one.items}
        problem: Exception | None = None
        if not queues & blocked:
            try:
                async with asyncio.timeout(_PUSH_TIME_MAX_S):
                    await self._store(pushes)
            except _Taken:
                if len(pushes) == 1:
                    return _Stored()
            except Exception as exc:
                problem = exc
            else:
                return _Stored(len(pushes), sum(len(one.items) for one in pushes))
        if len(pushes) > 1:
            stored = _Stored()
            for one in pushes:
                stored.add(await self._push([one], blocked))
            return stored
        if problem is None or await self._may_wait(pushes[0].push.id, problem):
            blocked |= queues
        return _Stored()

    async def _may_wait(self, id_: int, problem: Exception) -> bool:
        """Whether a push that was not stored will be, by waiting; otherwise it has failed.

        Errors: `StorageUnavailable` when it is not the push's fault as far as is known.
        """
        if isinstance(problem, StorageUnavailable):
            self._outages[id_] = self._outages.get(id_, 0) + 1
            if self._outages[id_] < _OUTAGES_MAX:
                raise problem
            del self._outages[id_]
        elif isinstance(
            problem, QueueFull | LimitReached | EncryptionKeyMissing | Unavailable
        ) and not isinstance(problem, StorageTimeout):
            if id_ not in self._waiting:
                self._waiting.add(id_)
                logger.warning(
                    "a push that was held is not taken yet, and waits",
                    extra={"held_push": id_, "error": problem.message},
                )
            return True
        if isinstance(problem, QueueServerError):
            error = problem.message
        elif isinstance(problem, TimeoutError):
            error = f"it was not stored within {_PUSH_TIME_MAX_S:g} s"
        else:
            # A bug of ours, which is no reason to keep what others pushed.
            error = repr(problem)
            logger.error("a push that was held met an error", exc_info=problem)
        await self._note_failed({id_: error}, "cannot be stored")
        return False

    async def _store(self, pushes: Sequence[_Readable]) -> None:
        """Store *pushes*, which are no longer held then.

        Errors: `_Taken`, `QueueFull`: nothing was done. `Unavailable`: it is done or not, whole.
        """
        for _ in range(_ATTEMPTS_MAX):
            requests = await self._prepare(pushes)

            async def work(connection: Connection) -> Callable[[], None]:
                return await self._store_in(connection, pushes, requests)  # noqa: B023

            try:
                note = await self._transactions.run(work)
            except PartitionsChanged:
                continue
            note()
            return
        raise Unavailable("the queue is being deleted again and again; try later")

    async def _finish(self, blocked: set[str]) -> _Stored:
        """Store the last of what is held while no other push is, and release the queues.

        Without it a queue that is pushed to all the time would never be without a held push. What
        is too much to make others wait for is left to the next pass, and so is what is refused.
        """
        stored = _Stored()

        async def work(connection: Connection) -> Callable[[], None] | None:
            nonlocal stored
            stored = _Stored()
            note: Callable[[], None] | None = None
            if (await maintenance.lock_in(connection)).push:
                return None
            held = await maintenance.read_held_in(connection, blocked, self._skipped())
            pushes = await self._read(held)
            count = sum(len(one.items) for one in pushes)
            if pushes and len(held) < HELD_READ_MAX and count <= _LAST_MESSAGES_MAX:
                requests = await self._prepare(pushes)
                note = await self._store_in(connection, pushes, requests)
                stored = _Stored(len(pushes), count)
            await maintenance.release_queues_in(connection)
            return note

        try:
            note = await self._transactions.run(work)
        except (PartitionsChanged, _Taken, QueueServerError) as exc:
            if isinstance(exc, StorageUnavailable):
                raise
            await maintenance.release_queues(self._transactions)
            return _Stored()
        if note is not None:
            note()
        return stored

    async def _prepare(self, pushes: Sequence[_Readable]) -> list[PushRequest]:
        requests = []
        for one in pushes:
            patterns = one.push.push_patterns
            requests.append(
                await self._pusher.prepare(
                    one.items,
                    [one.push.producer_sub] * len(one.items),
                    one.push.traceparent,
                    None if patterns is None else Grants(tuple(patterns), (), ()),
                )
            )
        return requests

    async def _store_in(
        self,
        connection: Connection,
        pushes: Sequence[_Readable],
        requests: Sequence[PushRequest],
    ) -> Callable[[], None]:
        """Store *pushes* as a part of a transaction. Shape: what to call after the commit.

        Errors: `_Taken`, and those of `Pusher.push_in`.
        """
        await self._pusher.create_in(connection, requests)
        held = [one.push for one in pushes]
        if await maintenance.delete_held_in(connection, held) < len(held):
            raise _Taken
        note_pushed = await self._pusher.push_in(
            connection, requests, leave_out_duplicates=True, past_holding=True
        )

        def note() -> None:
            note_pushed()
            for one in pushes:
                self._activity.count_push([item.queue for item in one.items])
                self._waiting.discard(one.push.id)
                self._outages.pop(one.push.id, None)

        return note


def _together(pushes: Sequence[_Readable]) -> list[list[_Readable]]:
    """Pushes in a row that one transaction stores."""
    groups: list[list[_Readable]] = []
    size = 0
    for one in pushes:
        if not groups or size + len(one.items) > _TOGETHER_MESSAGES_MAX:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += len(one.items)
    return groups
