"""The figures of the whole server in Prometheus' text format.

What happened in the workers comes from their shared rows, so any worker answers for all. What lies
in the database comes from the figures of one look, and is left out while there is none. The names
are those of docs/monitoring.md; those that begin with `queen_` are the first broker's, for its
dashboards (source: wire-api 3.3).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from queue_server.observability.counters import (
    BATCH_MESSAGES,
    FLUSH_DURATION,
    FLUSH_REQUESTS,
    LOOP_LAG,
    REQUEST_DURATION,
    REQUEST_STATUS,
    STATUS_CLASSES,
    Counter,
    Counters,
    Histogram,
    Life,
    Operation,
    RouteGroup,
)
from queue_server.storage.figures import Figures, QueueFigures, QueueMinute
from queue_server.storage.maintenance import Modes
from queue_server.storage.statistics import GroupStatistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The queue label of all queues that have no series of their own. A queue may have this name only
# if somebody means to confuse.
OTHER_QUEUES = "__other__"

POP_PHASES = {
    "wait": Counter.POP_WAIT_US,
    "lease": Counter.POP_LEASE_US,
    "query": Counter.POP_QUERY_US,
    "decode": Counter.POP_DECODE_US,
    "decrypt": Counter.POP_DECRYPT_US,
    "send": Counter.POP_SEND_US,
}

_PREFIX = "queue_server_"

_COUNTERS = (
    (Counter.MESSAGES_PUSHED, "messages_pushed", "Messages stored, without duplicates."),
    (Counter.MESSAGES_DUPLICATE, "messages_duplicate", "Pushed messages that were stored already."),
    (Counter.MESSAGES_POPPED, "messages_popped", "Messages handed out, again and again included."),
    (Counter.MESSAGES_ACKED, "messages_acked", "Messages acknowledged as completed."),
    (Counter.MESSAGES_FAILED, "messages_failed", "Messages acknowledged as failed."),
    (
        Counter.MESSAGES_DEAD_LETTERED,
        "messages_dead_lettered",
        "Messages that became dead letters.",
    ),
    (Counter.POP_REQUESTS_EMPTY, "empty_pops", "Pops that ended without a message."),
    (Counter.BYTES_RECEIVED, "received_bytes", "Bodies of pushes and transactions."),
    (Counter.BYTES_SENT, "sent_bytes", "Bodies of answers to pushes, pops and acknowledgements."),
    (Counter.LEASES_GRANTED, "leases_granted", "Leases, one for each partition of a pop."),
    (
        Counter.LEASES_TAKEN_OVER,
        "leases_taken_over",
        "Pops of a partition whose last lease had run out unacknowledged.",
    ),
    (
        Counter.LEASES_GIVEN_BACK,
        "leases_given_back",
        "Leases that ended at once, because nobody received the answer.",
    ),
    (
        Counter.ACKS_REFUSED,
        "acks_refused",
        "Messages acknowledged under a lease that was over: too late.",
    ),
    (
        Counter.POPS_UNREADABLE,
        "unreadable_pops",
        "Partitions that a pop passed over, because their next message could not be decrypted.",
    ),
    (Counter.FLOOR_POLLS, "floor_polls", "Looks at the database for parked pops."),
    (
        Counter.WORKER_RESTARTS,
        "worker_restarts",
        "Workers replaced because they had died or hung.",
    ),
    (Counter.DATABASE_RESTARTS, "database_restarts", "Restarts of the embedded PostgreSQL."),
)

_WAKE_UPS = {
    "own_worker": Counter.WAKE_UPS_TOLD,
    "other_worker": Counter.WAKE_UPS_RECEIVED,
    "floor_poll": Counter.FLOOR_POLL_HITS,
}

_TRANSACTIONS = {
    "push": Counter.PUSH_TRANSACTIONS,
    "pop": Counter.POP_TRANSACTIONS,
    "ack": Counter.ACK_TRANSACTIONS,
}

_WORKER_GAUGES = (
    (Life.READY, "worker_ready", "1 while the worker accepts requests."),
    (Life.CONNECTIONS, "connections", "Open connections of clients."),
    (Life.PARKED_POPS, "parked_pops", "Pops that may wait, under way."),
    (Life.POOL_SIZE, "pool_connections", "Connections to the database."),
    (
        Life.POOL_AVAILABLE,
        "pool_available_connections",
        "Connections to the database that nobody uses.",
    ),
    (Life.POOL_WAITING, "pool_waiting", "Transactions that wait for a connection."),
    (
        Life.PARTITIONS_UNREADABLE,
        "unreadable_partitions",
        "Partitions that pops leave out, because their next message cannot be decrypted.",
    ),
    (Life.RESIDENT_BYTES, "worker_resident_memory_bytes", "Resident memory."),
    (Life.VIRTUAL_BYTES, "worker_virtual_memory_bytes", "Virtual memory."),
)

_QUEUE_GAUGES: Sequence[tuple[str, str, Callable[[QueueFigures], float]]] = (
    ("queue_partitions", "Partitions.", lambda q: q.partition_count),
    ("queue_messages", "Messages stored, acknowledged ones included.", lambda q: q.message_count),
    (
        "queue_depth_messages",
        "Messages that the slowest consumer in use has not acknowledged, those under a lease"
        " included.",
        lambda q: q.depth,
    ),
    (
        "queue_scheduled_messages",
        "Messages of the depth that are not due yet (delayedProcessing, windowBuffer).",
        lambda q: q.scheduled_count,
    ),
    (
        "queue_leased_messages",
        "Messages under a live lease of queue mode or, without it, of the group with the most.",
        lambda q: q.leased_count,
    ),
    (
        "queue_oldest_message_age_seconds",
        "Time since the oldest message was due that the slowest consumer in use has not"
        " acknowledged.",
        lambda q: q.oldest_age_s,
    ),
    ("queue_dead_letters", "Dead letters.", lambda q: q.dead_letter_count),
    (
        "queue_limited_messages",
        "Messages that count against the queue's maxSize; 0 without one.",
        lambda q: q.limited,
    ),
    ("queue_max_messages", "The queue's maxSize; 0: no limit.", lambda q: q.max_size),
    (
        "queue_recently_acked_messages",
        "Messages that groups acknowledged in the last five minutes, on all servers.",
        lambda q: q.acked_recently,
    ),
    (
        "queue_recently_failed_messages",
        "Messages that groups reported as failed in the last five minutes, on all servers.",
        lambda q: q.failed_recently,
    ),
)

_GROUP_GAUGES: Sequence[tuple[str, str, Callable[[GroupStatistics], float]]] = (
    (
        "group_lag_messages",
        "Messages of a queue that a consumer group has not acknowledged; __QUEUE_MODE__ is queue"
        " mode.",
        lambda g: g.lag,
    ),
    (
        "group_lag_seconds",
        "Time since the oldest message of a queue was due that a consumer group has not"
        " acknowledged.",
        lambda g: g.lag_s_max,
    ),
    (
        "group_scheduled_messages",
        "Messages of a consumer group's lag that are not due yet.",
        lambda g: g.scheduled,
    ),
    (
        "group_counted",
        "1: the queue's depth and age count the group; 0: it is idle, and others are not.",
        lambda g: g.counted,
    ),
    (
        "group_last_active_time_seconds",
        "When a consumer group last popped or acknowledged, in Unix time.",
        lambda g: g.seen_at.timestamp(),
    ),
)


def render(
    counters: Counters,
    figures: Figures | None,
    modes: Modes,
    *,
    database_up: bool,
    now: float,
    data_dir: Path | None,
) -> bytes:
    """Render the exposition.

    *now* is by CLOCK_MONOTONIC; *data_dir* is the embedded PostgreSQL's, None with a given one.
    """
    registry = CollectorRegistry()
    registry.register(_Collected(_metrics(counters, figures, modes, database_up, now, data_dir)))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _metrics(
    counters: Counters,
    figures: Figures | None,
    modes: Modes,
    database_up: bool,
    now: float,
    data_dir: Path | None,
) -> Iterator[Metric]:
    yield _gauge(
        "start_time_seconds",
        "When the server started, in Unix time.",
        counters.supervisor.get(Life.STARTED_AT_MS) / 1000,
    )
    yield _gauge("workers", "Worker slots.", counters.worker_count)
    yield _gauge(
        "encrypted_queues_without_key",
        "Encrypted queues, while this server has no key for them: it refuses their pushes.",
        max(counters.states(Life.QUEUES_WITHOUT_KEY)),
    )
    yield _gauge(
        "encryption_keys_missing",
        "Keys that this server does not have and that something stored is encrypted with.",
        max(counters.states(Life.KEYS_MISSING)),
    )
    if ends_at := counters.supervisor.get(Life.CERTIFICATE_ENDS_AT_S):
        yield _gauge(
            "certificate_end_time_seconds", "When the TLS certificate ends, in Unix time.", ends_at
        )
    if data_dir is not None:
        yield from _disk(data_dir)
    yield from _requests(counters)
    for counter, name, text in _COUNTERS:
        yield _counter(name, text, counters.total(counter))
    yield from _operations(counters)
    yield _labelled_counter(
        "wake_ups",
        "Parked pops that were woken, by who told.",
        "source",
        {source: counters.total(counter) for source, counter in _WAKE_UPS.items()},
    )
    yield _labelled_counter(
        "transaction_retries",
        "Transactions run again, by the SQLSTATE that ended the attempt.",
        "reason",
        counters.retries(),
    )
    yield from _workers(counters)
    maintenance = GaugeMetricFamily(
        _PREFIX + "maintenance",
        "1 while pushes are held back, or pops bring nothing.",
        labels=("operation",),
    )
    maintenance.add_metric(("push",), int(modes.push))
    maintenance.add_metric(("pop",), int(modes.pop))
    yield maintenance
    yield _gauge("database_up", "1 while a push would be carried out.", int(database_up))
    if figures is not None:
        yield from _queues(figures)
        yield from _database(figures, now)
    yield from _first_broker_s(counters, figures, modes)


def _disk(data_dir: Path) -> Iterator[Metric]:
    with contextlib.suppress(OSError):  # nothing is known of a disk that is gone
        disk = shutil.disk_usage(data_dir)
        yield _gauge("data_disk_size_bytes", "Size of the data directory's disk.", disk.total)
        yield _gauge("data_disk_free_bytes", "What is free of it.", disk.free)


def _requests(counters: Counters) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        _PREFIX + "requests",
        "Requests answered; status left: the client went before its answer.",
        labels=("route", "status"),
    )
    durations = HistogramMetricFamily(
        _PREFIX + "request_duration_seconds",
        "From a request's headers to the end of its answer.",
        labels=("route",),
    )
    for group in RouteGroup:
        route = group.name.lower()
        for status, count in zip(
            STATUS_CLASSES, counters.buckets(REQUEST_STATUS[group])[0], strict=True
        ):
            requests.add_metric((route, status), count)
        _add(durations, (route,), counters, REQUEST_DURATION[group], unit=1e-6)
    yield requests
    yield durations


def _operations(counters: Counters) -> Iterator[Metric]:
    yield _labelled_counter(
        "pop_phase_seconds",
        "Where pops spend their time; lease once for all that share a transaction.",
        "phase",
        {phase: counters.total(counter) / 1e6 for phase, counter in POP_PHASES.items()},
    )
    yield _labelled_counter(
        "transactions",
        "Transactions behind the requests.",
        "operation",
        {operation: counters.total(counter) for operation, counter in _TRANSACTIONS.items()},
    )
    for name, text, histograms, unit in (
        ("batch_messages", "Messages of a request or its answer.", BATCH_MESSAGES, 1.0),
        ("flush_requests", "Requests that shared a transaction.", FLUSH_REQUESTS, 1.0),
        (
            "flush_duration_seconds",
            "How long such a transaction took, its commit included.",
            FLUSH_DURATION,
            1e-6,
        ),
    ):
        family = HistogramMetricFamily(_PREFIX + name, text, labels=("operation",))
        for operation in Operation:
            _add(family, (operation.name.lower(),), counters, histograms[operation], unit)
        yield family


def _workers(counters: Counters) -> Iterator[Metric]:
    for state, name, text in _WORKER_GAUGES:
        gauge = GaugeMetricFamily(_PREFIX + name, text, labels=("worker",))
        for slot, value in enumerate(counters.states(state)):
            gauge.add_metric((str(slot),), value)
        yield gauge
    waits = CounterMetricFamily(
        _PREFIX + "pool_waits",
        "Transactions that had to wait for a connection.",
        labels=("worker",),
    )
    wait_seconds = CounterMetricFamily(
        _PREFIX + "pool_wait_seconds", "How long these waited.", labels=("worker",)
    )
    cpu = CounterMetricFamily(
        _PREFIX + "worker_cpu_seconds", "CPU time of the worker.", labels=("worker", "mode")
    )
    lag = HistogramMetricFamily(
        _PREFIX + "event_loop_lag_seconds",
        "How late the event loop wakes who slept for a second.",
        labels=("worker",),
    )
    for slot in range(counters.worker_count):
        row, worker = counters.worker(slot), str(slot)
        waits.add_metric((worker,), row.get(Life.POOL_WAITS))
        wait_seconds.add_metric((worker,), row.get(Life.POOL_WAIT_MS) / 1000)
        cpu.add_metric((worker, "user"), row.get(Counter.CPU_USER_US) / 1e6)
        cpu.add_metric((worker, "system"), row.get(Counter.CPU_SYSTEM_US) / 1e6)
        _add(lag, (worker,), counters, LOOP_LAG, unit=1e-6, slot=slot)
    yield from (waits, wait_seconds, cpu, lag)


def _queues(figures: Figures) -> Iterator[Metric]:
    yield _gauge("queues", "Queues.", sum(queue.queue_count for queue in figures.queues))
    for name, text, value_of in _QUEUE_GAUGES:
        gauge = GaugeMetricFamily(_PREFIX + name, text, labels=("queue",))
        for queue in figures.queues:
            gauge.add_metric((_label(queue),), value_of(queue))
        yield gauge
    for name, text, lag_of in _GROUP_GAUGES:
        gauge = GaugeMetricFamily(_PREFIX + name, text, labels=("queue", "group"))
        for group in figures.groups:
            gauge.add_metric((group.queue, group.group), lag_of(group))
        yield gauge


def _database(figures: Figures, now: float) -> Iterator[Metric]:
    yield _gauge(
        "figures_age_seconds",
        "How long ago the database was asked for the figures of queues and of itself.",
        now - figures.taken_at,
    )
    yield _gauge("leases", "Live leases.", figures.lease_count)
    yield _gauge("held_messages", "Messages that maintenance holds back.", figures.held_count)
    yield _gauge(
        "held_messages_failed",
        "Messages held back by maintenance that could not be stored; others pass them.",
        figures.held_failed_count,
    )
    yield _gauge("database_size_bytes", "Size of the database.", figures.database.size_bytes)
    yield _gauge(
        "database_connections", "Connections to the database.", figures.database.connections
    )
    yield _gauge(
        "database_server_connections",
        "Connections to all databases of the PostgreSQL server.",
        figures.connections,
    )
    yield _gauge("database_server_connections_max", "Its max_connections.", figures.connections_max)
    yield _gauge(
        "database_kept_log_bytes",
        "Write-ahead log that replication slots without a reader keep.",
        figures.kept_log_bytes,
    )
    yield _gauge(
        "database_oldest_xmin_age_transactions",
        "Age of the oldest snapshot: rows that died since cannot be removed.",
        figures.xmin_age,
    )
    yield _gauge(
        "database_oldest_transaction_seconds",
        "How long the oldest transaction that holds a snapshot has been open.",
        figures.oldest_transaction_s,
    )
    for name, text, values in (
        ("live_rows", "Rows, as estimated.", {t.name: t.live_rows for t in figures.tables}),
        (
            "dead_rows",
            "Dead row versions, as estimated.",
            {t.name: t.dead_rows for t in figures.tables},
        ),
        (
            "size_bytes",
            "Size with indexes; that of segments is what messages take.",
            {t.name: t.total_bytes for t in figures.tables},
        ),
    ):
        gauge = GaugeMetricFamily(f"{_PREFIX}table_{name}", text, labels=("table",))
        for table, value in values.items():
            gauge.add_metric((table,), value)
        yield gauge


def _first_broker_s(counters: Counters, figures: Figures | None, modes: Modes) -> Iterator[Metric]:
    """The families of broker 0.15.1 that have a meaning here."""

    def gauge(name: str, text: str, value: float) -> Metric:
        return GaugeMetricFamily(f"queen_{name}", text, value)

    def cluster(name: str, text: str, counter: Counter) -> Metric:
        family = CounterMetricFamily(f"queen_cluster_{name}", text, labels=("scope",))
        family.add_metric(("cluster",), counters.total(counter))
        return family

    yield gauge("uptime_seconds", "How long ago the server started.", counters.uptime_seconds())
    yield gauge("maintenance_mode_enabled", "1 while pushes are held back.", int(modes.push))
    for mode, counter in (("user", Counter.CPU_USER_US), ("system", Counter.CPU_SYSTEM_US)):
        yield CounterMetricFamily(
            f"queen_cpu_{mode}_microseconds",
            "CPU time of all workers.",
            counters.total(counter),
        )
    resident, virtual, size, available = (
        sum(counters.states(state))
        for state in (
            Life.RESIDENT_BYTES,
            Life.VIRTUAL_BYTES,
            Life.POOL_SIZE,
            Life.POOL_AVAILABLE,
        )
    )
    yield gauge("process_resident_memory_bytes", "Resident memory of all workers.", resident)
    yield gauge("process_virtual_memory_bytes", "Virtual memory of all workers.", virtual)
    yield gauge("db_pool_size", "Connections to the database.", size)
    yield gauge("db_pool_idle", "Connections that nobody uses.", available)
    yield gauge("db_pool_active", "Connections in use.", size - available)
    yield cluster("push_requests", "Pushes.", Counter.PUSH_REQUESTS)
    yield cluster("pop_requests", "Pops.", Counter.POP_REQUESTS)
    yield cluster("ack_requests", "Acknowledgements.", Counter.ACK_REQUESTS)
    yield cluster("push_messages", "Messages stored.", Counter.MESSAGES_PUSHED)
    yield cluster("pop_messages", "Messages handed out.", Counter.MESSAGES_POPPED)
    yield cluster("ack_messages", "Messages acknowledged.", Counter.MESSAGES_ACKED)
    yield cluster("dlq", "Messages that became dead letters.", Counter.MESSAGES_DEAD_LETTERED)
    acks = CounterMetricFamily(
        "queen_cluster_ack", "Messages acknowledged, by result.", labels=("result", "scope")
    )
    acks.add_metric(("success", "cluster"), counters.total(Counter.MESSAGES_ACKED))
    acks.add_metric(("failed", "cluster"), counters.total(Counter.MESSAGES_FAILED))
    yield acks
    if figures is not None:
        depth = GaugeMetricFamily("queen_dlq_depth", "Dead letters.", labels=("scope",))
        depth.add_metric(("cluster",), sum(queue.dead_letter_count for queue in figures.queues))
        yield depth
        by_queue = GaugeMetricFamily(
            "queen_dlq_depth_by_queue", "Dead letters of a queue.", labels=("queue",)
        )
        for queue in figures.queues:
            by_queue.add_metric((_label(queue),), queue.dead_letter_count)
        yield by_queue
        yield from _last_minute(figures)


def _last_minute(figures: Figures) -> Iterator[Metric]:
    """The first broker's gauges of the last whole minute, for queues with series of their own."""
    minutes = {minute.queue: minute for minute in figures.minutes}
    shown = [
        minutes.get(queue.name, QueueMinute(queue.name))
        for queue in figures.queues
        if queue.name is not None
    ]
    for name in ("push_requests", "push_messages", "pop_messages", "pop_empty", "transactions"):
        gauge = GaugeMetricFamily(
            f"queen_queue_{name}_per_minute",
            f"{name.replace('_', ' ').capitalize()} of the last whole minute.",
            labels=("queue",),
        )
        for minute in shown:
            gauge.add_metric((minute.queue,), getattr(minute, name))
        yield gauge
    acks = GaugeMetricFamily(
        "queen_queue_ack_per_minute",
        "Messages acknowledged in the last whole minute.",
        labels=("queue", "result"),
    )
    lag = GaugeMetricFamily(
        "queen_queue_pop_lag_milliseconds",
        "How old the messages were that went out in the last whole minute.",
        labels=("queue", "stat"),
    )
    for minute in shown:
        acks.add_metric((minute.queue, "success"), minute.ack_success)
        acks.add_metric((minute.queue, "failed"), minute.ack_failed)
        lag.add_metric((minute.queue, "avg"), minute.lag_ms_sum / max(minute.pop_messages, 1))
        lag.add_metric((minute.queue, "max"), minute.lag_ms_max)
    yield from (acks, lag)
    yield GaugeMetricFamily(
        "queen_queue_metrics_age_seconds", "How long ago that minute ended.", figures.minute_age_s
    )


def _label(queue: QueueFigures) -> str:
    return OTHER_QUEUES if queue.name is None else queue.name


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, text, value)


def _labelled_counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=(label,))
    for value, count in values.items():
        family.add_metric((value,), count)
    return family


def _add(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    counters: Counters,
    histogram: Histogram,
    unit: float,
    slot: int | None = None,
) -> None:
    """Add the series of a histogram whose values were recorded in *unit*."""
    counts, total = counters.buckets(histogram, slot)
    buckets: list[tuple[str, float]] = []
    count = 0
    bounds = [bound * unit for bound in histogram.bounds]
    for bound, own in zip([*bounds, float("inf")], counts, strict=True):
        count += own
        buckets.append((f"{bound:g}" if bound < float("inf") else "+Inf", count))
    family.add_metric(labels, buckets, total * unit)
