"""Requests and answers as the protocol spells them, and the encoders and decoders, made once.

Names and shapes: wire-api sections 1 and 3. Unknown fields are ignored everywhere.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from queue_server.broker.ack import Ack
from queue_server.domain.errors import BadRequest
from queue_server.domain.message import NewMessage
from queue_server.domain.options import (
    RETRY_DELAY_ECHO_MS,
    TTL_ECHO_S,
    OptionChanges,
    QueueOptions,
)

T = TypeVar("T")


class PushBody(msgspec.Struct):
    items: list[NewMessage]


class AckBatchBody(msgspec.Struct, rename="camel"):
    acknowledgments: list[Ack]
    consumer_group: str | None = None


class ConfigureBody(msgspec.Struct):
    queue: str
    namespace: str | None = None
    task: str | None = None
    options: OptionChanges | None = None
    mode: str | None = None


class ExtendBody(msgspec.Struct):
    seconds: float | None = None


class BadTransaction(BadRequest):
    """The transaction is malformed; nothing was tried."""


class TransactionItem(msgspec.Struct, rename="camel"):
    """A pushed message of a transaction; `data` is another name of `payload`."""

    queue: str
    payload: msgspec.Raw | UnsetType = UNSET
    data: msgspec.Raw | UnsetType = UNSET
    partition: str | None = None
    transaction_id: str | None = None
    trace_id: uuid.UUID | None = None

    def message(self) -> NewMessage:
        payload = self.payload if self.payload is not UNSET else self.data
        return NewMessage(
            self.queue,
            msgspec.Raw(b"null") if payload is UNSET else payload,
            self.partition,
            self.transaction_id,
            self.trace_id,
        )


class Operation(msgspec.Struct, rename="camel"):
    """A push, with `items` or flat, or an ack."""

    type: str
    items: list[TransactionItem] | None = None
    queue: str | None = None
    payload: msgspec.Raw | UnsetType = UNSET
    data: msgspec.Raw | UnsetType = UNSET
    partition: str | None = None
    transaction_id: str | None = None
    trace_id: uuid.UUID | None = None
    partition_id: str | None = None
    status: str | None = None
    error: str | None = None
    lease_id: str | None = None
    consumer_group: str | None = None
    retry_after_millis: Annotated[int, msgspec.Meta(ge=0, le=7 * 24 * 3_600_000)] | None = None

    def messages(self) -> list[NewMessage]:
        """Errors: `BadTransaction` for a push of nothing."""
        if self.items is not None:
            return [item.message() for item in self.items]
        if self.queue is None:
            raise BadTransaction("a push operation needs items")
        flat = TransactionItem(
            self.queue, self.payload, self.data, self.partition, self.transaction_id, self.trace_id
        )
        return [flat.message()]

    def ack(self) -> Ack:
        """Errors: `BadTransaction` for one that names no message."""
        if not self.transaction_id:
            raise BadTransaction("transactionId is required")
        if self.partition_id is None:
            raise BadTransaction("partitionId is required to ensure message uniqueness")
        return Ack(
            self.transaction_id,
            self.partition_id,
            self.status,
            self.error,
            self.lease_id,
            self.consumer_group,
            self.retry_after_millis,
        )


class TransactionBody(msgspec.Struct, rename="camel"):
    operations: list[Operation]
    required_leases: list[str] | None = None
    # Riders of the 2.x protocol that this server does not carry.
    kv: list[msgspec.Raw] | None = None
    timers: list[msgspec.Raw] | None = None
    positions: list[msgspec.Raw] | None = None


class AckEntry(msgspec.Struct, gc=False, rename="camel"):
    """One element of the answer to an acknowledgement."""

    index: int
    transaction_id: str
    success: bool
    error: str | None
    queue_name: str | None
    partition_name: str | None
    lease_released: bool
    dlq: bool


class AckEntryNoop(msgspec.Struct, gc=False, rename="camel"):
    """The same for a message that was committed before; `noop` appears only then."""

    index: int
    transaction_id: str
    success: bool
    error: str | None
    queue_name: str | None
    partition_name: str | None
    lease_released: bool
    dlq: bool
    noop: bool = True


class BodyReader(Generic[T]):
    """Decodes the bodies of one route; *texts* are the protocol's words for a field at fault."""

    _FAULT = re.compile(
        r"^(?:Object missing required field `(?P<missing>\w+)`"
        r"|Expected `(?P<expected>[^`]+)`(?:, got `[^`]+`| of length >= 1)"
        r"|Invalid (?P<invalid>UUID))"
        r"(?: - at `\$(?P<path>[^`]*)`)?"
    )
    _KINDS: ClassVar = {
        "int": "an integer", "float": "a number", "bool": "a boolean", "str": "a string",
        "array": "an array", "object": "an object",
    }  # fmt: skip

    def __init__(self, body: type[T], texts: Mapping[str, str]) -> None:
        self._decoder = msgspec.json.Decoder(body)
        self._texts = texts

    def read(self, body: bytes) -> T:
        """Errors: `BadRequest` with the reason and the place."""
        if not body:
            raise BadRequest("Empty request body")
        if not body.isascii():
            # Payloads are kept as they came, so they are checked here, not where they are decoded.
            try:
                str(body, "utf-8")
            except UnicodeDecodeError as exc:
                raise BadRequest(f"Invalid JSON: not valid UTF-8 at byte {exc.start}") from None
        try:
            try:
                return self._decoder.decode(body)
            except msgspec.ValidationError as exc:
                # It may have been raised before the end of a text that is no JSON at all.
                msgspec.json.decode(body)
                raise BadRequest(self._explain(str(exc))) from None
        except RecursionError:
            # msgspec follows Python's limit of about a thousand levels, as do many readers.
            raise BadRequest("Invalid JSON: nested too deeply") from None
        except msgspec.DecodeError as exc:
            raise BadRequest(f"Invalid JSON: {exc}") from None

    def _explain(self, text: str) -> str:
        fault = self._FAULT.match(text)
        if fault is None:
            return text
        field = fault["missing"] or (fault["path"] or "").rpartition(".")[2].partition("[")[0]
        if not field:
            return f"the request body must be {self._kind(fault['expected'])}"
        if field in self._texts:
            return self._texts[field]
        if fault["missing"]:
            return f"{field} is required"
        return f"{field} must be {self._kind(fault['expected'] or fault['invalid'])}"

    def _kind(self, expected: str) -> str:
        kind = expected.partition(" |")[0]
        return self._KINDS.get(kind, kind)


push_reader = BodyReader(
    PushBody,
    {
        "items": "items array is required",
        "queue": "Queue must be a string",
        "partition": "Partition must be a string",
        "transactionId": "TransactionId must be a string",
        "traceId": "TraceId must be a string that is a UUID",
    },
)
ack_reader = BodyReader(
    Ack,
    {
        "transactionId": "transactionId is required",
        "partitionId": "partitionId is required to ensure message uniqueness",
    },
)
ack_batch_reader = BodyReader(
    AckBatchBody,
    {
        "acknowledgments": "acknowledgments array is required",
        "transactionId": "Each acknowledgment must have a valid transactionId string",
        "partitionId": (
            "Each acknowledgment must have a valid partitionId string to ensure message uniqueness"
        ),
    },
)
transaction_reader = BodyReader(TransactionBody, {"operations": "operations array required"})
configure_reader = BodyReader(ConfigureBody, {"queue": "queue is required"})
# Without `options` they may stand at the top level.
flat_options_reader = BodyReader(OptionChanges, {})
extend_reader = BodyReader(ExtendBody, {})
encoder = msgspec.json.Encoder()


def error_body(message: str, code: str) -> dict[str, Any]:
    return {"error": message, "code": code}


def options_body(options: QueueOptions) -> dict[str, Any]:
    """All options with their effective values."""
    body = {
        field.encode_name: getattr(options, field.name)
        for field in msgspec.structs.fields(OptionChanges)
    }
    if options.ttl is None:
        body["ttl"] = TTL_ECHO_S
    if options.retry_delay is None:
        body["retryDelay"] = RETRY_DELAY_ECHO_MS
    if options.dedup_window_seconds is None:
        del body["dedupWindowSeconds"]
    return body
