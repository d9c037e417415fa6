"""Builds texts of many alike rows without work for each row.

A batch is thousands of rows that differ in a few places. Filling one list from a list for each
place and joining it costs a third of making an object for each row and encoding that.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

_encoder = msgspec.json.Encoder()


def weave(count: int, *columns: bytes | Sequence[bytes]) -> bytes:
    """*count* rows, one after another; a row is the columns' pieces for it.

    Shape: a column is a list of *count* pieces, or one piece for all rows.
    """
    width = len(columns)
    pieces: list[bytes] = [b""] * (width * count)
    for place, column in enumerate(columns):
        pieces[place::width] = [column] * count if isinstance(column, bytes) else column
    return b"".join(pieces)


def separated(piece: bytes, count: int) -> list[bytes]:
    """A last column: *piece* with a comma behind it in every row but the last."""
    return [piece + b","] * (count - 1) + [piece] * (count > 0)


def plain_texts(texts: Sequence[str]) -> list[bytes]:
    """*texts* as bytes; they hold no line break and nothing that JSON would escape."""
    return "\n".join(texts).encode().split(b"\n") if texts else []


def json_texts(texts: Sequence[str]) -> list[bytes]:
    """What stands between the quotes when *texts* are written as JSON strings."""
    joined = "".join(texts)
    if joined.isascii() and joined.isprintable() and '"' not in joined and "\\" not in joined:
        return plain_texts(texts)
    return [_encoder.encode(text)[1:-1] for text in texts]
