-- Figures by minute, for charts. Workers add to the minute's rows every some seconds; the clean-up
-- deletes old ones.
--
-- Expand only: new tables.

-- What a worker did and how it was. A gauge is {sum, least, most, last} of sample_count samples.
CREATE TABLE queen.worker_minutes (
    minute timestamptz NOT NULL,
    hostname text NOT NULL,
    port integer NOT NULL,  -- on which its server listens: there may be several on a host
    worker_id integer NOT NULL,  -- its slot
    pid integer NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
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
    lag_ms_sum bigint NOT NULL,  -- how old delivered messages were
    lag_ms_max bigint NOT NULL,
    cpu_user_us bigint NOT NULL,
    cpu_system_us bigint NOT NULL,
    sample_count integer NOT NULL,
    loop_lag_ms double precision[] NOT NULL,
    pool_size double precision[] NOT NULL,
    pool_idle double precision[] NOT NULL,
    pool_waiting double precision[] NOT NULL,
    free_slots double precision[] NOT NULL,  -- connections that could be had at once
    resident_bytes double precision[] NOT NULL,
    virtual_bytes double precision[] NOT NULL,
    cpu_user_total_us double precision[] NOT NULL,  -- of its life
    cpu_system_total_us double precision[] NOT NULL,
    -- Messages a second when it was last written.
    push_rate real NOT NULL,
    pop_rate real NOT NULL,
    ack_rate real NOT NULL,
    parked jsonb NOT NULL,  -- waiting pops by queue, when it was last written
    PRIMARY KEY (minute, hostname, port, worker_id)
) WITH (fillfactor = 70);

-- What all workers did for a queue, and how it was at the last look.
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
    -- Null while nobody has looked in this minute.
    partition_count bigint,
    depth bigint,  -- what its slowest readers have not committed
    oldest_s double precision,  -- the age of the oldest of these
    PRIMARY KEY (queue, minute)
) WITH (fillfactor = 70);

-- Serves series over all queues, and the clean-up.
CREATE INDEX queue_minutes_by_minute ON queen.queue_minutes (minute);
