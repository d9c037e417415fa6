"""The whole route table."""

from __future__ import annotations

from aiohttp import web

from queue_server.http.handlers import health, leases, messages, queues


async def preflight(_request: web.Request) -> web.Response:
    """A browser asks what it may send; the answer is in the headers that every answer carries."""
    return web.Response(status=204)


def routes() -> list[web.RouteDef]:
    return [
        web.get("/health", health.health),
        web.get("/metrics", health.metrics),
        web.post("/api/v1/configure", queues.configure),
        web.post("/api/v1/push", messages.push),
        web.get("/api/v1/pop/queue/{queue}", messages.pop, allow_head=False),
        web.get("/api/v1/pop/queue/{queue}/partition/{partition}", messages.pop, allow_head=False),
        web.post("/api/v1/ack", messages.ack),
        web.post("/api/v1/ack/batch", messages.ack_batch),
        web.post("/api/v1/lease/{lease_id}/extend", leases.extend),
        web.delete("/api/v1/resources/queues/{queue}", queues.delete),
        web.options("/{path:.*}", preflight),
    ]
