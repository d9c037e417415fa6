"""Maintenance: pushes are held back, pops bring nothing.

The older brokers buffer pushes in files of the process that received them, so that they can be
accepted without a database. Here what is accepted is in the database, always: a push in maintenance
is written whole into a table of its own, committed, and answered "buffered". No queue is touched,
and what was accepted outlives every process and host. When maintenance ends one worker pushes what
was held, in order, with the transaction ids it came with, and deletes it in the same transaction.

The state is a row of the database that every worker looks at once a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from queue_server.broker.activity import Activity
from queue_server.broker.push import PartitionsChanged, Pusher, check_ids
from queue_server.domain.access import Grants
from queue_server.domain.encryption import Keyring, held_push_place
from queue_server.domain.errors import QueueServerError, Unavailable
from queue_server.domain.message import MessageIdRun, NewMessage
from queue_server.domain.names import DEFAULT_PARTITION, check_names
from queue_server.storage import maintenance
from queue_server.storage.maintenance import HeldCounts, HeldPush, Modes
from queue_server.storage.queues import find_encrypted_queues, lock_limited_queues
from queue_server.storage.transactions import Connection, Transactions

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 1.0
# What one push makes of several that were held.
_TOGETHER_MESSAGES_MAX = 5000
_ATTEMPTS_MAX = 5


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
    """A push that was held, read."""

    push: HeldPush
    items: list[NewMessage]


class _Taken(Exception):
    """Of the pushes that were to be stored one is gone: another worker stored it."""


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

    async def hold(
        self,
        items: Sequence[NewMessage],
        producer_sub: str | None,
        traceparent: str | None,
        creator: Grants | None = None,
    ) -> bytes:
        """Accept a push for later, whole.

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
        await maintenance.hold(
            self._transactions,
            await self._sealed(named, producer_sub, None if creator is None else creator.push),
            len(items),
            producer_sub,
            traceparent,
            None if creator is None else creator.push,
        )
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

    def refuse_pushes(self) -> None:
        """For pushes that cannot be put off. Errors: `Unavailable` in maintenance."""
        if self.modes.push:
            raise Unavailable("pushes are held back for maintenance; try again later")

    async def count_held(self) -> HeldCounts:
        """How many messages are held. Errors: `Unavailable`."""
        return await maintenance.count_held(self._transactions)

    async def push_held(self) -> Mapping[str, int]:
        """Push what is held, in order, unless there is maintenance; how much that was.

        What a full queue does not take stays, with all that came after it for that queue. What
        cannot be read stays too, and the rest passes it.
        Errors: `Unavailable`; what was not pushed stays.
        """
        await self.look()
        pushes = messages = after = 0
        blocked: set[str] = set()
        while not self.modes.push:
            held = await maintenance.read_held(self._transactions, after)
            if not held:
                break
            after = held[-1].id
            for together in _together(await self._read(held)):
                count = await self._push(together, blocked)
                pushes += len(together) if count else 0
                messages += count
            await self.look()
        return {"pushes": pushes, "messages": messages}

    async def _read(self, held: Sequence[HeldPush]) -> list[_Readable]:
        """What can be read of *held*. Of the rest is told once; it may be read with another key."""
        readable: list[_Readable] = []
        failed: dict[int, str] = {}
        for one in held:
            try:
                place = held_push_place(one.message_count, one.producer_sub, one.push_patterns)
                items = self._decoder.decode(self._keyring.open_payload(one.items, place))
            except (QueueServerError, msgspec.MsgspecError, RecursionError) as exc:
                failed[one.id] = exc.message if isinstance(exc, QueueServerError) else str(exc)
            else:
                readable.append(_Readable(one, items))
        for id_ in await maintenance.note_failed(self._transactions, list(failed)):
            logger.error(
                "a push that was held cannot be read and stays; the others go on",
                extra={"held_push": id_, "error": failed[id_]},
            )
        return readable

    async def _push(self, pushes: Sequence[_Readable], blocked: set[str]) -> int:
        """Push *pushes* together, or each alone; how many messages went."""
        queues = {item.queue for one in pushes for item in one.items}
        refused: QueueServerError | None = None
        if not queues & blocked:
            try:
                await self._store(pushes)
            except Unavailable:
                raise
            except _Taken:
                if len(pushes) == 1:
                    return 0
            except QueueServerError as exc:
                refused = exc
            else:
                return sum(len(one.items) for one in pushes)
        if len(pushes) > 1:
            return sum([await self._push([one], blocked) for one in pushes])
        if refused is not None:
            logger.warning(
                "a push that was held is not taken yet", extra={"error": refused.message}
            )
        blocked |= queues
        return 0

    async def _store(self, pushes: Sequence[_Readable]) -> None:
        """Store *pushes*, which are no longer held then.

        Errors: `_Taken`, `QueueFull`: nothing was done. `Unavailable`: it is done or not, whole.
        """
        for _ in range(_ATTEMPTS_MAX):
            try:
                note = await self._attempt(pushes)
            except PartitionsChanged:
                continue
            note()
            for one in pushes:
                self._activity.count_push([item.queue for item in one.items])
            return
        raise Unavailable("the queue is being deleted again and again; try later")

    async def _attempt(self, pushes: Sequence[_Readable]) -> Callable[[], None]:
        """What to call after the commit. Errors: as `_store`; `PartitionsChanged`: try again."""
        ids = [one.push.id for one in pushes]
        items = [item for one in pushes for item in one.items]
        producer_subs = [one.push.producer_sub for one in pushes for _ in one.items]
        # They are made together, so it is the same for all.
        patterns = pushes[0].push.push_patterns
        creator = None if patterns is None else Grants(tuple(patterns), (), ())
        partitions = await self._pusher.resolve(items, creator)
        queue_ids = sorted({ref.queue_id for ref, _ in partitions})

        async def work(connection: Connection) -> Callable[[], None]:
            await lock_limited_queues(connection, queue_ids)
            if await maintenance.delete_held_in(connection, ids) < len(ids):
                raise _Taken
            _, note = await self._pusher.push_in(
                connection,
                items,
                producer_subs,
                partitions,
                pushes[0].push.traceparent,
                leave_out_duplicates=True,
            )
            return note

        return await self._transactions.run(work)


def _together(pushes: Sequence[_Readable]) -> list[list[_Readable]]:
    """Pushes in a row that may be made as one: they have the same span and the same patterns."""
    groups: list[list[_Readable]] = []
    size = 0
    for one in pushes:
        if (
            not groups
            or groups[-1][0].push.traceparent != one.push.traceparent
            or groups[-1][0].push.push_patterns != one.push.push_patterns
            or size + len(one.items) > _TOGETHER_MESSAGES_MAX
        ):
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += len(one.items)
    return groups
