"""How fast a group works, for pops that leave the batch size to the server.

Source: wire-api 7.1. The batch is what the group acknowledges in a fifth of a second, so that a
consumer holds a lease about that long.
"""

from __future__ import annotations

import time

from queue_server.domain.names import SubscriptionId

_BATCH_MIN = 100
_BATCH_MAX = 1000
_BATCH_S = 0.2
_WINDOW_S = 5.0
_GROUPS_MAX = 10_000


class _Meter:
    """Messages a second over the last full window."""

    __slots__ = ("count", "per_second", "since")

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.count = 0
        self.per_second = 0.0


class Pace:
    """Acknowledged messages a second, by group, as this worker sees them."""

    def __init__(self, worker_count: int = 1) -> None:
        self._worker_count = worker_count
        self._meters: dict[SubscriptionId, _Meter] = {}

    def note(self, subscription_id: SubscriptionId, count: int) -> None:
        """*count* messages of the group were acknowledged."""
        meter = self._meters.get(subscription_id)
        if meter is None:
            if len(self._meters) >= _GROUPS_MAX:
                del self._meters[next(iter(self._meters))]
            meter = self._meters[subscription_id] = _Meter()
        meter.count += count
        age_s = time.monotonic() - meter.since
        if age_s >= _WINDOW_S:
            meter.per_second = meter.count / age_s
            meter.since, meter.count = time.monotonic(), 0

    def message_limit(self, subscription_id: SubscriptionId) -> int:
        """The batch for a pop of the group; all workers are taken to see about the same."""
        meter = self._meters.get(subscription_id)
        if meter is None:
            return _BATCH_MIN
        batch = int(meter.per_second * self._worker_count * _BATCH_S)
        return min(max(batch, _BATCH_MIN), _BATCH_MAX)
