"""How the messages of a segment are laid out in its body, and how they are handed out.

A body is *rendered*: it is the text that a pop answers, `{"offset":<hole>,"id":...},{...}`, with a
hole wherever only the pop knows what belongs there: the offset, and behind it everything that is
the same for all messages of a claim (lease, group, attempt, partition, time). The hole is the
control byte 0x01, which valid JSON text cannot contain, so it needs no escaping. Handing out a
batch is then one decompress, one split and one join, whatever the messages hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import zstandard

from queue_server.domain.encryption import (
    Keyring,
    sealing_key,
    with_version,
)
from queue_server.domain.message import RUN_LENGTH_MAX, NewMessage
from queue_server.domain.numerals import numerals
from queue_server.domain.weave import weave

# A codec is a sum: how a rendered body was treated, in this order.
CODEC_RENDERED = 0
CODEC_ZSTD = 1
CODEC_ENCRYPTED = 2
# With CODEC_ENCRYPTED: bound to its place. Without, it is from before there were places.
CODEC_BOUND = 4

# A pop may be much smaller than the segment it reads, so a segment is bounded: it is opened in
# about a millisecond, and a slow reader holds no more than one.
SEGMENT_MESSAGES_MAX = RUN_LENGTH_MAX
SEGMENT_RAW_BYTES_MAX = 1024 * 1024

# Below this a body costs the database about the same either way.
_COMPRESS_BYTES_MIN = 512

_HOLE = msgspec.Raw(b"\x01")
_HEAD = b'{"offset":'
_NEXT_HEAD = b"," + _HEAD
_DATA = b',"data":'
_BEHIND_DATA = b',"producerSub":'


class StoredMessage(msgspec.Struct, gc=False):
    """A message as it stands in a rendered body; field names and order are those of the wire.

    Behind these there may be an `originalTransactionId`, of a message that was moved back from the
    dead letters, and a `traceparent`, which is for consumers alone.
    """

    id: str
    transactionId: str  # noqa: N815
    traceId: str | None  # noqa: N815
    data: msgspec.Raw
    producerSub: str | None  # noqa: N815
    offset: msgspec.Raw = _HOLE
    originalTransactionId: str | None = None  # noqa: N815


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StoredMessage)
# Level 1: higher ones cost several times as much for a few per cent (docs/performance.md).
_compressor = zstandard.ZstdCompressor(level=1, write_checksum=False)
_decompressor = zstandard.ZstdDecompressor()


def render(
    messages: Sequence[NewMessage],
    message_ids: Sequence[bytes],
    transaction_ids: Sequence[bytes],
    producer_subs: Sequence[str | None] = (),
    more_fields: Sequence[bytes] = (),
) -> bytes:
    """The body of a segment, not yet compressed: a `StoredMessage` a message, the hole in front.

    Shape: *transaction_ids* are JSON texts; *producer_subs* empty = nobody is known;
    *more_fields* are what `more_fields` makes for each message, or empty.
    """
    count = len(messages)
    traces: bytes | list[bytes] = b"null"
    trace_ids = [m.trace_id for m in messages]
    if any(trace_ids):
        traces = [_encoder.encode(trace_id) for trace_id in trace_ids]
    subs: bytes | list[bytes] = b"null"
    if producer_subs.count(None) < len(producer_subs):
        subs = [_encoder.encode(sub) for sub in producer_subs]
    return weave(
        count,
        b'{"offset":\x01,"id":"', message_ids,
        b'","transactionId":"', transaction_ids,
        b'","traceId":', traces,
        b',"data":', [m.payload for m in messages],
        b',"producerSub":', subs,
        more_fields or b"", b"}", separator=b",",
    )  # fmt: skip


def more_fields(traceparent: str | None, original_transaction_id: str | None) -> bytes:
    """Render what few messages have behind their other fields; empty when it is nothing.

    A *traceparent* is hexadecimal digits and dashes.
    """
    fields = b""
    if original_transaction_id is not None:
        fields = b',"originalTransactionId":' + _encoder.encode(original_transaction_id)
    if traceparent:
        fields += b',"traceparent":"%s"' % traceparent.encode()
    return fields


def pack(rendered: bytes, keyring: Keyring | None = None, place: bytes = b"") -> tuple[int, bytes]:
    """Codec and stored form of a rendered body: compressed where that saves something.

    It is encrypted for *place* when a *keyring* is given.
    """
    codec, body = CODEC_RENDERED, rendered
    if len(rendered) >= _COMPRESS_BYTES_MIN:
        packed = _compressor.compress(rendered)
        if len(packed) < len(rendered) * 0.9:
            codec, body = CODEC_ZSTD, packed
    if keyring is not None:
        codec, body = codec + CODEC_ENCRYPTED + CODEC_BOUND, keyring.seal(body, place)
    return codec, body


def decrypt(codec: int, body: bytes, keyring: Keyring, place: bytes) -> tuple[int, bytes]:
    """Codec and body without encryption; as they are when there is none.

    Errors: those of `Keyring.open`.
    """
    if codec & CODEC_ENCRYPTED:
        sealed = body if codec & CODEC_BOUND else with_version(body)
        return codec & ~(CODEC_ENCRYPTED | CODEC_BOUND), keyring.open(sealed, place)
    return codec, body


def sealed_by(codec: int, body: bytes) -> bytes | None:
    """The id of the key that a stored body was encrypted with; None when it is not."""
    if not codec & CODEC_ENCRYPTED:
        return None
    return sealing_key(body if codec & CODEC_BOUND else with_version(body))


class OpenSegment:
    """A segment ready to hand out any run of its messages."""

    __slots__ = ("_parts", "base_offset", "next_offset", "raw_bytes")

    def __init__(self, base_offset: int, next_offset: int, codec: int, body: bytes) -> None:
        if codec == CODEC_ZSTD:
            body = _decompressor.decompress(body)
        elif codec != CODEC_RENDERED:
            raise AssertionError(f"segment at offset {base_offset} has unknown codec {codec}")
        # Part k + 1 is the rest of message k and the head of the one behind it.
        parts = body.split(b"\x01")
        assert len(parts) == next_offset - base_offset + 1, "a segment's count and body differ"
        self.base_offset = base_offset
        self.next_offset = next_offset
        self.raw_bytes = len(body)
        self._parts = parts

    def run(self, start: int, end: int, claim: bytes, before: bytes = b"") -> bytes:
        """The messages [start, end) as comma-separated JSON objects.

        Shape: *claim* is the text for all of them that follows the offset: `,"leaseId":...`;
        *before* is put in front of the first.
        """
        first, last = start - self.base_offset, end - self.base_offset
        parts = self._parts[first + 1 : last + 1]
        if end < self.next_offset:
            parts[-1] = parts[-1].removesuffix(_NEXT_HEAD)
        offsets = numerals(start, end)
        offsets[0] = before + _HEAD + offsets[0]
        return weave(end - start, offsets, claim, parts)

    def message(self, offset: int) -> StoredMessage:
        """Decode one message; its payload stays JSON text.

        The payload is cut out of the text first: a decoder would recurse into it, and fail where
        less of the stack is left than there was when it was pushed. The names on both sides of it
        occur once outside of it, because a quote in a JSON string has a backslash before it.
        """
        text = self.run(offset, offset + 1, b"")
        start = text.index(_DATA) + len(_DATA)
        end = text.rindex(_BEHIND_DATA)
        message = _decoder.decode(b"%bnull%b" % (text[:start], text[end:]))
        message.data = msgspec.Raw(text[start:end])
        return message


def wire_time(moment: datetime) -> str:
    """A time as the protocol writes it: UTC, microseconds, `Z`."""
    text = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return text[:-6] + "Z"
