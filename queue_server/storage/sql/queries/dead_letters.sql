-- name: list_dead_letters
-- A page, newest failure first; it ends with the entry whose payload exceeds bytes_max. `page_size` is
-- what it would be without.
SELECT
    d.id, d.partition_id, p.name AS partition, q.name AS queue, d.consumer_group, d.transaction_id,
    d.trace_id, d.producer_sub, d.payload, d.error_message, d.retry_count, d.created_at, d.failed_at,
    d.sealed_error, d.page_size
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
    n.sealed_error
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
    d.sealed_error
FROM queen.dead_letters d
JOIN queen.queues q ON q.id = d.queue_id
JOIN queen.partitions p ON p.shard = d.shard AND p.id = d.partition_id
WHERE d.shard = %(shard)s AND d.id = %(id)s

-- name: dead_letters_of_message
-- All of a message, by dead_letters_by_message; newest failure first.
SELECT
    d.id, d.partition_id, p.name AS partition, q.name AS queue, d.consumer_group, d.transaction_id,
    d.trace_id, d.producer_sub, d.payload, d.error_message, d.retry_count, d.created_at, d.failed_at,
    d.sealed_error
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
