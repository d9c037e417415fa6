"""How deeply JSON is nested, measured without recursion."""

import json
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_server.domain.message import MessageIdRun, NewMessage
from queue_server.domain.nesting import NESTING_MAX, depths, exceeds, may_exceed
from queue_server.domain.segment import OpenSegment, pack, render
from queue_server.domain.weave import json_texts


def arrays(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


TEXTS = {
    "arrays": arrays,
    "objects": lambda levels: b'{"a":' * levels + b"1" + b"}" * levels,
    "siblings": lambda levels: b'[[],{},"]]}}",' * (levels - 1) + b"0" + b"]" * (levels - 1),
    "names": lambda levels: rb'{"\\\"]\\":' * levels + b"1" + b"}" * levels,
    "slices apart": lambda levels: (b"[" + b" " * 100) * levels + b"]" * levels,
    "long strings": lambda levels: (b'["' + b"\\\\" * 3000 + b'",') * levels + b"0" + b"]" * levels,
    "in the middle": lambda levels: (
        b"[%b,%b,%b]" % (arrays(9), arrays(levels - 1), b"[" + b",".join([b"[]"] * 9999) + b"]")
    ),
}


@pytest.mark.parametrize("make", TEXTS.values(), ids=list(TEXTS))
def test_nesting_has_an_exact_limit(make: Callable[[int], bytes]) -> None:
    for levels in (NESTING_MAX - 1, NESTING_MAX):
        assert not exceeds(make(levels))
    for levels in (NESTING_MAX + 1, NESTING_MAX + 2, 2 * NESTING_MAX, 50_000):
        text = make(levels)
        assert may_exceed(text)
        assert exceeds(text)


json_values = st.recursive(
    st.none() | st.text(alphabet='[]{}"\\,a'),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(alphabet='[]{}"\\a'), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(json_values, st.integers(NESTING_MAX - 8, NESTING_MAX))
def test_brackets_in_strings_do_not_count(value: object, around: int) -> None:
    def depth(value: object) -> int:
        if isinstance(value, list):
            return 1 + max(map(depth, value), default=0)
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        return 0

    text = b"[" * around + json.dumps(value).encode() + b"]" * around
    assert exceeds(text) is (around + depth(value) > NESTING_MAX)
    assert depth(value) == 0 or not exceeds(text) or may_exceed(text)


def test_a_slice_of_a_dense_text_is_measured_soon() -> None:
    """A hundred megabytes of it must leave the worker to others now and then."""
    text = b"[" + b"[],[[]]," * 100_000 + b"0]"
    assert len(list(depths(text))) > len(text) / 5000


def test_a_stored_message_is_read_however_deep_it_is_nested() -> None:
    deep = arrays(50_000)
    alike = b'{"a":1,"data":2,"producerSub":3,"b":",\\"data\\":"}'
    messages = [NewMessage("q", msgspec.Raw(text)) for text in (b"1", deep, alike)]
    ids = MessageIdRun().texts(3)
    names = [',"data":', "x", ',"producerSub":']
    body = render(messages, ids, json_texts(names), [None, ',"producerSub":', None])
    segment = OpenSegment(7, 10, *pack(body))
    for offset, message, name in zip(range(7, 10), messages, names, strict=True):
        stored = segment.message(offset)
        assert (bytes(stored.data), stored.transactionId) == (bytes(message.payload), name)
    assert segment.message(8).producerSub == ',"producerSub":'
