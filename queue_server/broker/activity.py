"""What one worker did for each queue since it was last written down.

Flushes add to it, a few additions for each batch; services/series.py takes it every some seconds
and books it in the database. Until then it is in this worker alone: a kill loses these seconds of
the figures (never of the messages).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from queue_server.domain.names import SubscriptionId

# Who pops may name anything, so names are bounded; what is done for others is added up together...
_NAMES_MAX = 10_000
# ...under a name that no queue has.
_OTHERS = ""
# A group in use is noted in the database once in so long by each worker.
_CONTACT_INTERVAL_S = 60.0
_CONTACTS_MAX = 100_000


class QueueActivity(msgspec.Struct, gc=False):
    """One queue's numbers; all of them add up but `lag_ms_max`.

    The lag is how old messages were when they were delivered.
    """

    push_requests: int = 0
    push_messages: int = 0
    pop_requests: int = 0
    pop_empty: int = 0  # of these, those that ended without a message
    pop_messages: int = 0
    ack_requests: int = 0
    ack_success: int = 0
    ack_failed: int = 0
    dead_letters: int = 0
    transactions: int = 0
    lag_ms_sum: int = 0
    lag_ms_max: int = 0

    def delivered(self, message_count: int, lag_ms: int) -> None:
        """*message_count* messages of one age went out."""
        self.pop_messages += message_count
        # A segment's time is the database's, ours may be behind it.
        if lag_ms > 0:
            self.lag_ms_sum += message_count * lag_ms
            self.lag_ms_max = max(self.lag_ms_max, lag_ms)

    def add(self, other: QueueActivity) -> None:
        lag_ms_max = max(self.lag_ms_max, other.lag_ms_max)
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lag_ms_max = lag_ms_max


class Contacts:
    """Which groups popped and acknowledged, and which of them are to be noted in the database."""

    def __init__(self) -> None:
        self.popped: set[SubscriptionId] = set()
        self.acked: set[SubscriptionId] = set()
        # When each was last noted, by time.monotonic().
        self._popped_at: dict[SubscriptionId, float] = {}
        self._acked_at: dict[SubscriptionId, float] = {}

    def take(
        self, waiting: Iterable[SubscriptionId], now: float
    ) -> tuple[list[SubscriptionId], list[SubscriptionId]]:
        """Those that popped, or whose pops are *waiting*, and those that acknowledged; due ones."""
        popped, acked = self.popped | set(waiting), self.acked
        self.popped, self.acked = set(), set()
        return _due(popped, self._popped_at, now), _due(acked, self._acked_at, now)

    def noted(
        self, popped: Collection[SubscriptionId], acked: Collection[SubscriptionId], now: float
    ) -> None:
        """What was taken has been written down."""
        for times, ids in ((self._popped_at, popped), (self._acked_at, acked)):
            if len(times) + len(ids) > _CONTACTS_MAX:
                times.clear()  # noted once more, that is all
            times.update(dict.fromkeys(ids, now))


def _due(
    ids: Iterable[SubscriptionId], noted_at: dict[SubscriptionId, float], now: float
) -> list[SubscriptionId]:
    return [id_ for id_ in ids if now - noted_at.get(id_, float("-inf")) >= _CONTACT_INTERVAL_S]


class Activity:
    """The numbers of all queues that this worker had to do with."""

    def __init__(self) -> None:
        self._queues: dict[str, QueueActivity] = {}
        self.contacts = Contacts()

    def of(self, queue: str) -> QueueActivity:
        found = self._queues.get(queue)
        if found is None:
            if len(self._queues) >= _NAMES_MAX:
                return self._queues.setdefault(_OTHERS, QueueActivity())
            found = self._queues[queue] = QueueActivity()
        return found

    def count_push(self, queues: Sequence[str]) -> None:
        """A push request had messages for *queues*; one may be named more than once."""
        for queue in queues if len(queues) == 1 else set(queues):
            self.of(queue).push_requests += 1

    def count_ack(self, queues: Sequence[str]) -> None:
        """An acknowledgement request was about messages of *queues*."""
        for queue in queues if len(queues) == 1 else set(queues):
            self.of(queue).ack_requests += 1

    def count_transaction(self, queues: Sequence[str]) -> None:
        for queue in set(queues):
            self.of(queue).transactions += 1

    def take(self) -> dict[str, QueueActivity]:
        """What was counted since the last call."""
        taken, self._queues = self._queues, {}
        return taken

    def put_back(self, taken: dict[str, QueueActivity]) -> None:
        """What was taken could not be written down."""
        for queue, one in taken.items():
            self.of(queue).add(one)
