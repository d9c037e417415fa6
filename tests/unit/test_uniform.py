"""A batch of acknowledgements read by its ends says what decoding all of it says."""

import json
import uuid
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from queue_server.domain.ids import id_keys
from queue_server.domain.numerals import numerals
from queue_server.http import wire
from queue_server.http.uniform import read_uniform_acks, uniform_answer

uuids = st.uuids(version=4).map(str)
optional = st.none() | st.text(max_size=5)
# What may stand in an item beside the ids, known fields and others, nested ones among them.
beside = st.dictionaries(
    st.sampled_from(["status", "error", "leaseId", "consumerGroup", "x", "transactionid"]),
    optional | st.lists(st.dictionaries(st.just("transactionId"), uuids), max_size=2),
)


def body_of(items: list[dict[str, Any]], compact: bool = True, **more: Any) -> bytes:
    separators = (",", ":") if compact else (", ", ": ")
    return json.dumps({"acknowledgments": items, **more}, separators=separators).encode()


def check(body: bytes) -> bool:
    """Whether it was read as uniform; that it then says the same."""
    read = read_uniform_acks(body)
    if read is None:
        return False
    whole = wire.ack_batch_reader.read(body)
    acks = [msgspec.structs.replace(read.like, transaction_id=id_.decode()) for id_ in read.ids]
    assert acks == whole.acknowledgments
    assert read.group == whole.consumer_group
    assert read.keys == id_keys([ack.transaction_id for ack in whole.acknowledgments])
    return True


@given(
    st.lists(uuids, min_size=8, max_size=30),
    beside,
    st.booleans(),
    st.booleans(),
    st.dictionaries(st.sampled_from(["consumerGroup", "y"]), optional),
)
def test_alike_items_are_uniform(
    ids: list[str], more: dict[str, Any], first: bool, compact: bool, around: dict[str, Any]
) -> None:
    items = [
        {"transactionId": id_, "partitionId": "p", **more}
        if first
        else {"partitionId": "p", **more, "transactionId": id_}
        for id_ in ids
    ]
    body = body_of(items, compact, **around)
    try:
        wire.ack_batch_reader.read(body)
    except Exception:
        assert read_uniform_acks(body) is None
        return
    nested = any(isinstance(value, list) and value for value in more.values())
    assert check(body) or nested


@given(
    st.lists(st.tuples(uuids, beside), min_size=8, max_size=20), st.booleans(),
)  # fmt: skip
def test_whatever_is_read_is_right(items: list[tuple[str, dict[str, Any]]], compact: bool) -> None:
    body = body_of(
        [{"transactionId": id_, "partitionId": "p", **more} for id_, more in items], compact
    )
    try:
        wire.ack_batch_reader.read(body)
    except Exception:
        assert read_uniform_acks(body) is None
    else:
        check(body)


@given(st.lists(uuids, min_size=8, max_size=12), st.data())
def test_a_changed_byte_is_never_read_as_something_else(
    ids: list[str], data: st.DataObject
) -> None:
    body = bytearray(body_of([{"transactionId": i, "partitionId": "p"} for i in ids]))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    try:
        wire.ack_batch_reader.read(bytes(body))
    except Exception:
        assert read_uniform_acks(bytes(body)) is None
    else:
        check(bytes(body))


def test_what_is_no_uniform_batch() -> None:
    ids = [str(uuid.uuid4()) for _ in range(10)]
    alike = [{"transactionId": id_, "partitionId": "p", "status": "completed"} for id_ in ids]
    assert check(body_of(alike))
    for number in (0, 1, 5, 9):
        for change in (
            {"status": "failed"},
            {"partitionId": "q"},
            {"transactionId": "order-1"},
            {"transactionId": ids[0].upper()},
            {"transactionId": "0192f0a3-0000-8000-8000-000000000001"},
            {"transactionId": "x" * 36},
            {"leaseId": "l"},
        ):
            items = [dict(item) for item in alike]
            items[number] |= change
            assert not check(body_of(items)), (number, change)
    assert not check(body_of(alike[:3]))
    assert not check(body_of([]))
    assert not check(b"")
    # An array that ends and begins again: the last one counts.
    twice = body_of(alike)[:-1] + b"," + body_of(alike[5:])[1:]
    assert len(wire.ack_batch_reader.read(twice).acknowledgments) == 5
    assert not check(twice)


@given(st.integers(8, 3000), st.text(max_size=10), st.booleans())
def test_the_answer_is_that_of_each_item(count: int, queue: str, released: bool) -> None:
    ids = [str(uuid.UUID(int=number)).encode() for number in range(count)]
    entry = wire.AckEntry(0, "", True, None, queue, "p", released, False)
    assert uniform_answer(ids, entry) == wire.encoder.encode(
        [
            msgspec.structs.replace(entry, index=index, transaction_id=id_.decode())
            for index, id_ in enumerate(ids)
        ]
    )


@given(st.integers(0, 200_000), st.integers(0, 15_000))
def test_numerals(start: int, count: int) -> None:
    assert numerals(start, start + count) == [b"%d" % n for n in range(start, start + count)]
