"""What a worker writes down about itself, once a second, for whoever answers for the server."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from queue_server.observability.counters import LOOP_LAG, Counter, Life, Row

_INTERVAL_S = 1.0
_PAGE_BYTES = resource.getpagesize()


class Sampler:
    """Memory, CPU, event loop, pool and parked pops of this worker.

    *pool_stats* are psycopg_pool's figures.
    """

    def __init__(
        self,
        row: Row,
        pool_stats: Callable[[], Mapping[str, int]],
        parked_count: Callable[[], int],
    ) -> None:
        self._row = row
        self._pool_stats = pool_stats
        self._parked_count = parked_count

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            self.sample()
            due = time.monotonic_ns() + int(_INTERVAL_S * 1e9)
            await asyncio.sleep(_INTERVAL_S)
            # Whatever waited in this second for its turn waited about so long.
            self._row.observe(LOOP_LAG, max(time.monotonic_ns() - due, 0) // 1000)

    def sample(self) -> None:
        """Write down how it is now."""
        words = self._row.words
        words[Life.PARKED_POPS] = self._parked_count()
        pool = self._pool_stats()
        for state, name in _POOL_STATES:
            words[state] = pool.get(name, 0)
        words[Life.VIRTUAL_BYTES], words[Life.RESIDENT_BYTES] = _memory_bytes()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        for state, counter, seconds in (
            (Life.CPU_USER_US, Counter.CPU_USER_US, usage.ru_utime),
            (Life.CPU_SYSTEM_US, Counter.CPU_SYSTEM_US, usage.ru_stime),
        ):
            used_us = int(seconds * 1e6)
            words[counter] += used_us - words[state]
            words[state] = used_us


_POOL_STATES = (
    (Life.POOL_SIZE, "pool_size"),
    (Life.POOL_AVAILABLE, "pool_available"),
    (Life.POOL_WAITING, "requests_waiting"),
    (Life.POOL_WAITS, "requests_queued"),
    (Life.POOL_WAIT_MS, "requests_wait_ms"),
)


def _memory_bytes() -> tuple[int, int]:
    """Virtual and resident."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        # Not Linux: the most it ever was, in kilobytes.
        return 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(pages[0]) * _PAGE_BYTES, int(pages[1]) * _PAGE_BYTES
