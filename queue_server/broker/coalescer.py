"""Gathers concurrent requests into one transaction.

One flush is in flight at a time; what is submitted meanwhile goes out together in the next. An idle
worker flushes a request at once, a busy one shares a commit between all that wait. This is what
makes single-message requests affordable: the commit is their cost.

The coalescers of a worker (of pushes, pops, acknowledgements) share its `Turns`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from queue_server.domain.errors import Overloaded, QueueServerError, Unavailable

logger = logging.getLogger(__name__)

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Turns:
    """Lets the small flushes of a worker follow one another, whatever they are of.

    A flush costs its round trip and its commit, however many requests share it. While one is under
    way, those who come meanwhile gather for the next, which is the larger for it: a quarter less
    work for single messages (docs/performance.md). Nobody waits who has *company_min* requests
    together, nor longer than *patience_s*, which a slow disk would make of the commits of others.
    """

    def __init__(self, company_min: int = 16, patience_s: float = 0.005) -> None:
        self.company_min = company_min
        self._patience_s = patience_s
        self._running = 0
        self._waiting: deque[asyncio.Event] = deque()

    async def begin(self, may_go: asyncio.Event) -> None:
        """Wait for a turn. *may_go* ends the wait early, and is cleared."""
        if self._running and not may_go.is_set():
            timer = asyncio.get_running_loop().call_later(self._patience_s, may_go.set)
            self._waiting.append(may_go)
            try:
                await may_go.wait()
            finally:
                timer.cancel()
                with contextlib.suppress(ValueError):
                    self._waiting.remove(may_go)
        may_go.clear()
        self._running += 1

    def end(self) -> None:
        """A flush has ended: who has waited longest may go."""
        self._running -= 1
        if self._waiting and not self._running:
            self._waiting.popleft().set()


class _Waiting(Generic[Request, Answer]):
    """A request that waits for its flush; None once its requester has gone."""

    __slots__ = ("future", "request", "weight")

    def __init__(self, request: Request, weight: int, future: asyncio.Future[Answer]) -> None:
        self.request: Request | None = request
        self.weight = weight
        self.future = future


class Coalescer(Generic[Request, Answer]):
    """Answers requests in flushes.

    *flush* is given the requests of one flush, in the order they came, and returns their answers
    aligned. *weight* measures a request; a flush takes requests up to *flush_weight_max* (but at
    least one), and requests that would make more than *waiting_weight_max* wait are refused.

    *abandon* is told answers whose requester has gone meanwhile, *on_flush* of each flush how many
    requests shared it and how many microseconds it took.
    """

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[Request]], Awaitable[Sequence[Answer]]],
        *,
        weight: Callable[[Request], int] = lambda _request: 1,
        flush_weight_max: int,
        waiting_weight_max: int,
        abandon: Callable[[Answer], None] = lambda _answer: None,
        on_flush: Callable[[int, int], None] = lambda _count, _duration_us: None,
        turns: Turns | None = None,
    ) -> None:
        self._name = name
        self._flush = flush
        self._weight = weight
        self._flush_weight_max = flush_weight_max
        self._waiting_weight_max = waiting_weight_max
        self._abandon = abandon
        self._on_flush = on_flush
        self._waiting: deque[_Waiting[Request, Answer]] = deque()
        self._waiting_weight = 0
        self._task: asyncio.Task[None] | None = None
        self._turns = turns or Turns()
        self._may_go = asyncio.Event()  # without a turn: enough have gathered
        self.flush_count = 0

    async def submit(self, request: Request) -> Answer:
        """The answer to *request*.

        Errors: `Overloaded`; whatever the flush raises.
        """
        weight = self._weight(request)
        if self._waiting and self._waiting_weight + weight > self._waiting_weight_max:
            raise Overloaded(f"too many {self._name} requests are waiting; try again")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(request, weight, future)
        self._waiting.append(waiting)
        self._waiting_weight += weight
        self._look_for_company()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"{self._name}-flush")
        try:
            return await future
        except asyncio.CancelledError:
            # Its memory is free at once, though it was not its turn yet.
            self._waiting_weight -= waiting.weight
            waiting.request, waiting.weight = None, 0
            # The answer may have been given in the same tick, and nobody else knows of it then.
            if future.done() and not future.cancelled() and future.exception() is None:
                self._abandon(future.result())
            raise

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._turns.begin(self._may_go)
                try:
                    await self._flush_once()
                finally:
                    self._turns.end()
                self._look_for_company()
        finally:
            self._task = None

    def _look_for_company(self) -> None:
        if len(self._waiting) >= self._turns.company_min:
            self._may_go.set()

    async def _flush_once(self) -> None:
        batch: list[tuple[Request, asyncio.Future[Answer]]] = []
        total = 0
        while self._waiting and (
            not batch or total + self._waiting[0].weight <= self._flush_weight_max
        ):
            waiting = self._waiting.popleft()
            weight, waiting.weight = waiting.weight, 0
            self._waiting_weight -= weight
            if waiting.request is not None and not waiting.future.cancelled():
                batch.append((waiting.request, waiting.future))
                total += weight
            waiting.request = None
        if batch:
            try:
                await self._answer(batch)
            except Exception as exc:
                # Behind the flush itself; whoever waits must not wait indefinitely.
                logger.exception("a flush of %d could not be answered", len(batch))
                self._fail(batch, exc)

    async def _answer(self, batch: list[tuple[Request, asyncio.Future[Answer]]]) -> None:
        self.flush_count += 1
        begin = time.perf_counter_ns()
        try:
            answers = await self._flush([request for request, _ in batch])
        except Unavailable as exc:
            self._fail(batch, exc)
        except Exception as exc:
            if len(batch) == 1:
                self._fail(batch, exc)
                return
            # One of them cannot be carried out and took the others down: each goes alone.
            if not isinstance(exc, QueueServerError):
                logger.warning("a flush of %d failed, trying each alone", len(batch), exc_info=exc)
            for one in batch:
                await self._answer([one])
        else:
            self._on_flush(len(batch), (time.perf_counter_ns() - begin) // 1000)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    self._abandon(answer)
                else:
                    future.set_result(answer)

    @staticmethod
    def _fail(batch: list[tuple[Request, asyncio.Future[Answer]]], exc: Exception) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(exc)
