"""Transaction ids as keys, and the ranges under which they are found."""

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_server.domain.ids import KEY_BYTES, RANGE_WIDTH_MS, id_keys, id_ranges, split_keys


def uuid7(millis: int, rest: int = 0) -> uuid.UUID:
    return uuid.UUID(int=millis << 80 | 7 << 76 | 0b10 << 62 | rest & (1 << 62) - 1)


NOW = time.time_ns() // 1_000_000

canonical_uuids = st.uuids(version=4).map(str)
near_misses = canonical_uuids.flatmap(
    lambda text: st.sampled_from(
        [
            text.upper(),
            text.replace("-", ""),
            text.replace("-", "", 1) + "-",
            f"{{{text[1:-1]}}}",
            text[:-1],
            text + "0",
            " " + text[1:],
            text[:9] + "-" + text[10:],
            text[:-1] + "é",
        ]
    )
)
ids = st.one_of(st.text(max_size=40), canonical_uuids, st.uuids().map(str), near_misses)


@given(st.lists(ids, unique=True, max_size=30))
def test_distinct_ids_have_distinct_keys(texts: list[str]) -> None:
    keys = split_keys(id_keys(texts))
    assert len(set(keys)) == len(texts)
    assert all(len(key) == KEY_BYTES for key in keys)


@given(st.lists(ids, min_size=1, max_size=30))
def test_the_key_of_an_id_does_not_depend_on_its_company(texts: list[str]) -> None:
    assert id_keys(texts) == b"".join(id_keys([text]) for text in texts)


@given(st.uuids())
def test_a_canonical_uuid_is_its_own_key_unless_it_looks_like_a_hash(value: uuid.UUID) -> None:
    assert (id_keys([str(value)]) == value.bytes) == (value.bytes[6] >> 4 != 8)


def test_the_hash_of_a_text_cannot_be_pushed_as_an_id() -> None:
    hashed = uuid.UUID(bytes=id_keys(["order-1"]))
    assert id_keys([str(hashed)]) != id_keys(["order-1"])


def test_two_ids_whose_texts_flow_into_each_other_are_told_apart() -> None:
    """35 and 37 characters make two canonical UUIDs when joined, and are none."""
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    shifted = [first[:-1], first[-1] + second]
    assert id_keys(shifted) != id_keys([first, second])


times = st.integers(NOW - 3_600_000, NOW + 3_600_000)
keys = st.one_of(
    st.builds(lambda millis, rest: uuid7(millis, rest).bytes, times, st.integers(0, 1 << 62)),
    st.uuids(version=4).map(lambda value: value.bytes),
)


@given(st.lists(keys, max_size=50))
def test_every_key_lies_in_one_range_and_no_range_is_wide(own: list[bytes]) -> None:
    ranges = id_ranges(b"".join(own))
    for key in own:
        assert sum(r.min <= key <= r.max for r in ranges if r.min[6] >> 4 == key[6] >> 4) == 1
    for r in ranges:
        width = int.from_bytes(r.max) - int.from_bytes(r.min)
        assert width == 0 or width <= RANGE_WIDTH_MS << 80


@given(st.lists(keys, min_size=1, max_size=20), st.lists(keys, max_size=20))
def test_a_look_up_meets_every_range_that_holds_a_sought_key(
    sought: list[bytes], others: list[bytes]
) -> None:
    """The condition of find_ids, against each way in which the same keys can have been stored."""
    for stored in (sought + others, sought[:1] + others, [sought[0]]):
        listed = id_ranges(b"".join(stored))
        looked = id_ranges(b"".join(sought))
        met = [s for r in looked for s in listed if r.min <= s.max <= r.scan_max and s.min <= r.max]
        for key in set(sought) & set(stored):
            assert any(s.min <= key <= s.max for s in met)


@pytest.mark.parametrize("count", [1, 1000])
def test_ids_of_one_moment_need_one_range(count: int) -> None:
    own = b"".join(uuid7(NOW + i // 100, i * 7919).bytes for i in range(count))
    assert len(id_ranges(own)) == 1


def test_a_skewed_producer_gets_a_range_of_its_own() -> None:
    own = [uuid7(NOW).bytes, uuid7(NOW + 3_600_000).bytes, uuid7(NOW + 1).bytes]
    assert len(id_ranges(b"".join(own))) == 2
