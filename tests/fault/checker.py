"""Decides over a history whether the server kept its promises.

Pure: records in, a report out. Every rule is one-sided. A request takes effect somewhere between
its begin and its end, an `unknown` one at any time after its begin or never; a rule speaks only
when no choice of those moments is right. What it reports is a broken promise, never bad luck.

A history may be read from its file while it is judged: of each record only what a rule asks for is
kept, and the time it takes grows with the number of records, not faster.

    lost           an answered push is not in the log, or not where it was told to be
    duplicate      one id has two places in a partition, or was told `queued` twice
    order          a gap, a skip, a repeated delivery of what was committed, a producer's order
    content        what was handed out or stored is not what was pushed
    unread         a log that was not read at the end, so that of its pushes nothing can be said
    undelivered    a group that read to the end did not get everything
    overlap        two live leases of one group on one partition
    lost_lease     an ack accepted under a lease that was over
    half_applied   a transaction's pushes without its acks, or the other way round
    dead_letter    a dead letter without its payload, missing, or written twice
    parked         a waiting pop answered empty though messages were there
    retention      a message went before its time
    vanished       a message of an emptied queue that no request removed was never delivered
    stale_id       a push answered `duplicate` for the id of a message that was gone before
    stalled        a message waited longer than a lease on what was left before it allowed
    figures        a figure below zero, or parts that are not the whole
    throughput     answered pushes did not come back to 95 % within ten seconds after a fault
    unrecovered    a request without an answer later than that, and before the next fault
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from tests.fault.history import (
    Ack,
    AckItem,
    AckResult,
    DeadLetters,
    Extend,
    Figures,
    Log,
    Mark,
    Message,
    Outcome,
    Plan,
    Pop,
    Push,
    Queue,
    Record,
    Removal,
    Request,
    Seek,
    Transaction,
)

# Clocks of one machine run alike; what is left is rounding and the scheduler.
CLOCK_SLACK = 0.05  # seconds
# A parked pop is woken within a second by the floor poll when all else fails.
PARKED_GRACE = 3.0  # seconds
CLOCK_FAULTS = ("clock-jumps", "mixed")
# A consumer of an emptied queue may be busy for a second.
STALLED_GRACE = PARKED_GRACE + 1.0  # seconds
RECOVERY_LIMIT = 10.0  # seconds from the end of the fault
# Of the throughput before. A machine that is shared with others needs a lower one.
RECOVERY_SHARE = 0.95
# How long a request that its client gave up may still take effect in a server that is well.
LATE_EFFECT = 5.0  # seconds
WARM_UP = 1.0  # seconds of load that do not count as "before"

Place = tuple[str, str]  # queue, partition
Lane = tuple[str, str, str]  # queue, group, partition


@dataclass(frozen=True)
class Violation:
    rule: str
    text: str


@dataclass
class Report:
    operations: int
    answered_pushes: int
    longest_outage: float  # seconds without an answered push, ack or transaction
    violations: list[Violation]

    def count(self, *rules: str) -> int:
        return sum(violation.rule in rules for violation in self.violations)

    def count_others(self, *rules: str) -> int:
        return sum(violation.rule not in rules for violation in self.violations)


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """What one pop brought of one partition."""

    begin: float
    end: float
    lease_id: str
    lease_s: float
    messages: list[Message]

    @property
    def start(self) -> int:
        return self.messages[0].offset

    @property
    def stop(self) -> int:
        return self.messages[-1].offset + 1


class Settle(msgspec.Struct, frozen=True, gc=False):
    """One acknowledged message; `known_at`: by then it had happened, if it did."""

    begin: float
    known_at: float
    lease_id: str
    offset: int
    status: str
    outcome: Outcome
    dlq: bool = False
    transaction: str = ""

    @property
    def may_commit(self) -> bool:
        if self.outcome == "refused" or self.status == "retry":
            return False
        return self.status != "failed" or self.dlq or self.outcome == "unknown"

    @property
    def did_commit(self) -> bool:
        return self.may_commit and self.known_at < math.inf


@dataclass
class View:
    """What the rules ask for, by what it concerns."""

    queues: dict[str, Queue] = field(default_factory=dict)
    load_begin: float | None = None
    load_end: float | None = None
    faults: list[tuple[float, float]] = field(default_factory=list)  # from, to; inf: not ended
    operations: int = 0
    pushes: list[Push] = field(default_factory=list)
    transactions: dict[str, list[Transaction]] = field(default_factory=lambda: defaultdict(list))
    extends: dict[str, list[Extend]] = field(default_factory=lambda: defaultdict(list))
    seeks: dict[tuple[str, str], list[Seek]] = field(default_factory=lambda: defaultdict(list))
    removals: dict[str, list[Removal]] = field(default_factory=lambda: defaultdict(list))
    figures: list[Figures] = field(default_factory=list)
    clock_jumps: bool = False  # then nothing is known of the age of messages
    unanswered: list[Request] = field(default_factory=list)
    # Pops that came back empty after they had waited for long.
    waited: list[Pop] = field(default_factory=list)
    # What acks were told has become a dead letter: queue, group, item.
    buried: list[tuple[str, str, AckItem]] = field(default_factory=list)
    # When something that was asked for had been carried out.
    answers: list[float] = field(default_factory=list)
    logs: dict[Place, list[Message]] = field(default_factory=dict)
    letters: dict[str, DeadLetters] = field(default_factory=dict)
    # derived
    sent: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    stored: dict[Place, dict[str, Message]] = field(default_factory=dict)
    deliveries: dict[Lane, list[Delivery]] = field(default_factory=lambda: defaultdict(list))
    settles: dict[Lane, list[Settle]] = field(default_factory=lambda: defaultdict(list))
    # acks of transactions that did not happen, as their pushes are not there
    undone: dict[Lane, list[Settle]] = field(default_factory=lambda: defaultdict(list))

    def keeps_all(self, queue: str) -> bool:
        return not (self.queues[queue].retention_s or self.queues[queue].emptied)

    def is_emptied(self, queue: str) -> bool:
        return self.queues[queue].emptied

    def is_sought(self, queue: str, group: str) -> bool:
        return group in self.queues[queue].sought

    def well(self) -> Iterator[tuple[float, float]]:
        """From when until when no fault lasts, beginning with the end of the first one."""
        untils = [*(begin for begin, _ in self.faults), math.inf][1:]
        for (_, end), until in zip(self.faults, untils, strict=True):
            yield end, until


def view(records: Iterable[Record]) -> View:
    v = View()
    # A message is read many times, delivered and at the end; it is kept once.
    messages: dict[str, Message] = {}

    def shared(message: Message) -> Message:
        known = messages.setdefault(message.message_id, message)
        return known if known == message else message

    for record in records:
        if isinstance(record, Request):
            v.operations += 1
            if record.outcome == "unknown":
                v.unanswered.append(record)
            elif record.outcome == "answered" and isinstance(record, (Push, Ack, Transaction)):
                v.answers.append(record.end)
        match record:
            case Plan():
                v.queues = {queue.name: queue for queue in record.queues}
            case Mark(name="load_begin"):
                v.load_begin = record.time
            case Mark(name="load_end"):
                v.load_end = record.time
            case Mark(name="fault_begin"):
                v.clock_jumps |= record.note in CLOCK_FAULTS
                v.faults.append((record.time, math.inf))
            case Mark(name="fault_end"):
                v.faults[-1] = (v.faults[-1][0], record.time)
            case Push():
                v.pushes.append(record)
                for item in record.items:
                    v.sent[item.queue, item.partition, item.id] = item.data
            case Pop():
                took = record.end - record.begin
                is_empty = record.outcome != "unknown" and not record.messages
                if record.wait_ms and is_empty and took > PARKED_GRACE:
                    v.waited.append(record)
                for partition, found in _by_partition(record.messages).items():
                    v.deliveries[record.queue, record.group, partition].append(
                        Delivery(
                            record.begin, record.end, record.lease_id, record.lease_s,
                            [shared(message) for message in found],
                        )
                    )  # fmt: skip
            case Ack():
                for lane, settle in _settles_of(record):
                    v.settles[lane].append(settle)
                for ack, result in zip(record.items, record.results, strict=bool(record.results)):
                    if result.dlq:
                        v.buried.append((record.queue, record.group, ack))
            case Transaction():
                v.transactions[record.key].append(record)
            case Extend():
                v.extends[record.lease_id].append(record)
            case Seek():
                v.seeks[record.queue, record.group].append(record)
            case Removal():
                v.removals[record.queue].append(record)
            case Figures():
                v.figures.append(record)
            case Log():
                log = [shared(message) for message in record.messages]
                v.logs[record.queue, record.partition] = log
            case DeadLetters():
                v.letters[record.queue] = record
    for attempts in v.transactions.values():
        for item in attempts[0].items:
            v.sent[item.queue, item.partition, item.id] = item.data
    for place, log in v.logs.items():
        v.stored[place] = {message.id: message for message in log}
    _add_transactions(v)
    return v


def _by_partition(messages: Sequence[Message]) -> dict[str, list[Message]]:
    found: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        found[message.partition].append(message)
    return found


def _settles_of(ack: Ack) -> Iterator[tuple[Lane, Settle]]:
    """The items of a call that count: behind a nack nothing does, whatever its status."""
    results: Sequence[AckResult | None] = ack.results or [None] * len(ack.items)
    stopped: set[str] = set()
    pairs = sorted(zip(ack.items, results, strict=True), key=lambda pair: pair[0].offset)
    for item, result in pairs:
        if item.partition in stopped:
            continue
        outcome: Outcome = ack.outcome
        if outcome == "answered" and result is not None and not result.success:
            outcome = "refused"
        dlq = result is not None and result.dlq
        # A call whose answer is not known may have gone on: a dead letter does not stop it.
        charged = item.status == "failed" and not dlq and outcome == "answered"
        if item.status == "retry" or charged:
            stopped.add(item.partition)
        known_at = ack.end if outcome == "answered" else math.inf
        yield (
            (ack.queue, ack.group, item.partition),
            Settle(ack.begin, known_at, ack.lease_id, item.offset, item.status, outcome, dlq),
        )


def _add_transactions(v: View) -> None:
    """A transaction's acks happened when its pushes are there, from when that could be known."""
    seen_at: dict[tuple[str, str, str], float] = {}
    pushed = {
        (item.queue, item.partition, item.id)
        for attempts in v.transactions.values()
        for item in attempts[0].items
    }
    for (queue, _, partition), deliveries in v.deliveries.items():
        for delivery in deliveries:
            for message in delivery.messages:
                place = (queue, partition, message.id)
                if place in pushed:
                    seen_at[place] = min(delivery.end, seen_at.get(place, math.inf))
    for key, attempts in v.transactions.items():
        first = attempts[0]
        known_at = math.inf
        for attempt in attempts:
            if attempt.outcome == "answered" or attempt.reason == "duplicate":
                known_at = min(known_at, attempt.end)
        for item in first.items:
            place = (item.queue, item.partition, item.id)
            known_at = min(known_at, seen_at.get(place, math.inf))
        happened = known_at < math.inf or _count_stored(v, first) > 0 or not first.items
        tried = [attempt for attempt in attempts if attempt.outcome != "refused"]
        for attempt in tried:
            for ack in attempt.acks:
                settle = Settle(
                    attempt.begin, known_at, attempt.lease_id, ack.offset, ack.status,
                    attempt.outcome, transaction=key,
                )  # fmt: skip
                lane = (attempt.queue, attempt.group, ack.partition)
                (v.settles if happened else v.undone)[lane].append(settle)


def _count_stored(v: View, transaction: Transaction) -> int:
    return sum(
        item.id in v.stored.get((item.queue, item.partition), {}) for item in transaction.items
    )


# -- the rules --


def lost(v: View) -> Iterator[str]:
    for push in v.pushes:
        for item, result in zip(push.items, push.results, strict=bool(push.results)):
            place = (item.queue, item.partition)
            if not v.keeps_all(item.queue) or place not in v.logs:
                continue
            found = v.stored[place].get(item.id)
            told = (result.offset, result.message_id)
            if found is None:
                yield f"{item} was answered {result} and is not in the log"
            elif (found.offset, found.message_id) != told:
                yield f"{item} was answered {result} and lies at {found}"
    for key, attempts in v.transactions.items():
        if any(attempt.outcome == "answered" for attempt in attempts):
            read = [i for i in attempts[0].items if (i.queue, i.partition) in v.logs]
            missing = len(read) - _count_stored(v, attempts[0])
            if missing:
                yield f"transaction {key} was answered and {missing} of its pushes are not there"


def unread(v: View) -> Iterator[str]:
    pushed = {(item.queue, item.partition) for push in v.pushes if push.results
              for item in push.items}  # fmt: skip
    for attempts in v.transactions.values():
        if any(attempt.outcome == "answered" for attempt in attempts):
            pushed |= {(item.queue, item.partition) for item in attempts[0].items}
    for queue, partition in sorted(pushed - v.logs.keys()):
        if v.keeps_all(queue):
            yield f"the log of {queue}/{partition} was not read"


def duplicate(v: View) -> Iterator[str]:
    places: dict[tuple[str, str, str], tuple[int, str]] = {}
    further: dict[tuple[str, str, str], set[tuple[int, str]]] = defaultdict(set)
    queued: dict[tuple[str, str, str], int] = defaultdict(int)

    def see(key: tuple[str, str, str], offset: int, message_id: str) -> None:
        place = (offset, message_id)
        if places.setdefault(key, place) != place:
            further[key] |= {places[key], place}

    for push in v.pushes:
        for item, result in zip(push.items, push.results, strict=bool(push.results)):
            key = (item.queue, item.partition, item.id)
            see(key, result.offset, result.message_id)
            queued[key] += result.status == "queued"
    for (queue, _, partition), deliveries in v.deliveries.items():
        for delivery in deliveries:
            for message in delivery.messages:
                see((queue, partition, message.id), message.offset, message.message_id)
    for (queue, partition), messages in v.logs.items():
        for message in messages:
            see((queue, partition, message.id), message.offset, message.message_id)
    for key in places:
        if v.keeps_all(key[0]):
            if key in further:
                yield f"{key} has the places {sorted(further[key])}"
            elif queued[key] > 1:
                yield f"{key} was answered `queued` {queued[key]} times"


def content(v: View) -> Iterator[str]:
    for (queue, partition), messages in v.logs.items():
        for message in messages:
            key = (queue, partition, message.id)
            if key not in v.sent:
                yield f"{key} is in the log at {message.offset} and was never pushed"
            elif v.sent[key] != message.data:
                yield f"{key} was pushed as {v.sent[key]} and stored as {message.data}"
    for (queue, group, partition), deliveries in v.deliveries.items():
        if v.is_emptied(queue):
            continue  # ids are used again
        for delivery in deliveries:
            for message in delivery.messages:
                key = (queue, partition, message.id)
                if key not in v.sent or v.sent[key] != message.data:
                    yield f"{group} got {message}, pushed was {v.sent.get(key, 'nothing')}"


def order(v: View) -> Iterator[str]:
    for place, messages in v.logs.items():
        offsets = [message.offset for message in messages]
        start = 0 if v.keeps_all(place[0]) else (offsets[0] if offsets else 0)
        if offsets != list(range(start, start + len(offsets))):
            yield f"the log of {place} has gaps: {_jumps(offsets, start)}"
        last: dict[str, int] = {}
        for message in messages:
            match message.data:
                case [str(producer), int(number), *_]:
                    if number <= last.get(producer, -1):
                        yield f"{place}: {message} lies behind {producer}'s {last[producer]}"
                    last[producer] = number
    for lane, deliveries in v.deliveries.items():
        queue, group, _ = lane
        if v.is_emptied(queue):
            continue  # deleted messages leave gaps, and a queue that is made anew begins at 0
        for delivery in deliveries:
            offsets = [message.offset for message in delivery.messages]
            steps = {b - a for a, b in pairwise(offsets)}
            if not steps <= {1}:
                yield f"{lane}: a delivery with the offsets {offsets}"
        if not v.is_sought(queue, group):
            yield from _skips(v, lane, deliveries)
            yield from _repeats(v.settles[lane], lane, deliveries, transactions=False)


def _jumps(offsets: Sequence[int], start: int) -> list[tuple[int, int]]:
    expected = [start, *(offset + 1 for offset in offsets)]
    return [(a, b) for a, b in zip(expected, offsets, strict=False) if a != b][:5]


def _skips(v: View, lane: Lane, deliveries: Sequence[Delivery]) -> Iterator[str]:
    """A delivery starts at most where the acks sent before its end can have brought the cursor."""
    if not v.keeps_all(lane[0]):
        return
    reach = _Reach((s.begin, s.offset + 1) for s in v.settles[lane] if s.may_commit)
    undone = _Reach((s.begin, s.offset + 1) for s in v.undone[lane])
    for delivery in deliveries:
        may = reach.until(delivery.end)
        # With the acks of transactions that left no push it is half_applied's to tell.
        if delivery.start > may and delivery.start > undone.until(delivery.end):
            yield (
                f"{lane}: {_name(delivery)} starts at {delivery.start};"
                f" at most {may} can have been committed"
            )


def _repeats(
    settles: Sequence[Settle], lane: Lane, deliveries: Sequence[Delivery], *, transactions: bool
) -> Iterator[str]:
    """A delivery never starts below what was committed before its begin."""
    reach = _Reach(
        (s.known_at, s.offset + 1)
        for s in settles
        if s.did_commit and bool(s.transaction) is transactions
    )
    for delivery in deliveries:
        committed = reach.until(delivery.begin)
        if delivery.start < committed:
            yield (
                f"{lane}: {_name(delivery)} starts at {delivery.start}"
                f" though {committed} was committed"
            )


class _Reach:
    """The highest of the values whose time is before a given one."""

    def __init__(self, points: Iterable[tuple[float, int]]) -> None:
        self._times: list[float] = []
        self._highest: list[int] = []
        highest = 0
        for time, value in sorted(points):
            highest = max(highest, value)
            self._times.append(time)
            self._highest.append(highest)

    def until(self, time: float) -> int:
        place = bisect.bisect_left(self._times, time)
        return self._highest[place - 1] if place else 0


def _name(delivery: Delivery) -> str:
    return f"the delivery of {delivery.begin:.3f}-{delivery.end:.3f} ({delivery.lease_id})"


def undelivered(v: View) -> Iterator[str]:
    for queue in v.queues.values():
        if not v.keeps_all(queue.name):
            continue
        for group in queue.groups:
            for (name, partition), messages in v.logs.items():
                if name != queue.name:
                    continue
                got = {
                    message.offset
                    for delivery in v.deliveries[name, group, partition]
                    for message in delivery.messages
                }
                missing = sorted({message.offset for message in messages} - got)
                if missing:
                    yield (
                        f"{group} never got {len(missing)} of {len(messages)} messages of"
                        f" {name}/{partition}, the first at {missing[0]}"
                    )


def _surely_until(v: View, delivery: Delivery) -> float:
    """The earliest moment at which the lease can have expired."""
    expiry = delivery.begin + delivery.lease_s
    for extend in v.extends[delivery.lease_id]:
        if extend.outcome == "answered" and extend.renewed:
            expiry = max(expiry, extend.begin + extend.seconds)
    return expiry


def _possibly_until(v: View, delivery: Delivery, at: float) -> float:
    """The latest moment at which the lease can have expired, as it can be known at *at*."""
    expiry = delivery.end + delivery.lease_s
    for extend in v.extends[delivery.lease_id]:
        if extend.begin < at and extend.outcome != "refused":
            answered = extend.outcome == "answered"
            if answered and not extend.renewed:
                continue
            expiry = max(expiry, (extend.end if answered else math.inf) + extend.seconds)
    return expiry


def overlap(v: View) -> Iterator[str]:
    for lane, deliveries in v.deliveries.items():
        queue, group, _ = lane
        if v.is_emptied(queue):
            continue  # a lease ends with what it protects
        leased = sorted((d for d in deliveries if d.lease_id), key=lambda d: d.begin)
        # When the first settlement that can have released a lease was sent.
        released: dict[str, float] = defaultdict(lambda: math.inf)
        for settle in (*v.settles[lane], *v.undone[lane]):
            if settle.outcome != "refused":
                released[settle.lease_id] = min(released[settle.lease_id], settle.begin)
        seeks = [seek for seek in v.seeks[queue, group] if seek.outcome != "refused"]
        until = [min(_surely_until(v, d), released[d.lease_id]) - CLOCK_SLACK for d in leased]
        for i, one in enumerate(leased):
            for j in range(i + 1, len(leased)):
                two = leased[j]
                if two.begin >= until[i]:
                    break
                if two.lease_id == one.lease_id:
                    continue
                # The first was surely alive when the other was granted, whichever was the first.
                one_first = two.end < until[i]
                if one_first and (two.begin > one.end or one.end < until[j]):
                    if any(s.begin < two.end and _effect_end(s) > one.begin for s in seeks):
                        continue
                    yield f"{lane}: {_name(one)} and {_name(two)} were held at once"


def _effect_end(request: Request) -> float:
    return request.end if request.outcome == "answered" else math.inf


def lost_lease(v: View) -> Iterator[str]:
    for lane, settles in v.settles.items():
        deliveries = v.deliveries[lane]
        leased = sorted((d for d in deliveries if d.lease_id), key=lambda d: d.begin)
        of_lease = {d.lease_id: d for d in leased}
        begins = [d.begin for d in leased]
        # Of each place in `leased`, who was the first to have a lease among those from there on.
        first_from = leased[:]
        for place in range(len(leased) - 2, -1, -1):
            if first_from[place + 1].end < first_from[place].end:
                first_from[place] = first_from[place + 1]
        # Sent again, an ack is answered as the first time.
        first_sent: dict[str, float] = {}
        for settle in sorted(settles, key=lambda s: s.begin):
            if settle.outcome == "refused" or not settle.lease_id:
                continue
            own = of_lease.get(settle.lease_id)
            sent_at = first_sent.setdefault(settle.lease_id, settle.begin)
            if settle.outcome != "answered" or own is None or sent_at < settle.begin:
                continue
            if settle.begin > _possibly_until(v, own, settle.begin) + CLOCK_SLACK:
                yield f"{lane}: offset {settle.offset} was accepted under {_name(own)}, expired"
                continue
            later = bisect.bisect_right(begins, own.end)
            if later < len(leased) and first_from[later].end < settle.begin:
                yield (
                    f"{lane}: offset {settle.offset} was accepted under {_name(own)}"
                    f" after {_name(first_from[later])}"
                )


def half_applied(v: View) -> Iterator[str]:
    for key, attempts in v.transactions.items():
        there, all_ = _count_stored(v, attempts[0]), len(attempts[0].items)
        if 0 < there < all_:
            yield f"transaction {key}: {there} of {all_} pushes"
        elif there and all(attempt.outcome == "refused" for attempt in attempts):
            yield f"transaction {key} was refused ({attempts[0].reason}) and its pushes are there"
        elif not there and any(attempt.reason == "duplicate" for attempt in attempts):
            yield f"transaction {key} was called a repeat and its pushes are not there"
    for lane, deliveries in v.deliveries.items():
        if v.is_sought(lane[0], lane[1]) or v.is_emptied(lane[0]):
            continue
        for text in _repeats(v.settles[lane], lane, deliveries, transactions=True):
            yield f"a transaction's pushes without its acks: {text}"
        if not v.undone[lane] or not v.keeps_all(lane[0]):
            continue
        reach = _Reach((s.begin, s.offset + 1) for s in v.settles[lane] if s.may_commit)
        undone = _Reach((s.begin, s.offset + 1) for s in v.undone[lane])
        for delivery in deliveries:
            if reach.until(delivery.end) < delivery.start <= undone.until(delivery.end):
                yield f"a transaction's acks without its pushes: {lane}: {_name(delivery)}"


def dead_letter(v: View) -> Iterator[str]:
    listed: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for queue, listing in v.letters.items():
        for letter in listing.letters:
            key = (queue, letter.partition, letter.id)
            listed[queue, letter.group, letter.partition, letter.id] += 1
            if letter.data is None or v.sent.get(key) != letter.data:
                yield f"{letter} of {queue}, pushed was {v.sent.get(key, 'nothing')}"
    for place, count in listed.items():
        if count > 1 and not v.is_sought(place[0], place[1]):
            yield f"{place} is listed {count} times"
    for queue, group, item in v.buried:
        if queue in v.letters and (queue, group, item.partition, item.id) not in listed:
            yield f"{item} of {queue} was answered as a dead letter of {group}"


def retention(v: View) -> Iterator[str]:
    """What a group was not given is older than the queue keeps messages."""
    pushed_at: dict[tuple[str, str, int], float] = {}
    for push in v.pushes:
        for item, result in zip(push.items, push.results, strict=bool(push.results)):
            if not v.queues[item.queue].retention_s:
                continue
            pushed_at[item.queue, item.partition, result.offset] = push.begin
    for lane, deliveries in v.deliveries.items():
        queue, group, partition = lane
        if not v.queues[queue].retention_s or v.is_sought(queue, group):
            continue
        reached = 0
        for delivery in sorted(deliveries, key=lambda d: d.end):
            for offset in range(reached, delivery.start):
                begin = pushed_at.get((queue, partition, offset))
                age = math.inf if begin is None else delivery.end - begin
                if age < v.queues[queue].retention_s - CLOCK_SLACK:
                    yield f"{lane}: offset {offset} was gone after {age:.2f} s"
            reached = max(reached, delivery.stop)


def parked(v: View) -> Iterator[str]:
    """No pop waits on while, for seconds on end, there is something that nobody else can hold."""
    quiet = [(begin, end + RECOVERY_LIMIT) for begin, end in v.faults]
    available: dict[tuple[str, str, int], float] = {}
    for push in v.pushes:
        for item, result in zip(push.items, push.results, strict=bool(push.results)):
            key = (item.queue, item.partition, result.offset)
            available[key] = min(push.end, available.get(key, math.inf))
    empty: dict[tuple[str, str], list[Pop]] = defaultdict(list)
    unknown: dict[tuple[str, str], list[Pop]] = defaultdict(list)
    for pop in v.waited:
        empty[pop.queue, pop.group].append(pop)
    for request in v.unanswered:
        if isinstance(request, Pop):
            unknown[request.queue, request.group].append(request)
    for (queue, group), pops in empty.items():
        if not v.keeps_all(queue) or v.is_sought(queue, group):
            continue
        for lane_queue, partition in v.logs:
            if lane_queue != queue:
                continue
            lane = (queue, group, partition)
            late = list(_late(v, lane, available))
            if not late:
                continue
            free = _Free([*quiet, *_blocked(v, lane, unknown[queue, group])])
            for pop in pops:
                if pop.partition not in ("", partition):
                    continue
                for offset, since, until in late:
                    begin, end = max(pop.begin, since), min(pop.end, until)
                    if end - begin > PARKED_GRACE and free.longest(begin, end) > PARKED_GRACE:
                        yield (
                            f"{lane}: the pop of {pop.begin:.3f}-{pop.end:.3f} came back empty;"
                            f" offset {offset} was there from {since:.3f}"
                        )
                        break


def _late(
    v: View, lane: Lane, available: dict[tuple[str, str, int], float]
) -> Iterator[tuple[int, float, float]]:
    """Messages that were there for long before the group got them first: offset, from, to."""
    queue, _, partition = lane
    first: dict[int, float] = {}
    for delivery in v.deliveries[lane]:
        for message in delivery.messages:
            first[message.offset] = min(delivery.begin, first.get(message.offset, math.inf))
    for message in v.logs[queue, partition]:
        since = available.get((queue, partition, message.offset), math.inf)
        until = first.get(message.offset, math.inf)
        if until - since > PARKED_GRACE:
            yield message.offset, since, until


def _blocked(v: View, lane: Lane, unknown: Sequence[Pop]) -> Iterator[tuple[float, float]]:
    """When the partition may have been leased."""
    of_lease: dict[str, list[Settle]] = defaultdict(list)
    for settle in v.settles[lane]:
        if settle.did_commit or (settle.outcome == "answered" and settle.status != "completed"):
            of_lease[settle.lease_id].append(settle)
    for delivery in v.deliveries[lane]:
        settles = of_lease[delivery.lease_id]
        nacked = any(settle.status != "completed" for settle in settles)
        if nacked or any(settle.offset + 1 >= delivery.stop for settle in settles):
            yield delivery.begin, max(settle.known_at for settle in settles)
        else:
            yield delivery.begin, _possibly_until(v, delivery, math.inf)
    for pop in unknown:
        if pop.partition in ("", lane[2]):
            yield pop.begin, pop.end + LATE_EFFECT + pop.lease_s


class _Free:
    """The times that no interval of *taken* covers."""

    def __init__(self, taken: Iterable[tuple[float, float]]) -> None:
        self._begins = [-math.inf]
        self._ends: list[float] = []
        for begin, end in sorted(taken):
            if begin > self._begins[-1]:
                self._ends.append(begin)
                self._begins.append(end)
            else:
                self._begins[-1] = max(self._begins[-1], end)
        self._ends.append(math.inf)

    def longest(self, begin: float, end: float) -> float:
        """The longest of them between *begin* and *end*."""
        longest = 0.0
        for place in range(bisect.bisect_right(self._ends, begin), len(self._begins)):
            if self._begins[place] >= end:
                break
            longest = max(longest, min(end, self._ends[place]) - max(begin, self._begins[place]))
        return longest


# -- of queues from which messages are removed --


class _Pushed(msgspec.Struct, frozen=True, gc=False):
    """A message that was stored between `begin` and `end`."""

    message_id: str
    queue: str
    partition: str
    id: str
    begin: float
    end: float


def _pushed(v: View) -> dict[str, _Pushed]:
    """The messages of emptied queues, by message id."""
    tried: dict[tuple[str, str, str], float] = {}  # when an attempt without an answer began
    found: dict[str, _Pushed] = {}
    pushes = [push for push in v.pushes if push.items and v.is_emptied(push.items[0].queue)]
    for push in pushes:
        if push.outcome == "unknown":
            for item in push.items:
                key = (item.queue, item.partition, item.id)
                tried[key] = min(push.begin, tried.get(key, math.inf))
    for queued in (True, False):
        for push in pushes:
            for item, result in zip(push.items, push.results, strict=bool(push.results)):
                begin = push.begin if queued else tried.get((item.queue, item.partition, item.id))
                if (
                    (result.status == "queued") is queued
                    and result.message_id not in found
                    and begin is not None
                ):
                    found[result.message_id] = _Pushed(
                        result.message_id, item.queue, item.partition, item.id, begin, push.end
                    )
    return found


def _removals_of(v: View, message: _Pushed) -> Iterator[Removal]:
    for removal in v.removals[message.queue]:
        names_it = removal.partition in ("", message.partition) and removal.id in ("", message.id)
        if removal.what in ("delete", "bury", "clear", "queue") and names_it:
            yield removal


def _may_be_removed(v: View, message: _Pushed) -> bool:
    return any(
        removal.outcome != "refused" and _effect_end(removal) > message.begin
        for removal in _removals_of(v, message)
    )


def _gone_at(v: View, message: _Pushed, *, with_buried: bool) -> float:
    """By when it was certainly removed. One that was given up keeps its id while it is kept.

    A 404 says nothing: it may be about a partition of a queue that was deleted since.
    """
    ttl_s = v.queues[message.queue].ttl_s
    times = [message.end + ttl_s if ttl_s and not v.clock_jumps else math.inf]
    for removal in _removals_of(v, message):
        is_done = removal.outcome == "answered" and removal.status == 200
        if is_done and removal.begin > message.end and (with_buried or removal.what != "bury"):
            times.append(removal.end)
    return min(times)


def stale_id(v: View) -> Iterator[str]:
    pushed = _pushed(v)
    for push in v.pushes:
        for item, result in zip(push.items, push.results, strict=bool(push.results)):
            if result.status != "duplicate" or not v.is_emptied(item.queue):
                continue
            known = pushed.get(result.message_id)
            if known is None:
                yield f"{item} was answered {result}, which was never pushed"
            elif push.begin > (gone_at := _gone_at(v, known, with_buried=False)) + CLOCK_SLACK:
                yield f"{item} was answered {result} at {push.end:.3f}, gone by {gone_at:.3f}"


def vanished(v: View) -> Iterator[str]:
    delivered: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (queue, group, _), deliveries in v.deliveries.items():
        if v.is_emptied(queue):
            for delivery in deliveries:
                delivered[queue, group].update(m.message_id for m in delivery.messages)
    for message in _pushed(v).values():
        if v.queues[message.queue].ttl_s or _may_be_removed(v, message):
            continue
        for group in v.queues[message.queue].kept:
            if message.message_id not in delivered[message.queue, group]:
                yield f"{group} never got {message}, which nobody removed"


def stalled(v: View) -> Iterator[str]:
    """A message is handed out when no lease can be alive that holds something before it."""
    pushed = _pushed(v)
    quiet = [(begin, end + RECOVERY_LIMIT) for begin, end in v.faults]
    unknown: dict[tuple[str, str], list[Pop]] = defaultdict(list)
    for request in v.unanswered:
        if isinstance(request, Pop):
            unknown[request.queue, request.group].append(request)
    for lane, deliveries in v.deliveries.items():
        queue, group, _ = lane
        if group not in v.queues[queue].kept or v.queues[queue].ttl_s:
            continue
        first: dict[str, float] = {}
        for delivery in deliveries:
            for message in delivery.messages:
                first[message.message_id] = min(
                    delivery.begin, first.get(message.message_id, math.inf)
                )
        late = {
            id_: at
            for id_, at in first.items()
            if id_ in pushed and at - pushed[id_].end > STALLED_GRACE
        }
        if not late:
            continue
        free = _Free([*quiet, *_blocked_until_removed(v, lane, pushed, unknown[queue, group])])
        for id_, at in late.items():
            waited_s = free.longest(pushed[id_].end, at)
            if waited_s > STALLED_GRACE:
                yield (
                    f"{lane}: {pushed[id_]} came at {at:.3f}, and nothing held it for"
                    f" {waited_s:.1f} s"
                )


def _blocked_until_removed(
    v: View, lane: Lane, pushed: dict[str, _Pushed], unknown: Sequence[Pop]
) -> Iterator[tuple[float, float]]:
    """As `_blocked`; a lease holds nothing any more when all of its batch is gone."""
    gone_at: dict[tuple[float, float], float] = {}
    for delivery in v.deliveries[lane]:
        known = [pushed.get(message.message_id) for message in delivery.messages]
        times = [_gone_at(v, one, with_buried=True) if one else math.inf for one in known]
        gone_at[delivery.begin, delivery.end] = max(times)
    for delivery, (begin, until) in zip(v.deliveries[lane], _blocked(v, lane, ()), strict=True):
        yield begin, min(until, gone_at[delivery.begin, delivery.end])
    for pop in unknown:
        yield pop.begin, pop.end + LATE_EFFECT + pop.lease_s


def figures(v: View) -> Iterator[str]:
    for one in v.figures:
        parts = (one.pending, one.processing, one.ready)
        if (
            one.outcome == "answered"
            and one.status == 200
            and (min(parts) < 0 or one.pending != one.processing + one.ready)
        ):
            yield f"{one.queue}, {one.about}: pending, processing and ready are {parts}"


def throughput(v: View, share: float = RECOVERY_SHARE) -> Iterator[str]:
    """After each fault it has to be again as it was before the first one."""
    if v.load_begin is None or v.load_end is None:
        return
    ends = sorted(push.end for push in v.pushes if push.outcome == "answered")
    for end, until in v.well():
        recovery = Recovery.of(ends, v.load_begin, v.faults[0][0], end, min(until, v.load_end))
        if not recovery.reaches(share):
            yield (
                f"{recovery.best:.0f} pushes/s within {recovery.seconds:.1f} s after the fault"
                f" that ended at {end:.3f}, {recovery.usual:.0f}/s before the first"
            )


@dataclass(frozen=True)
class Recovery:
    """Pushes a second: `usual` before the first fault, `best` within `seconds` after one."""

    usual: float
    best: float
    seconds: float

    @classmethod
    def of(
        cls,
        ends: Sequence[float],
        load_begin: float,
        first_begin: float,
        end: float,
        until: float,
    ) -> Recovery:
        """Compared are medians of one-second windows; three in a row have to be as before.

        *ends* are the times of the answered pushes in order.
        """
        before = _windows(ends, load_begin + WARM_UP, first_begin)
        limit = min(end + RECOVERY_LIMIT, until)
        # Windows that begin every quarter of a second, so that none straddles it for long.
        best = 0.0
        start = end
        while start + 3 <= limit + CLOCK_SLACK:
            best = max(best, statistics.median(_windows(ends, start, start + 3)))
            start += 0.25
        return cls(statistics.median(before) if before else 0.0, best, limit - end)

    def reaches(self, share: float) -> bool:
        return self.best >= share * self.usual


def _windows(times: Sequence[float], begin: float, end: float) -> list[int]:
    """How many of *times* fall into each second from *begin* to *end*."""
    return [
        bisect.bisect_left(times, begin + second + 1) - bisect.bisect_left(times, begin + second)
        for second in range(int(end - begin + CLOCK_SLACK))
    ]


def unrecovered(v: View) -> Iterator[str]:
    well = [(end + RECOVERY_LIMIT, until) for end, until in v.well()]
    for request in v.unanswered:
        # One that the next fault may have hit is no fault of this one's recovery.
        if request.error != "left" and any(a < request.begin and request.end < b for a, b in well):
            yield (
                f"{request.client}: {type(request).__name__} of {request.begin:.3f}"
                f"-{request.end:.3f}: {request.status} {request.error}"
            )


RULES: dict[str, Callable[[View], Iterator[str]]] = {  # and `throughput`, which is told a share
    rule.__name__: rule
    for rule in (
        lost, unread, duplicate, order, content, undelivered, overlap, lost_lease, half_applied,
        dead_letter, parked, retention, vanished, stale_id, stalled, figures, unrecovered,
    )
}  # fmt: skip


def longest_outage(v: View) -> float:
    """The longest time between two answers that carried something out."""
    begin, end = v.load_begin, v.load_end
    if begin is None or end is None:
        return 0.0
    times = [begin, *(time for time in sorted(v.answers) if begin < time < end), end]
    return max(b - a for a, b in pairwise(times))


def check(records: Iterable[Record], recovery_share: float = RECOVERY_SHARE) -> Report:
    v = view(records)
    violations = [Violation(name, text) for name, rule in RULES.items() for text in rule(v)]
    violations += [Violation("throughput", text) for text in throughput(v, recovery_share)]
    return Report(
        operations=v.operations,
        answered_pushes=sum(len(push.results) for push in v.pushes),
        longest_outage=longest_outage(v),
        violations=violations,
    )
