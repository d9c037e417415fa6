"""Whether there is a database at all: nobody waits for one that is not there, nobody storms it.

The circuit opens when a connection cannot be made and none is left, and closes with the first that
is made. While it is open, requests fail at once instead of waiting for the pool's timeout, those
that wait already included, and one task for each worker tries to connect, with growing pauses and
jitter. Attempts by the pool in between are not carried out: a pause holds for everybody.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from queue_server.domain.errors import StorageUnavailable
from queue_server.observability.tasks import keep_running

# The n-th pause between attempts is uniform in [1/2, 1] * BASE * 2^n, at most CAP: an outage of a
# second ends within another half, and a hundred workers do not come back in the same instant.
_PAUSE_BASE_S = 0.1
_PAUSE_CAP_S = 1.0


class Circuit:
    """*try_to_connect* makes a connection and reports here; it is called while the circuit is open.

    Its exceptions are of no interest, as it has reported what happened.
    """

    def __init__(self, try_to_connect: Callable[[], Awaitable[None]]) -> None:
        self._try_to_connect = try_to_connect
        self.is_open = False
        self._failures = 0
        self._retry_at = 0.0
        self._waiting: set[asyncio.Timeout] = set()
        self._trying: asyncio.Task[None] | None = None

    def may_try(self) -> bool:
        """Whether a connection may be tried now: not within the pause after a failure."""
        return time.monotonic() >= self._retry_at

    def failed(self) -> None:
        """A connection was tried and not made."""
        pause_s = min(_PAUSE_CAP_S, _PAUSE_BASE_S * 2 ** min(self._failures, 10))
        self._retry_at = time.monotonic() + pause_s * random.uniform(0.5, 1)
        self._failures += 1

    def connected(self) -> None:
        self._failures = 0
        self._retry_at = 0.0
        self.is_open = False

    def open(self) -> None:
        """No connection is left and none could be made."""
        if self.is_open:
            return
        self.is_open = True
        now = asyncio.get_running_loop().time()
        for timeout in self._waiting:
            if not timeout.expired():
                timeout.reschedule(now)
        if self._trying is None or self._trying.done():
            self._trying = keep_running(self._try_until_closed, "reconnect")

    @asynccontextmanager
    async def wait_for_connection(self) -> AsyncIterator[None]:
        """Around a wait for a connection.

        Errors: `StorageUnavailable` at once when the circuit is open or opens meanwhile.
        """
        if self.is_open:
            raise StorageUnavailable
        try:
            async with asyncio.timeout(None) as timeout:
                self._waiting.add(timeout)
                try:
                    yield
                finally:
                    self._waiting.discard(timeout)
        except TimeoutError:
            raise StorageUnavailable from None

    async def stop(self) -> None:
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.wait([self._trying])

    async def _try_until_closed(self) -> None:
        while self.is_open:
            await asyncio.sleep(max(0.0, self._retry_at - time.monotonic()))
            await self._try_to_connect()
