"""Whatever bytes and texts come, what reads them answers or refuses, and loses nothing.

Pure code, no server. `make fuzz` tries many more examples; a failure prints what replays it.
"""

import datetime
import json
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import MultiDict
from yarl import URL

from queue_server.broker.ack import Ack
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import BadParameter, BadRequest
from queue_server.domain.message import MessageIdRun, NewMessage
from queue_server.domain.names import parse_partition_id
from queue_server.domain.segment import OpenSegment, decrypt, pack, render, wire_time
from queue_server.domain.subscription import parse_time
from queue_server.domain.weave import json_texts
from queue_server.http import administration_wire, wire
from queue_server.http.request import query_bool, query_int, query_time
from queue_server.http.uniform import read_uniform_acks

READERS = [
    reader
    for module in (wire, administration_wire)
    for reader in vars(module).values()
    if isinstance(reader, wire.BodyReader)
]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars)
uuids = st.uuids(version=4).map(str)
names = st.none() | st.text(min_size=1, max_size=8)


# The fields of all bodies, so that one is often nearly that of its reader.
FIELDS = sorted(
    {
        field.encode_name
        for reader in READERS
        for field in msgspec.structs.fields(reader._decoder.type)
    }
    | {field.encode_name for body in (Ack, NewMessage) for field in msgspec.structs.fields(body)}
)
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=6)
bodies = st.binary(max_size=200) | st.dictionaries(
    st.sampled_from(FIELDS), values | objects | st.lists(objects, max_size=3), max_size=8
).map(lambda value: json.dumps(value).encode())


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """A body of which something is missing, doubled, or replaced."""
    body = draw(whole)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 120)))
        piece = draw(st.sampled_from([b"", body[start:end] * 2, b'"', b"\\", b"}", b",", b"\xff"]))
        body = body[:start] + piece + body[end:]
    return body


def uniform_body(ids: list[str], beside: dict[str, Any], compact: bool) -> bytes:
    items = [{"transactionId": id_, "partitionId": "1", **beside} for id_ in ids]
    separators = (",", ":") if compact else (", ", ": ")
    return json.dumps({"acknowledgments": items}, separators=separators).encode()


uniform_bodies = st.builds(
    uniform_body,
    st.lists(uuids, min_size=8, max_size=20),
    st.dictionaries(st.sampled_from(["status", "leaseId", "error", "x"]), st.text(max_size=4)),
    st.booleans(),
)


@given(st.sampled_from(READERS), damaged(bodies))
@settings(deadline=None)
def test_a_body_is_read_or_refused(reader: wire.BodyReader[Any], body: bytes) -> None:
    """Nothing else is raised, and the refusal can be written down."""
    try:
        reader.read(body)
    except BadRequest as exc:
        assert json.loads(wire.encoder.encode(wire.error_body(exc.message, exc.code)))["error"]


@given(st.one_of(damaged(uniform_bodies), damaged(bodies), st.binary()))
@settings(deadline=None)
def test_uniform_reading_agrees_with_decoding(body: bytes) -> None:
    read = read_uniform_acks(body)
    if read is None:
        return
    whole = wire.ack_batch_reader.read(body)
    told = [
        msgspec.structs.replace(run.like, transaction_id=id_)
        for run, ids in zip(read.runs, _ids_by_run(read), strict=True)
        for id_ in ids
    ]
    assert told == whole.acknowledgments
    assert read.group == whole.consumer_group


def _ids_by_run(read: Any) -> list[list[str]]:
    ids = [id_.decode() for id_ in read.ids]
    runs = []
    for run in read.runs:
        runs.append(ids[: run.count])
        ids = ids[run.count :]
    assert not ids
    return runs


def asked(text: str) -> Any:
    request = make_mocked_request("GET", "/")
    return request.clone(rel_url=URL.build(path="/", query=MultiDict(x=text)))


@given(
    st.text()
    | st.integers().map(str)
    | st.sampled_from(["+7", "-0", "٣", "1e3", " 1", "1_0", "9" * 40])
)
@settings(deadline=None)
def test_a_parameter_is_read_or_refused(text: str) -> None:
    request = asked(text)
    try:
        meant = int(text) if text.isascii() and "_" not in text and text == text.strip() else None
    except ValueError:
        meant = None
    if meant is not None:
        assert query_int(request, "x", 5, 1, 100) == min(max(meant, 1), 100)
    elif not text:
        assert query_int(request, "x", 5, 1, 100) == 5
    else:
        with pytest.raises(BadParameter, match="x must be"):
            query_int(request, "x", 5, 1, 100)
    if text.lower() in ("true", "1", "false", "0", ""):
        assert query_bool(request, "x") is (text.lower() in ("true", "1"))
    else:
        with pytest.raises(BadParameter, match="x must be"):
            query_bool(request, "x")
    assert query_bool(request, "y") is False


@given(
    st.text()
    | st.datetimes(timezones=st.none() | st.timezones()).map(datetime.datetime.isoformat)
    | st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2026-W01-1"])
)
@settings(deadline=None)
def test_a_time_leaves_room_to_reckon(text: str) -> None:
    moment = parse_time(text)
    if moment is None and text:
        with pytest.raises(BadParameter, match="x must be"):
            query_time(asked(text), "x")
    else:
        assert moment == query_time(asked(text), "x")
    if moment is not None:
        for days in (-1, 0, 1):
            told = wire_time(moment + datetime.timedelta(days=days))
            assert datetime.datetime.fromisoformat(told) == moment + datetime.timedelta(days=days)


@given(st.text() | st.integers().map(str))
def test_a_partition_has_one_spelling(text: str) -> None:
    id_ = parse_partition_id(text)
    assert id_ is None or str(id_) == text


@given(
    st.lists(
        st.tuples(values, names, st.none() | st.uuids(), st.none() | st.text(max_size=3)),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(0, 2**52),
    st.data(),
)  # fmt: skip
@settings(deadline=None)
def test_a_segment_gives_back_what_was_put_in(
    given_: list[tuple[Any, str | None, Any, str | None]],
    indent: int | None,
    encrypted: bool,
    base_offset: int,
    data: st.DataObject,
) -> None:
    """Payloads stay the text they were, to the byte; any run of them, one by one or together."""
    messages = [
        NewMessage("q", msgspec.Raw(json.dumps(payload, indent=indent).encode()), None, id_, trace)
        for payload, id_, trace, _ in given_
    ]
    ids = MessageIdRun().texts(len(messages))
    told_names = [m.transaction_id or id_.decode() for m, id_ in zip(messages, ids, strict=True)]
    subs = [sub for *_, sub in given_]
    keyring = Keyring(b"k" * 32) if encrypted else None
    codec, body = pack(render(messages, ids, json_texts(told_names), subs), keyring, b"here")
    if keyring is not None:
        codec, body = decrypt(codec, body, keyring, b"here")
    segment = OpenSegment(base_offset, base_offset + len(messages), codec, body)
    for place, message in enumerate(messages):
        stored = segment.message(base_offset + place)
        assert bytes(stored.data) == bytes(message.payload)
        assert stored.transactionId == told_names[place]
        assert stored.traceId == (None if message.trace_id is None else str(message.trace_id))
        assert stored.producerSub == subs[place]
    start = data.draw(st.integers(0, len(messages) - 1))
    end = data.draw(st.integers(start + 1, len(messages)))
    run = segment.run(base_offset + start, base_offset + end, b',"leaseId":"l"')
    told = msgspec.json.decode(b"[" + run + b"]", type=list[dict[str, msgspec.Raw]])
    assert [bytes(one["data"]) for one in told] == [bytes(m.payload) for m in messages[start:end]]
    assert [int(bytes(one["offset"])) for one in told] == [
        *range(base_offset + start, base_offset + end)
    ]
