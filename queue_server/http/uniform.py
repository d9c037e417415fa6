"""Reads a batch of acknowledgements run by run: in a run they differ in nothing but their ids.

That is what consumers send for a popped batch, a run for each partition, and by far the largest
bodies an acknowledgement has. Decoding them into an object for each message only to find the
objects alike took half of a worker's time. So the text is cut at the transaction ids, and what lies
between two of them, a *gap*, is decoded once for all of its repetitions in a row.

Why that reads the same as decoding all of it: let the body be `H id S id S ... id U id U ... id T`,
with gaps S, U, ... that come any number of times each. What an item says, apart from its id, stands
in the two gaps beside the id. Where a gap comes more than twice in a row it is cut down to two, and
that leaves every pair of neighbours that the body has, and with it every kind of item. In what is
left the ids are replaced by marks that no sender knows. Let it decode to items with just these
marks, in order: then each id is the value of an item's `transactionId`, the reader is in the same
state behind each, and a gap leads from one item to the next, however often it comes. The ids hold
nothing that could change the state: each is checked to be a canonical UUID.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect
from collections.abc import Sequence
from itertools import groupby
from struct import Struct

import msgspec

from queue_server.broker.ack import Ack
from queue_server.domain.errors import BadRequest
from queue_server.domain.ids import KEY_BYTES, joined_uuid_keys
from queue_server.domain.numerals import numerals
from queue_server.domain.weave import weave
from queue_server.http import wire

# Where it begins to pay; below, decoding is as fast.
_ITEMS_MIN = 8
# Gaps cost, too: what is decoded may be a quarter of the items, and a few more at the beginning.
_DECODED_PART = 4
_DECODED_MORE = 4

_ID_CHARS = 36
_ID = re.compile(rb'"transactionId"\s*:\s*"(?=[0-9a-f-]{36}")')
_MARK = secrets.token_hex(16)


class AckRun(msgspec.Struct, frozen=True):
    """Acknowledgements in a row that say the same of different messages."""

    like: Ack  # each of them, but for the transaction id
    keys: bytes  # the id keys

    @property
    def count(self) -> int:
        return len(self.keys) // KEY_BYTES


class UniformAcks(msgspec.Struct, frozen=True):
    """A batch of acknowledgements that comes in runs."""

    ids: list[bytes]  # the transaction ids of all runs, canonical UUIDs
    runs: list[AckRun]
    group: str | None  # the batch's, for items that name none


def read_uniform_acks(body: bytes) -> UniformAcks | None:
    """The acknowledgements of a batch when they come in runs; None to decode it as usual."""
    found = _ID.search(body)
    if found is None:
        return None
    place = found.end()  # of an id
    pieces = [body[:place]]  # what is to be decoded, without the marks between
    weights = [1]  # how many items each item of it stands for
    ids: list[bytes] = []
    while (found := _ID.search(body, place + _ID_CHARS)) is not None:
        if len(weights) > _DECODED_MORE + len(ids) // _DECODED_PART:
            return None
        gap = body[place + _ID_CHARS : found.end()]
        width = _ID_CHARS + len(gap)
        count = _repetitions(body, gap, place + _ID_CHARS, width)
        # A `struct` cuts at a quarter of the time that slicing takes.
        own = Struct(f"{_ID_CHARS}s{len(gap)}x" * count).unpack_from(body, place)
        if not body.startswith(gap.join(own), place):
            return None
        ids += own
        if count > 1:
            pieces.append(gap)
            weights.append(count - 1)
        pieces.append(gap)
        weights.append(1)
        place += count * width
    ids.append(body[place : place + _ID_CHARS])
    if len(ids) < _ITEMS_MIN:
        return None
    keys = joined_uuid_keys(b"".join(ids), len(ids))
    if keys is None:
        return None
    marks = [f"{_MARK}{number}" for number in range(len(weights))]
    rest = body[place + _ID_CHARS :]
    marked = weave(len(marks), pieces, [mark.encode() for mark in marks]) + rest
    try:
        batch = wire.ack_batch_reader.read(marked)
    except BadRequest:
        return None  # whatever is wrong with it is told by the usual way
    acks = batch.acknowledgments
    if [ack.transaction_id for ack in acks] != marks:
        return None
    runs: list[AckRun] = []
    start = 0
    for like, alike in groupby(zip(acks, weights, strict=True), lambda pair: _but_for_id(pair[0])):
        stop = start + sum(weight for _, weight in alike) * KEY_BYTES
        runs.append(AckRun(like, keys[start:stop]))
        start = stop
    return UniformAcks(ids, runs, batch.consumer_group)


def _repetitions(body: bytes, gap: bytes, place: int, width: int) -> int:
    """How often *gap* comes in a row from *place* on, each *width* behind the one before.

    It is found by doubling, then halving: the last is there, those between are to be compared yet.
    """

    def missing(number: int) -> bool:
        return not body.startswith(gap, place + number * width)

    beyond = 1
    while not missing(beyond):
        beyond *= 2
    return bisect(range(beyond), False, beyond // 2, key=missing)


def _but_for_id(ack: Ack) -> Ack:
    return msgspec.structs.replace(ack, transaction_id="")


def uniform_answer(
    ids: list[bytes], runs: Sequence[tuple[int, wire.AckEntry | wire.AckEntryNoop]]
) -> bytes:
    """The answer to acknowledgements of *ids*; so many in a row have what the entry says."""
    before, between = b'{"index":', b',"transactionId":"'
    behind: list[bytes] = []
    for count, entry in runs:
        # The entry's text, cut where its index and its transaction id stand.
        text = wire.encoder.encode(msgspec.structs.replace(entry, index=0, transaction_id=""))
        behind += [text.removeprefix(before + b"0" + between) + b","] * count
    behind[-1] = behind[-1][:-1] + b"]"
    return b"[" + weave(len(ids), before, numerals(0, len(ids)), between, ids, behind)
