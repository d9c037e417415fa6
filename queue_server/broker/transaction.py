"""Acks and pushes that happen together or not at all.

One database transaction: queues and partitions that are new, the acks, settled item by item as in
a call of their own, then the pushes. Whatever is refused rolls all of it back. Locks: queues,
cursors, allocators, each ascending; the order of everywhere else.

Source: wire-api 3.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from queue_server.broker.ack import Ack, Acker, AckOutcome
from queue_server.broker.activity import Activity
from queue_server.broker.push import (
    DuplicatePush,
    PartitionsChanged,
    Pusher,
    PushHeld,
    PushResult,
    check_ids,
)
from queue_server.domain.access import Grants
from queue_server.domain.errors import LimitReached, QueueFull, QueueServerError, Unavailable
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE
from queue_server.storage.settle import GroupGone
from queue_server.storage.transactions import Connection, Transactions

_ATTEMPTS_MAX = 5


class TransactionRefused(QueueServerError):
    """The transaction was rolled back."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"transaction rolled back: {message}")
        self.reason = reason


class TransactionResult(msgspec.Struct, frozen=True):
    """Results aligned with the pushes and the acks."""

    pushed: list[PushResult]
    acked: list[AckOutcome]


class Transactor:
    """Carries out transactions."""

    def __init__(
        self,
        transactions: Transactions,
        pusher: Pusher,
        acker: Acker,
        activity: Activity | None = None,
    ) -> None:
        self._activity = activity or Activity()
        self._transactions = transactions
        self._pusher = pusher
        self._acker = acker

    async def execute(
        self,
        items: Sequence[NewMessage],
        acks: Sequence[Ack],
        required_leases: Sequence[str],
        producer_sub: str | None = None,
        traceparent: str | None = None,
        creator: Grants | None = None,
    ) -> TransactionResult:
        """Carry out all of it in one transaction.

        Shape: *required_leases* lends its id to the acks without one when it is a single one;
        *producer_sub* is who pushes, *traceparent* what consumers are told of its span, *creator*
        what bounds the labels of a queue that is new.
        Errors: `TransactionRefused`, `BadRequest`: nothing was done. `Unavailable`: the outcome is
        unknown, or maintenance holds its pushes back.
        """
        check_ids(items)
        leases = set(required_leases)
        if len(leases) == 1:
            lent = leases.pop()
            acks = [
                ack if ack.lease_id else msgspec.structs.replace(ack, lease_id=lent) for ack in acks
            ]
        for _ in range(_ATTEMPTS_MAX):
            try:
                return await self._attempt(
                    items, acks, [producer_sub] * len(items), traceparent, creator
                )
            except PartitionsChanged:
                continue
            except GroupGone as gone:
                self._acker.forget(gone)
        raise Unavailable("the queue is being deleted again and again; try later")

    async def _attempt(
        self,
        items: Sequence[NewMessage],
        acks: Sequence[Ack],
        producer_subs: Sequence[str | None],
        traceparent: str | None,
        creator: Grants | None,
    ) -> TransactionResult:
        outcomes: list[AckOutcome | None] = [None] * len(acks)
        elements = await self._acker.resolve(acks, QUEUE_MODE, outcomes)
        _refuse_failed(outcomes)
        request = await self._pusher.prepare(items, producer_subs, traceparent, creator)

        async def work(connection: Connection) -> list[Callable[[], None]]:
            after_commit: list[Callable[[], None]] = []
            await self._pusher.create_in(connection, [request])
            if elements:
                after_commit.append(
                    await self._acker.settle_in(connection, acks, elements, outcomes)
                )
                _refuse_failed(outcomes)
            if items:
                after_commit.append(await self._pusher.push_in(connection, [request]))
            return after_commit

        try:
            after_commit = await self._transactions.run(work)
        except DuplicatePush:
            raise TransactionRefused(
                "duplicate", "a pushed transactionId is already stored in its partition"
            ) from None
        except PushHeld:
            # What happens together or not at all cannot be put off in part.
            raise Unavailable("pushes are held back for maintenance; try again later") from None
        except (QueueFull, LimitReached) as exc:
            raise TransactionRefused("too_large", exc.message) from None
        for note in after_commit:
            note()
        self._activity.count_transaction(
            [element.partition.queue for element in elements]
            + [partition.queue for partition, _ in request.lanes]
        )
        pushed = [result for result in request.results if result is not None]
        return TransactionResult(pushed, [one for one in outcomes if one is not None])


def _refuse_failed(outcomes: Sequence[AckOutcome | None]) -> None:
    for outcome in outcomes:
        if outcome is not None and not outcome.result.success:
            raise TransactionRefused("rejected_ack", f"ack refused: {outcome.result.error}")
