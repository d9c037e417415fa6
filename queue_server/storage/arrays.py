"""PostgreSQL arrays in their binary form, made at once for the hot statements.

psycopg looks at each element of a list to find its type and calls a dumper for it; a push of one
message has seventeen such lists. Here the caller says the type, and one `struct.pack` does it all.

Source: PostgreSQL's array_recv and the receive functions of the elements. The header is the number
of dimensions, a flag for nulls (which the server ignores), the element's type, then length and
lower bound of the dimension; an element is its length in bytes, -1 for null, and its value.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from itertools import chain, repeat
from typing import ClassVar

import psycopg
from psycopg import postgres
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)
_UUID_LENGTH = _LENGTH.pack(16)


class Array:
    """A one-dimensional array ready to be sent."""

    element: ClassVar[str]  # PostgreSQL's name of the element's type
    element_oid: ClassVar[int]
    __slots__ = ("data",)

    def __init_subclass__(cls) -> None:
        if "element" in vars(cls):
            cls.element_oid = postgres.types[cls.element].oid

    def __init__(self, count: int, elements: bytes) -> None:
        # An empty array has no dimension.
        head = (1, 0, self.element_oid, count, 1) if count else (0, 0, self.element_oid)
        self.data = struct.pack(">iiIii"[: 1 + len(head)], *head) + elements


class _Numbers(Array):
    code: ClassVar[str]  # of `struct`
    size: ClassVar[int]  # bytes
    __slots__ = ()

    def __init__(self, values: Sequence[int]) -> None:
        count = len(values)
        pairs = chain.from_iterable(zip(repeat(self.size), values, strict=False))
        super().__init__(count, struct.pack(">" + ("i" + self.code) * count, *pairs))


class Bigints(_Numbers):
    element, code, size = "int8", "q", 8
    __slots__ = ()


class Integers(_Numbers):
    element, code, size = "int4", "i", 4
    __slots__ = ()


class Smallints(_Numbers):
    element, code, size = "int2", "h", 2
    __slots__ = ()


class Booleans(_Numbers):
    element, code, size = "bool", "?", 1
    __slots__ = ()


class Byteas(Array):
    element = "bytea"
    __slots__ = ()

    def __init__(self, values: Sequence[bytes]) -> None:
        lengths = map(_LENGTH.pack, map(len, values))
        super().__init__(
            len(values), b"".join(chain.from_iterable(zip(lengths, values, strict=True)))
        )


class Uuids(Array):
    element = "uuid"
    __slots__ = ()

    def __init__(self, values: Sequence[uuid.UUID | None]) -> None:
        elements = [_NULL if value is None else _UUID_LENGTH + value.bytes for value in values]
        super().__init__(len(values), b"".join(elements))


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> Buffer:
        return obj.data


def _register() -> None:
    for kind in (Bigints, Integers, Smallints, Booleans, Byteas, Uuids):
        oid = postgres.types[kind.element].array_oid
        dumper = type(f"_{kind.__name__}Dumper", (_ArrayDumper,), {"oid": oid})
        psycopg.adapters.register_dumper(kind, dumper)


_register()
