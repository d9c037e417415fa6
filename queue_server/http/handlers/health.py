"""Is it alive, would it serve, and what has it done: wire-api 3.1 and 3.2."""

from __future__ import annotations

import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aiohttp import web

from queue_server.http import wire
from queue_server.http.state import STATE, State
from queue_server.observability.counters import Counter, Counters

try:
    VERSION = version("queue-server")
except PackageNotFoundError:
    VERSION = "0.1.0"  # run from a checkout

_POP_PHASES = {
    "wait": Counter.POP_WAIT_US,
    "lease": Counter.POP_LEASE_US,
    "query": Counter.POP_QUERY_US,
    "decode": Counter.POP_DECODE_US,
    "decrypt": Counter.POP_DECRYPT_US,
    "send": Counter.POP_SEND_US,
}


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
    pool = _pool(state)
    return web.json_response(
        {
            "status": "healthy",
            "database": "connected",
            "server": "queen",
            "version": VERSION,
            "uptime": f"{int(uptime)}s",
            "connections": 0,  # of WebSockets
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
    """Counters of the whole server; pool, memory and CPU are those of the worker that answers."""
    state = request.app[STATE]
    counters = state.counters
    uptime = max(counters.uptime_seconds(), 0.001)
    requests = counters.total(Counter.REQUESTS)
    messages = _messages(counters)
    open_ = counters.connections()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return web.json_response(
        {
            "uptime": round(uptime, 1),
            "requests": {"total": requests, "rate": round(requests / uptime, 2)},
            "messages": {"total": messages, "rate": round(messages / uptime, 2)},
            "connections": {"open": sum(open_), "byWorker": open_},
            "database": _pool(state),
            "memory": {
                "rss": _rss_bytes(),
                "heapTotal": 0,
                "heapUsed": 0,
                "external": 0,
                "arrayBuffers": 0,
            },
            "cpu": {"user": int(usage.ru_utime * 1e6), "system": int(usage.ru_stime * 1e6)},
            "counters": counters.totals(),
            "retries": counters.retries(),
            "popPhasesMs": {
                name: counters.total(counter) / 1000 for name, counter in _POP_PHASES.items()
            },
        }
    )


def _messages(counters: Counters) -> int:
    return counters.total(Counter.MESSAGES_PUSHED) + counters.total(Counter.MESSAGES_POPPED)


def _pool(state: State) -> dict[str, int]:
    stats = state.transactions.pool_stats()
    return {
        "poolSize": stats.get("pool_size", 0),
        "idleConnections": stats.get("pool_available", 0),
        "waitingRequests": stats.get("requests_waiting", 0),
    }


def _rss_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()
