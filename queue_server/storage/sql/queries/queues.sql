-- name: ensure_queue
SELECT * FROM queen.ensure_queue(
    %(id)s::uuid, %(name)s::text, %(namespace)s::text, %(task)s::text, %(lease_time)s::integer
)

-- name: ensure_partitions
SELECT * FROM queen.ensure_partitions(
    %(shard)s::smallint, %(queue_id)s::uuid, %(names)s::text[]
)

-- name: create_partitions
SELECT * FROM queen.create_partitions(
    %(shard)s::smallint, %(ids)s::uuid[], %(queues)s::text[], %(namespaces)s::text[],
    %(tasks)s::text[], %(lease_time)s::integer, %(counts)s::integer[], %(names)s::text[]
)

-- name: find_partitions
-- Partitions by the names of queue and partition; nothing is locked or created. Between two equal bounds, and in
-- order, because then only the index by name will do: until the table has statistics it is taken for
-- tiny, and an index by queue alone, read to its end for each name, looks as good.
SELECT n.queue, p.name, q.id AS queue_id, p.id
FROM (
    SELECT DISTINCT u.queue, u.name
    FROM unnest(%(queues)s::text[], %(names)s::text[]) AS u (queue, name)
) n
CROSS JOIN LATERAL (
    SELECT k.id FROM queen.queues k
    WHERE k.name >= n.queue AND k.name <= n.queue
    ORDER BY k.name
    LIMIT 1
) q
CROSS JOIN LATERAL (
    SELECT k.name, k.id
    FROM queen.partitions k
    WHERE
        k.shard = %(shard)s AND k.queue_id = q.id AND k.name >= n.name AND k.name <= n.name
    ORDER BY k.name
    LIMIT 1
) p

-- name: name_partitions
-- Partitions by id, for acknowledgements and answers.
SELECT p.id, p.name, q.name AS queue, q.id AS queue_id
FROM queen.partitions p
JOIN queen.queues q ON q.id = p.queue_id
WHERE p.shard = %(shard)s AND p.id = ANY (%(ids)b::bigint[])

-- name: find_queues
-- The queues that a pop by labels sees, the most important first.
SELECT q.name, q.priority
FROM queen.queues q
WHERE
    (%(namespace)s::text IS NULL OR q.namespace = %(namespace)s)
    AND (%(task)s::text IS NULL OR q.task = %(task)s)
ORDER BY q.priority DESC, q.name

-- name: find_subscription
SELECT u.id, u.conflation
FROM queen.subscriptions u
WHERE u.queue_id = %(queue_id)s::uuid AND u.consumer_group = %(consumer_group)s

-- name: lock_queue
-- Serialises configure calls of one queue.
SELECT
    q.id, q.namespace, q.task, q.lease_time, q.retry_limit, q.retry_delay, q.priority, q.max_size,
    q.ttl, q.dead_letter_queue, q.dlq_after_max_retries, q.delayed_processing, q.window_buffer,
    q.retention_seconds, q.completed_retention_seconds, q.retention_enabled,
    q.encryption_enabled, q.max_wait_time_seconds, q.dedup_window_seconds, q.retry_backoff,
    q.delivery_limit
FROM queen.queues q
WHERE q.name = %(name)s
FOR NO KEY UPDATE

-- name: lock_limited_queues
-- A transaction locks these before its cursors, as the lock order has it; push would lock them after.
SELECT q.id
FROM queen.queues q
WHERE
    q.max_size > 0
    AND (q.id = ANY (%(queue_ids)s::uuid[]) OR q.name = ANY (%(names)s::text[]))
ORDER BY q.id
FOR NO KEY UPDATE

-- name: update_queue
UPDATE queen.queues
SET
    namespace = %(namespace)s, task = %(task)s, lease_time = %(lease_time)s,
    retry_limit = %(retry_limit)s, retry_delay = %(retry_delay)s, priority = %(priority)s,
    max_size = %(max_size)s, ttl = %(ttl)s, dead_letter_queue = %(dead_letter_queue)s,
    dlq_after_max_retries = %(dlq_after_max_retries)s,
    delayed_processing = %(delayed_processing)s, window_buffer = %(window_buffer)s,
    retention_seconds = %(retention_seconds)s,
    completed_retention_seconds = %(completed_retention_seconds)s,
    retention_enabled = %(retention_enabled)s, encryption_enabled = %(encryption_enabled)s,
    max_wait_time_seconds = %(max_wait_time_seconds)s,
    dedup_window_seconds = %(dedup_window_seconds)s, retry_backoff = %(retry_backoff)s,
    delivery_limit = %(delivery_limit)s
WHERE id = %(id)s::uuid

-- name: delete_queue
SELECT queen.delete_queue(%(shard)s::smallint, %(name)s::text)

-- name: expect_group
SELECT queen.expect_group(
    %(queue)s::text, %(consumer_group)s::text, %(mode)s::text, %(starts_at)s::timestamptz,
    %(conflation)s::boolean
)

-- name: delete_old_expected_groups
-- By expected_groups_by_time: those of groups that have not asked for long.
WITH gone AS (
    DELETE FROM queen.expected_groups e
    WHERE e.ctid = ANY (ARRAY(
        SELECT o.ctid
        FROM queen.expected_groups o
        WHERE o.asked_at < clock_timestamp() - make_interval(secs => %(age_s)s)
        LIMIT %(limit)s
    ))
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: subscribe
SELECT * FROM queen.subscribe(
    %(queue_id)s::uuid, %(consumer_group)s::text, %(queue_wide)s::boolean, %(mode)s::text,
    %(starts_at)s::timestamptz, %(conflation)s::boolean
)

-- name: backfill_subscription
SELECT queen.backfill_subscription(
    %(shard)s::smallint, %(subscription_id)s::integer, %(limit)s::integer
)

-- name: seed_cursor
SELECT queen.seed_cursor(
    %(shard)s::smallint, %(subscription_id)s::integer, %(partition_id)s::bigint, %(mode)s::text,
    %(starts_at)s::timestamptz
)

-- name: set_limits
SELECT queen.set_limits(
    %(queues)s::bigint, %(groups_of_queue)s::bigint, %(partitions_of_queue)s::bigint,
    %(group_idle_s)s::integer
)

-- name: ping
SELECT 1

-- name: find_encrypted_queues
SELECT q.name
FROM queen.queues q
WHERE q.name = ANY (%(names)s::text[]) AND q.encryption_enabled
ORDER BY q.name
