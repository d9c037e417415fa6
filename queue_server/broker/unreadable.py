"""Partitions whose next message a worker cannot open: its key is missing, or it was damaged.

Their messages stay where they are, and pops pass over them for a while, so that what can be read is
delivered, and consumers that wait are not woken for them. Then it is tried again. Each worker
finds out for itself, because another host may have the key.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence

import msgspec

from queue_server.domain.encryption import Unreadable
from queue_server.domain.names import PartitionId, PartitionRef
from queue_server.observability.counters import Counter, Life, Row

logger = logging.getLogger(__name__)

# How long a partition is left out; with jitter, so that many are not tried again together.
_PAUSE_S = 30.0
# How many are remembered: they travel with every pop. Those beyond are found out anew.
_PARTITIONS_MAX = 10_000
# How often the log names one of them, for each key.
_LOG_INTERVAL_S = 60.0


class _Entry(msgspec.Struct, gc=False):
    until: float
    key_id: bytes | None


class UnreadablePartitions:
    """The partitions that one worker leaves out."""

    def __init__(self, row: Row, clock: Callable[[], float] = time.monotonic) -> None:
        self._row = row
        self._clock = clock
        self._entries: dict[PartitionId, _Entry] = {}
        self._left_out: list[PartitionId] = []
        self._next_change = float("inf")
        self._logged: dict[bytes | None, float] = {}

    def note(self, partition: PartitionRef, exc: Unreadable, offset: int) -> None:
        """Leave a partition out from now on; *offset* is that of the message."""
        now = self._clock()
        if len(self._entries) >= _PARTITIONS_MAX and partition.id not in self._entries:
            del self._entries[next(iter(self._entries))]
        self._entries.pop(partition.id, None)
        until = now + _PAUSE_S * random.uniform(0.9, 1.1)
        self._entries[partition.id] = _Entry(until, exc.key_id)
        self._row.add(Counter.POPS_UNREADABLE)
        self._renew(now)
        logged_at = self._logged.get(exc.key_id)
        if logged_at is None or now - logged_at >= _LOG_INTERVAL_S:
            self._logged[exc.key_id] = now
            logger.error(
                "messages cannot be read, and their partition is left out of pops for a while",
                extra={
                    "event": "partition_unreadable",
                    "queue": partition.queue,
                    "partition": partition.partition,
                    "partition_id": partition.id,
                    "offset": offset,
                    "key_id": None if exc.key_id is None else exc.key_id.hex(),
                    "error": exc.message,
                    "unreadable_partitions": len(self._entries),
                },
            )

    def left_out(self) -> Sequence[PartitionId]:
        """The partitions that pops are to pass over."""
        now = self._clock()
        if now >= self._next_change:
            self._renew(now)
        return self._left_out

    def __contains__(self, partition_id: PartitionId) -> bool:
        entry = self._entries.get(partition_id)
        return entry is not None and entry.until > self._clock()

    def _renew(self, now: float) -> None:
        # One that is tried again counts until it has been.
        self._entries = {
            id_: entry for id_, entry in self._entries.items() if entry.until + _PAUSE_S > now
        }
        self._left_out = [id_ for id_, entry in self._entries.items() if entry.until > now]
        # A second at least, so that a change of one does not renew all of them each time.
        ends = [entry.until for entry in self._entries.values() if entry.until > now]
        ends += [entry.until + _PAUSE_S for entry in self._entries.values()]
        self._next_change = max(min(ends, default=float("inf")), now + 1)
        self._row.words[Life.PARTITIONS_UNREADABLE] = len(self._entries)
