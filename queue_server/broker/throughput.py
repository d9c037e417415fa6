"""How many messages a second all workers of all servers have to do with, now.

Those of this host are seen in shared memory, second by second. What others do is known from what
they last booked (storage/series.py).
"""

from __future__ import annotations

import time
from collections import deque

from queue_server.observability.counters import Counter, Counters
from queue_server.storage.series import Rates

# A rate is that of the last so many seconds...
WINDOW_S = 10
# ...and where somebody watches, of these.
LIVE_WINDOW_S = 2
# More than a minute's.
_SAMPLES_MAX = 70
# Five minutes, which a chart has to begin with.
_HISTORY_MAX = 300
# Those of `Rates`, in their order.
_COUNTERS = (
    Counter.MESSAGES_PUSHED,
    Counter.MESSAGES_POPPED,
    Counter.MESSAGES_ACKED,
    Counter.MESSAGES_FAILED,
    Counter.REQUESTS,
)


class Throughput:
    """Rates over the last seconds; `sample` is called once a second."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        # When, and each of _COUNTERS.
        self._samples: deque[tuple[float, list[int]]] = deque(maxlen=_SAMPLES_MAX)
        self.others = Rates()
        # When, in seconds of the epoch, and the rates of all hosts then; the newest last.
        self.history: deque[tuple[float, Rates]] = deque(maxlen=_HISTORY_MAX)

    def sample(self) -> None:
        totals = [self._counters.total(counter) for counter in _COUNTERS]
        self._samples.append((time.monotonic(), totals))
        self.history.append((time.time(), self.everywhere(LIVE_WINDOW_S)))

    def here(self, window_s: int = WINDOW_S) -> Rates:
        """Of this host."""
        if len(self._samples) < 2:
            return Rates()
        now = self._samples[-1]
        # A sample of just that time ago may be a little older.
        then = next(
            (one for one in reversed(self._samples) if one[0] < now[0] - window_s + 0.1),
            self._samples[0],
        )
        seconds = max(now[0] - then[0], 0.001)
        return Rates(
            *((last - first) / seconds for first, last in zip(then[1], now[1], strict=True))
        )

    def everywhere(self, window_s: int = WINDOW_S) -> Rates:
        """Of all hosts."""
        return self.here(window_s) + self.others
