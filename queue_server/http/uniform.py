"""Reads a batch of acknowledgements that differ in nothing but their transaction ids.

That is what consumers send for a popped batch, and by far the largest bodies an acknowledgement
has. Decoding them into an object for each message only to find all of them alike took half of a
worker's time. So the text is cut at what lies between one id and the next, and only its two ends
are decoded.

Why that reads the same as decoding all of it: let the body be `H id1 S id2 S ... S idn T`, and let
`H id1 S idn T` decode to two items with these ids. Then both ids are the value of an item's
`transactionId`, so the reader is in the same state behind each, and S leads from the one to the
other, however often it comes. The ids between hold nothing that could change the state: each is
checked to be a canonical UUID. What is read of the first two items then holds for all of them.
"""

from __future__ import annotations

import re

import msgspec

from queue_server.broker.ack import Ack
from queue_server.domain.errors import BadRequest
from queue_server.domain.ids import joined_uuid_keys
from queue_server.domain.numerals import numerals
from queue_server.domain.weave import separated, weave
from queue_server.http import wire

# Where it begins to pay; below, decoding is as fast.
_ITEMS_MIN = 8

_ID_CHARS = 36
_ID = re.compile(rb'"transactionId"\s*:\s*"(?=[0-9a-f-]{36}")')


class UniformAcks(msgspec.Struct, frozen=True):
    """Acknowledgements that all say the same of different messages."""

    like: Ack  # the first of them
    group: str | None  # the batch's, for items that name none
    ids: list[bytes]  # the transaction ids, canonical UUIDs
    keys: bytes  # their id keys


def read_uniform_acks(body: bytes) -> UniformAcks | None:
    """The acknowledgements of a batch when they are uniform; None to decode it as usual."""
    first = _ID.search(body)
    if first is None:
        return None
    start = first.end()
    second = _ID.search(body, start)
    if second is None:
        return None
    between = body[start + _ID_CHARS : second.end()]
    end = body.rfind(between) + len(between) + _ID_CHARS
    ids = [body[i : i + _ID_CHARS] for i in range(start, end, _ID_CHARS + len(between))]
    if len(ids) < _ITEMS_MIN or not body.startswith(between.join(ids), start):
        return None
    keys = joined_uuid_keys(b"".join(ids).decode("latin-1"), len(ids))
    if keys is None:
        return None
    try:
        ends = wire.ack_batch_reader.read(body[:start] + ids[0] + between + ids[-1] + body[end:])
    except BadRequest:
        return None  # whatever is wrong with it is told by the usual way
    acks = ends.acknowledgments
    if [ack.transaction_id.encode() for ack in acks] != [ids[0], ids[-1]]:
        return None
    if msgspec.structs.replace(acks[0], transaction_id=acks[1].transaction_id) != acks[1]:
        return None
    return UniformAcks(acks[0], ends.consumer_group, ids, keys)


def uniform_answer(ids: list[bytes], entry: wire.AckEntry | wire.AckEntryNoop) -> bytes:
    """The answer to acknowledgements with these ids, each with what *entry* says of one."""
    # The entry's text, cut where its index and its transaction id stand.
    text = wire.encoder.encode(msgspec.structs.replace(entry, index=0, transaction_id=""))
    before, between = b'{"index":', b',"transactionId":"'
    behind = text.removeprefix(before + b"0" + between)
    count = len(ids)
    rows = weave(count, before, numerals(0, count), between, ids, separated(behind, count))
    return b"[" + rows + b"]"
