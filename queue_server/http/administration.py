"""The routes for operators and dashboards, beside those that move messages."""

from __future__ import annotations

from queue_server.broker.stored_messages import OFFSET_MAX
from queue_server.domain.access import Access, Use
from queue_server.http import administration_wire as wire
from queue_server.http import answers_wire as answer
from queue_server.http.handlers import (
    analytics,
    consumer_groups,
    dashboard,
    dead_letters,
    internal,
    live,
    resources,
    series,
    status,
    stored_messages,
    traces,
)
from queue_server.http.handlers.stored_messages import by_address, by_transaction_id
from queue_server.http.route import Named, Query, Route
from queue_server.storage.dashboard import SeekPreview

_RESOURCES = "/api/v1/resources"
_MESSAGE = "/api/v1/messages/{partition_id}/{transaction_id}"
# Of the first server's clients.
_MESSAGE_ID = "/api/v1/messages/{transaction_id}"
_GROUP = "/api/v1/consumer-groups/{group}"
_DASHBOARD = "/api/v1/dashboard"

_LOOK_PATH = (Use.LOOK, Named.PATH)
_LOOK_QUERY = (Use.LOOK, Named.QUERY)
_LOOK_PARTITION = (Use.LOOK, Named.PARTITION)
_ADMINISTER_PATH = (Use.ADMINISTER, Named.PATH)
_ADMINISTER_PARTITION = (Use.ADMINISTER, Named.PARTITION)

_PAGE = (
    Query("limit", "entries at most", "integer", 1, 1000),
    Query("offset", "entries to skip", "integer", 0, 1_000_000),
)
_PARTITIONS = (
    Query("limit", "partitions at most, by name", "integer", 1, 10_000),
    Query("offset", "partitions to skip", "integer", 0, 1_000_000),
)
_RANGE = (
    Query("from", "ISO 8601 time", "time"),
    Query("to", "ISO 8601 time", "time"),
)
_QUEUES = (
    Query("queue", "the name of the queue"),
    Query("namespace", "of the queues"),
    Query("task", "of the queues"),
    Query("search", "a part of the queue's name"),
)
_LETTERS = (
    Query("queue", "where the messages lay"),
    Query("consumerGroup", "who gave them up"),
    Query("partition", "where the messages lay"),
    *_RANGE,
    Query("error", "the last reason; its first 500 characters count"),
    Query("errorContains", "a part of the last reason"),
)


def routes() -> list[Route]:
    return [
        *_resource_routes(),
        *_status_routes(),
        *_analytics_routes(),
        *_internal_routes(),
        *_group_routes(),
        *_dead_letter_routes(),
        *_message_routes(),
        *_trace_routes(),
        *_dashboard_routes(),
    ]


def _resource_routes() -> list[Route]:
    return [
        Route(
            "GET", f"{_RESOURCES}/overview", resources.overview,
            access=Access.READ, tag="Resources",
            summary="Everything in a few numbers",
            answers={200: answer.Overview},
        ),
        Route(
            "GET", f"{_RESOURCES}/namespaces", resources.namespaces,
            access=Access.READ, tag="Resources",
            summary="The namespaces, with what lies in their queues",
            answers={200: answer.Namespaces},
        ),
        Route(
            "GET", f"{_RESOURCES}/tasks", resources.tasks,
            access=Access.READ, tag="Resources",
            summary="The tasks, with what lies in their queues",
            answers={200: answer.Tasks},
        ),
        Route(
            "GET", f"{_RESOURCES}/partitions", resources.partitions,
            access=Access.READ, tag="Resources",
            summary="The partitions with the most messages to be read",
            query=(
                Query("queue", "of this queue alone"),
                Query("minDepth", "messages at least", "integer", 0),
                Query("limit", "entries at most", "integer", 1, 10_000),
            ),
            answers={200: answer.Partitions},
        ),
        Route(
            "GET", f"{_RESOURCES}/queues", resources.queues,
            access=Access.READ, tag="Resources",
            summary="The queues, with what lies in them",
            query=(*_QUEUES, *_PAGE), answers={200: answer.Queues},
        ),
        Route(
            "GET", f"{_RESOURCES}/queues/{{queue}}", resources.queue,
            access=Access.READ, scope=_LOOK_PATH, tag="Resources",
            summary="A queue with its partitions and options",
            query=_PARTITIONS,
            answers={200: answer.Queue}, errors=(404, 413),
        ),
        Route(
            "GET", f"{_RESOURCES}/queues/{{queue}}/depth", resources.depth,
            access=Access.READ, scope=_LOOK_PATH, tag="Resources",
            summary="What is to be read: by a group, or by the slowest reader of each partition",
            query=(
                Query("group", "the consumer group"),
                Query("partition", "list this one alone; the sums are those of all"),
                *_PARTITIONS,
            ),
            answers={200: answer.Depth}, errors=(404, 413),
        ),
    ]  # fmt: skip


def _status_routes() -> list[Route]:
    return [
        Route(
            "GET", "/api/v1/status", status.status,
            access=Access.READ, tag="Status",
            summary="Queues, leases, dead letters and workers at a glance",
            query=(*_QUEUES, *_RANGE), answers={200: answer.Status},
        ),
        Route(
            "GET", "/api/v1/status/queues", status.queues,
            access=Access.READ, tag="Status",
            summary="The queues, page by page",
            query=(*_QUEUES, *_PAGE), answers={200: answer.QueuesPage},
        ),
        Route(
            "GET", "/api/v1/status/queues/{queue}", status.queue,
            access=Access.READ, scope=_LOOK_PATH, tag="Status",
            summary="A queue with its partitions and their last activity",
            query=_PARTITIONS,
            answers={200: answer.QueueStatus}, errors=(404, 413),
        ),
        Route(
            "GET", "/api/v1/status/queues/{queue}/messages", status.queue_messages,
            access=Access.READ, scope=_LOOK_PATH, tag="Status",
            summary="The messages of a queue, newest first",
            query=_PAGE, answers={200: list[answer.ListedMessage]}, errors=(404, 413),
        ),
        Route(
            "GET", "/api/v1/status/buffers", status.buffers,
            access=Access.READ, tag="Status",
            summary="What is buffered outside the database",
            answers={200: answer.Buffers},
        ),
        Route(
            "GET", "/api/v1/status/analytics", series.analytics,
            access=Access.READ, tag="Status",
            summary="Messages pushed over time",
            query=(
                *_QUEUES, *_RANGE,
                Query("interval", "of a point", choices=("minute", "hour", "day")),
            ),
            answers={200: answer.Pushes},
        ),
        Route(
            "POST", "/api/v1/stats/refresh", status.refresh,
            access=Access.ADMIN, tag="Status",
            summary="Ask for figures to be computed anew",
            answers={200: answer.Refreshed},
        ),
        Route(
            "GET", "/ws/dashboard", live.dashboard,
            access=Access.READ, tag="Status",
            summary="A WebSocket that tells what happens, as {event, data, timestamp}",
            answers={101: None}, errors=(503,),
        ),
        Route(
            "GET", "/api/v1/system/maintenance", status.maintenance,
            access=Access.ADMIN, tag="System",
            summary="Whether the server is in maintenance, and what is held back",
            answers={200: answer.Maintenance},
        ),
        Route(
            "POST", "/api/v1/system/maintenance", status.switch_maintenance,
            access=Access.ADMIN, tag="System",
            summary="Hold pushes back, or let them through",
            body=wire.SwitchBody, answers={200: answer.MaintenanceSwitched},
        ),
        Route(
            "GET", "/api/v1/system/maintenance/pop", status.pop_maintenance,
            access=Access.ADMIN, tag="System",
            summary="Whether pops are in maintenance",
            answers={200: answer.PopMaintenance},
        ),
        Route(
            "POST", "/api/v1/system/maintenance/pop", status.switch_pop_maintenance,
            access=Access.ADMIN, tag="System",
            summary="Let pops bring nothing, or what there is",
            body=wire.SwitchBody, answers={200: answer.PopMaintenanceSwitched},
        ),
        Route(
            "GET", "/api/v1/system/shared-state", status.shared_state,
            access=Access.ADMIN, tag="System",
            summary="The cache that hosts share: there is none",
            answers={200: answer.SharedState},
        ),
    ]  # fmt: skip


def _internal_routes() -> list[Route]:
    return [
        Route(
            "POST", "/internal/api/notify", internal.notify,
            access=Access.ADMIN, tag="System",
            summary="Wake the pops that wait for a partition",
            body=wire.NotifyBody, answers={200: answer.Notified}, errors=(413,),
        ),
        Route(
            "GET", "/internal/api/shared-state/stats", status.shared_state,
            access=Access.ADMIN, tag="System",
            summary="The cache that hosts share: there is none",
            answers={200: answer.SharedState},
        ),
        Route(
            "GET", "/internal/api/inter-instance/stats", internal.instances,
            access=Access.ADMIN, tag="System",
            summary="How waiting pops were woken",
            answers={200: answer.Instances},
        ),
        Route(
            "GET", "/api/v1/migration/status", internal.copy_status,
            access=Access.ADMIN, tag="System",
            summary="Copying the database is left to PostgreSQL",
            answers={200: answer.CopyStatus},
        ),
        *(
            Route(
                "POST", f"/api/v1/migration/{step}", internal.copy,
                access=Access.ADMIN, tag="System",
                summary="Copying the database is left to PostgreSQL: refused",
                answers={}, errors=(404,),
            )
            for step in ("test-connection", "start", "validate", "reset")
        ),
    ]  # fmt: skip


def _analytics_routes() -> list[Route]:
    return [
        Route(
            "GET", "/api/v1/analytics/system-metrics", series.system_metrics,
            access=Access.READ, tag="Analytics",
            summary="Memory, CPU and database connections of each worker over time",
            query=(
                *_RANGE, Query("hostname", "of the worker"),
                Query("workerId", "its slot", "integer", 0, 2**31 - 1),
            ), answers={200: answer.SystemMetrics},
        ),
        Route(
            "GET", "/api/v1/analytics/worker-metrics", series.worker_metrics,
            access=Access.READ, tag="Analytics",
            summary="The workers over time, and their sums",
            query=_RANGE, answers={200: answer.WorkerMetrics},
        ),
        Route(
            "GET", "/api/v1/analytics/queue-lag", series.queue_lag,
            access=Access.READ, scope=_LOOK_QUERY, tag="Analytics",
            summary="How old messages were when delivered, and the oldest unread one, over time",
            query=(*_QUEUES, *_RANGE), answers={200: list[answer.QueueLagPoint]},
        ),
        Route(
            "GET", "/api/v1/analytics/queue-ops", series.queue_operations,
            access=Access.READ, scope=_LOOK_QUERY, tag="Analytics",
            summary="What was done to each queue over time",
            query=(*_QUEUES, *_RANGE), answers={200: answer.QueueOperations},
        ),
        Route(
            "GET", "/api/v1/analytics/queue-parked-replicas", series.parked_replicas,
            access=Access.READ, scope=_LOOK_QUERY, tag="Analytics",
            summary="At which workers pops wait for queues, over time",
            query=(Query("queue", "the name of the queue"), *_RANGE),
            answers={200: answer.ParkedReplicas},
        ),
        Route(
            "GET", "/api/v1/analytics/throughput", series.throughput,
            access=Access.READ, tag="Analytics",
            summary="Messages minute by minute, newest first",
            query=(
                *_QUEUES, Query("fromDateTime", "ISO 8601 time", "time"),
                Query("toDateTime", "ISO 8601 time", "time"),
            ),
            answers={200: answer.ThroughputByMinute},
        ),
        Route(
            "GET", "/api/v1/analytics/queue-stats", analytics.partition_stats,
            access=Access.READ, scope=_LOOK_QUERY, tag="Analytics",
            summary="What lies in each partition, page by page",
            query=(*_QUEUES, *_PAGE), answers={200: list[answer.PartitionStats]},
        ),
        Route(
            "GET", "/api/v1/analytics/postgres-stats", status.postgres,
            access=Access.READ, tag="Analytics",
            summary="PostgreSQL's own figures",
            answers={200: answer.PostgresStats},
        ),
        Route(
            "GET", "/api/v1/analytics", analytics.labelled,
            access=Access.READ, tag="Analytics",
            summary="The queues with a namespace, a task or both",
            query=(*_QUEUES, *_PAGE), answers={200: answer.AnalyticsQueues},
        ),
        Route(
            "GET", "/api/v1/analytics/queues", analytics.queues,
            access=Access.READ, tag="Analytics",
            summary="The queues, partition by partition; 5,000 partitions at most",
            query=(*_QUEUES, *_PAGE), answers={200: answer.AnalyticsQueues},
        ),
        Route(
            "GET", "/api/v1/analytics/queue/{queue}", analytics.queue,
            access=Access.READ, scope=_LOOK_PATH, tag="Analytics",
            summary="A queue, partition by partition",
            query=_PARTITIONS,
            answers={200: answer.AnalyticsQueue}, errors=(404, 413),
        ),
        Route(
            "GET", "/api/v1/analytics/queue-depths", analytics.depths,
            access=Access.READ, tag="Analytics",
            summary="What is still to be read, by partition; 5,000 partitions at most",
            query=(*_QUEUES, *_PAGE), answers={200: answer.QueueDepths},
        ),
    ]  # fmt: skip


def _group_routes() -> list[Route]:
    return [
        Route(
            "GET", "/api/v1/consumer-groups", resources.groups,
            access=Access.READ, tag="Consumer groups",
            summary="The groups: one entry for each group and queue",
            query=(
                Query("limit", "entries at most", "integer", 1, 10_000),
                _PAGE[1],
            ),
            answers={200: list[answer.Group]},
        ),
        Route(
            "GET", "/api/v1/consumer-groups/lagging", resources.lagging,
            access=Access.READ, tag="Consumer groups",
            summary="The 1,000 places at most in which groups are furthest behind",
            query=(
                Query("minLagSeconds", "how far", "integer", 0),
                Query("consumerGroup", "this one alone"),
                Query("queue", "on this one alone"),
            ),
            answers={200: list[answer.LaggingPartition]},
        ),
        Route(
            "GET", _GROUP, resources.group,
            access=Access.READ, tag="Consumer groups",
            summary="Where a group stands, by queue; 10,000 partitions at most",
            query=_PARTITIONS, answers={200: dict[str, answer.GroupOnQueue]}, errors=(413,),
        ),
        Route(
            "DELETE", _GROUP, consumer_groups.delete,
            access=Access.ADMIN, tag="Consumer groups",
            summary="Delete a group everywhere",
            query=(Query("deleteMetadata", "forget its subscriptions too (on)", "boolean"),),
            answers={200: answer.GroupDeleted}, errors=(413,),
        ),
        Route(
            "DELETE", f"{_GROUP}/queues/{{queue}}", consumer_groups.delete,
            access=Access.ADMIN, scope=_ADMINISTER_PATH, tag="Consumer groups",
            summary="Delete a group on one queue",
            query=(Query("deleteMetadata", "forget its subscription too (on)", "boolean"),),
            answers={200: answer.GroupDeleted}, errors=(413,),
        ),
        Route(
            "POST", f"{_GROUP}/subscription", consumer_groups.restart,
            access=Access.WRITE, tag="Consumer groups",
            summary="Change where a group starts in partitions it has not met yet",
            body=wire.SubscriptionBody, answers={200: answer.GroupRestarted},
        ),
        Route(
            "POST", f"{_GROUP}/queues/{{queue}}/seek", consumer_groups.seek,
            access=Access.WRITE, scope=_ADMINISTER_PATH, tag="Consumer groups",
            summary="Move a group in every partition of a queue",
            body=wire.SeekBody, body_required=False, answers={200: answer.Sought},
            errors=(404, 409),
        ),
        Route(
            "POST", f"{_GROUP}/queues/{{queue}}/partitions/{{partition}}/seek",
            consumer_groups.seek_partition,
            access=Access.WRITE, scope=_ADMINISTER_PATH, tag="Consumer groups",
            summary="Move a group in one partition; without a body to its end",
            body=wire.SeekBody, body_required=False, answers={200: answer.SoughtPartition},
            errors=(404, 409),
        ),
    ]  # fmt: skip


def _dead_letter_routes() -> list[Route]:
    return [
        Route(
            "GET", "/api/v1/dlq", dead_letters.page,
            access=Access.READ, scope=_LOOK_QUERY, tag="Dead letters",
            summary="The dead letters, newest first",
            query=(*_LETTERS, *_PAGE), answers={200: answer.DeadLetters},
        ),
        Route(
            "DELETE", "/api/v1/dlq", dead_letters.purge,
            access=Access.ADMIN, scope=(Use.ADMINISTER, Named.QUERY), tag="Dead letters",
            summary="Delete dead letters of a queue, which has to be given",
            query=(
                *_LETTERS,
                Query("limit", "the oldest so many; none below 1", "integer", 1),
            ),
            answers={200: answer.Purged},
        ),
        Route(
            "POST", "/api/v1/dlq/redrive", dead_letters.redrive,
            access=Access.WRITE, scope=(Use.ADMINISTER, Named.HANDLER), tag="Dead letters",
            summary="Move dead letters back to where they came from",
            body=wire.RedriveBody, answers={200: answer.Redriven}, errors=(409,),
        ),
        Route(
            "GET", "/api/v1/dlq/{id}", dead_letters.get,
            access=Access.READ, scope=(Use.LOOK, Named.HANDLER), tag="Dead letters",
            summary="One dead letter",
            answers={200: answer.DeadLetter}, errors=(404,),
        ),
        Route(
            "POST", "/api/v1/dlq/{id}/replay", dead_letters.replay,
            access=Access.WRITE, tag="Dead letters",
            summary="Move one dead letter back, or to where the body says",
            body=wire.ReplayBody, body_required=False, answers={200: answer.Replayed},
            errors=(404, 409),
        ),
    ]  # fmt: skip


def _message_routes() -> list[Route]:
    return [
        Route(
            "GET", "/api/v1/messages", stored_messages.page,
            access=Access.READ, scope=_LOOK_QUERY, tag="Stored messages",
            summary="The messages of the last hour, or of another time, newest first",
            query=(
                Query("queue", "the name of the queue"),
                Query("partition", "the name of the partition"),
                Query("namespace", "of the queue"),
                Query("ns", "another name of namespace"),
                Query("task", "of the queue"),
                Query(
                    "status", "of the messages; none is ever failed",
                    choices=("pending", "processing", "completed", "dead_letter", "failed"),
                ),
                Query("id", "of one message (`id`): it alone, on the queue or on any; else a 400"),
                *_RANGE,
                _PAGE[0],
                Query("offset", "entries to skip; more are a 400", "integer", 0, OFFSET_MAX),
            ),
            answers={200: answer.StoredMessages},
        ),
        # Before the address of a message, which it may be as well.
        Route(
            "GET", f"{_MESSAGE_ID}/related", stored_messages.related,
            access=Access.READ, tag="Stored messages",
            summary="The messages beside one",
            answers={200: answer.Related}, errors=(404, 409),
        ),
        Route(
            "GET", _MESSAGE, by_address(stored_messages.get),
            access=Access.READ, scope=_LOOK_PARTITION, tag="Stored messages",
            summary="A message, and who has read it",
            answers={200: answer.MessageDetail}, errors=(404,),
        ),
        Route(
            "DELETE", _MESSAGE, by_address(stored_messages.delete),
            access=Access.WRITE, scope=_ADMINISTER_PARTITION, tag="Stored messages",
            summary="Delete a message and its dead letters",
            answers={200: answer.MessageDeleted}, errors=(404,),
        ),
        Route(
            "POST", f"{_MESSAGE}/retry", dead_letters.retry,
            access=Access.WRITE, scope=_ADMINISTER_PARTITION, tag="Stored messages",
            summary="Move a message's newest dead letter back to its partition",
            answers={200: answer.Replayed}, errors=(404, 409),
        ),
        Route(
            "POST", f"{_MESSAGE}/dlq", by_address(stored_messages.bury),
            access=Access.WRITE, scope=_ADMINISTER_PARTITION, tag="Stored messages",
            summary="Make a pending message a dead letter",
            answers={200: answer.Buried}, errors=(404,),
        ),
        Route(
            "GET", _MESSAGE_ID, by_transaction_id(stored_messages.get),
            access=Access.READ, tag="Stored messages",
            summary="A message, named by its transaction id alone",
            answers={200: answer.MessageDetail}, errors=(404, 409),
        ),
        Route(
            "DELETE", _MESSAGE_ID, by_transaction_id(stored_messages.delete_by_id),
            access=Access.WRITE, tag="Stored messages",
            summary="Delete a message, named by its transaction id alone",
            answers={200: answer.MessageDeletedById}, errors=(404, 409),
        ),
        Route(
            "POST", f"{_MESSAGE_ID}/retry", by_transaction_id(dead_letters.retry_message),
            access=Access.WRITE, tag="Stored messages",
            summary="Move a message's newest dead letter back, named by its transaction id alone",
            answers={200: answer.Replayed}, errors=(404, 409),
        ),
        Route(
            "POST", f"{_MESSAGE_ID}/dlq", by_transaction_id(stored_messages.bury),
            access=Access.WRITE, tag="Stored messages",
            summary="Make a message a dead letter, named by its transaction id alone",
            answers={200: answer.Buried}, errors=(404, 409),
        ),
        Route(
            "DELETE", "/api/v1/queues/{queue}/clear", stored_messages.clear,
            access=Access.ADMIN, scope=_ADMINISTER_PATH, tag="Queues",
            summary="Delete all messages of a queue or of one of its partitions",
            query=(Query("partition", "without it: all"),),
            answers={200: answer.Cleared}, errors=(404, 413),
        ),
    ]  # fmt: skip


def _trace_routes() -> list[Route]:
    return [
        Route(
            "POST", "/api/v1/traces", traces.add,
            access=Access.WRITE, scope=(Use.POP, Named.HANDLER), tag="Traces",
            summary="Attach an event to a message",
            body=wire.TraceBody, answers={201: answer.Traced}, errors=(404,),
        ),
        Route(
            "GET", "/api/v1/traces/names", traces.names,
            access=Access.READ, tag="Traces",
            summary="The names that events have",
            query=_PAGE, answers={200: answer.TraceNames},
        ),
        Route(
            "GET", "/api/v1/traces/by-name/{name}", traces.by_name,
            access=Access.READ, tag="Traces",
            summary="The events with a name",
            query=(*_RANGE, *_PAGE), answers={200: answer.NamedTraces},
        ),
        Route(
            "GET", "/api/v1/traces/{partition_id}/{transaction_id}", traces.of_message,
            access=Access.READ, scope=_LOOK_PARTITION, tag="Traces",
            summary="The events of a message, oldest first",
            query=_PAGE,
            answers={200: answer.Traces},
        ),
    ]  # fmt: skip


def _dashboard_routes() -> list[Route]:
    queue = f"{_DASHBOARD}/queues/{{queue}}"
    search = Query("search", "a part of the name")
    return [
        Route(
            "GET", f"{_DASHBOARD}/identity", dashboard.identity,
            access=Access.READ, scope=(Use.LOOK, Named.HANDLER), tag="Dashboard",
            summary="Who asks, and what that credential opens",
            answers={200: answer.Identity},
        ),
        Route(
            "GET", f"{_DASHBOARD}/workers", dashboard.workers,
            access=Access.READ, tag="Dashboard",
            summary="The workers of all servers on the database",
            answers={200: answer.WorkersNow},
        ),
        Route(
            "GET", f"{_DASHBOARD}/throughput", dashboard.throughput,
            access=Access.READ, tag="Dashboard",
            summary="The last five minutes of all servers on the database, by the second",
            answers={200: answer.ThroughputSamples},
        ),
        Route(
            "GET", f"{_DASHBOARD}/queues", dashboard.queues,
            access=Access.READ, scope=(Use.LOOK, Named.HANDLER), tag="Dashboard",
            summary="Queues; of many those with the most or oldest unread messages",
            query=(
                Query("queue", "the name of the queue"),
                Query("search", "a part of its name, namespace or task"),
            ),
            answers={200: answer.QueueRows},
        ),
        Route(
            "GET", f"{queue}/options", dashboard.queue_options,
            access=Access.READ, scope=_LOOK_PATH, tag="Dashboard",
            summary="The options of a queue as they are stored, null where nobody set one",
            answers={200: answer.StoredOptions}, errors=(404,),
        ),
        Route(
            "GET", f"{queue}/partitions", dashboard.partitions,
            access=Access.READ, scope=_LOOK_PATH, tag="Dashboard",
            summary="The partitions of a queue by the page, those with the most unread first",
            query=(search, Query("sort", "by which", choices=("depth", "name")), *_PAGE),
            answers={200: answer.PartitionRows}, errors=(404,),
        ),
        Route(
            "GET", f"{queue}/groups", dashboard.queue_groups,
            access=Access.READ, scope=_LOOK_PATH, tag="Dashboard",
            summary="How far the groups of a queue are behind",
            answers={200: answer.GroupRows}, errors=(404,),
        ),
        Route(
            "GET", f"{queue}/groups/{{group}}/partitions", dashboard.group_partitions,
            access=Access.READ, scope=_LOOK_PATH, tag="Dashboard",
            summary="A group's places in a queue by the page, the furthest behind first",
            query=(search, *_PAGE), answers={200: answer.GroupPartitionRows}, errors=(404,),
        ),
        Route(
            "GET", f"{queue}/groups/{{group}}/seek-preview", dashboard.preview_seek,
            access=Access.READ, scope=_LOOK_PATH, tag="Dashboard",
            summary="What a seek would pass over and read again",
            query=(
                Query("toEnd", "behind the newest message", "boolean"),
                Query("timestamp", "before the first message since then", "time"),
                Query("partition", "in this one alone"),
            ),
            answers={200: SeekPreview}, errors=(404,),
        ),
        Route(
            "GET", f"{_DASHBOARD}/dead-letter-errors", dashboard.dead_letter_errors,
            access=Access.READ, scope=_LOOK_QUERY, tag="Dashboard",
            summary="Dead letters by queue and reason, the most frequent first",
            query=(Query("queue", "the name of the queue"),), answers={200: answer.ErrorRows},
        ),
        Route(
            "GET", "/api/v1/system/settings", dashboard.settings,
            access=Access.ADMIN, tag="System",
            summary="The server's settings; of a secret, whether it is set",
            answers={200: answer.SettingRows},
        ),
        Route(
            "GET", "/api/v1/system/migrations", dashboard.migrations,
            access=Access.ADMIN, tag="System",
            summary="The schema's files, as they were applied to the database",
            answers={200: answer.SchemaFiles},
        ),
    ]  # fmt: skip
