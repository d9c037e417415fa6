"""The routes for operators and dashboards, beside those that move messages."""

from __future__ import annotations

from aiohttp import web

from queue_server.http.handlers import consumer_groups

# A name may hold anything but a slash that is not percent-encoded.
_QUEUE = "{queue:[^/]+}"
_PARTITION = "{partition:[^/]+}"
_GROUP = "/api/v1/consumer-groups/{group:[^/]+}"


def routes() -> list[web.RouteDef]:
    return [
        web.delete(_GROUP, consumer_groups.delete),
        web.delete(f"{_GROUP}/queues/{_QUEUE}", consumer_groups.delete),
        web.post(f"{_GROUP}/subscription", consumer_groups.restart),
        web.post(f"{_GROUP}/queues/{_QUEUE}/seek", consumer_groups.seek),
        web.post(
            f"{_GROUP}/queues/{_QUEUE}/partitions/{_PARTITION}/seek",
            consumer_groups.seek_partition,
        ),
    ]
