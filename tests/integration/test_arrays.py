"""Arrays made by hand arrive as those that psycopg makes."""

import uuid
from typing import Any

import psycopg
import pytest

from queue_server.storage.arrays import (
    Array,
    Bigints,
    Booleans,
    Byteas,
    Integers,
    Smallints,
    Uuids,
)

IDS = [uuid.uuid4(), None, uuid.UUID(int=0)]


@pytest.mark.parametrize(
    ("made", "values", "type_"),
    [
        (Bigints([0, -1, 2**63 - 1, -(2**63)]), [0, -1, 2**63 - 1, -(2**63)], "bigint"),
        (Integers([0, -1, 2**31 - 1]), [0, -1, 2**31 - 1], "integer"),
        (Smallints([0, -1, 2**15 - 1]), [0, -1, 2**15 - 1], "smallint"),
        (Booleans([True, False]), [True, False], "boolean"),
        (Byteas([b"", b"\x00\xff", b"x" * 100_000]), [b"", b"\x00\xff", b"x" * 100_000], "bytea"),
        (Uuids(IDS), IDS, "uuid"),
        (Bigints(range(100_000)), list(range(100_000)), "bigint"),
        *((kind([]), [], type_) for kind, type_ in ((Bigints, "bigint"), (Byteas, "bytea"))),
        (Uuids([]), [], "uuid"),
    ],
)
def test_what_is_sent_arrives(conninfo: str, made: Array, values: list[Any], type_: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        row = connection.execute(
            psycopg.sql.SQL("SELECT %b::{type}[], pg_typeof(%b)::text, cardinality(%b)").format(
                type=psycopg.sql.SQL(type_)
            ),
            (made, made, made),
        ).fetchone()
        assert row == (values, f"{type_}[]", len(values))


def test_a_number_out_of_range_is_refused() -> None:
    for kind, number in ((Bigints, 2**63), (Integers, 2**31), (Smallints, 2**15)):
        with pytest.raises(Exception, match=r"too large|format requires"):
            kind([number])
