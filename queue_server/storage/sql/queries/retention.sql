-- name: queues_with_rules
-- The queues of which something may have to go. Reads all queues, which are few.
SELECT
    q.id, q.retention_enabled, q.retention_seconds, q.completed_retention_seconds,
    q.max_wait_time_seconds, q.ttl
FROM queen.queues q
WHERE
    (q.retention_enabled AND (q.retention_seconds > 0 OR q.completed_retention_seconds > 0))
    OR q.max_wait_time_seconds > 0
    OR q.ttl > 0
ORDER BY q.id

-- name: find_expired
SELECT * FROM queen.find_expired(
    %(shard)s::smallint, %(queue_ids)b::uuid[], %(ages_s)b::integer[],
    %(completed_ages_s)b::integer[], %(after)s::bigint, %(limit)s::integer,
    %(now)s::timestamptz
)

-- name: raise_low_watermarks
SELECT * FROM queen.raise_low_watermarks(
    %(shard)s::smallint, %(queue_ids)b::uuid[], %(partition_ids)b::bigint[], %(lows)b::bigint[],
    %(types)s::text[], %(wait)s::boolean
)

-- name: read_droppable
SELECT * FROM queen.read_droppable(
    %(shard)s::smallint, %(partition_ids)b::bigint[], %(starts)b::bigint[], %(ends)b::bigint[],
    %(segment_limit)s::integer, %(message_limit)s::integer, %(body_bytes_limit)s::bigint
)

-- name: drop_segments
SELECT queen.drop_segments(
    %(shard)s::smallint, %(partition_ids)b::bigint[], %(base_offsets)b::bigint[],
    %(range_partition_ids)b::bigint[], %(range_max_ids)b::bytea[],
    %(range_base_offsets)b::bigint[], %(span_partition_ids)b::bigint[],
    %(span_starts)b::bigint[], %(span_ends)b::bigint[]
)

-- name: find_leftovers
SELECT * FROM queen.find_leftovers(
    %(shard)s::smallint, %(after)s::bigint, %(limit)s::integer
)

-- name: remove_idle_partitions
SELECT * FROM queen.remove_idle_partitions(
    %(shard)s::smallint, %(after)s::bigint, %(limit)s::integer, %(idle_seconds)s::bigint,
    %(now)s::timestamptz
)

-- name: delete_old_traces
-- By traces_by_time.
WITH old AS (
    SELECT t.id
    FROM queen.traces t
    WHERE t.shard = %(shard)s AND t.created_at < clock_timestamp() - make_interval(secs => %(age_s)s)
    ORDER BY t.created_at
    LIMIT %(limit)s
),
names AS (
    DELETE FROM queen.trace_names n USING old WHERE n.shard = %(shard)s AND n.trace_id = old.id
),
gone AS (
    DELETE FROM queen.traces t USING old WHERE t.shard = %(shard)s AND t.id = old.id RETURNING t.id
)
SELECT count(*) FROM gone

-- name: delete_old_history
-- By retention_history_by_time.
WITH gone AS (
    DELETE FROM queen.retention_history h
    WHERE h.id = ANY (ARRAY(
        SELECT o.id
        FROM queen.retention_history o
        WHERE o.executed_at < clock_timestamp() - make_interval(secs => %(age_s)s)
        ORDER BY o.executed_at
        LIMIT %(limit)s
    ))
    RETURNING h.id
)
SELECT count(*) FROM gone

-- name: retention_history
-- What was deleted, by reason, in buckets of so many seconds since the epoch.
SELECT
    to_timestamp(floor(extract(epoch FROM h.executed_at) / %(bucket_s)s) * %(bucket_s)s) AS bucket,
    h.retention_type, sum(h.messages_deleted)::bigint, count(*)
FROM queen.retention_history h
WHERE
    h.executed_at >= %(start)s::timestamptz
    AND h.executed_at < %(end)s::timestamptz
    AND h.retention_type <> 'clear'
GROUP BY 1, 2
ORDER BY 1
