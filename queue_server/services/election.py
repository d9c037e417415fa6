"""Whether this worker is the one of the whole cluster that does a service.

Each service has a lease row in the database (storage/leadership.py). Every worker asks for all of
them in one call, which renews what it holds. The first to ask leads; the others ask on, so a
leader that was killed is replaced within LEASE_S and a third of it.

A leader that hangs for longer than its lease is replaced while it may still be inside a pass: two
workers can be at one service for a moment. So every service has to be right then too; the election
spares the cluster the same work done many times, no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Sequence

from queue_server.domain.errors import QueueServerError
from queue_server.observability.tasks import keep_running
from queue_server.storage import leadership
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

# A service may rest this long after its worker was killed. A renewal costs one commit.
LEASE_S = 15
RENEWAL_S = LEASE_S / 3
_RESIGN_TIMEOUT_S = 2.0


class Election:
    """Holds, renews and gives up the leases of *services* for one worker."""

    def __init__(self, transactions: Transactions, services: Sequence[str]) -> None:
        self._transactions = transactions
        self._services = services
        # Unique to this life of this worker: a successor in the slot, or one with the same pid
        # after a restart of a container, is somebody else.
        self.holder = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        # Until when each service is ours, by our own clock: never later than by the database's.
        self._until: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def leads(self, service: str) -> bool:
        return time.monotonic() < self._until.get(service, 0.0)

    async def campaign(self) -> None:
        """Ask once. Errors: `Unavailable`; what is held ends by itself then."""
        begin = time.monotonic()
        held = await leadership.campaign(self._transactions, self._services, self.holder, LEASE_S)
        for service in self._services:
            led = self.leads(service)
            if service in held:
                self._until[service] = begin + LEASE_S
            else:
                self._until.pop(service, None)
            if led != self.leads(service):
                logger.debug(
                    "leading" if service in held else "no longer leading",
                    extra={"event": "leadership", "service": service},
                )

    def start(self) -> None:
        self._task = keep_running(self._run, "election")

    async def stop(self) -> None:
        """Ask no more, and give up what is held, so that another worker takes over at once."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._until.clear()
        # Nothing is lost when it fails: the leases end by themselves.
        with contextlib.suppress(QueueServerError, TimeoutError):
            async with asyncio.timeout(_RESIGN_TIMEOUT_S):
                await leadership.resign(self._transactions, self.holder)

    async def _run(self) -> None:
        while True:
            try:
                await self.campaign()
            except QueueServerError as exc:
                logger.warning("cannot ask for leadership", extra={"error": exc.message})
            except Exception:
                logger.exception("asking for leadership failed")
            # The workers of a host start together; they need not ask together.
            await asyncio.sleep(RENEWAL_S * random.uniform(0.8, 1))
