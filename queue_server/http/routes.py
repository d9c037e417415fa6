"""The whole route table."""

from __future__ import annotations

from aiohttp import web

from queue_server.http import administration
from queue_server.http.handlers import health, leases, messages, queues, retention, transactions

# A name may hold anything but a slash that is not percent-encoded.
_QUEUE = "{queue:[^/]+}"
_PARTITION = "{partition:[^/]+}"


def routes() -> list[web.RouteDef]:
    return [*_messaging_routes(), *administration.routes()]


def _messaging_routes() -> list[web.RouteDef]:
    return [
        web.get("/health", health.health),
        web.get("/livez", health.livez),
        web.get("/readyz", health.readyz),
        web.get("/metrics", health.metrics),
        web.post("/api/v1/configure", queues.configure),
        web.post("/api/v1/push", messages.push),
        web.get(f"/api/v1/pop/queue/{_QUEUE}", messages.pop, allow_head=False),
        web.get(
            f"/api/v1/pop/queue/{_QUEUE}/partition/{_PARTITION}", messages.pop, allow_head=False
        ),
        web.get("/api/v1/pop", messages.pop, allow_head=False),
        web.post("/api/v1/ack", messages.ack),
        web.post("/api/v1/ack/batch", messages.ack_batch),
        web.post("/api/v1/transaction", transactions.execute),
        web.post("/api/v1/lease/{lease_id:[^/]+}/extend", leases.extend),
        web.delete(f"/api/v1/resources/queues/{_QUEUE}", queues.delete),
        web.get("/api/v1/analytics/retention", retention.history),
    ]
