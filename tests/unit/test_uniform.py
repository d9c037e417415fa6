"""A batch of acknowledgements read by its ends says what decoding all of it says."""

import json
import uuid
from random import Random
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queue_server.domain.errors import BadRequest
from queue_server.domain.ids import id_keys
from queue_server.domain.numerals import numerals
from queue_server.http import wire
from queue_server.http.uniform import read_uniform_acks, uniform_answer

# How long an example takes is the machine's affair.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

uuids = st.uuids(version=4).map(str)
optional = st.none() | st.text(max_size=5)
# What may stand in an item beside the ids, known fields and others, nested ones among them.
beside = st.dictionaries(
    st.sampled_from(["status", "error", "leaseId", "consumerGroup", "x", "transactionid"]),
    optional | st.lists(st.dictionaries(st.just("transactionId"), uuids), max_size=2),
)


def some_ids(count: int, seed: int = 0) -> list[str]:
    random = Random(seed)
    return [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(count)]


def body_of(items: list[dict[str, Any]], compact: bool = True, **more: Any) -> bytes:
    separators = (",", ":") if compact else (", ", ": ")
    return json.dumps({"acknowledgments": items, **more}, separators=separators).encode()


def check(body: bytes) -> int:
    """How many runs it was read as, 0 when it was not; that they then say the same."""
    read = read_uniform_acks(body)
    if read is None:
        return 0
    whole = wire.ack_batch_reader.read(body)
    acks = whole.acknowledgments
    assert [id_.decode() for id_ in read.ids] == [ack.transaction_id for ack in acks]
    assert read.group == whole.consumer_group
    for run in read.runs:
        own, acks = acks[: run.count], acks[run.count :]
        assert {msgspec.structs.replace(ack, transaction_id="") for ack in own} == {run.like}
        assert run.keys == id_keys([ack.transaction_id for ack in own])
    assert not acks
    return len(read.runs)


def agrees(body: bytes) -> int:
    """The same of any body: what cannot be decoded is not read."""
    try:
        wire.ack_batch_reader.read(body)
    except BadRequest:
        assert read_uniform_acks(body) is None
        return 0
    return check(body)


@patient
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
    except BadRequest:
        assert read_uniform_acks(body) is None
        return
    nested = any(isinstance(value, list) and value for value in more.values())
    assert check(body) == 1 or nested


@patient
@given(
    st.lists(st.tuples(st.integers(12, 40), optional, st.booleans()), min_size=1, max_size=12),
    st.booleans(),
    st.integers(0, 2),
)
def test_runs_of_alike_items_are_uniform(
    shapes: list[tuple[int, str | None, bool]], compact: bool, place: int
) -> None:
    items = []
    for number, (count, error, leased) in enumerate(shapes):
        for id_ in some_ids(count, number):
            fields = {"partitionId": f"p{number}", "error": error}
            if leased:
                fields["leaseId"] = "l"
            before = dict(list(fields.items())[:place])
            items.append({**before, "transactionId": id_, **fields})
    assert check(body_of(items, compact)) == len(shapes)


@patient
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from("abc"), beside), min_size=1, max_size=20
    ),
    st.booleans(),
)
def test_runs_of_any_length_are_right(
    shapes: list[tuple[int, str, dict[str, Any]]], compact: bool
) -> None:
    agrees(
        body_of(
            [
                {"transactionId": id_, "partitionId": partition, **more}
                for number, (count, partition, more) in enumerate(shapes)
                for id_ in some_ids(count, number)
            ],
            compact,
        )
    )


@patient
@given(
    st.lists(st.tuples(uuids, beside), min_size=8, max_size=20), st.booleans(),
)  # fmt: skip
def test_whatever_is_read_is_right(items: list[tuple[str, dict[str, Any]]], compact: bool) -> None:
    agrees(
        body_of(
            [{"transactionId": id_, "partitionId": "p", **more} for id_, more in items], compact
        )
    )


# Pieces of which bodies are put together that JSON's rules allow and nobody sends: fields that come
# twice (the last one counts), ids in other spellings, in other places, and in strings.
_ID = "0192f0a3-0000-7000-9000-000000000001"
pieces = st.sampled_from(
    [
        "",
        '"partitionId":"p"',
        '"partitionId":"q"',
        '"status":"failed"',
        '"status":"completed"',
        f'"x":{{"transactionId":"{_ID}"}}',
        f'"x":[{{"transactionId":"{_ID}"}},{{"transactionId":"{_ID}"}}]',
        f'"transactionId":"{_ID}"',
        f'"transactionId":"\\u0030{_ID[1:]}"',
        '"transactionId":"order-1"',
        f'"error":"\\"transactionId\\":\\"{_ID}\\""',
        '"partitionId":"p"},{"partitionId":"p"',
        '"partitionId":"p"}],"acknowledgments":[{"partitionId":"p"',
        '"x":"}],"',
        '"x":5}',
    ]
)


@patient
@given(
    st.lists(
        st.tuples(st.integers(1, 10), st.lists(pieces, max_size=2), st.lists(pieces, max_size=2)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 3),
)
def test_whatever_json_allows_is_read_right(
    shapes: list[tuple[int, list[str], list[str]]], id_count: int
) -> None:
    items = []
    for count, before, behind in shapes:
        for number in range(count):
            id_ = f'"transactionId":"{_ID[:-1]}{number % id_count}"'
            fields = [*before, '"partitionId":"p"', id_, *behind]
            items.append("{" + ",".join(field for field in fields if field) + "}")
    agrees(('{"acknowledgments":[' + ",".join(items) + "]}").encode())


def test_what_only_the_middle_of_a_run_says_is_not_lost() -> None:
    # Both ends say `failed`, each by a field that comes twice; all between say `completed`.
    first = '{"partitionId":"p","status":"failed","transactionId":"%s"}'
    other = '{"partitionId":"p","status":"completed","transactionId":"%s"'
    ids = some_ids(20)
    items = [first % ids[0], *[other % id_ + "}" for id_ in ids[1:-1]]]
    items.append(other % ids[-1] + ',"status":"failed"}')
    assert check(('{"acknowledgments":[' + ",".join(items) + "]}").encode()) == 3


@patient
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3
    ),
)
def test_a_changed_byte_is_never_read_as_something_else(
    counts: list[int], changes: list[tuple[float, int]]
) -> None:
    body = bytearray(
        body_of(
            [
                {"transactionId": id_, "partitionId": f"p{number}"}
                for number, count in enumerate(counts)
                for id_ in some_ids(count, number)
            ]
        )
    )
    for place, value in changes:
        body[int(place * len(body))] = value
    agrees(bytes(body))


@patient
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.lists(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3), min_size=1, max_size=3),
)
def test_a_piece_in_another_place_is_never_read_as_something_else(
    counts: list[int], moves: list[tuple[float, float, float]]
) -> None:
    body = body_of(
        [
            {"transactionId": id_, "partitionId": f"p{number}"}
            for number, count in enumerate(counts)
            for id_ in some_ids(count, number)
        ]
    )
    for move in moves:
        first, last = sorted(int(place * len(body)) for place in move[:2])
        to = int(move[2] * len(body))
        body = body[:to] + body[first:last] + body[to:]
    agrees(body)


def test_what_is_no_uniform_batch() -> None:
    ids = some_ids(10)
    alike = [{"transactionId": id_, "partitionId": "p", "status": "completed"} for id_ in ids]
    assert check(body_of(alike)) == 1
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
            assert check(body_of(items)) == 0 or "transactionId" not in change, (number, change)
            assert check(body_of(items)) != 1, (number, change)
    assert not check(body_of(alike[:3]))
    assert not check(body_of([]))
    assert not check(b"")
    # An array that ends and begins again: the last one counts.
    twice = body_of(alike)[:-1] + b"," + body_of(alike[5:])[1:]
    assert len(wire.ack_batch_reader.read(twice).acknowledgments) == 5
    assert not check(twice)


@patient
@given(
    st.lists(
        st.tuples(st.integers(1, 1500), st.text(max_size=10), st.booleans(), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_the_answer_is_that_of_each_item(
    shapes: list[tuple[int, str, bool, bool]],
) -> None:
    ids: list[bytes] = []
    runs: list[tuple[int, wire.AckEntry | wire.AckEntryNoop]] = []
    entries: list[wire.AckEntry | wire.AckEntryNoop] = []
    for count, queue, released, noop in shapes:
        kind = wire.AckEntryNoop if noop else wire.AckEntry
        entry = kind(0, "", True, None, queue, "p", released, False)
        runs.append((count, entry))
        for _ in range(count):
            id_ = str(uuid.UUID(int=len(ids)))
            entries.append(msgspec.structs.replace(entry, index=len(ids), transaction_id=id_))
            ids.append(id_.encode())
    assert uniform_answer(ids, runs) == wire.encoder.encode(entries)


@patient
@given(st.integers(0, 200_000), st.integers(0, 15_000))
def test_numerals(start: int, count: int) -> None:
    assert numerals(start, start + count) == [b"%d" % n for n in range(start, start + count)]
