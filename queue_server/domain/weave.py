"""Builds texts of many alike rows without work for each row.

A batch is thousands of rows that differ in a few places. Filling one list from a list for each
place and joining it costs a third of making an object for each row and encoding that.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

_encoder = msgspec.json.Encoder()


def weave(count: int, *columns: bytes | Sequence[bytes], separator: bytes = b"") -> bytes:
    """*count* rows, one after another; a row is the columns' pieces for it.

    Shape: a column is a list of *count* pieces, or one piece for all rows. The *separator* stands
    between two rows.
    """
    if not count:
        return b""
    # Every piece of every row costs, so neighbours that are the same in all rows become one, those
    # at the end of a row and at the beginning of the next included.
    folded: list[bytes | Sequence[bytes]] = []
    head = tail = b""  # what all rows begin with, and what was the same since the last list
    for column in columns:
        if isinstance(column, bytes):
            tail += column
            continue
        if not folded:
            head = tail
        elif tail:
            folded.append(tail)
        folded.append(column)
        tail = b""
    width = len(folded)
    between = tail + separator + head
    if between:
        width += 1
    pieces = [between] * (width * count)
    for place, column in enumerate(folded):
        pieces[place::width] = [column] * count if isinstance(column, bytes) else column
    if between:
        pieces[-1] = tail
        pieces[0] = head + pieces[0]
    return b"".join(pieces)


def plain_texts(texts: Sequence[str]) -> list[bytes]:
    """*texts* as bytes; they hold no line break and nothing that JSON would escape."""
    return "\n".join(texts).encode().split(b"\n") if texts else []


def json_texts(texts: Sequence[str]) -> list[bytes]:
    """What stands between the quotes when *texts* are written as JSON strings."""
    joined = "".join(texts)
    if joined.isascii() and joined.isprintable() and '"' not in joined and "\\" not in joined:
        return plain_texts(texts)
    return [_encoder.encode(text)[1:-1] for text in texts]
