"""What requests weigh, what of them is refused before it is decoded."""

import tracemalloc
from collections.abc import Callable

import pytest

from queue_server.domain.errors import BadRequest, Overloaded, TooManyItems
from queue_server.http import wire
from queue_server.http.memory import MemoryBudget, RequestMemory, body_weight

MIB = 1024 * 1024


def items_of(item: bytes, count: int) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


def push(count: int, item: bytes = b'{"queue":"a"}') -> bytes:
    return b'{"items":%b}' % items_of(item, count)


def acks(count: int) -> bytes:
    return b'{"acknowledgments":%b}' % items_of(b'{"transactionId":"a","partitionId":""}', count)


def operations(count: int) -> bytes:
    return b'{"operations":%b}' % items_of(b'{"type":"push","queue":"a"}', count)


def one_operation(count: int) -> bytes:
    return b'{"operations":[{"type":"push","items":%b}]}' % items_of(b'{"queue":"a"}', count)


def escaped(count: int) -> bytes:
    return push(count, rb'{"\u0071ueue":"a"}')


LIMITS = {
    "push": (wire.push_limit, push),
    "escaped": (wire.push_limit, escaped),
    "acks": (wire.ack_batch_limit, acks),
    "operations": (wire.transaction_limit, operations),
    "items": (wire.transaction_limit, one_operation),
}


@pytest.mark.parametrize(("limit", "make"), LIMITS.values(), ids=list(LIMITS))
def test_too_many_items_are_refused_before_they_are_decoded(
    limit: wire.ItemLimit, make: Callable[[int], bytes]
) -> None:
    limit.check(make(1000), 1000)
    body = make(100_000)
    tracemalloc.start()
    try:
        with pytest.raises(TooManyItems, match="1000 at most"):
            limit.check(body, 1000)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_braces_of_payloads_are_not_items() -> None:
    item = b'{"queue":"a","payload":[{},{"b":{}},{"c":"{{{{"}]}'
    wire.push_limit.check(push(1000, item), 1000)
    with pytest.raises(TooManyItems):
        wire.push_limit.check(push(1001, item), 1000)


@pytest.mark.parametrize(
    "body",
    [
        b'{"operations":5,"x":[' + b"[]," * 1_000_000 + b"[]]}",
        b'{"operations":[],"kv":[' + b"0," * 2_000_000 + b"0]}",
        b'{"operations":[{"type":"push","items":null}],"timers":%b}' % items_of(b"{}", 1_000_000),
        b'{"operations":[{"type":"push","items":[0,' + b"[]," * 1_000_000 + b"[]]}]}",
    ],
    ids=["invalid", "kv", "timers", "no items"],
)  # fmt: skip
def test_nothing_is_made_of_what_is_ignored_or_refused(body: bytes) -> None:
    tracemalloc.start()
    try:
        try:
            wire.transaction_limit.check(body, 1000)
            assert wire.transaction_reader.read(body).has_riders
        except BadRequest:
            pass
        assert tracemalloc.get_traced_memory()[1] < len(body) / 10
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("none", [b"null", b"[]", b"[ \n]"])
def test_no_riders_are_no_reason_to_refuse(none: bytes) -> None:
    body = b'{"operations":[],"kv":%b,"timers":%b,"requiredLeases":%b}' % (none, none, none)
    read = wire.transaction_reader.read(body)
    assert not read.has_riders
    assert read.leases(5) == []


def test_required_leases_are_bounded() -> None:
    read = wire.transaction_reader.read(b'{"operations":[],"requiredLeases":["a","b"]}')
    assert read.leases(2) == ["a", "b"]
    with pytest.raises(TooManyItems):
        read.leases(1)


# -- the budget --


def test_a_request_over_the_budget_is_refused_until_others_are_done() -> None:
    budget = MemoryBudget(80 * MIB)
    first, second = RequestMemory(budget), RequestMemory(budget)
    first.grow(50 * MIB)
    first.grow(10)  # it is more already
    second.grow(20 * MIB)
    with pytest.raises(Overloaded):
        second.grow(21 * MIB)
    assert budget.used_bytes == 70 * MIB
    first.set(0)
    second.grow(70 * MIB)
    second.set(0)
    assert budget.used_bytes == 0


def test_large_requests_leave_room_for_small_ones() -> None:
    budget = MemoryBudget(80 * MIB)
    large, small = RequestMemory(budget), RequestMemory(budget)
    large.grow(70 * MIB)
    with pytest.raises(Overloaded):
        RequestMemory(budget).grow(MIB)
    small.grow(body_weight(10_000))
    many = [RequestMemory(budget) for _ in range(100)]
    with pytest.raises(Overloaded):
        for one in many:
            one.grow(200_000)


def test_one_request_alone_is_always_taken() -> None:
    budget = MemoryBudget(MIB)
    RequestMemory(budget).grow(100 * MIB)
    with pytest.raises(Overloaded):
        RequestMemory(budget).grow(1)
