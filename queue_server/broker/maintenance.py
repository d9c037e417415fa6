"""Maintenance: pushes are held back, pops bring nothing.

The older brokers buffer pushes in files of the process that received them, so that they can be
accepted without a database. Here what is accepted is in the database, always: a push in maintenance
is written whole into a table of its own, committed, and answered "buffered". No queue is touched,
and what was accepted outlives every process and host. When maintenance ends one worker pushes what
was held, in order, with the transaction ids it came with, so that doing it twice does no harm.

The state is a row of the database that every worker looks at once a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from queue_server.broker.push import Pusher, check_ids
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import QueueServerError, Unavailable
from queue_server.domain.message import MessageIdRun, NewMessage
from queue_server.domain.names import DEFAULT_PARTITION, check_names
from queue_server.storage import maintenance
from queue_server.storage.maintenance import HeldPush, Modes
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 1.0
# What one push makes of several that were held.
_TOGETHER_MESSAGES_MAX = 5000


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


class Maintenance:
    """What a worker knows of maintenance, and what it does about it."""

    def __init__(
        self,
        transactions: Transactions,
        pusher: Pusher,
        keyring: Keyring,
        on_pops_resumed: Callable[[], None],
    ) -> None:
        self._transactions = transactions
        self._pusher = pusher
        self._keyring = keyring
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
        self, items: Sequence[NewMessage], producer_sub: str | None, traceparent: str | None
    ) -> bytes:
        """Accept a push for later, whole.

        Shape: JSON text, a `HeldResult` for each item in request order.
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
            self._keyring.seal_payload(self._encoder.encode(named), encrypt=True),
            len(items),
            producer_sub,
            traceparent,
        )
        return self._encoder.encode(
            [
                HeldResult(index, item.transaction_id or "", item.trace_id, item.queue)
                for index, item in enumerate(named)
            ]
        )

    def refuse_pushes(self) -> None:
        """For pushes that cannot be put off. Errors: `Unavailable` in maintenance."""
        if self.modes.push:
            raise Unavailable("pushes are held back for maintenance; try again later")

    async def count_held(self) -> int:
        """How many messages are held. Errors: `Unavailable`."""
        return await maintenance.count_held(self._transactions)

    async def push_held(self) -> Mapping[str, int]:
        """Push what is held, in order, unless there is maintenance; how much that was.

        What a full queue does not take stays, with all that came after it for that queue.
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
            for together in self._together(held):
                count = await self._push(together, blocked)
                pushes += len(together) if count else 0
                messages += count
            await self.look()
        return {"pushes": pushes, "messages": messages}

    def _together(self, held: Sequence[HeldPush]) -> list[list[tuple[HeldPush, list[NewMessage]]]]:
        """Pushes in a row that may be made as one: they say the same of who sent them."""
        groups: list[list[tuple[HeldPush, list[NewMessage]]]] = []
        size = 0
        for one in held:
            items = self._decoder.decode(self._keyring.open_payload(one.items))
            last = groups[-1][0][0] if groups else None
            if (
                last is None
                or (last.producer_sub, last.traceparent) != (one.producer_sub, one.traceparent)
                or size + len(items) > _TOGETHER_MESSAGES_MAX
            ):
                groups.append([])
                size = 0
            groups[-1].append((one, items))
            size += len(items)
        return groups

    async def _push(
        self, pushes: Sequence[tuple[HeldPush, list[NewMessage]]], blocked: set[str]
    ) -> int:
        """Push *pushes* together, or each alone; how many messages went."""
        items = [item for _, own in pushes for item in own]
        queues = {item.queue for item in items}
        first = pushes[0][0]
        refused: QueueServerError | None = None
        if not queues & blocked:
            try:
                await self._pusher.push(
                    items, sum(len(one.items) for one, _ in pushes), first.producer_sub,
                    first.traceparent,
                )  # fmt: skip
            except Unavailable:
                raise
            except QueueServerError as exc:
                refused = exc
            else:
                await maintenance.delete_held(self._transactions, [one.id for one, _ in pushes])
                return len(items)
        if len(pushes) > 1:
            return sum([await self._push([one], blocked) for one in pushes])
        if refused is not None:
            logger.warning(
                "a push that was held is not taken yet", extra={"error": refused.message}
            )
        blocked |= queues
        return 0
