-- The segmented log and what is kept beside it.
--
-- Every hot table begins its primary key with `shard`, so that the tables can be distributed by it
-- later; one machine uses the single shard 1. Hot tables have neither foreign keys (each insert
-- would lock a row of the parent) nor triggers.

CREATE SCHEMA queen;

-- One row for each shard in use: where its partition ids come from.
CREATE TABLE queen.shards (
    shard smallint PRIMARY KEY,
    next_partition_number bigint NOT NULL DEFAULT 1
);

INSERT INTO queen.shards (shard) VALUES (1);

-- Reference data: small, rarely written. The three nullable options are enforced only when somebody
-- set them; null means "echo the default, enforce nothing".
CREATE TABLE queen.queues (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    namespace text NOT NULL DEFAULT '',
    task text NOT NULL DEFAULT '',
    lease_time integer NOT NULL DEFAULT 300,  -- seconds
    retry_limit integer NOT NULL DEFAULT 3,
    retry_delay integer,  -- milliseconds
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

-- The name of a partition. Written once.
CREATE TABLE queen.partitions (
    shard smallint NOT NULL,
    id bigint NOT NULL,  -- shard * 2^47 + a number of that shard; below 2^53
    queue_id uuid NOT NULL REFERENCES queen.queues (id),
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, id),
    -- Serves the look-up of a partition by name, and guards that a name is given once.
    UNIQUE (shard, queue_id, name)
);

-- Serves backfill_subscription and delete_queue: a queue's partitions in ascending id.
CREATE INDEX partitions_by_queue ON queen.partitions (shard, queue_id, id);

-- The head of each partition: the row whose lock gives offsets. Updated by every push, so it is
-- narrow, no index covers a column that changes, and half of each page is free: updates stay HOT.
CREATE TABLE queen.allocators (
    shard smallint NOT NULL,
    partition_id bigint NOT NULL,
    queue_id uuid NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,  -- the high watermark
    low_watermark bigint NOT NULL DEFAULT 0,  -- the earliest kept offset
    last_segment_at timestamptz,
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

-- A consumer group's registration on a queue. Small: one row for each (queue, group).
CREATE TABLE queen.subscriptions (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue_id uuid NOT NULL REFERENCES queen.queues (id),
    consumer_group text NOT NULL,
    -- False for a group that only ever named partitions: such a pop registers nothing queue-wide.
    queue_wide boolean NOT NULL,
    mode text NOT NULL CHECK (mode IN ('all', 'new', 'timestamp')),
    starts_at timestamptz NOT NULL,
    -- Partitions up to this id have a cursor; null when all have (see backfill_subscription).
    backfilled_to bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Serves push (who reads this queue?) and guards that a group registers once.
    UNIQUE (queue_id, consumer_group)
);

-- The place of a group in a partition, and its lease.
CREATE TABLE queen.cursors (
    shard smallint NOT NULL,
    partition_id bigint NOT NULL,
    subscription_id integer NOT NULL,
    committed_offset bigint NOT NULL,  -- the first offset the group has not acknowledged
    lease_id uuid,  -- null without a lease
    lease_end bigint,  -- the leased batch is [committed_offset, lease_end)
    lease_expires_at timestamptz,
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

-- Serves extend_lease, which is told the lease and nothing else.
CREATE INDEX cursors_by_lease ON queen.cursors (shard, lease_id) WHERE lease_id IS NOT NULL;

-- The partitions in which a queue-wide group may have something to read. A row is added by the push
-- that finds it missing and removed, under the allocator's lock, when the group has caught up and
-- the partition has been quiet for a while: so a pop looks at the partitions in use, however many
-- the queue has, and a busy partition costs no write here.
CREATE TABLE queen.pending (
    shard smallint NOT NULL,
    subscription_id integer NOT NULL,
    partition_id bigint NOT NULL,
    PRIMARY KEY (shard, subscription_id, partition_id)
);

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
    trace_id text,
    producer_sub text,
    payload bytea NOT NULL,  -- JSON text
    error_message text NOT NULL,
    retry_count integer NOT NULL,
    created_at timestamptz NOT NULL,  -- of the message
    failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (shard, id)
);

-- Serves the listing of a queue's dead letters, newest first, and delete_queue.
CREATE INDEX dead_letters_by_queue ON queen.dead_letters (shard, queue_id, failed_at);
