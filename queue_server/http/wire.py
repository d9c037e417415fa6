"""Requests and answers as the protocol spells them, and the encoders and decoders, made once.

Names and shapes: wire-api sections 1 and 3. Unknown fields are ignored everywhere.
"""

from __future__ import annotations

import difflib
import re
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from queue_server.broker.ack import Ack
from queue_server.domain.errors import BadRequest, TooManyItems
from queue_server.domain.message import NewMessage
from queue_server.domain.options import (
    RETRY_DELAY_ECHO_MS,
    TTL_ECHO_S,
    OptionChanges,
    QueueOptions,
)

T = TypeVar("T")

_NONE = re.compile(rb"null|\[\s*\]")


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
    required_leases: msgspec.Raw | UnsetType = UNSET
    # Riders of the 2.x protocol that this server does not carry: not decoded, however many.
    kv: msgspec.Raw | UnsetType = UNSET
    timers: msgspec.Raw | UnsetType = UNSET
    positions: msgspec.Raw | UnsetType = UNSET

    def leases(self, count_max: int) -> list[str]:
        """Decode the required leases. Errors: `BadTransaction`, `TooManyItems`."""
        if self.required_leases is UNSET:
            return []
        text = bytes(self.required_leases)
        if text.count(b",") >= count_max:
            raise TooManyItems(f"too many requiredLeases, {count_max} at most")
        try:
            return msgspec.json.decode(text, type=list[str] | None) or []
        except (msgspec.ValidationError, RecursionError):
            raise BadTransaction("requiredLeases must be an array of strings") from None

    @property
    def has_riders(self) -> bool:
        return any(
            riders is not UNSET and _NONE.fullmatch(memoryview(riders)) is None
            for riders in (self.kv, self.timers, self.positions)
        )


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


class _Tally:
    """Counts the items of one body while it is decoded, up to *left*."""

    left = 0

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooManyItems


_tally = _Tally()


class _Counted(msgspec.Struct, gc=False):
    """An item, of which nothing but its being there is decoded."""

    def __post_init__(self) -> None:
        _tally.count()


class _CountedItems(msgspec.Struct, gc=False):
    items: list[_Counted] | None = None

    def __post_init__(self) -> None:
        _tally.count()


class _CountedPush(msgspec.Struct):
    items: list[_Counted]


class _CountedAcks(msgspec.Struct):
    acknowledgments: list[_Counted]


class _CountedOperations(msgspec.Struct):
    operations: list[_CountedItems]


class ItemLimit:
    """Refuses bodies of too many items before these are made into objects, which are far larger.

    *body* has a `_Counted` in the place of each item. Nearly all bodies are too small for too many
    items, or have too few braces; the others are read through once more, and given up at the item
    that is one too many.
    """

    # `{"type":""}` and a comma; the reader stops at the first item that lacks a required field.
    _ITEM_BYTES_MIN = 12

    def __init__(self, body: type[Any], what: str, items_per_count: int = 1) -> None:
        self._decoder = msgspec.json.Decoder(body)
        self._what = what
        self._items_per_count = items_per_count

    def check(self, body: bytes, count_max: int) -> None:
        """Errors: `TooManyItems`."""
        items_max = count_max * self._items_per_count
        if len(body) <= items_max * self._ITEM_BYTES_MIN or body.count(b"{") <= items_max:
            return
        _tally.left = items_max
        try:
            self._decoder.decode(body)
        except TooManyItems:
            raise TooManyItems(
                f"too many {self._what} in one request, {count_max} at most: send several"
            ) from None
        except (msgspec.DecodeError, RecursionError):
            pass  # the reader finds the same fault, and makes no more items until there


push_limit = ItemLimit(_CountedPush, "items")
ack_batch_limit = ItemLimit(_CountedAcks, "acknowledgments")
# An operation and its only item are one.
transaction_limit = ItemLimit(_CountedOperations, "pushes and acks", items_per_count=2)


_any_json = msgspec.json.Decoder(msgspec.Raw)


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
                # It may have been raised before the end of a text that is no JSON at all. No
                # objects are made of the text: they may be many times as large.
                _any_json.decode(body)
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


class _OptionNames(msgspec.Struct):
    options: dict[str, msgspec.Raw] | None = None


_KNOWN_OPTIONS = {field.encode_name for field in msgspec.structs.fields(OptionChanges)} | {
    "minPopWaitTime",  # of the protocol, without effect since 2.0
}
_CONFIGURE_FIELDS = {field.encode_name for field in msgspec.structs.fields(ConfigureBody)} | {
    "partition",  # of the protocol, without effect
}
_NAMED_OPTIONS_MAX = 10


def unknown_options(body: bytes) -> list[str]:
    """Return a sentence for each option of a valid `configure` body that the server ignores."""
    names = msgspec.json.decode(body, type=_OptionNames).options
    known = _KNOWN_OPTIONS
    if names is None:
        names = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        known = _KNOWN_OPTIONS | _CONFIGURE_FIELDS
    sentences = []
    for name in [name for name in names if name not in known][:_NAMED_OPTIONS_MAX]:
        near = difflib.get_close_matches(name[:100], _KNOWN_OPTIONS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        sentences.append(f"there is no option {name[:100]!r}, it was ignored{hint}")
    return sentences


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
