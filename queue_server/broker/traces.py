"""Attaches events to messages and shows them, with the message where it is still stored."""

from __future__ import annotations

import datetime
import uuid

import msgspec

from queue_server.broker.stored_messages import StoredMessages
from queue_server.domain.errors import BadRequest
from queue_server.domain.names import PartitionId
from queue_server.storage import traces
from queue_server.storage.traces import NameUse, NewTrace, Trace
from queue_server.storage.transactions import Transactions

# An index entry has to fit into a third of a page; the protocol sets about this.
_NAME_BYTES_MAX = 500


class TraceNameTooLong(BadRequest):
    """The name or transaction id is too long to be indexed."""

    code = "name_too_long"


class NamedTrace(msgspec.Struct, frozen=True):
    """A trace found by its name, and the payload of its message; None when that is gone."""

    trace: Trace
    payload: bytes | None


class Traces:
    """Keeps and shows traces."""

    def __init__(
        self, transactions: Transactions, reads: Transactions, stored_messages: StoredMessages
    ) -> None:
        self._transactions = transactions
        self._reads = reads
        self._stored_messages = stored_messages

    async def add(self, trace: NewTrace) -> uuid.UUID | None:
        """Attach an event to a message. Shape: its id; None when there is no such message.

        Errors: `TraceNameTooLong`.
        """
        for name in (*trace.names, trace.transaction_id):
            if len(name.encode()) > _NAME_BYTES_MAX:
                raise TraceNameTooLong(
                    f"a trace name or transactionId has {len(name.encode())} bytes, at most "
                    f"{_NAME_BYTES_MAX}"
                )
        return await traces.add(self._transactions, trace)

    async def of_message(self, partition_id: PartitionId, transaction_id: str) -> list[Trace]:
        """The events of a message, oldest first."""
        return await traces.of_message(self._reads, partition_id, transaction_id)

    async def by_name(
        self,
        name: str,
        start: datetime.datetime | None,
        end: datetime.datetime | None,
        limit: int,
        offset: int,
    ) -> tuple[list[NamedTrace], int]:
        """The events with a name, newest first, and how many there are on all pages."""
        found, total = await traces.by_name(self._reads, name, start, end, limit, offset)
        payloads: dict[tuple[PartitionId, str], bytes | None] = {}
        for trace in found:
            key = (trace.partition_id, trace.transaction_id)
            if key not in payloads:
                detail = await self._stored_messages.get(*key)
                payloads[key] = None if detail is None else detail.listed.message.payload
        return [
            NamedTrace(trace, payloads[trace.partition_id, trace.transaction_id]) for trace in found
        ], total

    async def names(self, limit: int, offset: int) -> tuple[list[NameUse], int]:
        """The names in use, those first that were used last, and how many there are."""
        return await traces.names(self._reads, limit, offset)
