-- name: list_dead_letters
-- A page, newest failure first; it ends with the entry whose payload exceeds bytes_max. `page_size` is
-- what it would be without.
SELECT
    d.id, d.partition_id, p.name AS partition, q.name AS queue, d.consumer_group, d.transaction_id,
    d.trace_id, d.producer_sub, d.payload, d.error_message, d.retry_count, d.created_at, d.failed_at,
    d.sealed_error, d.original_transaction_id, d.page_size
FROM (
    SELECT
        f.*, count(*) OVER () AS page_size,
        sum(octet_length(f.payload)) OVER (
            ORDER BY f.failed_at DESC, f.id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS bytes_before
    FROM (
        SELECT e.*
        FROM queen.find_dead_letters(
            %(shard)s::smallint, %(queue_id)s::uuid, %(consumer_group)s::text,
            %(partition)s::text, %(start)s::timestamptz, %(end)s::timestamptz, %(error)s::text,
            %(error_keys)s::bytea[], %(error_contains)s::text
        ) e
        ORDER BY e.failed_at DESC, e.id DESC
        LIMIT %(limit)s OFFSET %(offset)s
    ) f
) d
JOIN queen.queues q ON q.id = d.queue_id
JOIN queen.partitions p ON p.shard = d.shard AND p.id = d.partition_id
WHERE d.bytes_before IS NULL OR d.bytes_before < %(bytes_max)s
ORDER BY d.failed_at DESC, d.id DESC

-- name: next_dead_letters
-- A run for a redrive, oldest failure first, behind the place where the last one ended; at most so
-- many rows and, the last one apart, bytes of payloads.
SELECT
    n.id, n.partition_id, n.partition, n.queue, n.consumer_group, n.transaction_id, n.trace_id,
    n.producer_sub, n.payload, n.error_message, n.retry_count, n.created_at, n.failed_at,
    n.sealed_error, n.original_transaction_id
FROM (
    SELECT
        r.*,
        sum(length(r.payload)) OVER (
            ORDER BY r.failed_at, r.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS bytes_before
    FROM (
        SELECT d.*, p.name AS partition, q.name AS queue
        FROM (
            SELECT f.*
            FROM queen.find_dead_letters(
                %(shard)s::smallint, %(queue_id)s::uuid, %(consumer_group)s::text, %(partition)s::text,
                %(start)s::timestamptz, %(end)s::timestamptz, %(error)s::text, %(error_keys)s::bytea[],
                %(error_contains)s::text
            ) f
            WHERE
                %(after_failed_at)s::timestamptz IS NULL
                OR (f.failed_at, f.id) > (%(after_failed_at)s::timestamptz, %(after_id)s::uuid)
            ORDER BY f.failed_at, f.id
            LIMIT %(limit)s
        ) d
        JOIN queen.queues q ON q.id = d.queue_id
        JOIN queen.partitions p ON p.shard = d.shard AND p.id = d.partition_id
    ) r
) n
WHERE n.bytes_before IS NULL OR n.bytes_before < %(bytes_max)s
ORDER BY n.failed_at, n.id

-- name: dead_letters_by_id
-- Those of some ids that a filter lets through, oldest failure first, by the primary key.
SELECT
    d.id, d.partition_id, p.name AS partition, q.name AS queue, d.consumer_group, d.transaction_id,
    d.trace_id, d.producer_sub, d.payload, d.error_message, d.retry_count, d.created_at, d.failed_at,
    d.sealed_error, d.original_transaction_id
FROM queen.find_dead_letters(
    %(shard)s::smallint, %(queue_id)s::uuid, %(consumer_group)s::text, %(partition)s::text,
    %(start)s::timestamptz, %(end)s::timestamptz, %(error)s::text, %(error_keys)s::bytea[],
    %(error_contains)s::text
) d
JOIN queen.queues q ON q.id = d.queue_id
JOIN queen.partitions p ON p.shard = d.shard AND p.id = d.partition_id
WHERE d.id = ANY (%(ids)b::uuid[])
ORDER BY d.failed_at, d.id

-- name: dead_letters_of_messages
-- Those that a filter lets through and that are of the same messages as the given ones, by
-- dead_letters_by_message: groups that gave a message up have one each.
SELECT g.id, f.id
FROM unnest(%(ids)b::uuid[]) AS u (id)
CROSS JOIN LATERAL (
    SELECT k.id, k.partition_id, k.message_offset
    FROM queen.dead_letters k
    WHERE k.shard = %(shard)s AND k.id = u.id
    OFFSET 0
) g
CROSS JOIN LATERAL (
    SELECT d.id
    FROM queen.find_dead_letters(
        %(shard)s::smallint, %(queue_id)s::uuid, %(consumer_group)s::text,
        %(partition)s::text, %(start)s::timestamptz, %(end)s::timestamptz, %(error)s::text,
        %(error_keys)s::bytea[], %(error_contains)s::text
    ) d
    WHERE d.partition_id = g.partition_id AND d.message_offset = g.message_offset
) f

-- name: preview_redrive
-- What a redrive of all that a filter lets through would do: entries removed, messages pushed, and
-- deliveries, as every group of the queue reads each.
SELECT
    coalesce(sum(q.entries), 0)::bigint, coalesce(sum(q.messages), 0)::bigint,
    coalesce(sum(q.messages * greatest(s.groups, 1)), 0)::bigint
FROM (
    SELECT
        d.queue_id, count(*) AS entries,
        count(DISTINCT (d.partition_id, d.message_offset)) AS messages
    FROM queen.find_dead_letters(
        %(shard)s::smallint, %(queue_id)s::uuid, %(consumer_group)s::text,
        %(partition)s::text, %(start)s::timestamptz, %(end)s::timestamptz, %(error)s::text,
        %(error_keys)s::bytea[], %(error_contains)s::text
    ) d
    GROUP BY d.queue_id
) q
CROSS JOIN LATERAL (
    SELECT count(*) AS groups FROM queen.subscriptions u WHERE u.queue_id = q.queue_id
) s

-- name: count_dead_letters
SELECT count(*)
FROM queen.find_dead_letters(
    %(shard)s::smallint, %(queue_id)s::uuid, %(consumer_group)s::text, %(partition)s::text,
    %(start)s::timestamptz, %(end)s::timestamptz, %(error)s::text, %(error_keys)s::bytea[],
    %(error_contains)s::text
) d

-- name: get_dead_letter
SELECT
    d.id, d.partition_id, p.name AS partition, q.name AS queue, d.consumer_group, d.transaction_id,
    d.trace_id, d.producer_sub, d.payload, d.error_message, d.retry_count, d.created_at, d.failed_at,
    d.sealed_error, d.original_transaction_id
FROM queen.dead_letters d
JOIN queen.queues q ON q.id = d.queue_id
JOIN queen.partitions p ON p.shard = d.shard AND p.id = d.partition_id
WHERE d.shard = %(shard)s AND d.id = %(id)s

-- name: dead_letters_of_message
-- All of a message, by dead_letters_by_message; newest failure first.
SELECT
    d.id, d.partition_id, p.name AS partition, q.name AS queue, d.consumer_group, d.transaction_id,
    d.trace_id, d.producer_sub, d.payload, d.error_message, d.retry_count, d.created_at, d.failed_at,
    d.sealed_error, d.original_transaction_id
FROM queen.dead_letters d
JOIN queen.queues q ON q.id = d.queue_id
JOIN queen.partitions p ON p.shard = d.shard AND p.id = d.partition_id
WHERE
    d.shard = %(shard)s
    AND d.partition_id = %(partition_id)s
    AND d.transaction_id = %(transaction_id)s
ORDER BY d.failed_at DESC, d.id DESC

-- name: delete_dead_letters
DELETE FROM queen.dead_letters d
WHERE d.shard = %(shard)s AND d.id = ANY (%(ids)b::uuid[])
RETURNING d.id

-- name: purge_dead_letters
-- A bounded number of those that a filter lets through, the oldest failure first.
WITH gone AS (
    DELETE FROM queen.dead_letters d
    WHERE
        d.shard = %(shard)s
        AND d.id = ANY (ARRAY(
            SELECT f.id
            FROM queen.find_dead_letters(
                %(shard)s::smallint, %(queue_id)s::uuid, %(consumer_group)s::text, %(partition)s::text,
                %(start)s::timestamptz, %(end)s::timestamptz, %(error)s::text, %(error_keys)s::bytea[],
                %(error_contains)s::text
            ) f
            ORDER BY f.failed_at, f.id
            LIMIT %(limit)s
        ))
    RETURNING d.id
)
SELECT count(*) FROM gone
