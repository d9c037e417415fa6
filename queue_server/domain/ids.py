"""Transaction ids as 16-byte keys, and the ranges in which to look for them.

A transaction id is any text. The log keeps 16 bytes for each: a UUID in canonical form is its own
key; any other text is hashed and marked as UUID version 8, and a text that already is a version 8
UUID is hashed too, so that the two kinds cannot meet. Whether two ids are the same is then a
comparison of 16 bytes, and a batch of ids is one `bytes` value.

To know whether an id is stored without an index entry for each, every segment is listed under the
ranges its keys fall into. UUIDv7 keys begin with a time in milliseconds, so the keys of a segment
usually lie in one narrow range; any other key is a range of its own. No range of UUIDv7 keys is
wider than RANGE_WIDTH_MS: whoever looks for a key needs to look at ranges that end at most so far
behind it, and one producer with a skewed clock widens nobody's range.
"""

from __future__ import annotations

import hashlib
from binascii import unhexlify
from collections.abc import Sequence

import msgspec

KEY_BYTES = 16
# Buffered clients send batches minted over about a second: one or two ranges each. Wider ranges
# would make look-ups pass over more of the neighbours'.
RANGE_WIDTH_MS = 1000

_WIDTH = RANGE_WIDTH_MS << 80  # the time is in the upper 48 of 128 bits
_KEY_MAX = (1 << 128) - 1
_UUID_CHARS = 36
# The bytes at position 6 of a UUIDv7: version nibble 7.
_V7_BYTES = bytes(range(0x70, 0x80))
# Upper case digits are another text; they become what is no digit.
_LOWER_CASE_ALONE = bytes.maketrans(b"ABCDEF", b"------")


class IdRange(msgspec.Struct, frozen=True, gc=False):
    """The keys of a list between two bounds, both included.

    `scan_max` is the highest upper bound that a stored range can have which overlaps this one.
    """

    min: bytes
    max: bytes
    scan_max: bytes


def id_keys(transaction_ids: Sequence[str]) -> bytes:
    """The keys of *transaction_ids*, one after another.

    Shape: 16 bytes each, in the given order.
    """
    keys = uuid_keys(transaction_ids)
    if keys is not None:
        return keys
    if len(transaction_ids) == 1:
        return _hashed_key(transaction_ids[0])
    return b"".join([id_keys((transaction_id,)) for transaction_id in transaction_ids])


def uuid_keys(transaction_ids: Sequence[str]) -> bytes | None:
    """The keys of *transaction_ids* if each is its own key, else None.

    That is, if all are canonical UUIDs and none has version 8; nearly always it is so.
    """
    if set(map(len, transaction_ids)) != {_UUID_CHARS}:
        return None
    return joined_uuid_keys(
        "".join(transaction_ids).encode("utf-8", "surrogatepass"), len(transaction_ids)
    )


def joined_uuid_keys(joined: bytes, count: int) -> bytes | None:
    """`uuid_keys` of *count* texts of a UUID's length, given in one.

    A handful of operations on the whole converts and checks them all.
    """
    dashes = b"-" * count
    digits = joined.translate(_LOWER_CASE_ALONE, b"-")
    if (
        len(joined) != count * _UUID_CHARS
        or len(digits) != count * 32
        or joined[8::_UUID_CHARS] != dashes
        or joined[13::_UUID_CHARS] != dashes
        or joined[18::_UUID_CHARS] != dashes
        or joined[23::_UUID_CHARS] != dashes
        or b"8" in joined[14::_UUID_CHARS]
    ):
        return None
    try:
        return unhexlify(digits)
    except ValueError:
        return None


def _hashed_key(transaction_id: str) -> bytes:
    digest = bytearray(
        hashlib.blake2b(transaction_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    )
    digest[6] = 0x80 | digest[6] & 0x0F
    digest[8] = 0x80 | digest[8] & 0x3F
    return bytes(digest)


def split_keys(keys: bytes) -> list[bytes]:
    """The single keys of a concatenation."""
    return [keys[i : i + KEY_BYTES] for i in range(0, len(keys), KEY_BYTES)]


def id_ranges(keys: bytes) -> list[IdRange]:
    """The ranges under which *keys* are listed and looked for.

    Shape: disjoint for UUIDv7 keys, one point for each other key; empty for no keys.
    """
    singles = split_keys(keys)
    if not keys[6::KEY_BYTES].strip(_V7_BYTES):
        if not singles:
            return []
        low, high = min(singles), max(singles)
        if int.from_bytes(high) - int.from_bytes(low) <= _WIDTH:
            return [_time_range(low, high)]
        ordered = sorted(singles)
        points = []
    else:
        ordered = sorted(key for key in singles if key[6] >> 4 == 7)
        points = [IdRange(key, key, key) for key in set(singles) if key[6] >> 4 != 7]

    ranges = points
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or (
            int.from_bytes(ordered[end]) - int.from_bytes(ordered[start]) > _WIDTH
        ):
            ranges.append(_time_range(ordered[start], ordered[end - 1]))
            start = end
    return ranges


def _time_range(low: bytes, high: bytes) -> IdRange:
    scan_max = min(int.from_bytes(high) + _WIDTH, _KEY_MAX)
    return IdRange(low, high, scan_max.to_bytes(KEY_BYTES))
