"""Whether a push would be carried out now: told by a write that is like one.

Asking is free for as many as want to: one probe at a time, at most one a second, for all of them.
"""

from __future__ import annotations

import asyncio
import time

import psycopg

from queue_server.domain.errors import QueueServerError
from queue_server.storage import migrate
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Transactions

_INTERVAL_S = 1.0
# Who asks (a load balancer, a container platform) commonly waits no longer than a few seconds.
_PATIENCE_S = 2.0
# A probe writes where there is room already; that there is none for more is told by those who need
# it, and believed for so long.
_OUT_OF_RESOURCES_S = 5.0


class Readiness:
    """The probe of the worker in slot *slot*."""

    def __init__(self, transactions: Transactions, slot: int) -> None:
        self._transactions = transactions
        self._slot = slot
        self._reason: str | None = None
        self._asked_at = float("-inf")
        self._probe: asyncio.Task[None] | None = None

    async def reason(self) -> str | None:
        """Why a push would fail; None when it would not, as of a second ago."""
        if time.monotonic() - self._asked_at >= _INTERVAL_S:
            if self._probe is None or self._probe.done():
                # A task, as who asked first may leave while others wait for the same answer.
                self._probe = asyncio.create_task(self._ask(), name="write-probe")
            await asyncio.shield(self._probe)
        return self._reason

    async def _ask(self) -> None:
        self._reason = await self._find_reason()
        self._asked_at = time.monotonic()

    async def _find_reason(self) -> str | None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                rows = await self._transactions.call(
                    STATEMENTS["probe_write"], {"slot": self._slot}
                )
        except TimeoutError:
            return f"the database did not take a write within {_PATIENCE_S:.0f} s"
        except QueueServerError as exc:
            return exc.message
        except psycopg.Error as exc:
            # A right that was taken away, a table that was dropped: not ours to foresee.
            return f"a test write failed: {exc.sqlstate}"
        if not migrate.is_right([name for (name,) in rows]):
            return "the database's schema is not the one of this version"
        if self._transactions.out_of_resources_s_ago() < _OUT_OF_RESOURCES_S:
            return "the database is out of resources"
        return None
