"""The memory that the requests of one worker may take.

A body costs more than its bytes: while it is stored there are the text, the segments made of it and
what is sent to PostgreSQL, and each message is several objects. So requests are weighed, by factors
that were measured, and a request that would make their sum exceed the budget is answered 429,
before its body is read where its size is known. Bodies that are not complete count as far as they
have come: an announced size is no memory. Answers count until the client has taken them.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager

from aiohttp import web

from queue_server.domain.errors import Overloaded

# Peak of a worker over the size of the body, random payloads of 1 KB to 40 MB: 2.1 to 2.7.
_BODY_FACTOR = 2.5
# Peak of a worker over the number of smallest items: 1.5 KB in a push, 1.2 in a transaction, with
# the answers. An item's own bytes are part of that.
ITEM_BYTES = 1536
# The same of acknowledgements that differ in their ids alone, which are no objects: 380 bytes.
UNIFORM_ACK_BYTES = 512
# Requests below this weight may use what large ones leave, so that these do not stop them.
_SMALL_BYTES = 256 * 1024
_SMALL_PART = 8  # an eighth is for small ones alone


class MemoryBudget:
    """Counts the bytes that requests take of *bytes_max*."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0
        self._large_bytes_max = bytes_max - bytes_max // _SMALL_PART

    def has_room(self, size_bytes: int, own_bytes: int = 0) -> bool:
        """Whether a request of *own_bytes* may grow to *size_bytes*.

        One that is alone always may: a budget below what a single request takes does not shut out
        large requests.
        """
        most = self.bytes_max if size_bytes <= _SMALL_BYTES else self._large_bytes_max
        others_bytes = self.used_bytes - own_bytes
        return others_bytes + size_bytes <= most or not others_bytes


class RequestMemory:
    """The part of the budget that one request holds."""

    __slots__ = ("_budget", "held_bytes")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.held_bytes = 0

    def check(self, size_bytes: int) -> None:
        """Refuse a request that would take *size_bytes*. Errors: `Overloaded`."""
        if not self._budget.has_room(size_bytes, self.held_bytes):
            raise Overloaded("the requests under way take too much memory; try again")

    def grow(self, size_bytes: int) -> None:
        """Hold *size_bytes*, unless it is more already. Errors: `Overloaded`."""
        if size_bytes > self.held_bytes:
            self.check(size_bytes)
            self.set(size_bytes)

    def set(self, size_bytes: int) -> None:
        """Hold *size_bytes*, which are in use whether there is room for them or not."""
        self._budget.used_bytes += size_bytes - self.held_bytes
        self.held_bytes = size_bytes


def body_weight(size_bytes: int) -> int:
    return int(size_bytes * _BODY_FACTOR)


# More items than this keep a worker busy for 50 ms at a stretch, 100,000 for a quarter of a second.
# Requests of so many are carried out one after another, so that others come in between.
_TURN_ITEMS_MIN = 20_000


def turn_of(
    request: web.Request, item_count: int
) -> AbstractAsyncContextManager[None, bool | None]:
    """The turn of a request with *item_count* items; small ones need none."""
    if item_count <= _TURN_ITEMS_MIN:
        return contextlib.nullcontext()
    turn: asyncio.Lock = request.app[TURN]
    return turn


TURN: web.AppKey[asyncio.Lock] = web.AppKey("turn", asyncio.Lock)
MEMORY: web.AppKey[MemoryBudget] = web.AppKey("memory", MemoryBudget)
REQUEST_MEMORY: web.RequestKey[RequestMemory] = web.RequestKey("request_memory", RequestMemory)


def memory_of(request: web.Request) -> RequestMemory:
    """The memory of *request*; http/middleware.py gives it back when the request is done."""
    memory = request.get(REQUEST_MEMORY)
    if memory is None:
        memory = request[REQUEST_MEMORY] = RequestMemory(request.app[MEMORY])
    return memory
