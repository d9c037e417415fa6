"""Attaches events to messages and shows them, with the message where it is still stored."""

from __future__ import annotations

import datetime
import uuid

import msgspec

from queue_server.broker.stored_messages import StoredMessages
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import BadRequest, BodyTooLarge
from queue_server.domain.names import PartitionId
from queue_server.storage import traces
from queue_server.storage.traces import NameUse, NewTrace, Trace
from queue_server.storage.transactions import Transactions

# An index entry has to fit into a third of a page; the protocol sets about this.
_NAME_BYTES_MAX = 500
# A trace is a note on a message, not another message.
_DATA_BYTES_MAX = 64 * 1024
_NAMES_MAX = 100
# Of one answer: events, and the payloads of their messages.
_PAGE_BYTES = 16 << 20


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
        self,
        transactions: Transactions,
        reads: Transactions,
        stored_messages: StoredMessages,
        keyring: Keyring,
    ) -> None:
        self._transactions = transactions
        self._reads = reads
        self._keyring = keyring
        self._stored_messages = stored_messages

    async def add(self, trace: NewTrace) -> uuid.UUID | None:
        """Attach an event to a message. Shape: its id; None when there is no such message.

        Errors: `TraceNameTooLong`; `BadRequest` for too many names, `BodyTooLarge` for too much
        data; `EncryptionKeyMissing` when it would have to be sealed.
        """
        for text in (*trace.names, trace.transaction_id, trace.event_type, trace.consumer_group):
            if len(text.encode()) > _NAME_BYTES_MAX:
                raise TraceNameTooLong(
                    "a trace name, transactionId, eventType or consumerGroup has"
                    f" {len(text.encode())} bytes, at most {_NAME_BYTES_MAX}"
                )
        if len(trace.names) > _NAMES_MAX:
            raise BadRequest(f"{len(trace.names)} trace names, at most {_NAMES_MAX}")
        if len(trace.data) > _DATA_BYTES_MAX:
            raise BodyTooLarge(
                f"data of a trace has {len(trace.data)} bytes, at most {_DATA_BYTES_MAX}"
            )
        return await traces.add(self._transactions, self._keyring, trace)

    async def of_message(
        self, partition_id: PartitionId, transaction_id: str, limit: int, offset: int
    ) -> tuple[list[Trace], int]:
        """The events of a message, oldest first, and how many there are on all pages.

        A page ends early behind `_PAGE_BYTES` of data.
        """
        return await traces.of_message(
            self._reads, self._keyring, partition_id, transaction_id, limit, offset, _PAGE_BYTES
        )

    async def by_name(
        self,
        name: str,
        start: datetime.datetime | None,
        end: datetime.datetime | None,
        limit: int,
        offset: int,
    ) -> tuple[list[NamedTrace], int]:
        """The events with a name, newest first, and how many there are on all pages.

        A page ends early behind `_PAGE_BYTES` of data and payloads.
        """
        found, total = await traces.by_name(
            self._reads, self._keyring, name, start, end, limit, offset, _PAGE_BYTES
        )
        payloads: dict[tuple[PartitionId, str], bytes | None] = {}
        page: list[NamedTrace] = []
        size_bytes = 0
        for trace in found:
            key = (trace.partition_id, trace.transaction_id)
            if key not in payloads:
                detail = await self._stored_messages.get(*key)
                payloads[key] = None if detail is None else detail.listed.message.payload
            payload = payloads[key]
            # Each event carries the payload, also when several are of one message.
            size_bytes += len(trace.data or b"") + len(payload or b"")
            if page and size_bytes > _PAGE_BYTES:
                break
            page.append(NamedTrace(trace, payload))
        return page, total

    async def names(self, limit: int, offset: int) -> tuple[list[NameUse], int]:
        """The names in use, those first that were used last, and how many there are."""
        return await traces.names(self._reads, limit, offset)
