"""Decimal numerals as bytes, for texts that are joined from pieces.

Formatting a number costs about three times as much as taking it from a table.
"""

from __future__ import annotations

_BLOCK = 10_000
_NUMERALS = [b"%d" % number for number in range(_BLOCK)]
_ENDINGS = [b"%04d" % number for number in range(_BLOCK)]


def numerals(start: int, end: int) -> list[bytes]:
    """The numerals of the numbers in [start, end), none negative."""
    if end <= _BLOCK:
        return _NUMERALS[start:end]
    texts: list[bytes] = []
    while start < end:
        block, first = divmod(start, _BLOCK)
        last = min(first + end - start, _BLOCK)
        if block == 0:
            texts += _NUMERALS[first:last]
        else:
            head = b"%d" % block
            texts += [head + ending for ending in _ENDINGS[first:last]]
        start += last - first
    return texts
