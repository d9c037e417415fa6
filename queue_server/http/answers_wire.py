"""What the routes answer, as types.

Handlers build their answers as plain values, which costs least. These types say what comes out of
them, for the OpenAPI document (http/openapi.py) and for who reads the code;
tests/e2e/test_openapi.py holds them against real answers. Names and shapes: wire-api 3 and 5.
"""

# Without `from __future__ import annotations`, which would compile each of a thousand annotations
# anew when a worker starts: 7 ms instead of 18.

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from queue_server.storage.dashboard import (
    ErrorRow,
    GroupPartitionRow,
    GroupRow,
    PartitionRow,
    QueueRow,
    SchemaFile,
)
from queue_server.storage.statistics import GroupState

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Json = Any  # a payload: any JSON value


class Error(TypedDict):
    """Every refusal and failure. `code` is stable, `error` is for people."""

    error: str
    code: NotRequired[str]


class Page(TypedDict):
    limit: int
    offset: int


# ── health ──────────────────────────────────────────────────────────────────────────────────────


class Alive(TypedDict):
    status: Literal["alive"]


class Ready(TypedDict):
    status: Literal["ready"]


class NotReady(TypedDict):
    status: Literal["not ready"]
    reason: str


class HealthPool(TypedDict):
    total: int
    idle: int
    waiting: int


class HealthStats(TypedDict):
    requests: int
    messages: int
    requestsPerSecond: str
    messagesPerSecond: str
    pool: HealthPool


class Healthy(TypedDict):
    status: Literal["healthy"]
    database: Literal["connected"]
    server: str
    version: str
    uptime: str
    connections: int
    stats: HealthStats
    workers: int


class Unhealthy(TypedDict):
    status: Literal["unhealthy"]
    database: Literal["disconnected"]
    error: str


class CountAndRate(TypedDict):
    total: int
    rate: float


class Connections(TypedDict):
    open: int
    byWorker: list[int]


class Pool(TypedDict):
    poolSize: int
    idleConnections: int
    waitingRequests: int


class Memory(TypedDict):
    rss: int
    heapTotal: int
    heapUsed: int
    external: int
    arrayBuffers: int


class Cpu(TypedDict):
    """Microseconds."""

    user: int
    system: int


class LiveRates(TypedDict):
    """Of all servers on the database, in the last two seconds; of others as they last told."""

    pushedPerSecond: float
    poppedPerSecond: float
    ackedPerSecond: float
    failedPerSecond: float
    requestsPerSecond: float


class Metrics(TypedDict):
    """Figures of the whole server; memory and CPU are those of its workers."""

    uptime: float
    requests: CountAndRate
    messages: CountAndRate
    throughput: LiveRates
    connections: Connections
    database: Pool
    memory: Memory
    cpu: Cpu
    counters: dict[str, int]
    retries: dict[str, int]
    popPhasesMs: dict[str, float]


# ── messages ────────────────────────────────────────────────────────────────────────────────────


class PushEntry(TypedDict):
    """What became of one item; of one that is held back in maintenance less is known."""

    index: int
    status: Literal["queued", "duplicate", "buffered"]
    transaction_id: str
    offset: int | None
    message_id: Uuid | None
    partition_id: str | None
    trace_id: Uuid | None
    queueName: str


class PoppedMessage(TypedDict):
    id: Uuid
    transactionId: str
    traceId: Uuid | None
    data: Json
    producerSub: str | None
    createdAt: Time
    queue: str
    partition: str
    partitionId: str
    leaseId: str
    consumerGroup: str
    offset: int
    deliveryAttempt: int
    retryCount: int
    priority: int
    originalTransactionId: NotRequired[str]  # before it was moved back from the dead letters
    traceparent: NotRequired[str]  # of its push, or of its producer


class Autopilot(TypedDict):
    partitions: int
    batch: int


class Popped(TypedDict):
    """A delivery; the fields at the top are those of the first partition.

    Empty only for a pop with `conflation`, then `messages` and the echo are all there is.
    """

    success: Literal[True]
    messages: list[PoppedMessage]
    queue: NotRequired[str]
    partition: NotRequired[str]
    partitionId: NotRequired[str]
    leaseId: NotRequired[str]
    consumerGroup: NotRequired[str]
    partitionsClaimed: NotRequired[int]
    conflation: NotRequired[bool]
    conflationConflict: NotRequired[bool]
    autopilot: NotRequired[Autopilot]


class AckResult(TypedDict):
    index: int
    transactionId: str
    success: bool
    error: str | None
    queueName: str | None
    partitionName: str | None
    leaseReleased: bool
    dlq: bool
    noop: NotRequired[Literal[True]]


class OperationResult(TypedDict):
    """What became of a push or an ack of a transaction."""

    index: int
    type: Literal["push", "ack"]
    success: bool
    transactionId: str
    messageId: NotRequired[Uuid]
    partitionId: NotRequired[str]
    queueName: NotRequired[str]
    status: NotRequired[str]
    offset: NotRequired[int]
    duplicate: NotRequired[Literal[True]]
    error: NotRequired[str | None]
    dlq: NotRequired[bool]
    leaseReleased: NotRequired[bool]
    noop: NotRequired[Literal[True]]


class Transacted(TypedDict):
    """A transaction that was carried out, or one that was refused as a whole and says why."""

    transactionId: Uuid
    success: bool
    results: list[OperationResult]
    reason: NotRequired[str]
    error: NotRequired[str]


class Extended(TypedDict):
    leaseId: str
    success: bool
    renewed: int
    newExpiresAt: Time | None
    expiresAt: Time | None
    lease_expires_at: Time | None
    error: str | None


# ── queues ──────────────────────────────────────────────────────────────────────────────────────


class Options(TypedDict):
    """The effective options of a queue."""

    leaseTime: int
    retryLimit: int
    retryDelay: int
    priority: int
    maxSize: int
    ttl: int
    deadLetterQueue: bool
    dlqAfterMaxRetries: bool
    delayedProcessing: int
    windowBuffer: int
    retentionSeconds: int
    completedRetentionSeconds: int
    retentionEnabled: bool
    encryptionEnabled: bool
    maxWaitTimeSeconds: int
    dedupWindowSeconds: NotRequired[int]
    retryBackoff: bool
    deliveryLimit: int


class LabelledOptions(Options):
    namespace: str
    task: str


class Configured(TypedDict):
    configured: Literal[True]
    queueId: str
    partitionId: str
    queue: str
    namespace: str
    task: str
    options: Options
    warning: NotRequired[str]


class QueueDeleted(TypedDict):
    deleted: bool
    queue: str
    existed: bool
    message: NotRequired[str]


class Cleared(TypedDict):
    cleared: Literal[True]
    success: Literal[True]
    count: int
    queue: str
    partition: str


class Six(TypedDict):
    """The protocol's six counters."""

    total: int
    pending: int
    processing: int
    completed: int
    failed: int
    deadLetter: int


class Spread(TypedDict):
    avg: float
    median: float
    min: float
    max: float


class SlowestGroup(TypedDict):
    """The group that is furthest behind, of those that count."""

    queue: str
    group: str
    lag: int
    scheduled: int
    lagSeconds: int
    activity: GroupState
    lastActiveAt: Time


class Lags(TypedDict):
    time: Spread
    offset: Spread


class Throughput(TypedDict):
    ingestedPerSecond: float
    processedPerSecond: float


class Overview(TypedDict):
    queues: int
    partitions: int
    namespaces: int
    tasks: int
    messages: Six
    depth: int
    scheduled: int
    lag: Lags
    slowestGroup: SlowestGroup | None
    throughput: Throughput
    timestamp: Time
    statsAge: int


class LabelCounts(TypedDict):
    total: int
    pending: int


class Namespace(TypedDict):
    namespace: str
    queues: int
    partitions: int
    messages: LabelCounts


class Namespaces(TypedDict):
    namespaces: list[Namespace]


class Task(TypedDict):
    task: str
    queues: int
    partitions: int
    messages: LabelCounts


class Tasks(TypedDict):
    tasks: list[Task]


class QueueEntry(TypedDict):
    id: str
    name: str
    namespace: str
    task: str
    priority: int
    createdAt: Time
    partitions: int
    messages: Six
    depth: int
    scheduled: int
    slowestGroup: SlowestGroup | None


class Queues(TypedDict):
    queues: list[QueueEntry]


class QueuesPage(TypedDict):
    queues: list[QueueEntry]
    pagination: Page


class QueuePartition(TypedDict):
    id: str
    name: str
    createdAt: Time
    stats: Six
    scheduled: int
    oldestMessage: Time | None
    newestMessage: Time | None


class PageOfPartitions(TypedDict):
    """`truncated`: the queue has more partitions behind this page."""

    partitionCount: int
    truncated: bool


class Queue(PageOfPartitions):
    id: str
    name: str
    namespace: str
    task: str
    createdAt: Time
    partitions: list[QueuePartition]
    totals: Six
    scheduled: int
    options: LabelledOptions


class DepthOfPartition(TypedDict):
    """`pending` = `processing` + `ready`, and `ready` = `due` + `scheduled`."""

    partition: str
    pending: int
    processing: int
    ready: int
    due: int
    scheduled: int


class Depth(PageOfPartitions):
    queue: str
    group: str | None
    pending: int
    processing: int
    ready: int
    due: int
    scheduled: int
    partitionsPending: int
    partitionsReady: int
    conflation: bool
    effectivePending: int
    effectiveReady: int
    partitions: list[DepthOfPartition]


class Partition(TypedDict):
    id: str
    name: str
    queue: str
    namespace: str
    task: str
    queuePriority: int
    createdAt: Time
    depth: int
    pending: int
    processing: int
    scheduled: int
    total: int
    lagSeconds: int | None


class Partitions(TypedDict):
    partitions: list[Partition]


# ── status ──────────────────────────────────────────────────────────────────────────────────────

TimeRange = TypedDict("TimeRange", {"from": Time, "to": Time})


class Series(TypedDict):
    """What all series have in common."""

    timeRange: TimeRange
    bucketMinutes: int
    pointCount: int


class StatusQueue(TypedDict):
    id: str
    name: str
    namespace: str
    task: str
    partitions: int
    totalConsumed: int


class VerbCounts(TypedDict):
    push: int
    pop: int
    ack: int


class VerbRatios(TypedDict):
    push: float
    pop: float
    ack: float


class StatusMessages(Six):
    requests: VerbCounts
    batchEfficiency: VerbRatios


class Leases(TypedDict):
    active: int
    partitionsWithLeases: int
    totalBatchSize: int
    totalAcked: int


class ErrorCount(TypedDict):
    error: str | None
    count: int


class DeadLetterSums(TypedDict):
    totalMessages: int
    affectedPartitions: int
    topErrors: list[ErrorCount]


class Worker(TypedDict):
    hostname: str
    port: int
    workerId: int
    pid: int
    avgEventLoopLagMs: float
    maxEventLoopLagMs: float
    freeSlots: int
    dbConnections: int
    jobQueueSize: int
    messagesProcessed: int
    lastSeen: Time


class ErrorSums(TypedDict):
    dbErrors: int
    ackFailed: int
    dlqMessages: int


class ThroughputPoint(TypedDict):
    timestamp: Time
    ingested: int
    processed: int
    popMessages: int
    ingestedPerSecond: float
    processedPerSecond: float
    popPerSecond: float
    avgLagMs: float
    maxLagMs: int
    avgEventLoopLagMs: float
    maxEventLoopLagMs: float
    minFreeSlots: int
    dbErrors: int
    ackFailed: int
    dlqCount: int
    queenCpuUserPct: float
    queenCpuSysPct: float
    queenRssMb: float
    dbPoolActive: float
    dbPoolIdle: float
    dbPoolSize: float


class MissingKey(TypedDict):
    keyId: str
    neededFor: list[str]


class Encryption(TypedDict):
    """As this server found it a minute ago at most."""

    hasKey: bool
    encryptedQueues: int
    queuesWithoutKey: int
    missingKeys: list[MissingKey]
    unreadablePartitions: int


class Status(Series):
    throughput: list[ThroughputPoint]
    queues: list[StatusQueue]
    queuesTruncated: bool
    messages: StatusMessages
    leases: Leases
    deadLetterQueue: DeadLetterSums
    encryption: Encryption
    workers: list[Worker]
    errors: ErrorSums
    statsAge: int


class QueueConfig(TypedDict):
    leaseTime: int
    retryLimit: int
    retryDelay: int
    ttl: int
    maxQueueSize: int
    deadLetterQueue: bool


class StatusOfQueue(TypedDict):
    id: str
    name: str
    namespace: str
    task: str
    priority: int
    createdAt: Time
    config: QueueConfig


class PartitionCursor(TypedDict):
    totalConsumed: int
    batchesConsumed: int


class StatusOfPartition(TypedDict):
    id: str
    name: str
    createdAt: Time
    messages: Six
    stats: Six
    scheduled: int
    cursor: PartitionCursor
    lastActivity: Time | None
    oldestMessage: Time | None
    newestMessage: Time | None


class StatusTotals(Six):
    messages: Six


class QueueStatus(PageOfPartitions):
    queue: StatusOfQueue
    partitions: list[StatusOfPartition]
    totals: StatusTotals
    scheduled: int


MessageState = Literal["pending", "processing", "completed", "dead_letter"]


class ListedMessage(TypedDict):
    id: Uuid
    transactionId: str | None  # null in a listing when `payloadAvailable` is false
    partitionId: str
    queuePath: str
    queue: str
    partition: str
    status: MessageState
    createdAt: Time


class Buffers(TypedDict):
    pending: int
    failed: int
    dbHealthy: bool
    worker: int


class DataPoint(TypedDict):
    timestamp: Time
    messages: int


Pushes = TypedDict(
    "Pushes",
    {"dataPoints": list[DataPoint], "interval": str, "from": Time, "to": Time},
)


class Refreshed(TypedDict):
    success: Literal[True]
    refreshed: bool
    skipped: NotRequired[bool]
    reason: NotRequired[str]
    partition: NotRequired[int]
    queue: NotRequired[int]
    namespace: NotRequired[int]
    task: NotRequired[int]
    system: NotRequired[int]
    cleanup: NotRequired[int]


class BufferStats(TypedDict):
    pendingCount: int
    failedCount: int
    dbHealthy: bool


class Maintenance(TypedDict):
    maintenanceMode: bool
    popMaintenanceMode: bool
    bufferedMessages: int
    bufferHealthy: bool
    bufferStats: BufferStats


class MaintenanceSwitched(TypedDict):
    maintenanceMode: bool
    bufferedMessages: int
    bufferHealthy: bool
    message: str


class PopMaintenance(TypedDict):
    popMaintenanceMode: bool


class PopMaintenanceSwitched(PopMaintenance):
    message: str


class SharedState(TypedDict):
    enabled: bool


class Notified(TypedDict):
    success: Literal[True]


class Instances(TypedDict):
    enabled: bool
    told: int
    received: int
    polls: int
    foundByPoll: int


class CopyStatus(TypedDict):
    status: Literal["idle"]
    supported: Literal[False]
    message: str


# ── analytics ───────────────────────────────────────────────────────────────────────────────────


class Gauge(TypedDict):
    avg: float
    min: float
    max: float
    last: float


class GaugesOfCpu(TypedDict):
    user_us: Gauge
    system_us: Gauge


class GaugesOfMemory(TypedDict):
    rss_bytes: Gauge
    virtual_bytes: Gauge


class GaugesOfDatabase(TypedDict):
    pool_size: Gauge
    pool_idle: Gauge
    pool_active: Gauge


class GaugesOfThreads(TypedDict):
    pool_size: Gauge
    queue_size: Gauge


class ThreadPools(TypedDict):
    db: GaugesOfThreads
    system: GaugesOfThreads


class Gauges(TypedDict):
    cpu: GaugesOfCpu
    memory: GaugesOfMemory
    database: GaugesOfDatabase
    threadpool: ThreadPools
    registries: dict[str, Gauge]
    shared_state: dict[str, Gauge]


class ReplicaPoint(TypedDict):
    timestamp: Time
    sampleCount: int
    metrics: Gauges


class Replica(TypedDict):
    hostname: str
    port: int
    workerId: int
    timeSeries: list[ReplicaPoint]


class SystemMetrics(Series):
    replicas: list[Replica]
    replicaCount: int


class WorkerSums(TypedDict):
    totalPushMessages: int
    totalPopMessages: int
    totalAckMessages: int
    totalPushRequests: int
    totalPopRequests: int
    totalAckRequests: int
    totalDbErrors: int
    totalAckFailed: int
    totalDlq: int
    pendingMessages: int


class WorkersPoint(TypedDict):
    timestamp: Time
    pushMessages: int
    popMessages: int
    ackMessages: int
    pushRequests: int
    popRequests: int
    ackRequests: int
    jobsDone: int
    pushPerSecond: float
    popPerSecond: float
    ackPerSecond: float
    avgEventLoopLagMs: float
    maxEventLoopLagMs: float
    avgFreeSlots: float
    minFreeSlots: int
    dbConnections: float
    avgJobQueueSize: float
    maxJobQueueSize: int
    backoffSize: int
    avgLagMs: float
    maxLagMs: int
    lagCount: int
    dbErrors: int
    ackSuccess: int
    ackFailed: int
    dlqCount: int


class QueueLag(TypedDict):
    queueName: str
    popCount: int
    avgLagMs: float
    maxLagMs: int


class WorkerMetrics(Series):
    timeSeries: list[WorkersPoint]
    workers: list[Worker]
    queues: list[QueueLag]
    summary: WorkerSums


class QueueLagPoint(QueueLag):
    bucketTime: Time
    depth: int | None
    oldestUnreadSeconds: float | None


class QueueOperationsPoint(TypedDict):
    bucket: Time
    queueName: str
    pushRequests: int
    pushMessages: int
    popRequests: int
    popMessages: int
    popEmpty: int
    ackRequests: int
    ackSuccess: int
    ackFailed: int
    dlqCount: int
    transactions: int
    partitionsCreated: int
    partitionsDeleted: int
    partitionCount: int
    avgLagMs: float
    maxLagMs: int
    pushPerSecond: float
    popPerSecond: float
    ackPerSecond: float
    emptyPerSecond: float
    parkedCount: int
    depth: int | None
    oldestUnreadSeconds: float | None


class QueueOperations(Series):
    series: list[QueueOperationsPoint]
    queues: list[str]


class ParkedPoint(TypedDict):
    bucket: Time
    queueName: str
    hostname: str
    workerId: int
    parkedCount: int


class ParkedReplica(TypedDict):
    hostname: str
    workerId: int


class ParkedReplicas(Series):
    series: list[ParkedPoint]
    replicas: list[ParkedReplica]


class MinuteRate(TypedDict):
    messagesPerMinute: int
    messagesPerSecond: float


class MinuteLag(TypedDict):
    avgSeconds: float
    avgMilliseconds: float
    sampleCount: int


class MinutePoint(TypedDict):
    timestamp: Time
    incoming: MinuteRate
    completed: MinuteRate
    processing: MinuteRate
    failed: MinuteRate
    deadLetter: MinuteRate
    lag: MinuteLag


class ThroughputByMinute(TypedDict):
    throughput: list[MinutePoint]


class PartitionStats(Six):
    queue: str
    namespace: str
    task: str
    partition: str
    partitionId: str


class DatabaseFigures(TypedDict):
    name: str
    sizeBytes: int
    connections: int
    commits: int
    rollbacks: int


class Cache(TypedDict):
    hits: int
    reads: int
    hitRatio: float


class CacheOfTable(Cache):
    table: str


class CacheSummary(TypedDict):
    database: Cache
    table: Cache
    index: Cache


class DeadTuples(TypedDict):
    table: str
    live: int
    dead: int


class HotUpdates(TypedDict):
    table: str
    updates: int
    hot: int


class ActiveQuery(TypedDict):
    pid: int
    state: str | None
    startedAt: Time | None
    runningSeconds: float | None
    query: str | None
    waitEvent: str | None


class Holder(TypedDict):
    """What keeps dead rows, or log, from being removed.

    `name` is a session's pid, a prepared transaction's id or a slot's name; `xminAge` in
    transactions, null when it keeps no dead rows; `logBytes` of a slot without a reader.
    """

    kind: Literal["session", "prepared", "slot"]
    name: str
    application: str | None
    xminAge: int | None
    openSeconds: float | None
    logBytes: int | None


class Autovacuum(TypedDict):
    table: str
    lastAutovacuum: Time | None
    count: int


class TableSize(TypedDict):
    table: str
    totalBytes: int
    tableBytes: int


class PostgresStats(TypedDict):
    timestamp: Time
    database: DatabaseFigures
    databaseCache: Cache
    tableCache: list[CacheOfTable]
    indexCache: list[CacheOfTable]
    cacheSummary: CacheSummary
    deadTuples: list[DeadTuples]
    hotUpdates: list[HotUpdates]
    activeQueries: list[ActiveQuery]
    holders: list[Holder]
    autovacuumStatus: list[Autovacuum]
    bufferConfig: dict[str, str]
    bufferUsage: list[Json]
    tableSizes: list[TableSize]


class AnalyticsPartition(TypedDict):
    name: str
    stats: Six


class AnalyticsEntry(TypedDict):
    queue: str
    namespace: str
    task: str
    partitions: list[AnalyticsPartition]
    partitionCount: int
    totals: Six


class AnalyticsQueue(AnalyticsEntry):
    truncated: bool


class AnalyticsQueues(TypedDict):
    """`truncated`: there are more queues behind this page, or more partitions than listed."""

    queues: list[AnalyticsEntry]
    truncated: bool


class NamedDepth(TypedDict):
    name: str
    depth: int
    processing: int


class QueueDepth(TypedDict):
    queue: str
    depth: int
    processing: int
    partitions: list[NamedDepth]
    partitionCount: int


class QueueDepths(TypedDict):
    """`truncated`: there are more queues behind this page, or more partitions than listed."""

    depths: list[QueueDepth]
    truncated: bool


class RetentionSums(TypedDict):
    retentionMsgs: int
    completedRetentionMsgs: int
    evictionMsgs: int
    totalMsgs: int
    eventCount: int


class RetentionPoint(RetentionSums):
    bucket: Time


class RetentionHistory(Series):
    series: list[RetentionPoint]
    totals: RetentionSums


# ── consumer groups ─────────────────────────────────────────────────────────────────────────────


class Group(TypedDict):
    """A group on one queue."""

    name: str
    topics: list[str]
    queueName: str
    members: int
    partitionCursors: int
    partitionsWithLag: int
    totalLag: int
    scheduled: int
    maxTimeLag: int
    state: Literal["Stable", "Lagging", "Dead"]
    activity: GroupState
    counted: bool
    lastActiveAt: Time
    lastAckAt: Time | None
    subscriptionMode: str
    subscriptionTimestamp: Time
    subscriptionCreatedAt: Time
    conflation: bool


class GroupPartition(TypedDict):
    partition: str
    workerId: str | None
    lastConsumedAt: Time | None
    totalConsumed: int
    offsetLag: int
    timeLagSeconds: int
    leaseActive: bool


class GroupOnQueue(PageOfPartitions):
    partitions: list[GroupPartition]
    conflation: bool


class LaggingPartition(TypedDict):
    consumer_group: str
    queue_name: str
    partition_name: str
    partition_id: str
    worker_id: str | None
    offset_lag: int
    time_lag_seconds: int
    lag_hours: float
    oldest_unconsumed_at: Time
    last_consumed_at: Time | None


class GroupDeleted(TypedDict):
    success: Literal[True]
    consumerGroup: str
    deletedPartitions: int
    metadataDeleted: bool
    queueName: NotRequired[str]


class GroupRestarted(TypedDict):
    success: Literal[True]
    consumerGroup: str
    newTimestamp: str
    rowsUpdated: int


class Sought(TypedDict):
    success: Literal[True]
    consumerGroup: str
    queueName: str
    seekToEnd: bool
    targetTimestamp: str | None
    partitionsUpdated: int


class SoughtPartition(TypedDict):
    success: Literal[True]
    consumerGroup: str
    queueName: str
    partitionName: str
    updated: bool
    cursorMovedTo: str | None


# ── dead letters ────────────────────────────────────────────────────────────────────────────────


class DeadLetter(TypedDict):
    id: Uuid
    transactionId: str
    originalTransactionId: str  # the first one, of a message that was moved back before
    partitionId: str
    queue: str
    partition: str
    consumerGroup: str
    errorMessage: str | None
    retryCount: int
    data: Json
    payloadAvailable: bool  # false: it is encrypted and cannot be opened; `data` is null
    producerSub: str | None
    traceId: Uuid | None
    createdAt: Time
    failedAt: Time


class DeadLetters(TypedDict):
    """`truncated`: there are more behind this page."""

    messages: list[DeadLetter]
    total: int
    truncated: bool
    pagination: Page


class Purged(TypedDict):
    success: Literal[True]
    deleted: int
    remaining: int
    queue: str
    consumerGroup: str | None


class Redriven(TypedDict):
    """`messages` were pushed for `moved` dead letters.

    With `dryRun` it is what would be done: `messages` for all `remaining` dead letters, which so
    many `deliveries` to groups would follow.
    """

    success: Literal[True]
    moved: int
    messages: int
    deliveries: NotRequired[int]
    duplicates: int
    remaining: int


class ReplayedAs(TypedDict):
    index: int
    message_id: Uuid
    transaction_id: str
    queueName: str
    status: str
    offset: int


class Replayed(TypedDict):
    success: Literal[True]
    result: Literal["moved", "duplicate"]
    retried: bool
    transactionId: str
    queue: str
    partition: str
    consumerGroup: str
    dlqId: Uuid
    originalTransactionId: str
    dlqRowRemoved: bool
    replayedAs: ReplayedAs


# ── stored messages ─────────────────────────────────────────────────────────────────────────────


class BusStatus(TypedDict):
    consumedBy: int
    totalGroups: int


class StoredMessage(TypedDict):
    id: Uuid
    transactionId: str | None  # null in a listing when `payloadAvailable` is false
    partitionId: str
    queuePath: str
    queue: str
    partition: str
    namespace: str
    task: str
    status: MessageState
    queueStatus: MessageState
    busStatus: BusStatus
    traceId: Uuid | None
    producerSub: str | None
    queuePriority: int
    createdAt: Time
    leaseExpiresAt: Time | None
    offset: int
    data: Json
    payload: Json
    payloadAvailable: bool
    errorMessage: str | None
    retryCount: int | None
    failedAt: Time | None


class Mode(TypedDict):
    hasQueueMode: bool
    busGroupsCount: int
    type: str


class StoredMessages(TypedDict):
    """`truncated`: the page ended by the size of its payloads; more messages follow."""

    messages: list[StoredMessage]
    mode: Mode
    total: int
    truncated: bool
    pagination: Page


class MessageConfig(TypedDict):
    leaseTime: int
    retryLimit: int
    retryDelay: int
    ttl: int
    priority: int


class MessageMode(Mode):
    consumedByGroups: int


class MessageGroup(TypedDict):
    name: str
    consumed: bool
    gaveUp: bool  # `errorMessage` is why; null also when it is encrypted and cannot be read
    errorMessage: str | None
    leaseExpiresAt: Time | None


class MessageDetail(StoredMessage):
    isEncrypted: bool
    queueConfig: MessageConfig
    mode: MessageMode
    consumerGroups: list[MessageGroup]


class RelatedMessage(TypedDict):
    transactionId: str
    partitionId: str
    status: MessageState
    createdAt: Time
    payload: Json


class Related(TypedDict):
    """Messages beside one.

    The path is also the address of a message with the transaction id `related`: where there is
    one, the answer is that of `GET /api/v1/messages/{partition_id}/{transaction_id}`.
    """

    messages: list[RelatedMessage]


class MessageDeleted(TypedDict):
    """`deleted` counts the dead letters that went as well."""

    success: Literal[True]
    partitionId: str
    transactionId: str
    message: str
    deleted: int


class MessageDeletedById(TypedDict):
    deleted: Literal[True]
    success: Literal[True]
    partitionId: str
    transactionId: str


class Buried(TypedDict):
    success: Literal[True]
    movedToDLQ: Literal[True]
    partitionId: str
    transactionId: str
    consumerGroups: list[str]


# ── traces ──────────────────────────────────────────────────────────────────────────────────────


class Traced(TypedDict):
    success: Literal[True]
    traceId: Uuid


class Trace(TypedDict):
    id: Uuid
    event_type: str
    data: Json
    data_available: bool  # false: it is encrypted and cannot be opened; `data` is null
    consumer_group: str
    worker_id: str | None
    created_at: Time
    trace_names: list[str]


class Traces(TypedDict):
    """`truncated`: there are more events behind this page."""

    traces: list[Trace]
    total: int
    truncated: bool


class NamedTrace(Trace):
    transaction_id: str
    partition_id: str
    queue_name: str
    partition_name: str
    message_payload: Json


class NamedTraces(TypedDict):
    traces: list[NamedTrace]
    total: int
    truncated: bool
    pagination: Page


class TraceName(TypedDict):
    trace_name: str
    trace_count: int
    message_count: int
    last_seen: Time


class TraceNames(TypedDict):
    trace_names: list[TraceName]
    total: int
    pagination: Page


# ── the dashboard ───────────────────────────────────────────────────────────────────────────────


class QueuePatterns(TypedDict):
    push: list[str]
    pop: list[str]
    administer: list[str]


class Identity(TypedDict):
    authentication: bool
    subject: str | None
    access: list[str]
    grants: QueuePatterns | None


class WorkerNow(TypedDict):
    """A worker of the server that answers, as it is now, or of another, `silentSeconds` ago."""

    hostname: str
    port: int
    slot: int
    pid: int
    here: bool
    ready: bool
    silentSeconds: float
    startedAt: Time | None
    connections: int
    parkedPops: int
    poolSize: int
    poolAvailable: int
    poolWaiting: int
    residentBytes: int
    cpu: float | None
    loopLagMs: float | None


class WorkersNow(TypedDict):
    hostname: str
    port: int
    restarts: int
    everywhere: bool
    silentAfterSeconds: float
    workers: list[WorkerNow]


class ThroughputSample(TypedDict):
    """`at` is in seconds of the epoch; rates are of the two seconds before."""

    at: float
    pushedPerSecond: float
    poppedPerSecond: float
    ackedPerSecond: float


class ThroughputSamples(TypedDict):
    samples: list[ThroughputSample]


class QueueRows(TypedDict):
    queues: list[QueueRow]
    total: int


class StoredOptions(TypedDict):
    """The options of a queue, null where nobody set one."""

    namespace: str
    task: str
    leaseTime: int
    retryLimit: int
    retryDelay: int | None
    priority: int
    maxSize: int
    ttl: int | None
    deadLetterQueue: bool
    dlqAfterMaxRetries: bool
    delayedProcessing: int
    windowBuffer: int
    retentionSeconds: int
    completedRetentionSeconds: int
    retentionEnabled: bool
    encryptionEnabled: bool
    maxWaitTimeSeconds: int
    dedupWindowSeconds: int | None
    retryBackoff: bool
    deliveryLimit: int


class PartitionRows(TypedDict):
    partitions: list[PartitionRow]
    total: int


class GroupRows(TypedDict):
    groups: list[GroupRow]


class GroupPartitionRows(TypedDict):
    partitions: list[GroupPartitionRow]
    total: int


class ErrorRows(TypedDict):
    errors: list[ErrorRow]
    ageSeconds: float


class SettingRow(TypedDict):
    name: str
    environment: list[str]
    flag: str | None
    text: str
    value: Json
    secret: bool


class SettingRows(TypedDict):
    settings: list[SettingRow]


class SchemaFiles(TypedDict):
    files: list[SchemaFile]
