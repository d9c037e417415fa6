-- The tables, their indexes, and the rows that they start with.
--
-- Every hot table begins its primary key with `shard`, so that the tables can be distributed by it
-- later; one machine uses the single shard 1. Hot tables have neither foreign keys (each insert
-- would lock a row of the parent) nor triggers. An index names the statement it serves or the rule
-- it guards.

CREATE SCHEMA queen;

-- One row for each shard in use.
CREATE TABLE queen.shards (
    shard smallint PRIMARY KEY
);

INSERT INTO queen.shards (shard) VALUES (1);


-- -- queues and partitions --

-- Reference data: small, rarely written. The nullable options are enforced only when they are set;
-- null means "echo the default, enforce nothing".
CREATE TABLE queen.queues (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    namespace text NOT NULL DEFAULT '',
    task text NOT NULL DEFAULT '',
    lease_time integer NOT NULL DEFAULT 300,  -- seconds
    retry_limit integer NOT NULL DEFAULT 3,
    retry_delay integer,  -- milliseconds
    retry_backoff boolean NOT NULL DEFAULT false,  -- double retry_delay with each charged retry
    -- Claims of one position without an acknowledgement before it becomes a dead letter; 0 = no limit.
    delivery_limit integer NOT NULL DEFAULT 0,
    priority integer NOT NULL DEFAULT 0,
    max_size integer NOT NULL DEFAULT 0,  -- messages, 0 = unlimited
    ttl integer,  -- seconds
    dead_letter_queue boolean NOT NULL DEFAULT false,
    dlq_after_max_retries boolean NOT NULL DEFAULT false,
    delayed_processing integer NOT NULL DEFAULT 0,  -- seconds
    window_buffer integer NOT NULL DEFAULT 0,  -- seconds
    retention_seconds integer NOT NULL DEFAULT 0,
    completed_retention_seconds integer NOT NULL DEFAULT 0,
    retention_enabled boolean NOT NULL DEFAULT false,
    encryption_enabled boolean NOT NULL DEFAULT false,
    max_wait_time_seconds integer NOT NULL DEFAULT 0,
    dedup_window_seconds integer,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- The numbers in partition ids. A sequence rather than a row: a creation that is not committed yet
-- does not block the next one, and a number that was drawn is never drawn again.
CREATE SEQUENCE queen.partition_numbers;

-- The name of a partition. Written once.
CREATE TABLE queen.partitions (
    shard smallint NOT NULL,
    id bigint NOT NULL,  -- shard * 2^47 + a number of partition_numbers; below 2^53
    queue_id uuid NOT NULL REFERENCES queen.queues (id),
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, id),
    -- Serves find_partitions, and guards that a name is given once.
    UNIQUE (shard, queue_id, name)
);

-- Serves backfill_subscription, clear_remains and delete_queue: a queue's partitions in ascending id.
CREATE INDEX partitions_by_queue ON queen.partitions (shard, queue_id, id);

-- One row: the limits of the server that started last.
CREATE TABLE queen.limits (
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    queues bigint NOT NULL,
    groups_of_queue bigint NOT NULL,
    partitions_of_queue bigint NOT NULL,
    -- A group that has neither popped nor acknowledged for this long counts as idle; 0 = never.
    group_idle_seconds integer NOT NULL DEFAULT 3600
);

INSERT INTO queen.limits (queues, groups_of_queue, partitions_of_queue)
VALUES (100000, 1000, 1000000);

-- Ids of partitions rise. Up to this one, even if every new partition belonged to this queue, it could
-- not exceed its limit, so its partitions need not be counted (queen.check_partition_limit).
CREATE TABLE queen.partition_quotas (
    shard smallint NOT NULL,
    queue_id uuid NOT NULL REFERENCES queen.queues (id) ON DELETE CASCADE,
    unchecked_to bigint NOT NULL,
    PRIMARY KEY (shard, queue_id)
);

-- Serves delete_queue, through the foreign key.
CREATE INDEX partition_quotas_by_queue ON queen.partition_quotas (queue_id);


-- -- the log --

-- The head of each partition: the row whose lock gives offsets. Updated by every push, so it is
-- narrow, no index covers a column that changes, and half of each page is free: updates stay HOT.
CREATE TABLE queen.allocators (
    shard smallint NOT NULL,
    partition_id bigint NOT NULL,
    queue_id uuid NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,  -- the high watermark
    low_watermark bigint NOT NULL DEFAULT 0,  -- the earliest kept offset
    last_segment_at timestamptz,
    -- With the column above, the pause before the last push. A partition with short pauses stays
    -- listed in `pending` when a group has caught up with it; others leave it at once.
    previous_segment_at timestamptz,
    PRIMARY KEY (shard, partition_id)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);

-- The log. A row holds the messages [base_offset, next_offset) of one partition and never changes.
CREATE TABLE queen.segments (
    shard smallint NOT NULL,
    partition_id bigint NOT NULL,
    base_offset bigint NOT NULL,
    next_offset bigint NOT NULL,
    created_at timestamptz NOT NULL,  -- the database's time of the push; does not fall within a partition
    first_message_id uuid NOT NULL,  -- message i has the id first_message_id + i
    raw_bytes integer NOT NULL,  -- size of the body when opened
    codec smallint NOT NULL,  -- how the body is laid out: domain/segment.py
    ids bytea NOT NULL,  -- the messages' 16-byte id keys, in offset order: domain/ids.py
    body bytea NOT NULL,
    PRIMARY KEY (shard, partition_id, base_offset)
) WITH (
    -- Insert-only: freeze in the background, in small steps.
    autovacuum_vacuum_insert_scale_factor = 0.1
);

-- Compression, where it pays, is ours; and a slice of `ids` can be read without the rest.
ALTER TABLE queen.segments ALTER COLUMN ids SET STORAGE EXTERNAL;
ALTER TABLE queen.segments ALTER COLUMN body SET STORAGE EXTERNAL;

-- Serves keys_in_use: which encryption keys the log needs, whatever its size. Holds encrypted segments
-- only.
CREATE INDEX segments_by_key ON queen.segments (
    shard, substring(body FROM CASE WHEN codec & 4 <> 0 THEN 2 ELSE 1 END FOR 8)
) WHERE codec & 2 <> 0;

-- Where an id can be: every id key of a segment lies in one of its ranges. Time-ordered ids
-- (UUIDv7) need one narrow range for a whole segment, ids without order one point each. No range
-- is wider than domain/ids.py RANGE_WIDTH_MS, so that a look-up is one short index scan.
CREATE TABLE queen.id_ranges (
    shard smallint NOT NULL,
    partition_id bigint NOT NULL,
    max_id bytea NOT NULL,  -- 16-byte id keys
    min_id bytea NOT NULL,
    base_offset bigint NOT NULL,
    -- Serves find_ids: the ranges that end within RANGE_WIDTH_MS behind a pushed id.
    PRIMARY KEY (shard, partition_id, max_id, base_offset)
);

-- Messages that were deleted one by one. Their places in the segments stay, so no offset changes.
CREATE TABLE queen.holes (
    shard smallint NOT NULL,
    partition_id bigint NOT NULL,
    message_offset bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (shard, partition_id, message_offset)
);


-- -- consumer groups --

-- A consumer group's registration on a queue. Small: one row for each (queue, group).
CREATE TABLE queen.subscriptions (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue_id uuid NOT NULL REFERENCES queen.queues (id),
    consumer_group text NOT NULL,
    -- False for a group that only ever named partitions: such a pop registers nothing queue-wide.
    queue_wide boolean NOT NULL,
    mode text NOT NULL CHECK (mode IN ('all', 'new', 'timestamp')),
    starts_at timestamptz NOT NULL,
    conflation boolean NOT NULL DEFAULT false,  -- deliver only the newest message of each partition
    -- Partitions up to this id have a cursor; null when all have (see backfill_subscription).
    backfilled_to bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Serves push (which groups read this queue?) and guards that a group registers once.
    UNIQUE (queue_id, consumer_group)
);

-- Serves group_queues and restart_subscriptions, which name a group without a queue.
CREATE INDEX subscriptions_by_group ON queen.subscriptions (consumer_group);

-- When each group last popped, whether it found a message or not, and when it last acknowledged.
-- Workers update it about once a minute for each group in use (queen.note_groups). A table of its
-- own, because every push reads the registrations.
CREATE TABLE queen.group_activity (
    subscription_id integer PRIMARY KEY REFERENCES queen.subscriptions (id) ON DELETE CASCADE,
    popped_at timestamptz NOT NULL,
    acked_at timestamptz  -- null: never
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);

-- Groups that popped a queue that does not exist; a pop creates no queue. They are registered when
-- the queue is created, and start at their first pop.
CREATE TABLE queen.expected_groups (
    queue text NOT NULL,  -- its name
    consumer_group text NOT NULL,
    mode text NOT NULL,
    starts_at timestamptz NOT NULL,
    conflation boolean NOT NULL,
    asked_at timestamptz NOT NULL,  -- the last pop, to the hour
    -- Serves register_expected.
    PRIMARY KEY (queue, consumer_group)
);

-- Serves delete_old_expected_groups.
CREATE INDEX expected_groups_by_time ON queen.expected_groups (asked_at);

-- Deleted registrations whose cursors are not all deleted yet. Cursors are deleted a bounded number
-- at a time; after a crash the next deletion of a group goes on with the rest (clear_remains).
CREATE TABLE queen.subscription_remains (
    subscription_id integer PRIMARY KEY,
    queue_id uuid NOT NULL,
    cleared_to bigint NOT NULL DEFAULT 0,  -- partitions up to this id are done
    deleted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The place of a group in a partition, and its lease. Every claim and every acknowledgement changes
-- it, so no index covers a column that changes: updates stay HOT.
CREATE TABLE queen.cursors (
    shard smallint NOT NULL,
    partition_id bigint NOT NULL,
    subscription_id integer NOT NULL,
    committed_offset bigint NOT NULL,  -- the first offset the group has not acknowledged
    lease_id uuid,  -- null without a lease
    lease_end bigint,  -- the leased batch is [committed_offset, lease_end)
    lease_expires_at timestamptz,
    available_at timestamptz,  -- after a nack with a delay: not handed out before this time
    attempt integer NOT NULL DEFAULT 0,  -- claims in a row that started at attempt_offset
    attempt_offset bigint NOT NULL DEFAULT -1,
    retry_count integer NOT NULL DEFAULT 0,  -- nacks charged to the message at retry_offset
    retry_offset bigint NOT NULL DEFAULT -1,
    -- The lease that the last ack brought to its end, and what that ack covered: resend rule.
    settled_lease_id uuid,
    settled_from bigint,
    settled_end bigint,
    consumed_at timestamptz,
    PRIMARY KEY (shard, partition_id, subscription_id)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);

-- The partitions of a lease, for statements that name the lease alone: a table, because an index on
-- cursors (lease_id) would keep claims and acknowledgements from being HOT updates.
--
-- A row is inserted with the lease and deleted when an acknowledgement ends the lease or another claim
-- takes the partition over. A row whose lease ended otherwise is harmless, because the cursor decides;
-- sweep_leases deletes it.
CREATE TABLE queen.leases (
    shard smallint NOT NULL,
    lease_id uuid NOT NULL,
    partition_id bigint NOT NULL,
    subscription_id integer NOT NULL,
    -- Serves lock_leased.
    PRIMARY KEY (shard, lease_id, partition_id, subscription_id)
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);

-- The partitions in which a queue-wide group may have something to read. A row is added by the push
-- that finds it missing and removed, under the allocator's lock, when the group has caught up and
-- the partition has been quiet for a while: so a pop reads the partitions in use, however many
-- the queue has, and a busy partition costs no write here.
CREATE TABLE queen.pending (
    shard smallint NOT NULL,
    subscription_id integer NOT NULL,
    partition_id bigint NOT NULL,
    PRIMARY KEY (shard, subscription_id, partition_id)
);


-- -- dead letters and traces --

-- Messages whose attempts ran out, for one group, with a copy of the payload that outlives the log.
CREATE TABLE queen.dead_letters (
    shard smallint NOT NULL,
    id uuid NOT NULL,
    partition_id bigint NOT NULL,
    queue_id uuid NOT NULL,
    consumer_group text NOT NULL,
    message_offset bigint NOT NULL,
    message_id uuid NOT NULL,
    transaction_id text NOT NULL,
    -- The producer's transaction id, if the message was moved back from the dead letters before: the
    -- copy has one of its own, and consumers that recognise repetitions need the first.
    original_transaction_id text,
    trace_id text,
    producer_sub text,
    payload bytea NOT NULL,  -- JSON text
    error_message text NOT NULL,  -- empty when it is sealed
    sealed_error bytea,  -- the error message of an encrypted queue
    error_key bytea,  -- keyed hash of its first 500 characters: equal errors are found and counted by it
    retry_count integer NOT NULL,
    created_at timestamptz NOT NULL,  -- of the message
    failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (shard, id)
) WITH (
    -- An index-only scan visits the rows that no vacuum has seen yet: keep them few.
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_vacuum_scale_factor = 0.02
);

-- Serves find_dead_letters of one queue, newest failure first, and delete_queue.
CREATE INDEX dead_letters_by_queue ON queen.dead_letters (shard, queue_id, failed_at);

-- Serves find_dead_letters of all queues, newest failure first.
CREATE INDEX dead_letters_by_time ON queen.dead_letters (shard, failed_at);

-- Serves dead_letter_statistics and partition_statistics, which count by index alone. It is small,
-- because equal keys are stored once.
CREATE INDEX dead_letters_by_partition ON queen.dead_letters (shard, queue_id, partition_id);

-- Serves dead_letters_of_messages, list_dead_offsets and push (duplicates of messages that have left the
-- log), which name a message.
CREATE INDEX dead_letters_by_message
    ON queen.dead_letters (shard, partition_id, message_offset);

-- Serves list_dead_messages, newest message first, and dead_message_by_id.
CREATE INDEX dead_letters_by_message_time
    ON queen.dead_letters (shard, created_at, partition_id, message_offset);

-- Serves dead_letter_partitions and the statements that name a message by its transaction id. A hash,
-- because a transaction id may be longer than a B-tree allows.
CREATE INDEX dead_letters_by_transaction_id ON queen.dead_letters USING hash (transaction_id);

-- Serves keys_in_use, as segments_by_key.
CREATE INDEX dead_letters_by_key ON queen.dead_letters (shard, substring(payload FROM 2 FOR 8))
WHERE payload < '\x04';

-- Events that consumers attached to a message.
CREATE TABLE queen.traces (
    shard smallint NOT NULL,
    id uuid NOT NULL,
    partition_id bigint NOT NULL,
    message_offset bigint NOT NULL,
    transaction_id text NOT NULL,
    consumer_group text NOT NULL,
    event_type text NOT NULL,
    data bytea NOT NULL,  -- JSON text
    worker_id text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (shard, id)
);

-- Serves traces_of_message, oldest first, and delete_message_traces.
CREATE INDEX traces_by_message
    ON queen.traces (shard, partition_id, message_offset, created_at);

-- Serves delete_old_traces.
CREATE INDEX traces_by_time ON queen.traces (shard, created_at);

CREATE TABLE queen.trace_names (
    shard smallint NOT NULL,
    name text NOT NULL,
    trace_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    -- Serves traces_by_name, newest first.
    PRIMARY KEY (shard, name, created_at, trace_id)
);

-- Serves the deletion of a trace with its names.
CREATE INDEX trace_names_by_trace ON queen.trace_names (shard, trace_id);


-- -- maintenance and services --

-- One row, which the workers of all hosts read every second.
CREATE TABLE queen.maintenance (
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    push boolean NOT NULL DEFAULT false,  -- all pushes are held back
    pop boolean NOT NULL DEFAULT false,  -- pops return nothing
    -- Pushes may be held back: all of them, or those to held_queues. Every push reads it; it changes
    -- when maintenance begins and when no push is held any more.
    holding boolean NOT NULL DEFAULT false,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

INSERT INTO queen.maintenance DEFAULT VALUES;

-- Pushes that were accepted in maintenance: a row for each request. They touch no queue until they
-- are stored.
CREATE TABLE queen.held_pushes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_count integer NOT NULL,
    queues text[] NOT NULL DEFAULT '{}',  -- the names of the queues that it pushes to
    producer_sub text,
    -- The queues that its credential may push to; null: all. It decides how far the push may label a
    -- queue that it creates.
    push_patterns text[],
    traceparent text,
    -- Its items as JSON, each with its transaction id, so that a push that is stored twice counts
    -- once. Encrypted, if the server has a key.
    items bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    failed_at timestamptz  -- set when it could not be stored
);

ALTER TABLE queen.held_pushes ALTER COLUMN items SET STORAGE EXTERNAL;

-- The queues whose pushes are held back, because held ones come before them.
CREATE TABLE queen.held_queues (name text PRIMARY KEY);

-- The process that runs a cluster-wide service, and until when.
CREATE TABLE queen.leaderships (
    service text PRIMARY KEY,
    holder text NOT NULL,
    expires_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What retention and eviction deleted; a row for each pass over a partition that deleted something.
CREATE TABLE queen.retention_history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard smallint NOT NULL,
    queue_id uuid NOT NULL,
    partition_id bigint NOT NULL,
    retention_type text NOT NULL CHECK (
        retention_type IN ('retention', 'completed_retention', 'max_wait_time', 'ttl', 'clear')
    ),
    messages_deleted bigint NOT NULL,
    executed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Serves retention_history and delete_old_history.
CREATE INDEX retention_history_by_time ON queen.retention_history (executed_at);

-- One row for each worker slot, written at most once a second while /readyz or /health is requested:
-- only a write shows whether the database takes writes.
CREATE TABLE queen.write_probe (
    slot smallint PRIMARY KEY,
    written_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Keys that this server issues itself (queue-server keys). Only the SHA-256 of a key is stored.
CREATE TABLE queen.api_keys (
    id text PRIMARY KEY,
    name text NOT NULL,
    hash bytea NOT NULL UNIQUE,
    role text NOT NULL,
    -- Patterns of queue names; all three null: every queue.
    push text[],
    pop text[],
    administer text[],
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    CHECK (num_nulls(push, pop, administer) IN (0, 3))
);


-- -- figures by minute --

-- The work and the state of a worker. Workers add to the minute's rows every few seconds; the clean-up
-- deletes old ones. A gauge is {sum, least, most, last} of sample_count samples.
CREATE TABLE queen.worker_minutes (
    minute timestamptz NOT NULL,
    hostname text NOT NULL,
    port integer NOT NULL,  -- on which its server listens: a host may run several
    worker_id integer NOT NULL,  -- its slot
    pid integer NOT NULL,
    started_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended boolean NOT NULL DEFAULT false,  -- in good order, not by falling silent
    requests bigint NOT NULL,
    push_requests bigint NOT NULL,
    pop_requests bigint NOT NULL,
    pop_empty bigint NOT NULL,
    ack_requests bigint NOT NULL,
    push_messages bigint NOT NULL,
    pop_messages bigint NOT NULL,
    ack_messages bigint NOT NULL,
    ack_failed bigint NOT NULL,
    dead_letters bigint NOT NULL,
    transactions bigint NOT NULL,
    retries bigint NOT NULL,  -- of transactions, after errors of the database
    lag_ms_sum bigint NOT NULL,  -- age of messages at delivery
    lag_ms_max bigint NOT NULL,
    cpu_user_us bigint NOT NULL,
    cpu_system_us bigint NOT NULL,
    sample_count integer NOT NULL,
    loop_lag_ms double precision[] NOT NULL,
    pool_size double precision[] NOT NULL,
    pool_idle double precision[] NOT NULL,
    pool_waiting double precision[] NOT NULL,
    free_slots double precision[] NOT NULL,  -- connections available at once
    resident_bytes double precision[] NOT NULL,
    virtual_bytes double precision[] NOT NULL,
    cpu_user_total_us double precision[] NOT NULL,  -- since the process started
    cpu_system_total_us double precision[] NOT NULL,
    -- At the last update: messages, failed messages and requests a second, ...
    push_rate real NOT NULL,
    pop_rate real NOT NULL,
    ack_rate real NOT NULL,
    fail_rate real NOT NULL DEFAULT 0,
    request_rate real NOT NULL DEFAULT 0,
    -- ... the share of one core in the ten seconds before, connections of clients, and waiting pops,
    -- in all and by queue.
    cpu_share real NOT NULL DEFAULT 0,
    connections integer NOT NULL DEFAULT 0,
    parked_pops integer NOT NULL DEFAULT 0,
    parked jsonb NOT NULL,
    PRIMARY KEY (minute, hostname, port, worker_id)
) WITH (fillfactor = 70);

-- The work of all workers for a queue, and its depth when it was last counted.
CREATE TABLE queen.queue_minutes (
    queue text NOT NULL,  -- its name: the figures outlive it
    minute timestamptz NOT NULL,
    push_requests bigint NOT NULL DEFAULT 0,
    push_messages bigint NOT NULL DEFAULT 0,
    pop_requests bigint NOT NULL DEFAULT 0,
    pop_empty bigint NOT NULL DEFAULT 0,
    pop_messages bigint NOT NULL DEFAULT 0,
    ack_requests bigint NOT NULL DEFAULT 0,
    ack_success bigint NOT NULL DEFAULT 0,
    ack_failed bigint NOT NULL DEFAULT 0,
    dead_letters bigint NOT NULL DEFAULT 0,
    transactions bigint NOT NULL DEFAULT 0,
    lag_ms_sum bigint NOT NULL DEFAULT 0,
    lag_ms_max bigint NOT NULL DEFAULT 0,
    -- Null until they are counted in this minute.
    partition_count bigint,
    depth bigint,  -- messages that the slowest groups have not committed
    oldest_s double precision,  -- age of the oldest of them
    PRIMARY KEY (queue, minute)
) WITH (fillfactor = 70);

-- Serves queue_totals and delete_old_queue_minutes, which read all queues.
CREATE INDEX queue_minutes_by_minute ON queen.queue_minutes (minute);
