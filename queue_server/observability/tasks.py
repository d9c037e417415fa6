"""Background loops that no exception ends in silence."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)

# Before a loop that failed begins again; twice as long each time, until it has run for longer.
_PAUSE_S = 1.0
_PAUSE_S_MAX = 60.0


def keep_running(
    loop: Callable[[], Coroutine[Any, Any, None]], name: str, *, pause_s: float = _PAUSE_S
) -> asyncio.Task[None]:
    """Start *loop* as a task; after an exception, which is logged, it begins again.

    A loop handles the failures that it knows. This is for the others: nobody waits for such a task,
    so it would end unnoticed, and what it does would be left undone until a restart.
    """
    return asyncio.create_task(_keep_running(loop, name, pause_s), name=name)


async def _keep_running(
    loop: Callable[[], Coroutine[Any, Any, None]], name: str, pause_s: float
) -> None:
    next_pause_s = pause_s
    while True:
        begin = time.monotonic()
        try:
            await loop()
        except Exception:
            if time.monotonic() - begin > _PAUSE_S_MAX:
                next_pause_s = pause_s
            logger.exception(
                "the background task %r failed and begins again",
                name,
                extra={"event": "background_task_failed", "pause_s": next_pause_s},
            )
            await asyncio.sleep(next_pause_s)
            next_pause_s = min(2 * next_pause_s, _PAUSE_S_MAX)
        else:
            return
