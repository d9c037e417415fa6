"""What goes into a segment comes out of it, whole or in part."""

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from queue_server.domain.message import MessageIdRun, NewMessage, message_id
from queue_server.domain.segment import (
    CODEC_RENDERED,
    CODEC_ZSTD,
    OpenSegment,
    more_fields,
    pack,
    render,
)
from queue_server.domain.weave import json_texts, weave

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just('\x01,{"offset":'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CLAIM = b',"leaseId":"l"'


def build(payloads: list[Any], base_offset: int, **options: Any) -> tuple[OpenSegment, list[str]]:
    messages = [
        NewMessage(
            queue="q",
            payload=msgspec.Raw(json.dumps(payload, **options).encode()),
            transaction_id=f"id-{i}" if i % 2 else None,
        )
        for i, payload in enumerate(payloads)
    ]
    run = MessageIdRun()
    texts = run.texts(len(messages))
    ids = [text.decode() for text in texts]
    assert ids == [message_id(run.first, i) for i in range(len(messages))]
    given = [m.transaction_id or id_ for m, id_ in zip(messages, ids, strict=True)]
    codec, body = pack(render(messages, texts, json_texts(given)))
    return OpenSegment(base_offset, base_offset + len(messages), codec, body), ids


@given(st.lists(json_values, min_size=1, max_size=12), st.integers(0, 2**52), st.data())
def test_any_run_of_a_segment_is_what_was_pushed(
    payloads: list[Any], base_offset: int, data: st.DataObject
) -> None:
    segment, ids = build(payloads, base_offset, indent=data.draw(st.sampled_from([None, 1])))
    start = data.draw(st.integers(0, len(payloads) - 1))
    end = data.draw(st.integers(start + 1, len(payloads)))
    run = json.loads(b"[" + segment.run(base_offset + start, base_offset + end, CLAIM) + b"]")
    assert [message["data"] for message in run] == payloads[start:end]
    assert [message["offset"] for message in run] == [
        *range(base_offset + start, base_offset + end)
    ]
    for place, message in enumerate(run, start):
        assert message["id"] == ids[place]
        assert message["transactionId"] == (f"id-{place}" if place % 2 else ids[place])
        assert message["leaseId"] == "l"
        assert message["traceId"] is message["producerSub"] is None
    one = segment.message(base_offset + start)
    assert json.loads(bytes(one.data)) == payloads[start]


def test_a_body_is_compressed_where_that_pays() -> None:
    ids = MessageIdRun().texts(100)
    many = [NewMessage(queue="q", payload=msgspec.Raw(b'{"id":1}'))] * 100
    text = render(many, ids, ids)
    codec, body = pack(text)
    assert codec == CODEC_ZSTD
    assert len(body) < len(text) / 2
    assert pack(render(many[:1], ids[:1], ids[:1]))[0] == CODEC_RENDERED


def test_ids_of_a_run_rise_and_do_not_repeat() -> None:
    texts = [text for _ in range(50) for text in MessageIdRun().texts(100)]
    assert len(set(texts)) == len(texts)
    one = MessageIdRun().texts(4096)
    assert one == sorted(one)


@given(st.lists(st.text(), max_size=6))
def test_texts_are_escaped_as_in_json(texts: list[str]) -> None:
    for text, escaped in zip(texts, json_texts(texts), strict=True):
        assert json.loads(b'"' + escaped + b'"') == text


@given(st.lists(st.text(alphabet='a",\\ \n', max_size=4), max_size=6))
def test_texts_that_look_like_separators_stay_apart(texts: list[str]) -> None:
    assert [json.loads(b'"' + text + b'"') for text in json_texts(texts)] == texts


def test_weave_puts_columns_side_by_side() -> None:
    assert weave(3, b"<", [b"1", b"2", b"3"], b">") == b"<1><2><3>"
    assert weave(0, b"<", [], b">") == b""


def _tables(count: int) -> st.SearchStrategy[tuple[int, list[bytes | list[bytes]]]]:
    piece = st.binary(max_size=2)
    column = st.one_of(piece, st.lists(piece, min_size=count, max_size=count))
    return st.tuples(st.just(count), st.lists(column, max_size=5))


@given(st.integers(0, 4).flatmap(_tables), st.binary(max_size=2))
def test_weave_joins_rows_of_whatever_columns(
    table: tuple[int, list[bytes | list[bytes]]], separator: bytes
) -> None:
    count, columns = table
    rows = [
        b"".join(column if isinstance(column, bytes) else column[row] for column in columns)
        for row in range(count)
    ]
    assert weave(count, *columns, separator=separator) == separator.join(rows)


def test_a_producer_with_an_empty_name_is_not_nobody() -> None:
    """Among producers that are all empty or unknown, each stays what it was."""
    messages = [NewMessage("q", msgspec.Raw(b"1")) for _ in range(3)]
    ids = MessageIdRun().texts(3)
    codec, body = pack(render(messages, ids, ids, ["", None, ""]))
    segment = OpenSegment(0, 3, codec, body)
    assert [segment.message(offset).producerSub for offset in range(3)] == ["", None, ""]


def test_a_message_says_which_push_brought_it_behind_all_else() -> None:
    messages = [NewMessage("q", msgspec.Raw(b'{"traceparent":"mine"}')) for _ in range(3)]
    run = MessageIdRun()
    texts = run.texts(3)
    parents = [f"00-{1:032x}-{2:016x}-01", None, f"00-{3:032x}-{4:016x}-00"]
    originals = [None, 'a "quoted" \u00e9', "order-1"]
    fields = [more_fields(*both) for both in zip(parents, originals, strict=True)]
    rendered = render(messages, texts, texts, (), fields)
    segment = OpenSegment(10, 13, *pack(rendered))
    told = json.loads(b"[" + segment.run(10, 13, CLAIM) + b"]")
    assert [message.get("traceparent") for message in told] == parents
    assert [message.get("originalTransactionId") for message in told] == originals
    assert [segment.message(at).originalTransactionId for at in range(10, 13)] == originals
    assert [message["data"] for message in told] == [{"traceparent": "mine"}] * 3
    assert segment.message(12).traceId is None
    # Without any, the text is what it always was.
    nothing = [more_fields(None, None)] * 3
    assert render(messages, texts, texts, (), nothing) == render(messages, texts, texts)
