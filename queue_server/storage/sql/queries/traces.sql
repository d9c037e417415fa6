-- name: message_offset_in_dead_letters
-- Where a message was that only its dead letters still have.
SELECT d.message_offset
FROM queen.dead_letters d
WHERE
    d.shard = %(shard)s
    AND d.partition_id = %(partition_id)s
    AND d.transaction_id = %(transaction_id)s
LIMIT 1

-- name: encryption_of_partition
-- The queue of a partition, and whether what is stored of its messages is encrypted.
SELECT q.name, q.encryption_enabled
FROM queen.partitions p
JOIN queen.queues q ON q.id = p.queue_id
WHERE p.shard = %(shard)s AND p.id = %(partition_id)s

-- name: insert_trace
WITH made AS (
    INSERT INTO queen.traces (
        shard, id, partition_id, message_offset, transaction_id, consumer_group, event_type, data
    )
    VALUES (
        %(shard)s, %(id)s, %(partition_id)s, %(message_offset)s, %(transaction_id)s,
        %(consumer_group)s, %(event_type)s, %(data)b
    )
    RETURNING shard, id, created_at
)
INSERT INTO queen.trace_names (shard, name, trace_id, created_at)
SELECT m.shard, n.name, m.id, m.created_at
FROM made m
CROSS JOIN unnest(%(names)s::text[]) AS n (name)

-- name: traces_of_message
-- A page, oldest first, by traces_by_message; it ends with the event whose data exceeds bytes_max.
SELECT
    t.id, t.partition_id, t.message_offset, t.transaction_id, t.consumer_group, t.event_type,
    t.data, t.worker_id, t.created_at,
    ARRAY(
        SELECT n.name FROM queen.trace_names n
        WHERE n.shard = t.shard AND n.trace_id = t.id ORDER BY n.name
    ) AS names,
    q.name AS queue, p.name AS partition
FROM queen.traces t
JOIN queen.partitions p ON p.shard = t.shard AND p.id = t.partition_id
JOIN queen.queues q ON q.id = p.queue_id
WHERE
    t.shard = %(shard)s
    AND t.id IN (
        SELECT c.id
        FROM (
            SELECT
                k.id, sum(k.size) OVER (ORDER BY k.created_at, k.id) - k.size AS before
            FROM (
                SELECT e.id, e.created_at, octet_length(e.data) AS size
                FROM queen.traces e
                WHERE
                    e.shard = %(shard)s
                    AND e.partition_id = %(partition_id)s
                    AND e.transaction_id = %(transaction_id)s
                ORDER BY e.created_at, e.id
                LIMIT %(limit)s OFFSET %(offset)s
            ) k
        ) c
        WHERE c.before < %(bytes_max)s
    )
ORDER BY t.created_at, t.id

-- name: count_traces_of_message
SELECT count(*)
FROM queen.traces t
WHERE
    t.shard = %(shard)s
    AND t.partition_id = %(partition_id)s
    AND t.transaction_id = %(transaction_id)s

-- name: traces_by_name
-- A page, newest first, by the primary key of trace_names; it ends with the event whose data exceeds
-- bytes_max.
SELECT
    t.id, t.partition_id, t.message_offset, t.transaction_id, t.consumer_group, t.event_type,
    t.data, t.worker_id, t.created_at,
    ARRAY(
        SELECT o.name FROM queen.trace_names o
        WHERE o.shard = t.shard AND o.trace_id = t.id ORDER BY o.name
    ) AS names,
    q.name AS queue, p.name AS partition
FROM (
    SELECT
        k.*,
        sum(k.size) OVER (ORDER BY k.created_at DESC, k.trace_id DESC) - k.size AS before
    FROM (
        SELECT m.shard, m.trace_id, m.created_at, octet_length(e.data) AS size
        FROM queen.trace_names m
        JOIN queen.traces e ON e.shard = m.shard AND e.id = m.trace_id
        WHERE
            m.shard = %(shard)s
            AND m.name = %(name)s
            AND (%(start)s::timestamptz IS NULL OR m.created_at >= %(start)s::timestamptz)
            AND (%(end)s::timestamptz IS NULL OR m.created_at < %(end)s::timestamptz)
        ORDER BY m.created_at DESC, m.trace_id DESC
        LIMIT %(limit)s OFFSET %(offset)s
    ) k
) n
JOIN queen.traces t ON t.shard = n.shard AND t.id = n.trace_id
JOIN queen.partitions p ON p.shard = t.shard AND p.id = t.partition_id
JOIN queen.queues q ON q.id = p.queue_id
WHERE n.before < %(bytes_max)s
ORDER BY n.created_at DESC, n.trace_id DESC

-- name: count_traces_by_name
SELECT count(*)
FROM queen.trace_names n
WHERE
    n.shard = %(shard)s
    AND n.name = %(name)s
    AND (%(start)s::timestamptz IS NULL OR n.created_at >= %(start)s::timestamptz)
    AND (%(end)s::timestamptz IS NULL OR n.created_at < %(end)s::timestamptz)

-- name: trace_names
-- The names in use, those first that were used last; with the number of names on all pages. Reads
-- all traces, which are few: they are written by hand and go after a week.
SELECT
    n.name, count(*) AS trace_count,
    count(DISTINCT (t.partition_id, t.message_offset)) AS message_count,
    max(n.created_at) AS last_seen, count(*) OVER () AS total
FROM queen.trace_names n
JOIN queen.traces t ON t.shard = n.shard AND t.id = n.trace_id
WHERE n.shard = %(shard)s
GROUP BY n.name
ORDER BY last_seen DESC, n.name
LIMIT %(limit)s OFFSET %(offset)s

-- name: count_trace_names
SELECT count(DISTINCT n.name) FROM queen.trace_names n WHERE n.shard = %(shard)s
