-- Delays, conflation, retention, traces, and what administration needs.
--
-- Expand only: columns with defaults and new tables, so the previous version runs on beside this one.

ALTER TABLE queen.queues
    -- With retry_delay: double it with each charged retry.
    ADD COLUMN retry_backoff boolean NOT NULL DEFAULT false,
    -- Claims of one position without an acknowledgement before it becomes a dead letter; 0 = no limit.
    ADD COLUMN delivery_limit integer NOT NULL DEFAULT 0;

-- The policy of a group on a queue: deliver only the newest message of each partition.
ALTER TABLE queen.subscriptions ADD COLUMN conflation boolean NOT NULL DEFAULT false;

-- After a nack with a delay: not handed out before this time.
ALTER TABLE queen.cursors ADD COLUMN available_at timestamptz;

-- Messages that were deleted one by one. Their place in the segment stays, so all positions do.
CREATE TABLE queen.holes (
    shard smallint NOT NULL,
    partition_id bigint NOT NULL,
    message_offset bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (shard, partition_id, message_offset)
);

-- Serves message retry and delete, which name a message.
CREATE INDEX dead_letters_by_message
    ON queen.dead_letters (shard, partition_id, message_offset);

-- Which process does a cluster-wide service, and until when.
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

-- Serves the history by time, and its own clean-up.
CREATE INDEX retention_history_by_time ON queen.retention_history (executed_at);

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

-- Serves a message's traces, oldest first, and their deletion with the message.
CREATE INDEX traces_by_message
    ON queen.traces (shard, partition_id, message_offset, created_at);

CREATE TABLE queen.trace_names (
    shard smallint NOT NULL,
    name text NOT NULL,
    trace_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    -- Serves the traces of a name, newest first.
    PRIMARY KEY (shard, name, created_at, trace_id)
);

-- Serves the deletion of a trace's names.
CREATE INDEX trace_names_by_trace ON queen.trace_names (shard, trace_id);
