"""How deeply a payload may be nested, and a measure of it that needs no recursion.

JSON decoders recurse, and the levels they manage are what is left of the stack where they are
called. A limit of our own, far below that, makes acceptance the same everywhere and leaves room for
whoever decodes the payload later. Small payloads cannot exceed it; of the others nearly all are
cleared by a count of their brackets.

Source: RFC 8259, section 9: a parser may set limits on the depth of nesting.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import msgspec

# Arrays and objects around the innermost value of a payload.
NESTING_MAX = 500

_OPENING, _CLOSING = b"[{", b"]}"
_OTHERS = bytes(set(range(256)) - set(_OPENING + _CLOSING))
# A bracket becomes the signed byte that it adds to the depth.
_STEPS = bytes.maketrans(_OPENING + _CLOSING, b"\x01\x01\xff\xff")
# Bytes that are examined at a time, within 0.1 ms.
_SLICE_BYTES = 4096


def may_exceed(text: bytes | msgspec.Raw) -> bool:
    """Whether *text* has enough brackets, those in its strings included, to exceed the limit.

    The bracket that exceeds it has as many before it as the limit, and more behind it; most large
    texts have none there.
    """
    if len(text) <= 2 * NESTING_MAX:
        return False
    inner = bytes(memoryview(text)[NESTING_MAX:-NESTING_MAX])
    if b"[" not in inner and b"{" not in inner:
        return False
    return len(bytes(text).translate(None, _OTHERS)) > 2 * NESTING_MAX


def depths(text: bytes) -> Iterator[int]:
    """Measure valid JSON slice by slice: yield the deepest nesting of each.

    A caller stops early, or gives way to others between two slices.
    """
    if b"\\" in text:
        # Escape sequences are read from the left; what is left of them holds no quote.
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    depth = 0
    inside = 0  # 1 = in a string
    for start in range(0, len(text), _SLICE_BYTES):
        pieces = text[start : start + _SLICE_BYTES].split(b'"')
        steps = b"".join(pieces[inside::2]).translate(_STEPS, _OTHERS)
        inside ^= len(pieces) % 2 == 0
        opened = steps.count(b"\x01")
        if depth + opened <= NESTING_MAX:
            yield depth + opened  # no need to know it better
        else:
            yield max(accumulate(memoryview(steps).cast("b"), initial=depth))
        depth += 2 * opened - len(steps)


def exceeds(text: bytes) -> bool:
    """Whether valid JSON is nested deeper than `NESTING_MAX`."""
    return any(depth > NESTING_MAX for depth in depths(text))
