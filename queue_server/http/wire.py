"""Requests and answers as the protocol spells them, and the encoders and decoders, made once.

Names and shapes: wire-api sections 1 and 3. Unknown fields are ignored everywhere.
"""

from __future__ import annotations

from typing import Any

import msgspec

from queue_server.broker.ack import Ack
from queue_server.domain.message import NewMessage
from queue_server.domain.options import (
    RETRY_DELAY_ECHO_MS,
    TTL_ECHO_S,
    OptionChanges,
    QueueOptions,
)


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


push_decoder = msgspec.json.Decoder(PushBody)
ack_decoder = msgspec.json.Decoder(Ack)
ack_batch_decoder = msgspec.json.Decoder(AckBatchBody)
configure_decoder = msgspec.json.Decoder(ConfigureBody)
extend_decoder = msgspec.json.Decoder(ExtendBody)
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
