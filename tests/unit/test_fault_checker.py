"""The checker of the fault tests rejects what it must reject, and nothing else.

Each rule is shown a history that keeps its promise and one that breaks it, both made by hand: a few
records around one partition `p` of the queue `q`, read by the group `g`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fault.checker import RULES, check
from tests.fault.history import (
    Ack,
    AckItem,
    AckResult,
    DeadLetters,
    Extend,
    Figures,
    Item,
    Letter,
    Log,
    Mark,
    Message,
    Outcome,
    Plan,
    Pop,
    Push,
    Queue,
    Record,
    Recorder,
    Removal,
    Seek,
    Stored,
    Transaction,
    read,
)

LEASE_S = 2.0


def item(n: int, queue: str = "q", *, id_: str = "", data: Any = None) -> Item:
    return Item(queue, "p", id_ or f"id-{n}", data or ["producer", n])


def message(n: int, **changes: Any) -> Message:
    return msgspec.structs.replace(
        Message("p", n, f"id-{n}", f"message-{n}", ["producer", n]), **changes
    )


def push(at: float, *numbers: int, outcome: Outcome = "answered", **changes: Any) -> Push:
    results = [Stored("queued", n, f"message-{n}") for n in numbers]
    return msgspec.structs.replace(
        Push(
            begin=at,
            end=at + 0.1,
            outcome=outcome,
            items=[item(n) for n in numbers],
            results=results if outcome == "answered" else [],
        ),
        **changes,
    )


def pop(at: float, *numbers: int, lease: str = "", **changes: Any) -> Pop:
    return msgspec.structs.replace(
        Pop(
            begin=at,
            end=at + 0.1,
            queue="q",
            group="g",
            lease_s=LEASE_S,
            lease_id=lease or f"lease-{at}",
            messages=[message(n) for n in numbers],
        ),
        **changes,
    )


def ack(
    at: float,
    of: Pop,
    *numbers: int,
    last: str = "completed",
    result: AckResult | None = None,
    **changes: Any,
) -> Ack:
    """Complete *numbers* under the lease of *of*, with the status *last* for the last of them."""
    statuses = ["completed"] * (len(numbers) - 1) + [last]
    results = [AckResult(True)] * len(numbers)
    if result is not None:
        results[-1] = result
    made = Ack(
        begin=at,
        end=at + 0.1,
        queue="q",
        group="g",
        lease_id=of.lease_id,
        items=[AckItem("p", n, f"id-{n}", s) for n, s in zip(numbers, statuses, strict=True)],
        results=results,
    )
    made = msgspec.structs.replace(made, **changes)
    if made.outcome != "answered":
        made.results = []
    return made


def transaction(at: float, of: Pop, *numbers: int, **changes: Any) -> Transaction:
    """Acks of *numbers* with two pushes to the queue `out`."""
    return msgspec.structs.replace(
        Transaction(
            begin=at,
            end=at + 0.1,
            key="t",
            queue="q",
            group="g",
            lease_id=of.lease_id,
            acks=[AckItem("p", n, f"id-{n}", "completed") for n in numbers],
            items=[item(n, "out", id_=f"out-{n}", data={"transaction": "t"}) for n in (0, 1)],
        ),
        **changes,
    )


def out(*numbers: int) -> Log:
    """What is stored of the pushes of `transaction`."""
    data = {"transaction": "t"}
    return Log("out", "p", [Message("p", i, f"out-{n}", f"o{n}", data)
                            for i, n in enumerate(numbers)])  # fmt: skip


def log(*numbers: int, **changes: Any) -> Log:
    return Log("q", "p", [message(n, **changes) for n in numbers])


def history(*records: Record, queue: Queue | None = None) -> list[Record]:
    return [Plan(1, [queue or Queue("q"), Queue("out")]), *records]


EMPTIED = Queue("q", emptied=True, kept=["g"])
AGED = Queue("q", emptied=True, ttl_s=1)


def removed(at: float, what: str = "delete", **changes: Any) -> Removal:
    """Message 0 is deleted, or what else is said."""
    id_ = "id-0" if what in ("delete", "bury") else ""
    return msgspec.structs.replace(
        Removal(begin=at, end=at + 0.1, status=200, queue="q", what=what, partition="p", id=id_),
        **changes,
    )


def repeated(at: float, of: int = 0) -> Push:
    """The id of message 0 is pushed again and called a duplicate of message *of*."""
    return push(at, 0, results=[Stored("duplicate", of, f"message-{of}")])


def figures(pending: int, processing: int, ready: int) -> Figures:
    return Figures(begin=1, end=1.1, status=200, queue="q", about="g", pending=pending,
                   processing=processing, ready=ready)  # fmt: skip


LONG = pop(1, 0, lease="long", lease_s=60.0)


def broken(records: Sequence[Record]) -> set[str]:
    return {violation.rule for violation in check(records).violations}


FIRST = pop(1, 0, 1, lease="first")
NACKED = AckResult(True, dlq=True)

GOOD: dict[str, list[Record]] = {
    "an answered push is there": history(push(0, 0, 1), log(0, 1)),
    "an unknown push is there": history(push(0, 0, outcome="unknown"), log(0)),
    "an unknown push is not there": history(push(0, 0, outcome="unknown"), log()),
    "a repeated push is a duplicate with its place": history(
        push(0, 0, outcome="unknown"),
        push(1, 0, results=[Stored("duplicate", 0, "message-0")]),
        log(0),
    ),
    "all is delivered once": history(
        push(0, 0, 1, 2), FIRST, ack(1.2, FIRST, 0, 1), pop(2, 2), log(0, 1, 2)
    ),
    "a batch comes again when its lease is over": history(
        push(0, 0, 1), FIRST, pop(1.05 + LEASE_S, 0, 1), log(0, 1)
    ),
    "a partial ack leaves the rest": history(
        push(0, 0, 1), FIRST, ack(1.2, FIRST, 0), pop(1.3 + LEASE_S, 1), log(0, 1)
    ),
    "an ack without an answer may have been carried out": history(
        push(0, 0, 1, 2), FIRST, ack(1.2, FIRST, 0, 1, outcome="unknown"), pop(1.3, 2),
        log(0, 1, 2),
    ),
    "or not": history(
        push(0, 0, 1), FIRST, ack(1.2, FIRST, 0, 1, outcome="unknown"), pop(4, 0, 1), log(0, 1)
    ),
    "a nack brings the message again": history(
        push(0, 0, 1), FIRST, ack(1.2, FIRST, 0, 1, last="failed"), pop(1.3, 1), log(0, 1)
    ),
    "a dead letter is passed and listed": history(
        push(0, 0, 1), FIRST, ack(1.2, FIRST, 0, last="failed", result=NACKED), pop(1.3, 1),
        log(0, 1), DeadLetters("q", [Letter("g", "p", "id-0", ["producer", 0])]),
    ),
    "a refused ack changes nothing": history(
        push(0, 0, 1), FIRST, pop(4, 0, 1, lease="second"),
        ack(5, FIRST, 0, 1, result=AckResult(False, "Invalid or expired lease"),
            items=[AckItem("p", 1, "id-1", "completed")],
            results=[AckResult(False, "Invalid or expired lease")]),
        log(0, 1),
    ),
    "an ack that is sent again is answered as the first time": history(
        push(0, 0, 1, 2), FIRST, ack(1.2, FIRST, 0, 1, outcome="unknown"),
        pop(1.3, 2, lease="second"), ack(1.5, FIRST, 0, 1), log(0, 1, 2),
    ),
    "an extended lease lives longer": history(
        push(0, 0, 1), FIRST, Extend(begin=2, end=2.1, lease_id="first", seconds=5, renewed=1),
        ack(6, FIRST, 0, 1), log(0, 1),
    ),
    "two pops at once, the later one after a quick ack": history(
        push(0, 0, 1, 2), FIRST, ack(1.11, FIRST, 0, 1, end=1.12),
        pop(1.05, 2, lease="second", end=1.2), log(0, 1, 2),
    ),
    "a seek frees the partition": history(
        push(0, 0, 1), FIRST, Seek(begin=1.2, end=1.3, queue="q", group="g"),
        pop(1.4, 0, 1, lease="second"), log(0, 1), queue=Queue("q", sought=["g"]),
    ),
    "a transaction happened": history(
        push(0, 0, 1, 2), FIRST, transaction(1.2, FIRST, 0, 1), out(0, 1), pop(2, 2),
        log(0, 1, 2),
    ),
    "a transaction happened and nobody was told": history(
        push(0, 0, 1, 2), FIRST, transaction(1.2, FIRST, 0, 1, outcome="unknown"),
        transaction(1.4, FIRST, 0, 1, outcome="refused", reason="duplicate"), out(0, 1),
        pop(2, 2), log(0, 1, 2),
    ),
    "a transaction did not happen": history(
        push(0, 0, 1), FIRST, transaction(1.2, FIRST, 0, 1, outcome="unknown"), out(),
        pop(4, 0, 1), log(0, 1),
    ),
    "retention took what was old": history(
        push(0, 0), push(3, 1), pop(4, 1), queue=Queue("q", retention_s=2)
    ),
    "a pop waited while nothing was there": history(
        Pop(begin=0, end=5, queue="q", group="g", lease_s=2, wait_ms=5000), push(6, 0), pop(6.2, 0),
        log(0),
    ),
    "a pop waited while somebody held the lease": history(
        push(0, 0, 1), pop(0.2, 0, 1, lease_s=20, lease="long"),
        Pop(begin=1, end=6, queue="q", group="g", lease_s=2, wait_ms=5000), log(0, 1),
    ),
    "a pop waited while the fault lasted": history(
        Mark("fault_begin", 0), Mark("fault_end", 5), push(0, 0),
        Pop(begin=1, end=6, queue="q", group="g", lease_s=2, wait_ms=5000), pop(7, 0), log(0),
    ),
    "what was removed need not be delivered": history(
        push(0, 0, 1), removed(1), pop(2, 1), queue=EMPTIED
    ),
    "nor what may have been": history(
        push(0, 0), removed(1, "clear", outcome="unknown"), queue=EMPTIED
    ),
    "an id is new when its message is gone": history(
        push(0, 0), removed(1), push(2, 0, results=[Stored("queued", 1, "message-1")]),
        pop(3, 1), queue=EMPTIED,
    ),
    "an id is taken until then": history(
        push(0, 0), repeated(0.9), removed(1, begin=0.95), queue=EMPTIED
    ),
    "a message that was given up keeps its id": history(
        push(0, 0), removed(1, "bury"), repeated(2), queue=EMPTIED
    ),
    "an id of unknown fate is taken by its own push": history(
        push(0, 0, outcome="unknown"), repeated(1), pop(2, 0), queue=EMPTIED
    ),
    "a young message keeps its id": history(push(0, 0), repeated(1), queue=AGED),
    "a message waits for the lease before it": history(
        push(0, 0), LONG, push(2, 1), pop(61, 0, 1), queue=EMPTIED
    ),
    "or for the removal of what it holds": history(
        push(0, 0), LONG, push(2, 1), removed(30, "clear"), pop(33, 1), queue=EMPTIED
    ),
    "figures are whole": history(figures(3, 1, 2), queue=EMPTIED),
}  # fmt: skip

BAD: dict[str, tuple[set[str], list[Record]]] = {
    "an answered push is not there": ({"lost"}, history(push(0, 0, 1), log(0))),
    "the log was not read": ({"unread"}, history(push(0, 0, 1))),
    "the log of what a transaction pushed was not read": (
        {"unread"}, history(push(0, 0, 1), FIRST, transaction(1.2, FIRST, 0, 1), log(0, 1))
    ),
    "an answered push lies elsewhere": (
        {"lost", "duplicate"},
        history(
            push(0, 0, 1),
            Log("q", "p", [message(0, message_id="other"), message(1)]),
        ),
    ),
    "the pushes of an answered transaction are not there": (
        {"lost"},
        history(push(0, 0, 1), FIRST, transaction(1.2, FIRST, 0, 1), out(), log(0, 1)),
    ),
    "an id is stored twice": (
        {"duplicate", "lost"},  # of its two places one is not what was told
        history(
            push(0, items=[item(0, data="x")], results=[Stored("queued", 0, "message-0")]),
            push(1, items=[item(0, data="x")], results=[Stored("queued", 1, "message-1")]),
            Log("q", "p", [message(0, data="x"), message(1, id="id-0", data="x")]),
        ),
    ),
    "an id is answered as new twice": (
        {"duplicate"}, history(push(0, 0), push(1, 0), log(0)),
    ),
    "an id is delivered at two offsets": (
        {"duplicate"},
        history(
            push(0, items=[item(0, data="x")], results=[Stored("queued", 0, "message-0")]),
            pop(1, messages=[message(0, data="x")], lease="first"),
            ack(1.2, FIRST, 0), pop(2, messages=[message(1, id="id-0", data="x")]),
            Log("q", "p", [message(0, data="x")]),
        ),
    ),
    "nobody pushed it": ({"content"}, history(log(0))),
    "something else is stored": ({"content"}, history(push(0, 0), log(0, data="other"))),
    "something else is delivered": (
        {"content"}, history(push(0, 0), pop(1, messages=[message(0, data="other")]), log(0))
    ),
    "the log has a gap": ({"order"}, history(push(0, 0, 2), log(0, 2))),
    "a producer's messages changed places": (
        {"order"},
        history(
            push(0, items=[item(0, data=["a", 0]), item(1, data=["a", 1])],
                 results=[Stored("queued", 1, "message-1"), Stored("queued", 0, "message-0")]),
            Log("q", "p", [message(0, id="id-1", data=["a", 1]),
                           message(1, id="id-0", data=["a", 0])]),
        ),
    ),
    "a delivery has a gap": ({"order"}, history(push(0, 0, 1, 2), pop(1, 0, 2), log(0, 1, 2))),
    "a delivery skips": (
        {"order"},
        history(push(0, 0, 1, 2), FIRST, ack(1.2, FIRST, 0), pop(4, 2), log(0, 1, 2)),
    ),
    "a nack is swallowed": (
        {"order"},
        history(
            push(0, 0, 1, 2), FIRST, ack(1.2, FIRST, 0, 1, last="failed"), pop(1.4, 2), log(0, 1, 2)
        ),
    ),
    "a refused ack moved the group": (
        {"order"},
        history(
            push(0, 0, 1, 2), FIRST,
            ack(5, FIRST, 1, result=AckResult(False, "Invalid or expired lease")),
            pop(6, 2), log(0, 1, 2),
        ),
    ),
    "a committed message comes again": (
        {"order"},
        history(push(0, 0, 1), FIRST, ack(1.2, FIRST, 0, 1), pop(4, 1), log(0, 1)),
    ),
    "a group never got a message": (
        {"undelivered"},
        history(push(0, 0, 1), pop(1, 0), log(0, 1), queue=Queue("q", groups=["g"])),
    ),
    "two leases at once": (
        {"overlap"}, history(push(0, 0, 1), FIRST, pop(1.5, 0, 1, lease="second"), log(0, 1))
    ),
    "two leases at once, granted at the same moment": (
        {"overlap"}, history(push(0, 0, 1), FIRST, pop(1.05, 0, 1, lease="second"), log(0, 1))
    ),
    "an extended lease is not respected": (
        {"overlap"},
        history(
            push(0, 0, 1), FIRST, Extend(begin=2, end=2.1, lease_id="first", seconds=5, renewed=1),
            pop(5, 0, 1, lease="second"), log(0, 1),
        ),
    ),
    "an ack is accepted after the lease": (
        {"lost_lease"}, history(push(0, 0, 1), FIRST, ack(3.5, FIRST, 0, 1), log(0, 1))
    ),
    "an ack is accepted after somebody else's lease": (
        {"lost_lease", "overlap"},
        history(
            push(0, 0, 1), FIRST, pop(1.5, 0, 1, lease="second"), ack(1.8, FIRST, 0, 1), log(0, 1)
        ),
    ),
    "one push of a transaction": (
        {"half_applied"},
        history(push(0, 0, 1), FIRST, transaction(1.2, FIRST, 0, 1, outcome="unknown"), out(0),
                log(0, 1)),
    ),
    "a refused transaction pushed": (
        {"half_applied"},
        history(
            push(0, 0, 1), FIRST,
            transaction(1.2, FIRST, 0, 1, outcome="refused", reason="rejected_ack"), out(0, 1),
            log(0, 1),
        ),
    ),
    "a transaction that never happened is called a repeat": (
        {"half_applied"},
        history(
            push(0, 0, 1), FIRST, transaction(1.2, FIRST, 0, 1, outcome="unknown"),
            transaction(1.4, FIRST, 0, 1, outcome="refused", reason="duplicate"), out(),
            log(0, 1),
        ),
    ),
    "a transaction pushed and did not ack": (
        {"half_applied"},
        history(
            push(0, 0, 1), FIRST, transaction(1.2, FIRST, 0, 1), out(0, 1), pop(4, 0, 1), log(0, 1)
        ),
    ),
    "a transaction acked and did not push": (
        {"half_applied"},
        history(
            push(0, 0, 1, 2), FIRST, transaction(1.2, FIRST, 0, 1, outcome="unknown"), out(),
            pop(4, 2), log(0, 1, 2),
        ),
    ),
    "a dead letter has no payload": (
        {"dead_letter"},
        history(push(0, 0), log(0), DeadLetters("q", [Letter("g", "p", "id-0", None)])),
    ),
    "a dead letter is not there": (
        {"dead_letter"},
        history(
            push(0, 0), FIRST, ack(1.2, FIRST, 0, last="failed", result=NACKED), log(0, 1),
            push(0.2, 1), DeadLetters("q", []),
        ),
    ),
    "a dead letter is there twice": (
        {"dead_letter"},
        history(
            push(0, 0), log(0), DeadLetters("q", [Letter("g", "p", "id-0", ["producer", 0])] * 2)
        ),
    ),
    "a pop waited beside a message": (
        {"parked"},
        history(
            push(0, 0), Pop(begin=1, end=6, queue="q", group="g", lease_s=2, wait_ms=5000),
            pop(7, 0), log(0),
        ),
    ),
    "a pop waited beside a message long after the fault": (
        {"parked"},
        history(
            Mark("fault_begin", 0), Mark("fault_end", 1), push(0, 0),
            Pop(begin=14, end=19, queue="q", group="g", lease_s=2, wait_ms=5000), pop(20, 0),
            log(0),
        ),
    ),
    "retention took what was young": (
        {"retention"}, history(push(0, 0), push(1, 1), pop(1.5, 1), queue=Queue("q", retention_s=2))
    ),
    "a request fails long after the fault": (
        {"unrecovered"},
        history(
            Mark("fault_begin", 0), Mark("fault_end", 1), push(12, 0, outcome="unknown"), log()
        ),
    ),
    "a message that nobody removed never came": (
        {"vanished"}, history(push(0, 0, 1), removed(1), queue=EMPTIED),
    ),
    "one that was pushed after the removal never came": (
        {"vanished"},
        history(push(0, 0), removed(1, "clear"), push(2, 1), queue=EMPTIED),
    ),
    "an id whose message was deleted is taken": (
        {"stale_id"}, history(push(0, 0), removed(1), repeated(2), queue=EMPTIED),
    ),
    "an id whose message was cleared is taken": (
        {"stale_id"}, history(push(0, 0), removed(1, "clear"), repeated(2), queue=EMPTIED),
    ),
    "an id is taken by a message that was never pushed": (
        {"stale_id"}, history(repeated(2, of=7), queue=EMPTIED),
    ),
    "an id whose message is too old is taken": (
        {"stale_id"}, history(push(0, 0), repeated(1.5), queue=AGED),
    ),
    "a lease outlives its messages": (
        {"stalled"},
        history(push(0, 0), LONG, removed(1.5, "clear"), push(2, 1), pop(61, 1), queue=EMPTIED),
    ),
    "a figure is negative": ({"figures"}, history(figures(0, -30, 30), queue=EMPTIED)),
    "the parts are not the whole": ({"figures"}, history(figures(5, 1, 3), queue=EMPTIED)),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_history_that_keeps_its_promises_passes(name: str) -> None:
    assert check(GOOD[name]).violations == []


@pytest.mark.parametrize("name", BAD)
def test_a_history_that_breaks_one_is_rejected(name: str) -> None:
    rules, records = BAD[name]
    assert broken(records) == rules, check(records).violations


def steady(rate: int, begin: float, end: float) -> list[Record]:
    """So many pushes a second, whose places nobody asks for."""
    times = [begin + n / rate for n in range(int((end - begin) * rate))]
    return [Push(begin=t, end=t, items=[], results=[]) for t in times]


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        pytest.param(steady(100, 20, 36), set(), id="at once"),
        pytest.param(steady(100, 26, 36), set(), id="after six seconds"),
        pytest.param(steady(100, 28.5, 36), {"throughput"}, id="too late"),
        pytest.param(steady(90, 20, 36), {"throughput"}, id="not all of it"),
        pytest.param([], {"throughput"}, id="never"),
    ],
)
def test_throughput_has_to_come_back_within_ten_seconds(
    after: list[Record], verdict: set[str]
) -> None:
    marks = [Mark("load_begin", 0), Mark("fault_begin", 10), Mark("fault_end", 20),
             Mark("load_end", 36)]  # fmt: skip
    # A second that stands out does not count, be it slow or fast.
    before = [*steady(100, 0, 5), *steady(20, 5, 6), *steady(300, 6, 7), *steady(100, 7, 10)]
    assert broken(history(*marks, *before, *after)) == verdict


@pytest.mark.parametrize(
    ("pushes", "verdict"),
    [
        pytest.param([*steady(100, 22, 30), *steady(100, 42, 50)], set(), id="both times"),
        pytest.param([*steady(90, 20, 30), *steady(100, 40, 50)], {"throughput"}, id="second"),
        pytest.param([*steady(100, 20, 30), *steady(90, 40, 50)], {"throughput"}, id="first"),
        # What it reached between the faults is no measure: it has to be as it was at first.
        pytest.param([*steady(50, 20, 30), *steady(50, 40, 50)], {"throughput"}, id="never"),
    ],
)
def test_throughput_has_to_come_back_after_each_fault(
    pushes: list[Record], verdict: set[str]
) -> None:
    marks = [Mark("load_begin", 0), Mark("fault_begin", 10), Mark("fault_end", 20),
             Mark("fault_begin", 30), Mark("fault_end", 40), Mark("load_end", 50)]  # fmt: skip
    assert broken(history(*marks, *steady(100, 0, 10), *pushes)) == verdict


def test_what_fails_between_two_faults_and_their_recovery_is_a_violation() -> None:
    marks = [Mark("fault_begin", 10), Mark("fault_end", 20), Mark("fault_begin", 40),
             Mark("fault_end", 50)]  # fmt: skip

    def failed(begin: float, end: float) -> Push:
        return push(begin, 0, outcome="unknown", end=end)

    for begin, end in ((12, 13), (29, 31), (38, 41), (45, 46), (58, 59)):
        assert broken(history(*marks, failed(begin, end), log())) == set(), begin
    for begin, end in ((31, 32), (61, 62)):
        assert broken(history(*marks, failed(begin, end), log())) == {"unrecovered"}, begin


def test_a_pop_that_waited_beside_a_message_between_two_faults_is_a_violation() -> None:
    marks = [Mark("fault_begin", 10), Mark("fault_end", 20), Mark("fault_begin", 60),
             Mark("fault_end", 70)]  # fmt: skip

    def waited(begin: float) -> list[Record]:
        idle = Pop(begin=begin, end=begin + 5, queue="q", group="g", lease_s=2, wait_ms=5000)
        return history(*marks, push(0, 0), idle, pop(90, 0), log(0))

    for begin in (12, 24, 62, 72):
        assert broken(waited(begin)) == set(), begin
    for begin in (4, 31, 50, 81):
        assert broken(waited(begin)) == {"parked"}, begin


def test_the_report_counts_and_tells_the_longest_outage() -> None:
    records = history(
        Mark("load_begin", 0), push(0.5, 0, 1), push(1, 2), push(3, 3, outcome="unknown"),
        pop(3, 0, lease="lost"), push(5.9, 4), Mark("load_end", 7), log(0, 1, 2, 4),
    )  # fmt: skip
    report = check(records)
    assert (report.operations, report.answered_pushes) == (5, 4)
    assert report.longest_outage == pytest.approx(4.9)
    assert report.count("order") == 1
    assert report.count_others("order") == 0


def test_a_history_from_a_file_is_the_same(tmp_path: Path) -> None:
    """What a failed run leaves behind can be judged again."""
    recorder = Recorder(tmp_path / "history.jsonl")
    histories = [*GOOD.values(), *(records for _, records in BAD.values())]
    for records in histories:
        for record in records:
            recorder.add(record)
    recorder.close()
    assert list(read(recorder.path)) == [record for records in histories for record in records]


def test_every_rule_has_a_history_that_breaks_it() -> None:
    assert {rule for rules, _ in BAD.values() for rule in rules} == set(RULES)
