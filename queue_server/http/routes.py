"""The whole route table: what moves messages, and http/administration.py for the rest."""

from __future__ import annotations

from queue_server.broker.ack import Ack
from queue_server.domain.access import Access, Use
from queue_server.http import administration, wire
from queue_server.http import answers_wire as answer
from queue_server.http.handlers import (
    document,
    health,
    leases,
    messages,
    queues,
    retention,
    transactions,
)
from queue_server.http.route import Content, Named, Query, Route

_POP = (
    Query("batch", "messages at most", "integer", 1, messages.BATCH_MAX),
    Query(
        "partitions", "partitions claimed at most", "integer", 1, messages.PARTITIONS_MAX
    ),
    Query("wait", "wait until there is something", "boolean"),
    Query("timeout", "milliseconds to wait at most", "integer", 0),
    Query("consumerGroup", "without it: queue mode"),
    Query("autoAck", "commit on delivery: no lease, at most once", "boolean"),
    Query("commitOnDelivery", "another name of autoAck", "boolean"),
    Query(
        "subscriptionMode", "where a new group starts",
        choices=("all", "from_beginning", "new", "new-only"),
    ),
    Query("subscriptionFrom", "where a new group starts: now, all, or an ISO 8601 time"),
    Query(
        "leaseSeconds", "instead of the queue's; 0 = the queue's", "integer", 0,
        messages.LEASE_SECONDS_MAX,
    ),
    Query("autopilot", "the server chooses batch and partitions", "boolean"),
    Query("conflation", "the newest message of each partition alone", "boolean"),
)  # fmt: skip
_LABELS = (Query("namespace", "of the queues"), Query("task", "of the queues"))
_RANGE = (
    Query("from", "ISO 8601 time", "time"),
    Query("to", "ISO 8601 time", "time"),
)


def routes() -> list[Route]:
    return [*_messaging_routes(), *administration.routes()]


def _messaging_routes() -> list[Route]:
    return [
        Route(
            "GET", "/health", health.health,
            access=Access.READ, tag="Health",
            summary="Would a push succeed, with some figures",
            answers={200: answer.Healthy, 503: answer.Unhealthy},
        ),
        Route(
            "GET", "/livez", health.livez,
            access=Access.READ, tag="Health",
            summary="Does the process answer",
            answers={200: answer.Alive},
        ),
        Route(
            "GET", "/readyz", health.readyz,
            access=Access.READ, tag="Health",
            summary="Should requests be sent here",
            answers={200: answer.Ready, 503: answer.NotReady},
        ),
        Route(
            "GET", "/metrics", health.metrics,
            access=Access.READ, tag="Health",
            summary="What happened so far, in numbers",
            answers={200: answer.Metrics},
        ),
        Route(
            "GET", "/metrics/prometheus", health.prometheus,
            access=Access.READ, tag="Health",
            summary="The same and more, for Prometheus",
            answers={200: Content("text/plain")},
        ),
        Route(
            "GET", "/openapi.json", document.openapi,
            access=Access.PUBLIC, tag="Documentation",
            summary="This document",
            answers={200: dict},
        ),
        Route(
            "GET", "/docs/api", document.page,
            access=Access.PUBLIC, tag="Documentation",
            summary="This document, to be read in a browser",
            answers={200: Content("text/html")},
        ),
        Route(
            "POST", "/api/v1/configure", queues.configure,
            access=Access.WRITE, scope=(Use.ADMINISTER, Named.HANDLER), tag="Queues",
            summary="Make a queue, or change its options",
            body=wire.ConfigureBody, answers={201: answer.Configured}, errors=(409,),
        ),
        Route(
            "POST", "/api/v1/push", messages.push,
            access=Access.PRODUCE, scope=(Use.PUSH, Named.HANDLER), tag="Messages",
            summary="Store messages; each gets its own result",
            body=wire.PushBody, answers={201: list[answer.PushEntry]}, errors=(409,),
        ),
        Route(
            "GET", "/api/v1/pop/queue/{queue}", messages.pop,
            access=Access.WRITE, scope=(Use.POP, Named.PATH), tag="Messages",
            summary="Take messages from any partition of a queue",
            query=_POP, answers={200: answer.Popped, 204: None}, errors=(409, 413),
        ),
        Route(
            "GET", "/api/v1/pop/queue/{queue}/partition/{partition}", messages.pop,
            access=Access.WRITE, scope=(Use.POP, Named.PATH), tag="Messages",
            summary="Take messages from one partition",
            query=_POP, answers={200: answer.Popped, 204: None}, errors=(409, 413),
        ),
        Route(
            "GET", "/api/v1/pop", messages.pop,
            access=Access.WRITE, scope=(Use.POP, Named.HANDLER), tag="Messages",
            summary="Take messages from queues with a namespace, a task or both",
            query=(*_LABELS, *_POP), answers={200: answer.Popped, 204: None}, errors=(409, 413),
        ),
        Route(
            "POST", "/api/v1/ack", messages.ack,
            access=Access.WRITE, scope=(Use.POP, Named.HANDLER), tag="Messages",
            summary="Acknowledge one message",
            body=Ack, answers={200: list[answer.AckResult]},
        ),
        Route(
            "POST", "/api/v1/ack/batch", messages.ack_batch,
            access=Access.WRITE, scope=(Use.POP, Named.HANDLER), tag="Messages",
            summary="Acknowledge messages; each gets its own result",
            body=wire.AckBatchBody, answers={200: list[answer.AckResult]},
        ),
        Route(
            "POST", "/api/v1/transaction", transactions.execute,
            access=Access.WRITE, scope=(Use.POP, Named.HANDLER), tag="Messages",
            summary="Pushes and acknowledgements that happen together or not at all",
            body=wire.TransactionBody, answers={200: answer.Transacted}, errors=(409,),
        ),
        Route(
            "POST", "/api/v1/lease/{lease_id}/extend", leases.extend,
            access=Access.WRITE, scope=(Use.POP, Named.HANDLER), tag="Messages",
            summary="Keep a lease for longer",
            body=wire.ExtendBody, body_required=False, answers={200: answer.Extended},
        ),
        Route(
            "DELETE", "/api/v1/resources/queues/{queue}", queues.delete,
            access=Access.ADMIN, scope=(Use.ADMINISTER, Named.PATH), tag="Queues",
            summary="Delete a queue with all that is in it",
            answers={200: answer.QueueDeleted}, errors=(413,),
        ),
        Route(
            "GET", "/api/v1/analytics/retention", retention.history,
            access=Access.READ, tag="Analytics",
            summary="What retention and eviction deleted, over time",
            query=_RANGE, answers={200: answer.RetentionHistory},
        ),
    ]  # fmt: skip
