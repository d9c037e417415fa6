"""The routes for operators and dashboards, beside those that move messages."""

from __future__ import annotations

from aiohttp import web

from queue_server.http.handlers import (
    analytics,
    consumer_groups,
    dead_letters,
    resources,
    status,
    stored_messages,
    traces,
)
from queue_server.http.handlers.stored_messages import by_address, by_transaction_id

# A name may hold anything but a slash that is not percent-encoded.
_QUEUE = "{queue:[^/]+}"
_PARTITION = "{partition:[^/]+}"
_RESOURCES = "/api/v1/resources"
_MESSAGE = "/api/v1/messages/{partition_id:[^/]+}/{transaction_id:[^/]+}"
# Of the first server's clients.
_MESSAGE_ID = "/api/v1/messages/{transaction_id:[^/]+}"
_GROUP = "/api/v1/consumer-groups/{group:[^/]+}"


def routes() -> list[web.RouteDef]:
    return [
        web.get(f"{_RESOURCES}/overview", resources.overview),
        web.get(f"{_RESOURCES}/namespaces", resources.namespaces),
        web.get(f"{_RESOURCES}/tasks", resources.tasks),
        web.get(f"{_RESOURCES}/partitions", resources.partitions),
        web.get(f"{_RESOURCES}/queues", resources.queues),
        web.get(f"{_RESOURCES}/queues/{_QUEUE}", resources.queue),
        web.get(f"{_RESOURCES}/queues/{_QUEUE}/depth", resources.depth),
        web.get("/api/v1/status", status.status),
        web.get("/api/v1/status/queues", status.queues),
        web.get(f"/api/v1/status/queues/{_QUEUE}", status.queue),
        web.get(f"/api/v1/status/queues/{_QUEUE}/messages", status.queue_messages),
        web.get("/api/v1/status/buffers", status.buffers),
        web.get("/api/v1/status/analytics", status.analytics),
        web.get("/api/v1/analytics/system-metrics", status.system_metrics),
        web.get("/api/v1/analytics/worker-metrics", status.worker_metrics),
        web.get("/api/v1/analytics/postgres-stats", status.postgres),
        web.get("/api/v1/analytics", analytics.labelled),
        web.get("/api/v1/analytics/queues", analytics.queues),
        web.get(f"/api/v1/analytics/queue/{_QUEUE}", analytics.queue),
        web.get("/api/v1/analytics/queue-depths", analytics.depths),
        web.post("/api/v1/stats/refresh", status.refresh),
        web.get("/api/v1/system/maintenance", status.maintenance),
        web.get("/api/v1/system/maintenance/pop", status.pop_maintenance),
        web.get("/api/v1/consumer-groups", resources.groups),
        web.get("/api/v1/consumer-groups/lagging", resources.lagging),
        web.get(_GROUP, resources.group),
        web.delete(_GROUP, consumer_groups.delete),
        web.delete(f"{_GROUP}/queues/{_QUEUE}", consumer_groups.delete),
        web.post(f"{_GROUP}/subscription", consumer_groups.restart),
        web.post(f"{_GROUP}/queues/{_QUEUE}/seek", consumer_groups.seek),
        web.post(
            f"{_GROUP}/queues/{_QUEUE}/partitions/{_PARTITION}/seek",
            consumer_groups.seek_partition,
        ),
        web.get("/api/v1/dlq", dead_letters.page),
        web.delete("/api/v1/dlq", dead_letters.purge),
        web.post("/api/v1/dlq/redrive", dead_letters.redrive),
        web.post("/api/v1/dlq/{id:[^/]+}/replay", dead_letters.replay),
        web.get("/api/v1/messages", stored_messages.page),
        # Before the address of a message, which it may be as well.
        web.get(f"{_MESSAGE_ID}/related", stored_messages.related),
        web.get(_MESSAGE, by_address(stored_messages.get)),
        web.delete(_MESSAGE, by_address(stored_messages.delete)),
        web.post(f"{_MESSAGE}/retry", dead_letters.retry),
        web.post(f"{_MESSAGE}/dlq", by_address(stored_messages.bury)),
        web.get(_MESSAGE_ID, by_transaction_id(stored_messages.get)),
        web.delete(_MESSAGE_ID, by_transaction_id(stored_messages.delete_by_id)),
        web.post(f"{_MESSAGE_ID}/retry", by_transaction_id(dead_letters.retry_message)),
        web.post(f"{_MESSAGE_ID}/dlq", by_transaction_id(stored_messages.bury)),
        web.delete(f"/api/v1/queues/{_QUEUE}/clear", stored_messages.clear),
        web.post("/api/v1/traces", traces.add),
        web.get("/api/v1/traces/names", traces.names),
        web.get("/api/v1/traces/by-name/{name:[^/]+}", traces.by_name),
        web.get("/api/v1/traces/{partition_id:[^/]+}/{transaction_id:[^/]+}", traces.of_message),
    ]
