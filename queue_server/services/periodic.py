"""Runs a service again and again: interval, staggered first run, jitter, stop.

A service is a class with a name and a `run_once()` that makes one bounded pass and returns what it
did as counts. It knows nothing of time; this module knows nothing of what is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from queue_server.domain.errors import QueueServerError
from queue_server.observability.tasks import keep_running

logger = logging.getLogger(__name__)

# A pass that failed is repeated no later than this, however long the interval is.
_RETRY_S_MAX = 60.0


class Service(Protocol):
    """What runs periodically."""

    @property
    def name(self) -> str: ...

    async def run_once(self) -> Mapping[str, int]:
        """Make one pass; what was done, by name. Safe beside another pass of the same service."""


class Periodic:
    """The loop around a service; *may_run* is asked before each pass."""

    def __init__(
        self, service: Service, interval_s: float, may_run: Callable[[], bool] = lambda: True
    ) -> None:
        self._service = service
        self._interval_s = interval_s
        self._may_run = may_run
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = keep_running(self._run, f"service-{self._service.name}")

    async def stop(self) -> None:
        """Cut a pass off where it is: each of its transactions is whole or not at all."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        # Services of a worker start together; their first passes need not fall together.
        pause_s = self._interval_s * random.uniform(0, 1)
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._interval_s * random.uniform(0.9, 1.1)
            if self._may_run() and not await self._pass():
                pause_s = min(pause_s, _RETRY_S_MAX)

    async def _pass(self) -> bool:
        """Run the service once; False when it failed."""
        begin = time.perf_counter()
        try:
            counts = await self._service.run_once()
        except QueueServerError as exc:
            logger.warning(
                "%s did not finish its pass", self._service.name, extra={"error": exc.message}
            )
            return False
        except Exception:
            logger.exception("%s failed", self._service.name)
            return False
        if any(counts.values()):
            logger.info(
                "%s made a pass",
                self._service.name,
                extra={
                    "event": "service_pass",
                    "service": self._service.name,
                    "duration_ms": round((time.perf_counter() - begin) * 1000, 1),
                    **counts,
                },
            )
        return True
