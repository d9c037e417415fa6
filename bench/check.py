"""Judges what was delivered: every message once, and in the order of its partition.

Messages are `{"id": n}`, and each partition holds contiguous ids, rising. So nobody needs a list of
what was pushed: a range for each partition (`Lanes`) says which id must come next where.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

_NAMED_MAX = 5  # how many violations of a kind are named; the rest is counted
_LOST = "lost"


Lanes = Mapping[str, range]  # the ids that each partition holds


@dataclass(frozen=True)
class Shares:
    """How *message_count* ids are shared out to partitions `"0"`, `"1"`, ..."""

    message_count: int
    partition_count: int

    def ids(self, partition: int) -> range:
        """The ids of a partition; shares differ by one at most."""
        each, more = divmod(self.message_count, self.partition_count)
        start = partition * each + min(partition, more)
        return range(start, start + each + (partition < more))

    @property
    def partitions(self) -> list[str]:
        return [str(number) for number in range(self.partition_count)]

    @property
    def lanes(self) -> Lanes:
        return {name: self.ids(number) for number, name in enumerate(self.partitions)}


class Delivery(msgspec.Struct, frozen=True):
    """What a pop brought of one partition: ids as runs of consecutive ones, and when it came."""

    received_ns: int
    consumer: int
    partition: str
    runs: list[tuple[int, int]]  # half-open
    group: str = ""


def runs_of(ids: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of consecutive ids, as `[start, stop)`; every id is looked at."""
    if not ids:
        return []
    if ids == list(range(ids[0], ids[0] + len(ids))):
        return [(ids[0], ids[0] + len(ids))]
    runs = []
    start = previous = ids[0]
    for id_ in ids[1:]:
        if id_ != previous + 1:
            runs.append((start, previous + 1))
            start = id_
        previous = id_
    return [*runs, (start, previous + 1)]


@dataclass
class Verdict:
    """What was wrong, each kind with the first few by name; all is well when none has any."""

    seen_count: int = 0
    lost_count: int = 0
    duplicate_count: int = 0
    disorder_count: int = 0
    foreign_count: int = 0
    elsewhere_count: int = 0  # not seen here, but acknowledged: other consumers received them
    complaints: list[str] = field(default_factory=list)

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(
            self.seen_count + other.seen_count,
            self.lost_count + other.lost_count,
            self.duplicate_count + other.duplicate_count,
            self.disorder_count + other.disorder_count,
            self.foreign_count + other.foreign_count,
            self.elsewhere_count + other.elsewhere_count,
            self.complaints + other.complaints,
        )

    def received_elsewhere(self) -> Verdict:
        """Return the verdict when every message that did not come here was acknowledged."""
        complaints = [one for one in self.complaints if not one.startswith(_LOST)]
        return replace(self, lost_count=0, elsewhere_count=self.lost_count, complaints=complaints)

    @property
    def lines(self) -> list[str]:
        lines = [
            f"{self.seen_count:,} messages seen: {self.lost_count:,} lost, "
            f"{self.duplicate_count:,} duplicates, {self.disorder_count:,} out of order, "
            f"{self.foreign_count:,} unexpected"
        ]
        if self.elsewhere_count:
            lines.append(
                f"{self.elsewhere_count:,} messages went to other consumers: "
                "the server has all of them, and none is unread"
            )
        return [*lines, *self.complaints]

    @property
    def ok(self) -> bool:
        return not (
            self.lost_count or self.duplicate_count or self.disorder_count or self.foreign_count
        )


@dataclass
class _Lane:
    """What is known of a partition."""

    ids: range
    next_id: int  # one past the highest id seen
    skipped: set[int] = field(default_factory=set)  # below it and not seen yet
    last_of: dict[int, int] = field(default_factory=dict)  # by consumer


def judge(
    lanes: Lanes,
    deliveries: Iterable[Delivery],
    groups: Sequence[str] = ("",),
    handover: bool = True,
) -> Verdict:
    """The verdict on what all *groups* were delivered, each of which is to see every message."""
    delivered = list(deliveries)
    verdict = Verdict()
    for group in groups:
        checker = Checker(lanes, handover)
        checker.add_all(delivery for delivery in delivered if delivery.group == group)
        verdict += checker.finish()
    return verdict


class Checker:
    """Given deliveries in the order they arrived, finds loss, duplicates and disorder.

    With leases, a partition's next batch is handed out after the last one was acknowledged, so ids
    must rise whoever received them. Messages that are committed on delivery may overtake each other
    on the way to two consumers of one partition: with *handover* False ids must rise for each
    consumer only.
    """

    def __init__(self, lanes: Lanes, handover: bool = True) -> None:
        self._handover = handover
        self._lanes = {name: _Lane(ids, ids.start) for name, ids in lanes.items()}
        self._verdict = Verdict()

    def add_all(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in sorted(deliveries, key=lambda d: d.received_ns):
            self.add(delivery.partition, delivery.runs, delivery.consumer)

    def add(self, partition: str, runs: Iterable[tuple[int, int]], consumer: int = 0) -> None:
        lane = self._lanes.get(partition)
        for start, stop in runs:
            self._verdict.seen_count += stop - start
            if lane is None:
                for id_ in range(start, stop):
                    self._verdict.foreign_count += 1
                    self._name("unexpected partition", partition, id_, self._verdict.foreign_count)
            elif start == lane.next_id and stop <= lane.ids.stop:
                lane.next_id = stop
                lane.last_of[consumer] = stop - 1
            else:
                for id_ in range(start, stop):
                    self._judge(lane, partition, id_, consumer)

    def _judge(self, lane: _Lane, partition: str, id_: int, consumer: int) -> None:
        verdict = self._verdict
        before = lane.next_id - 1 if self._handover else lane.last_of.get(consumer, -1)
        if id_ not in lane.ids:
            verdict.foreign_count += 1
            self._name("message of another partition", partition, id_, verdict.foreign_count)
        elif id_ >= lane.next_id:
            lane.skipped.update(range(lane.next_id, id_))
            lane.next_id = id_ + 1
        elif id_ not in lane.skipped:
            verdict.duplicate_count += 1
            self._name("duplicate", partition, id_, verdict.duplicate_count)
        else:
            lane.skipped.discard(id_)
            if id_ < before:
                verdict.disorder_count += 1
                self._name(f"out of order, after {before}", partition, id_, verdict.disorder_count)
        lane.last_of[consumer] = id_

    def finish(self) -> Verdict:
        """The verdict on everything added; what did not come by now is lost."""
        for partition, lane in self._lanes.items():
            for id_ in (*sorted(lane.skipped), *range(lane.next_id, lane.ids.stop)):
                self._verdict.lost_count += 1
                self._name(_LOST, partition, id_, self._verdict.lost_count)
            lane.skipped.clear()
            lane.next_id = lane.ids.stop
        return self._verdict

    def _name(self, what: str, partition: str, id_: int, count: int) -> None:
        if count <= _NAMED_MAX:
            self._verdict.complaints.append(f"{what}: id {id_} in partition {partition!r}")
