"""Is it alive, would it serve, and what has it done: wire-api 3.1 to 3.3."""

from __future__ import annotations

import asyncio
import contextlib
import time
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web

from queue_server.broker.throughput import LIVE_WINDOW_S
from queue_server.domain.access import Access
from queue_server.http import exposition, wire
from queue_server.http.request import PRINCIPAL
from queue_server.http.state import STATE
from queue_server.observability.counters import Counter, Counters, Life
from queue_server.storage.figures import without_names

try:
    VERSION = version("queue-server")
except PackageNotFoundError:
    VERSION = "0.1.0"  # run from a checkout


# Prometheus gives a scrape ten seconds.
_PROBE_PATIENCE_S = 3.0


async def livez(request: web.Request) -> web.Response:
    """The process answers; what it depends on is no reason to restart it."""
    return web.json_response({"status": "alive"})


async def readyz(request: web.Request) -> web.Response:
    """Whether requests should be sent here: it is not stopping, and a push would succeed."""
    state = request.app[STATE]
    reason = "this worker is stopping" if state.draining else await state.readiness.reason()
    if reason is None:
        return web.json_response({"status": "ready"})
    return _unavailable({"status": "not ready", "reason": reason})


async def health(request: web.Request) -> web.Response:
    state = request.app[STATE]
    reason = await state.readiness.reason()
    if reason is not None:
        return _unavailable({"status": "unhealthy", "database": "disconnected", "error": reason})
    counters = state.counters
    requests = counters.total(Counter.REQUESTS)
    messages = _messages(counters)
    uptime = max(counters.uptime_seconds(), 0.001)
    pool = _pool(counters)
    return web.json_response(
        {
            "status": "healthy",
            "database": "connected",
            "server": "queen",
            "version": VERSION,
            "uptime": f"{int(uptime)}s",
            "connections": sum(counters.states(Life.SOCKETS)),
            "stats": {
                "requests": requests,
                "messages": messages,
                "requestsPerSecond": f"{requests / uptime:.2f}",
                "messagesPerSecond": f"{messages / uptime:.2f}",
                "pool": {
                    "total": pool["poolSize"],
                    "idle": pool["idleConnections"],
                    "waiting": pool["waitingRequests"],
                },
            },
            "workers": counters.workers_ready(),
        }
    )


def _unavailable(answer: dict[str, str]) -> web.Response:
    return web.Response(
        status=503,
        body=wire.encoder.encode(answer),
        content_type="application/json",
        headers={"Retry-After": "1"},
    )


async def metrics(request: web.Request) -> web.Response:
    """Figures of the whole server, whichever worker answers; memory and CPU are the workers'.

    Only `throughput` is that of all servers on the database.
    """
    state = request.app[STATE]
    # The others' are from the last second.
    state.sampler.sample()
    counters = state.counters
    rates = state.throughput.everywhere(LIVE_WINDOW_S)
    uptime = max(counters.uptime_seconds(), 0.001)
    requests = counters.total(Counter.REQUESTS)
    messages = _messages(counters)
    open_ = counters.connections()
    return web.json_response(
        {
            "uptime": round(uptime, 1),
            "requests": {"total": requests, "rate": round(requests / uptime, 2)},
            "messages": {"total": messages, "rate": round(messages / uptime, 2)},
            "throughput": {
                "pushedPerSecond": round(rates.pushed, 2),
                "poppedPerSecond": round(rates.popped, 2),
                "ackedPerSecond": round(rates.acked, 2),
                "failedPerSecond": round(rates.failed, 2),
                "requestsPerSecond": round(rates.requests, 2),
            },
            "connections": {"open": sum(open_), "byWorker": open_},
            "database": _pool(counters),
            "memory": {
                "rss": sum(counters.states(Life.RESIDENT_BYTES)),
                "heapTotal": 0,
                "heapUsed": 0,
                "external": 0,
                "arrayBuffers": 0,
            },
            "cpu": {
                "user": counters.total(Counter.CPU_USER_US),
                "system": counters.total(Counter.CPU_SYSTEM_US),
            },
            "counters": counters.totals(),
            "retries": counters.retries(),
            "popPhasesMs": {
                name: counters.total(counter) / 1000
                for name, counter in exposition.POP_PHASES.items()
            },
        }
    )


def _messages(counters: Counters) -> int:
    return counters.total(Counter.MESSAGES_PUSHED) + counters.total(Counter.MESSAGES_POPPED)


def _pool(counters: Counters) -> dict[str, int]:
    return {
        "poolSize": sum(counters.states(Life.POOL_SIZE)),
        "idleConnections": sum(counters.states(Life.POOL_AVAILABLE)),
        "waitingRequests": sum(counters.states(Life.POOL_WAITING)),
    }


async def prometheus(request: web.Request) -> web.Response:
    """The same and more for Prometheus; without a database, what is known without one.

    With authentication, queues and groups are named to a credential that may read all of them.
    """
    state = request.app[STATE]
    state.sampler.sample()
    database_up = False
    # A database that says nothing keeps the probe for longer than a scrape waits.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PROBE_PATIENCE_S):
            database_up = await state.readiness.reason() is None
    figures = await state.looks.metrics() if database_up else None
    if figures is not None and not _may_see_names(request):
        figures = without_names(figures)
    body = exposition.render(
        state.counters,
        figures,
        state.maintenance.modes,
        database_up=database_up,
        now=time.monotonic(),
        data_dir=None if state.settings.conninfo else state.settings.data_dir,
    )
    return web.Response(body=body, headers={"Content-Type": exposition.CONTENT_TYPE})


def _may_see_names(request: web.Request) -> bool:
    settings = request.app[STATE].settings
    if not settings.has_authentication or settings.metrics_public_names:
        return True
    principal = request.get(PRINCIPAL)
    return principal is not None and principal.grants is None and principal.may(Access.READ)
