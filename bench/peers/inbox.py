"""Messages that a broker sends by itself, until a pop takes them."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from bench.client import RequestFailed

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """What arrived, in order. A failure is told to whoever waits or comes to wait."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._arrived = asyncio.Event()
        self._failure: RequestFailed | None = None

    def add(self, item: Item) -> None:
        self._items.append(item)
        self._arrived.set()

    def fail(self, failure: RequestFailed) -> None:
        self._failure = self._failure or failure
        self._arrived.set()

    async def take(self, limit: int) -> list[Item]:
        """At least one item, and at most *limit*."""
        await self._arrived.wait()
        if self._failure is not None:
            raise self._failure
        taken, self._items = self._items[:limit], self._items[limit:]
        if not self._items:
            self._arrived.clear()
        return taken
