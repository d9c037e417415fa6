-- name: browse_partitions
-- The partitions with the newest segments that a listing looks for: stored in [start, end), and with
-- messages of the wanted status. The first n partitions hold the first n segments, as each comes where
-- its newest of these belongs. That is nearly always its newest of all, whose time the allocator has.
-- It is looked for, by a search of its segments, in partitions pushed to after `end`, and by one look-up
-- where a status ends below the newest messages. Partitions that were not searched within `within_s`
-- come first, with a null. The groups of all partitions are looked at only when a status is wanted.
WITH matched AS (
    SELECT
        p.id, p.name AS partition, q.name AS queue, q.namespace, q.task, q.priority, p.created_at,
        a.low_watermark, a.next_offset, a.last_segment_at
    FROM queen.queues q
    JOIN queen.partitions p ON p.shard = %(shard)s AND p.queue_id = q.id
    JOIN queen.allocators a ON a.shard = %(shard)s AND a.partition_id = p.id
    WHERE
        (%(queue)s::text IS NULL OR q.name = %(queue)s::text)
        AND (%(partition)s::text IS NULL OR p.name = %(partition)s::text)
        AND (%(namespace)s::text IS NULL OR q.namespace = %(namespace)s::text)
        AND (%(task)s::text IS NULL OR q.task = %(task)s::text)
        AND a.next_offset > a.low_watermark
        AND a.last_segment_at >= %(start)s::timestamptz
    ORDER BY a.last_segment_at DESC, p.id DESC
    LIMIT CASE
        WHEN %(status)s::text IS NULL AND %(end)s::timestamptz IS NULL THEN %(limit)s::bigint
    END
),
placed AS (
    SELECT
        m.*,
        CASE %(status)s::text
            WHEN 'completed' THEN m.low_watermark
            WHEN 'processing' THEN greatest(m.low_watermark, c.queue_mode)
            WHEN 'pending' THEN greatest(
                m.low_watermark, coalesce(greatest(c.queue_mode, c.leased_to), 0),
                CASE WHEN c.queue_mode IS NULL THEN coalesce(c.named, 0) END
            )
            ELSE m.low_watermark
        END AS low,
        CASE %(status)s::text
            WHEN 'completed' THEN coalesce(c.queue_mode, c.named, 0)
            WHEN 'processing' THEN coalesce(c.leased_to, 0)
            ELSE m.next_offset
        END AS high
    FROM matched m
    LEFT JOIN LATERAL (
        SELECT
            max(k.committed_offset) FILTER (WHERE u.consumer_group = '__QUEUE_MODE__') AS queue_mode,
            max(k.lease_end) FILTER (
                WHERE u.consumer_group = '__QUEUE_MODE__' AND k.lease_expires_at > clock_timestamp()
            ) AS leased_to,
            min(k.committed_offset) FILTER (WHERE u.consumer_group <> '__QUEUE_MODE__') AS named
        FROM queen.cursors k
        JOIN queen.subscriptions u ON u.id = k.subscription_id
        WHERE
            %(status)s::text IS NOT NULL
            AND k.shard = %(shard)s
            AND k.partition_id = m.id
    ) c ON true
),
-- OFFSET 0: what stands behind a name is worked out once, not wherever the name stands.
bounded AS (
    SELECT
        l.*,
        CASE
            WHEN l.last_segment_at < %(end)s::timestamptz OR %(end)s::timestamptz IS NULL THEN l.high
            ELSE queen.end_before(
                %(shard)s::smallint, l.id, l.low, l.high, %(end)s::timestamptz, l.created_at,
                l.last_segment_at,
                statement_timestamp() + make_interval(secs => %(within_s)s::float8)
            )
        END AS past
    FROM placed l
    WHERE l.low < l.high
    OFFSET 0
),
timed AS (
    SELECT
        b.*,
        CASE
            WHEN b.past IS NULL THEN 'infinity'
            WHEN b.past = b.next_offset THEN b.last_segment_at
            ELSE (SELECT t.o_at FROM queen.time_at(%(shard)s::smallint, b.id, b.past - 1) t)
        END AS newest_at
    FROM bounded b
    WHERE b.low < b.past OR b.past IS NULL
    OFFSET 0
)
SELECT t.id, t.partition, t.queue, t.namespace, t.task, t.priority, t.low, t.past
FROM timed t
WHERE t.newest_at >= %(start)s::timestamptz
ORDER BY t.newest_at DESC, t.id DESC
LIMIT %(limit)s

-- name: browse_segments
SELECT *
FROM queen.newest_segments(
    %(shard)s::smallint, %(partition_ids)b::bigint[], %(lows)b::bigint[], %(highs)b::bigint[],
    %(start)s::timestamptz, %(share)s::integer, %(limit)s::integer
)

-- name: list_holes
SELECT h.partition_id, h.message_offset
FROM unnest(%(partition_ids)b::bigint[], %(starts)b::bigint[], %(ends)b::bigint[])
    AS u (partition_id, first, past)
JOIN queen.holes h
    ON h.shard = %(shard)s
    AND h.partition_id = u.partition_id
    AND h.message_offset >= u.first
    AND h.message_offset < u.past

-- name: list_dead_offsets
-- The newest dead letter of each message.
SELECT DISTINCT ON (d.partition_id, d.message_offset)
    d.partition_id, d.message_offset, q.name AS queue, d.id, d.error_message, d.sealed_error,
    d.retry_count, d.failed_at
FROM unnest(%(partition_ids)b::bigint[], %(starts)b::bigint[], %(ends)b::bigint[])
    AS u (partition_id, first, past)
JOIN queen.dead_letters d
    ON d.shard = %(shard)s
    AND d.partition_id = u.partition_id
    AND d.message_offset >= u.first
    AND d.message_offset < u.past
JOIN queen.queues q ON q.id = d.queue_id
ORDER BY d.partition_id, d.message_offset, d.failed_at DESC

-- name: list_places
-- The groups that have a place in these partitions.
SELECT
    c.partition_id, u.consumer_group, c.committed_offset,
    CASE WHEN c.lease_expires_at > clock_timestamp() THEN c.lease_end END,
    CASE WHEN c.lease_expires_at > clock_timestamp() THEN c.lease_expires_at END
FROM queen.cursors c
JOIN queen.subscriptions u ON u.id = c.subscription_id
WHERE c.shard = %(shard)s AND c.partition_id = ANY (%(partition_ids)b::bigint[])
ORDER BY c.partition_id, c.subscription_id

-- name: list_dead_messages
-- Messages that are dead letters, newest message first; of several entries the newest. The places of a
-- page are found by dead_letters_by_message_time, and payloads are read for these alone. The page
-- ends with the message whose payload exceeds bytes_max; `page_size` is what it would be without.
SELECT
    d.partition_id, p.name AS partition, q.name AS queue, q.namespace, q.task, q.priority,
    d.message_offset, d.message_id, d.transaction_id, d.trace_id, d.producer_sub, d.payload,
    d.created_at, d.id, d.error_message, d.sealed_error, d.retry_count, d.failed_at, m.page_size
FROM (
    SELECT
        k.shard, k.id, count(*) OVER () AS page_size,
        sum(octet_length(l.payload)) OVER (
            ORDER BY l.created_at DESC, l.partition_id DESC, l.message_offset DESC
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS bytes_before
    FROM (
        SELECT DISTINCT ON (e.created_at, e.partition_id, e.message_offset) e.shard, e.id
        FROM queen.dead_letters e
        WHERE
            e.shard = %(shard)s
            AND (%(queue_id)s::uuid IS NULL OR e.queue_id = %(queue_id)s::uuid)
            AND (
                %(partition)s::text IS NULL
                OR e.partition_id = ANY (ARRAY(
                    SELECT n.id FROM queen.partitions n
                    WHERE
                        n.shard = %(shard)s
                        AND n.name = %(partition)s::text
                        AND (%(queue_id)s::uuid IS NULL OR n.queue_id = %(queue_id)s::uuid)
                ))
            )
            AND (
                (%(namespace)s::text IS NULL AND %(task)s::text IS NULL)
                OR e.queue_id = ANY (ARRAY(
                    SELECT n.id FROM queen.queues n
                    WHERE
                        (%(namespace)s::text IS NULL OR n.namespace = %(namespace)s::text)
                        AND (%(task)s::text IS NULL OR n.task = %(task)s::text)
                ))
            )
            AND e.created_at >= %(start)s::timestamptz
            AND (%(end)s::timestamptz IS NULL OR e.created_at < %(end)s::timestamptz)
        ORDER BY e.created_at DESC, e.partition_id DESC, e.message_offset DESC, e.failed_at DESC
        LIMIT %(limit)s OFFSET %(offset)s
    ) k
    JOIN queen.dead_letters l ON l.shard = k.shard AND l.id = k.id
) m
JOIN queen.dead_letters d ON d.shard = m.shard AND d.id = m.id
JOIN queen.queues q ON q.id = d.queue_id
JOIN queen.partitions p ON p.shard = d.shard AND p.id = d.partition_id
WHERE m.bytes_before IS NULL OR m.bytes_before < %(bytes_max)s
ORDER BY d.created_at DESC, d.partition_id DESC, d.message_offset DESC

-- name: dead_message
-- A message by its dead letters, also when the log no longer has it; newest entry first.
SELECT
    d.message_offset, d.message_id, d.transaction_id, d.trace_id, d.producer_sub, d.payload,
    d.created_at, d.id, d.error_message, d.sealed_error, d.retry_count, d.failed_at
FROM queen.dead_letters d
WHERE
    d.shard = %(shard)s
    AND d.partition_id = %(partition_id)s
    AND d.transaction_id = %(transaction_id)s
ORDER BY d.failed_at DESC
LIMIT 1

-- name: consumption_mode
-- How the queues of a listing are consumed.
SELECT
    coalesce(bool_or(u.consumer_group = '__QUEUE_MODE__'), false),
    count(DISTINCT u.consumer_group) FILTER (WHERE u.consumer_group <> '__QUEUE_MODE__')
FROM queen.subscriptions u
JOIN queen.queues q ON q.id = u.queue_id
WHERE
    (%(queue)s::text IS NULL OR q.name = %(queue)s::text)
    AND (
        %(partition)s::text IS NULL
        OR EXISTS (
            SELECT 1
            FROM queen.partitions p
            JOIN queen.cursors c
                ON c.shard = %(shard)s
                AND c.partition_id = p.id
                AND c.subscription_id = u.id
            WHERE
                p.shard = %(shard)s AND p.queue_id = q.id AND p.name = %(partition)s::text
        )
    )

-- name: partition_of_message
SELECT
    p.name AS partition, q.name AS queue, q.namespace, q.task, q.priority, q.id AS queue_id,
    q.lease_time, q.retry_limit, q.retry_delay, q.ttl, q.encryption_enabled
FROM queen.partitions p
JOIN queen.queues q ON q.id = p.queue_id
WHERE p.shard = %(shard)s AND p.id = %(partition_id)s

-- name: name_partition_views
-- What messages tell of their partitions.
SELECT p.id, p.name AS partition, q.name AS queue, q.namespace, q.task, q.priority
FROM queen.partitions p
JOIN queen.queues q ON q.id = p.queue_id
WHERE p.shard = %(shard)s AND p.id = ANY (%(partition_ids)b::bigint[])
ORDER BY p.id

-- name: find_id
SELECT * FROM queen.find_id(
    %(shard)s::smallint, %(after)s::bigint, %(limit)s::integer, %(id)b::bytea, %(scan_id)b::bytea
)

-- name: find_message
SELECT * FROM queen.find_message(
    %(shard)s::smallint, %(queue)s::text, %(after)s::bigint, %(limit)s::integer,
    %(id_min)s::uuid, %(id)s::uuid, %(start)s::timestamptz, %(end)s::timestamptz
)

-- name: dead_message_by_id
-- By dead_letters_by_message_time; of several entries the newest.
SELECT
    d.partition_id, p.name AS partition, q.name AS queue, q.namespace, q.task, q.priority,
    d.message_offset, d.message_id, d.transaction_id, d.trace_id, d.producer_sub, d.payload,
    d.created_at, d.id, d.error_message, d.sealed_error, d.retry_count, d.failed_at
FROM queen.dead_letters d
JOIN queen.queues q ON q.id = d.queue_id
JOIN queen.partitions p ON p.shard = d.shard AND p.id = d.partition_id
WHERE
    d.shard = %(shard)s
    AND d.created_at >= %(start)s::timestamptz
    AND d.created_at < %(end)s::timestamptz
    AND d.message_id = %(id)s
    AND (%(queue)s::text IS NULL OR q.name = %(queue)s::text)
ORDER BY d.failed_at DESC
LIMIT 1

-- name: dead_letter_partitions
-- By dead_letters_by_transaction_id.
SELECT DISTINCT d.partition_id
FROM queen.dead_letters d
WHERE d.shard = %(shard)s AND d.transaction_id = %(transaction_id)s
ORDER BY d.partition_id
LIMIT %(limit)s

-- name: lock_places
-- Before a message leaves the log: the groups stay where they are meanwhile. A cursor that a deleted
-- registration has left belongs to no group.
SELECT u.consumer_group, c.committed_offset
FROM queen.cursors c
JOIN queen.subscriptions u ON u.id = c.subscription_id
WHERE c.shard = %(shard)s AND c.partition_id = %(partition_id)s
ORDER BY c.subscription_id
FOR NO KEY UPDATE OF c

-- name: lock_allocator
-- As a push locks it, so that of two who remove one message the second finds it gone.
SELECT a.next_offset
FROM queen.allocators a
WHERE a.shard = %(shard)s AND a.partition_id = %(partition_id)s
FOR NO KEY UPDATE

-- name: end_empty_leases
SELECT o_partition_id
FROM queen.end_empty_leases(%(shard)s::smallint, ARRAY[%(partition_id)s::bigint])

-- name: find_gone
-- Which of these messages were removed.
SELECT u.message_offset
FROM unnest(%(offsets)b::bigint[]) AS u (message_offset)
CROSS JOIN LATERAL queen.allocator_of(%(shard)s::smallint, %(partition_id)s::bigint) a
LEFT JOIN queen.holes h
    ON h.shard = a.shard
    AND h.partition_id = a.partition_id
    AND h.message_offset = u.message_offset
WHERE u.message_offset < a.low_watermark OR h.message_offset IS NOT NULL

-- name: insert_hole
-- No row comes back when the message is one already.
INSERT INTO queen.holes (shard, partition_id, message_offset)
VALUES (%(shard)s, %(partition_id)s, %(message_offset)s)
ON CONFLICT DO NOTHING
RETURNING message_offset

-- name: delete_message_dead_letters
-- How many there were, and the places of their messages.
WITH gone AS (
    DELETE FROM queen.dead_letters d
    WHERE
        d.shard = %(shard)s
        AND d.partition_id = %(partition_id)s
        AND d.transaction_id = %(transaction_id)s
    RETURNING d.message_offset
)
SELECT count(*), coalesce(array_agg(DISTINCT g.message_offset), '{}') FROM gone g

-- name: delete_message_traces
WITH gone AS (
    DELETE FROM queen.traces t
    WHERE
        t.shard = %(shard)s
        AND t.partition_id = %(partition_id)s
        AND t.message_offset = ANY (%(offsets)b::bigint[])
    RETURNING t.id
)
DELETE FROM queen.trace_names n
USING gone
WHERE n.shard = %(shard)s AND n.trace_id = gone.id

-- name: count_holes
SELECT count(*)
FROM unnest(%(partition_ids)b::bigint[], %(starts)b::bigint[], %(ends)b::bigint[])
    AS u (partition_id, first, past)
JOIN queen.holes h
    ON h.shard = %(shard)s
    AND h.partition_id = u.partition_id
    AND h.message_offset >= u.first
    AND h.message_offset < u.past

-- name: flush_commits
-- A commit that waits for the disk, and with it for those before that did not.
SELECT pg_logical_emit_message(true, 'queue-server', '')
