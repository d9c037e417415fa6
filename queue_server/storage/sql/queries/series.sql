-- name: book_worker
-- Add what a worker did to the current minute. Its gauges are those of the whole minute so far.
INSERT INTO queen.worker_minutes AS w (
    minute, hostname, port, worker_id, pid, requests, push_requests, pop_requests, pop_empty,
    ack_requests, push_messages, pop_messages, ack_messages, ack_failed, dead_letters,
    transactions, retries, lag_ms_sum, cpu_user_us, cpu_system_us, lag_ms_max, sample_count,
    loop_lag_ms, pool_size, pool_idle, pool_waiting, free_slots, resident_bytes, virtual_bytes,
    cpu_user_total_us, cpu_system_total_us, push_rate, pop_rate, ack_rate, fail_rate, request_rate,
    cpu_share, started_at, connections, parked_pops, ended, parked
) VALUES (
    date_trunc('minute', clock_timestamp()), %(hostname)s, %(port)s, %(worker_id)s, %(pid)s,
    %(requests)s, %(push_requests)s, %(pop_requests)s, %(pop_empty)s, %(ack_requests)s,
    %(push_messages)s, %(pop_messages)s, %(ack_messages)s, %(ack_failed)s, %(dead_letters)s,
    %(transactions)s, %(retries)s, %(lag_ms_sum)s, %(cpu_user_us)s, %(cpu_system_us)s,
    %(lag_ms_max)s, %(sample_count)s, %(loop_lag_ms)s::float8[], %(pool_size)s::float8[],
    %(pool_idle)s::float8[], %(pool_waiting)s::float8[], %(free_slots)s::float8[],
    %(resident_bytes)s::float8[], %(virtual_bytes)s::float8[], %(cpu_user_total_us)s::float8[],
    %(cpu_system_total_us)s::float8[], %(push_rate)s, %(pop_rate)s, %(ack_rate)s, %(fail_rate)s,
    %(request_rate)s, %(cpu_share)s, %(started_at)s, %(connections)s, %(parked_pops)s, %(ended)s,
    %(parked)s::jsonb
)
ON CONFLICT (minute, hostname, port, worker_id) DO UPDATE SET
    pid = excluded.pid,
    updated_at = clock_timestamp(),
    requests = w.requests + excluded.requests,
    push_requests = w.push_requests + excluded.push_requests,
    pop_requests = w.pop_requests + excluded.pop_requests,
    pop_empty = w.pop_empty + excluded.pop_empty,
    ack_requests = w.ack_requests + excluded.ack_requests,
    push_messages = w.push_messages + excluded.push_messages,
    pop_messages = w.pop_messages + excluded.pop_messages,
    ack_messages = w.ack_messages + excluded.ack_messages,
    ack_failed = w.ack_failed + excluded.ack_failed,
    dead_letters = w.dead_letters + excluded.dead_letters,
    transactions = w.transactions + excluded.transactions,
    retries = w.retries + excluded.retries,
    lag_ms_sum = w.lag_ms_sum + excluded.lag_ms_sum,
    cpu_user_us = w.cpu_user_us + excluded.cpu_user_us,
    cpu_system_us = w.cpu_system_us + excluded.cpu_system_us,
    lag_ms_max = greatest(w.lag_ms_max, excluded.lag_ms_max),
    sample_count = excluded.sample_count,
    loop_lag_ms = excluded.loop_lag_ms,
    pool_size = excluded.pool_size,
    pool_idle = excluded.pool_idle,
    pool_waiting = excluded.pool_waiting,
    free_slots = excluded.free_slots,
    resident_bytes = excluded.resident_bytes,
    virtual_bytes = excluded.virtual_bytes,
    cpu_user_total_us = excluded.cpu_user_total_us,
    cpu_system_total_us = excluded.cpu_system_total_us,
    push_rate = excluded.push_rate,
    pop_rate = excluded.pop_rate,
    ack_rate = excluded.ack_rate,
    fail_rate = excluded.fail_rate,
    request_rate = excluded.request_rate,
    cpu_share = excluded.cpu_share,
    started_at = excluded.started_at,
    connections = excluded.connections,
    parked_pops = excluded.parked_pops,
    ended = excluded.ended,
    parked = excluded.parked
RETURNING minute

-- name: book_queues
-- Add what a worker did for queues to the current minute, in the order in which all workers do so:
-- that of code points, in which a booking of very many is cut as well.
-- Names of queues that are not there (any more) are passed over: who pops may name anything.
INSERT INTO queen.queue_minutes AS m (
    minute, queue, push_requests, push_messages, pop_requests, pop_empty, pop_messages,
    ack_requests, ack_success, ack_failed, dead_letters, transactions, lag_ms_sum, lag_ms_max
)
SELECT
    date_trunc('minute', clock_timestamp()), t.*
FROM unnest(
    %(queue)s::text[], %(push_requests)s::bigint[], %(push_messages)s::bigint[],
    %(pop_requests)s::bigint[], %(pop_empty)s::bigint[], %(pop_messages)s::bigint[],
    %(ack_requests)s::bigint[], %(ack_success)s::bigint[], %(ack_failed)s::bigint[],
    %(dead_letters)s::bigint[], %(transactions)s::bigint[], %(lag_ms_sum)s::bigint[],
    %(lag_ms_max)s::bigint[]
) AS t (
    queue, push_requests, push_messages, pop_requests, pop_empty, pop_messages, ack_requests,
    ack_success, ack_failed, dead_letters, transactions, lag_ms_sum, lag_ms_max
)
WHERE EXISTS (SELECT FROM queen.queues q WHERE q.name = t.queue)
ORDER BY t.queue COLLATE "C"
ON CONFLICT (queue, minute) DO UPDATE SET
    push_requests = m.push_requests + excluded.push_requests,
    push_messages = m.push_messages + excluded.push_messages,
    pop_requests = m.pop_requests + excluded.pop_requests,
    pop_empty = m.pop_empty + excluded.pop_empty,
    pop_messages = m.pop_messages + excluded.pop_messages,
    ack_requests = m.ack_requests + excluded.ack_requests,
    ack_success = m.ack_success + excluded.ack_success,
    ack_failed = m.ack_failed + excluded.ack_failed,
    dead_letters = m.dead_letters + excluded.dead_letters,
    transactions = m.transactions + excluded.transactions,
    lag_ms_sum = m.lag_ms_sum + excluded.lag_ms_sum,
    lag_ms_max = greatest(m.lag_ms_max, excluded.lag_ms_max)

-- name: other_rates
-- Messages a second that the workers of other servers have to do with, as of their last word.
SELECT
    coalesce(sum(r.push_rate), 0)::float8, coalesce(sum(r.pop_rate), 0)::float8,
    coalesce(sum(r.ack_rate), 0)::float8, coalesce(sum(r.fail_rate), 0)::float8,
    coalesce(sum(r.request_rate), 0)::float8
FROM (
    SELECT DISTINCT ON (w.hostname, w.port, w.worker_id)
        w.push_rate, w.pop_rate, w.ack_rate, w.fail_rate, w.request_rate
    FROM queen.worker_minutes w
    WHERE
        w.minute >= clock_timestamp() - make_interval(secs => %(silence_s)s + 60)
        AND w.updated_at >= clock_timestamp() - make_interval(secs => %(silence_s)s)
        AND (w.hostname, w.port) <> (%(hostname)s, %(port)s)
    ORDER BY w.hostname, w.port, w.worker_id, w.minute DESC
) r

-- name: last_bookings
-- What each worker last said of itself, without those that ended in good order. One of a version
-- that does not tell when it ends (a null started_at) is passed over as soon as it is silent.
SELECT
    l.hostname, l.port, l.worker_id, l.pid, l.age_s, l.started_at, l.connections, l.parked_pops,
    l.pool_size[4]::int, l.pool_idle[4]::int, l.pool_waiting[4]::int, l.resident_bytes[4]::bigint,
    coalesce(l.loop_lag_ms[1] / nullif(l.sample_count, 0), 0)::float8, l.cpu_share::float8
FROM (
    SELECT DISTINCT ON (w.hostname, w.port, w.worker_id)
        w.*, extract(epoch FROM clock_timestamp() - w.updated_at)::float8 AS age_s
    FROM queen.worker_minutes w
    WHERE w.minute >= clock_timestamp() - make_interval(secs => %(forget_s)s + 60)
    ORDER BY w.hostname, w.port, w.worker_id, w.minute DESC
) l
WHERE
    NOT l.ended
    AND l.age_s <= CASE
        WHEN l.started_at IS NULL THEN %(silence_s)s::float8 ELSE %(forget_s)s::float8
    END
ORDER BY l.hostname, l.port, l.worker_id
LIMIT %(limit)s

-- name: worker_series
-- All workers together, by bucket. Figures of the moment (pool, memory) are averages over time of
-- the sum over the workers.
WITH minutes AS (
    SELECT
        date_bin(
            make_interval(mins => %(bucket_minutes)s), w.minute, 'epoch'::timestamptz
        ) AS bucket,
        w.minute,
        sum(w.requests) AS requests,
        sum(w.push_requests) AS push_requests,
        sum(w.pop_requests) AS pop_requests,
        sum(w.pop_empty) AS pop_empty,
        sum(w.ack_requests) AS ack_requests,
        sum(w.push_messages) AS push_messages,
        sum(w.pop_messages) AS pop_messages,
        sum(w.ack_messages) AS ack_messages,
        sum(w.ack_failed) AS ack_failed,
        sum(w.dead_letters) AS dead_letters,
        sum(w.transactions) AS transactions,
        sum(w.retries) AS retries,
        sum(w.lag_ms_sum) AS lag_ms_sum,
        sum(w.cpu_user_us) AS cpu_user_us,
        sum(w.cpu_system_us) AS cpu_system_us,
        max(w.lag_ms_max) AS lag_ms_max,
        sum(w.sample_count) AS sample_count,
        sum(w.loop_lag_ms[1]) AS loop_lag_sum, max(w.loop_lag_ms[3]) AS loop_lag_max,
        sum(w.pool_waiting[1]) AS waiting_sum, max(w.pool_waiting[3]) AS waiting_max,
        sum(w.free_slots[1]) AS free_sum, min(w.free_slots[2]) AS free_min,
        sum(w.pool_size[1] / greatest(w.sample_count, 1)) AS pool_size,
        sum(w.pool_idle[1] / greatest(w.sample_count, 1)) AS pool_idle,
        sum(w.resident_bytes[1] / greatest(w.sample_count, 1)) AS resident_bytes
    FROM queen.worker_minutes w
    WHERE w.minute >= %(start)s::timestamptz AND w.minute < %(end)s::timestamptz
    GROUP BY w.minute
)
SELECT
    m.bucket,
    greatest(
        extract(
            epoch FROM least(
                m.bucket + make_interval(mins => %(bucket_minutes)s), clock_timestamp()
            ) - m.bucket
        ),
        1
    )::float8 AS seconds,
    sum(m.requests)::bigint,
    sum(m.push_requests)::bigint,
    sum(m.pop_requests)::bigint,
    sum(m.pop_empty)::bigint,
    sum(m.ack_requests)::bigint,
    sum(m.push_messages)::bigint,
    sum(m.pop_messages)::bigint,
    sum(m.ack_messages)::bigint,
    sum(m.ack_failed)::bigint,
    sum(m.dead_letters)::bigint,
    sum(m.transactions)::bigint,
    sum(m.retries)::bigint,
    sum(m.lag_ms_sum)::bigint,
    sum(m.cpu_user_us)::bigint,
    sum(m.cpu_system_us)::bigint,
    max(m.lag_ms_max)::bigint,
    coalesce(sum(m.loop_lag_sum) / nullif(sum(m.sample_count), 0), 0)::float8,
    coalesce(max(m.loop_lag_max), 0)::float8,
    coalesce(sum(m.waiting_sum) / nullif(sum(m.sample_count), 0), 0)::float8,
    coalesce(max(m.waiting_max), 0)::float8,
    coalesce(sum(m.free_sum) / nullif(sum(m.sample_count), 0), 0)::float8,
    coalesce(min(m.free_min), 0)::float8,
    avg(m.pool_size)::float8, avg(m.pool_idle)::float8, avg(m.resident_bytes)::float8
FROM minutes m
GROUP BY m.bucket
ORDER BY m.bucket

-- name: worker_summaries
-- Each worker over a time, and when it was last heard of.
SELECT
    w.hostname, w.port, w.worker_id, (array_agg(w.pid ORDER BY w.minute DESC))[1],
    max(w.updated_at),
    coalesce(sum(w.loop_lag_ms[1]) / nullif(sum(w.sample_count), 0), 0)::float8,
    coalesce(max(w.loop_lag_ms[3]), 0)::float8,
    (array_agg(w.free_slots[4] ORDER BY w.minute DESC))[1],
    (array_agg(w.pool_size[4] ORDER BY w.minute DESC))[1],
    (array_agg(w.pool_waiting[4] ORDER BY w.minute DESC))[1],
    sum(w.push_messages + w.pop_messages)::bigint,
    (array_agg(w.ended ORDER BY w.minute DESC))[1]
FROM queen.worker_minutes w
WHERE w.minute >= %(start)s::timestamptz AND w.minute < %(end)s::timestamptz
GROUP BY w.hostname, w.port, w.worker_id
ORDER BY w.hostname, w.port, w.worker_id

-- name: replica_series
-- The gauges of each worker, by bucket: {average, least, most, last}.
SELECT
    w.hostname, w.port, w.worker_id,
    date_bin(make_interval(mins => %(bucket_minutes)s), w.minute, 'epoch'::timestamptz) AS bucket,
    sum(w.sample_count)::bigint,
    ARRAY[
        sum(w.pool_size[1]) / sum(w.sample_count),
        min(w.pool_size[2]), max(w.pool_size[3]),
        (array_agg(w.pool_size[4] ORDER BY w.minute DESC))[1]
    ],
    ARRAY[
        sum(w.pool_idle[1]) / sum(w.sample_count),
        min(w.pool_idle[2]), max(w.pool_idle[3]),
        (array_agg(w.pool_idle[4] ORDER BY w.minute DESC))[1]
    ],
    ARRAY[
        sum(w.pool_waiting[1]) / sum(w.sample_count),
        min(w.pool_waiting[2]), max(w.pool_waiting[3]),
        (array_agg(w.pool_waiting[4] ORDER BY w.minute DESC))[1]
    ],
    ARRAY[
        sum(w.resident_bytes[1]) / sum(w.sample_count),
        min(w.resident_bytes[2]), max(w.resident_bytes[3]),
        (array_agg(w.resident_bytes[4] ORDER BY w.minute DESC))[1]
    ],
    ARRAY[
        sum(w.virtual_bytes[1]) / sum(w.sample_count),
        min(w.virtual_bytes[2]), max(w.virtual_bytes[3]),
        (array_agg(w.virtual_bytes[4] ORDER BY w.minute DESC))[1]
    ],
    ARRAY[
        sum(w.cpu_user_total_us[1]) / sum(w.sample_count),
        min(w.cpu_user_total_us[2]), max(w.cpu_user_total_us[3]),
        (array_agg(w.cpu_user_total_us[4] ORDER BY w.minute DESC))[1]
    ],
    ARRAY[
        sum(w.cpu_system_total_us[1]) / sum(w.sample_count),
        min(w.cpu_system_total_us[2]), max(w.cpu_system_total_us[3]),
        (array_agg(w.cpu_system_total_us[4] ORDER BY w.minute DESC))[1]
    ]
FROM queen.worker_minutes w
WHERE
    w.minute >= %(start)s::timestamptz
    AND w.minute < %(end)s::timestamptz
    AND w.sample_count > 0
    AND (%(hostname)s::text IS NULL OR w.hostname = %(hostname)s::text)
    AND (%(worker_id)s::integer IS NULL OR w.worker_id = %(worker_id)s::integer)
GROUP BY w.hostname, w.port, w.worker_id, bucket
ORDER BY w.hostname, w.port, w.worker_id, bucket

-- name: queue_series
-- By bucket and queue, the newest first.
SELECT
    s.bucket,
    greatest(
        extract(
            epoch FROM least(
                s.bucket + make_interval(mins => %(bucket_minutes)s), clock_timestamp()
            ) - s.bucket
        ),
        1
    )::float8 AS seconds,
    s.queue,
    s.push_requests, s.push_messages, s.pop_requests, s.pop_empty, s.pop_messages, s.ack_requests,
    s.ack_success, s.ack_failed, s.dead_letters, s.transactions, s.lag_ms_sum, s.lag_ms_max,
    s.partitions_first, s.partitions_last, s.depth, s.oldest_s
FROM (
    SELECT
        date_bin(
            make_interval(mins => %(bucket_minutes)s), m.minute, 'epoch'::timestamptz
        ) AS bucket,
        m.queue,
        sum(m.push_requests)::bigint AS push_requests,
        sum(m.push_messages)::bigint AS push_messages,
        sum(m.pop_requests)::bigint AS pop_requests,
        sum(m.pop_empty)::bigint AS pop_empty,
        sum(m.pop_messages)::bigint AS pop_messages,
        sum(m.ack_requests)::bigint AS ack_requests,
        sum(m.ack_success)::bigint AS ack_success,
        sum(m.ack_failed)::bigint AS ack_failed,
        sum(m.dead_letters)::bigint AS dead_letters,
        sum(m.transactions)::bigint AS transactions,
        sum(m.lag_ms_sum)::bigint AS lag_ms_sum,
        max(m.lag_ms_max) AS lag_ms_max,
        (array_agg(m.partition_count ORDER BY m.minute) FILTER (WHERE m.partition_count IS NOT NULL)
        )[1] AS partitions_first,
        (array_agg(m.partition_count ORDER BY m.minute DESC) FILTER (
            WHERE m.partition_count IS NOT NULL
        ))[1] AS partitions_last,
        (array_agg(m.depth ORDER BY m.minute DESC) FILTER (WHERE m.depth IS NOT NULL))[1] AS depth,
        max(m.oldest_s) AS oldest_s
    FROM queen.queue_minutes m
    LEFT JOIN queen.queues q ON q.name = m.queue
    WHERE
        m.minute >= %(start)s::timestamptz
        AND m.minute < %(end)s::timestamptz
        AND (%(queue)s::text IS NULL OR m.queue = %(queue)s::text)
        AND (%(namespace)s::text IS NULL OR q.namespace = %(namespace)s::text)
        AND (%(task)s::text IS NULL OR q.task = %(task)s::text)
        AND (%(search)s::text IS NULL OR strpos(lower(m.queue), lower(%(search)s::text)) > 0)
    GROUP BY bucket, m.queue
) s
ORDER BY s.bucket DESC, s.queue
LIMIT %(limit)s

-- name: queue_lags
-- How old messages of each queue were when they were delivered.
SELECT m.queue, sum(m.pop_messages)::bigint, sum(m.lag_ms_sum)::bigint, max(m.lag_ms_max)::bigint
FROM queen.queue_minutes m
WHERE m.minute >= %(start)s::timestamptz AND m.minute < %(end)s::timestamptz
GROUP BY m.queue
ORDER BY sum(m.pop_messages) DESC, m.queue
LIMIT %(limit)s

-- name: queue_totals
-- What was done by bucket, over all queues that the filter lets through.
SELECT
    s.bucket,
    greatest(
        extract(
            epoch FROM least(
                s.bucket + make_interval(mins => %(bucket_minutes)s), clock_timestamp()
            ) - s.bucket
        ),
        1
    )::float8 AS seconds,
    s.push_requests, s.push_messages, s.pop_requests, s.pop_empty, s.pop_messages, s.ack_requests,
    s.ack_success, s.ack_failed, s.dead_letters, s.transactions, s.lag_ms_sum, s.lag_ms_max
FROM (
    SELECT
        date_bin(
            make_interval(mins => %(bucket_minutes)s), m.minute, 'epoch'::timestamptz
        ) AS bucket,
        sum(m.push_requests)::bigint AS push_requests,
        sum(m.push_messages)::bigint AS push_messages,
        sum(m.pop_requests)::bigint AS pop_requests,
        sum(m.pop_empty)::bigint AS pop_empty,
        sum(m.pop_messages)::bigint AS pop_messages,
        sum(m.ack_requests)::bigint AS ack_requests,
        sum(m.ack_success)::bigint AS ack_success,
        sum(m.ack_failed)::bigint AS ack_failed,
        sum(m.dead_letters)::bigint AS dead_letters,
        sum(m.transactions)::bigint AS transactions,
        sum(m.lag_ms_sum)::bigint AS lag_ms_sum,
        max(m.lag_ms_max) AS lag_ms_max
    FROM queen.queue_minutes m
    LEFT JOIN queen.queues q ON q.name = m.queue
    WHERE
        m.minute >= %(start)s::timestamptz
        AND m.minute < %(end)s::timestamptz
        AND (%(queue)s::text IS NULL OR m.queue = %(queue)s::text)
        AND (%(namespace)s::text IS NULL OR q.namespace = %(namespace)s::text)
        AND (%(task)s::text IS NULL OR q.task = %(task)s::text)
        AND (%(search)s::text IS NULL OR strpos(lower(m.queue), lower(%(search)s::text)) > 0)
    GROUP BY bucket
) s
ORDER BY s.bucket

-- name: parked_series
-- Waiting pops by bucket, queue and worker, the newest first: the most of the minutes of a bucket.
SELECT
    date_bin(make_interval(mins => %(bucket_minutes)s), w.minute, 'epoch'::timestamptz) AS bucket,
    p.key, w.hostname, w.port, w.worker_id, max(p.value::bigint)
FROM queen.worker_minutes w
CROSS JOIN LATERAL jsonb_each_text(w.parked) p
WHERE
    w.minute >= %(start)s::timestamptz
    AND w.minute < %(end)s::timestamptz
    AND (%(queue)s::text IS NULL OR p.key = %(queue)s::text)
GROUP BY bucket, p.key, w.hostname, w.port, w.worker_id
ORDER BY bucket DESC, p.key, w.hostname, w.port, w.worker_id
LIMIT %(limit)s

-- name: queue_rates
-- What all workers of all hosts did for each queue: messages per second over the last minute (the
-- minute that goes on, and of the one before the part that is less than a minute ago, as if it had
-- been spread evenly), and the acknowledgements of the last five minutes. By queue_minutes_by_minute.
SELECT
    m.queue,
    (
        coalesce(sum(m.push_messages) FILTER (WHERE m.minute = t.minute), 0)
        + t.left_share
        * coalesce(sum(m.push_messages) FILTER (WHERE m.minute = t.minute - interval '1 min'), 0)
    )::float8 / 60,
    (
        coalesce(sum(m.ack_success) FILTER (WHERE m.minute = t.minute), 0)
        + t.left_share
        * coalesce(sum(m.ack_success) FILTER (WHERE m.minute = t.minute - interval '1 min'), 0)
    )::float8 / 60,
    sum(m.ack_success)::bigint,
    sum(m.ack_failed)::bigint
FROM (
    SELECT
        date_trunc('minute', n.now) AS minute,
        1 - date_part('epoch', n.now - date_trunc('minute', n.now)) / 60 AS left_share
    FROM (SELECT clock_timestamp() AS now OFFSET 0) n
) t
JOIN queen.queue_minutes m ON m.minute > t.minute - interval '5 min'
WHERE %(queue)s::text IS NULL OR m.queue = %(queue)s
GROUP BY m.queue, t.left_share

-- name: delete_old_worker_minutes
-- By the primary key, which begins with the minute.
WITH gone AS (
    DELETE FROM queen.worker_minutes w
    WHERE w.ctid = ANY (ARRAY(
        SELECT o.ctid
        FROM queen.worker_minutes o
        WHERE o.minute < clock_timestamp() - make_interval(secs => %(age_s)s)
        LIMIT %(limit)s
    ))
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: delete_old_queue_minutes
-- By queue_minutes_by_minute.
WITH gone AS (
    DELETE FROM queen.queue_minutes m
    WHERE m.ctid = ANY (ARRAY(
        SELECT o.ctid
        FROM queen.queue_minutes o
        WHERE o.minute < clock_timestamp() - make_interval(secs => %(age_s)s)
        LIMIT %(limit)s
    ))
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: book_depths
-- How queues are now, in the current minute: those in which something is to be read, and those that
-- have a row for this minute anyway.
INSERT INTO queen.queue_minutes AS m (minute, queue, partition_count, depth, oldest_s)
SELECT
    date_trunc('minute', clock_timestamp()), t.*
FROM unnest(
    %(queue)s::text[], %(partition_count)s::bigint[], %(depth)s::bigint[], %(oldest_s)s::float8[]
) AS t (queue, partition_count, depth, oldest_s)
WHERE
    t.depth > 0
    OR EXISTS (
        SELECT FROM queen.queue_minutes n
        WHERE n.queue = t.queue AND n.minute = date_trunc('minute', clock_timestamp())
    )
ORDER BY t.queue COLLATE "C"
ON CONFLICT (queue, minute) DO UPDATE SET
    partition_count = excluded.partition_count,
    depth = excluded.depth,
    oldest_s = excluded.oldest_s
RETURNING 1
