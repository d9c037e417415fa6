-- name: lock_cursors
-- For the long way of an acknowledgement; the parameters are distinct pairs. Lock order: partition,
-- then subscription (rows are locked after the sort). A join with the pairs: with two `= ANY`
-- PostgreSQL 15 reads tables of some thousand cursors from end to end.
-- A cursor that nobody used was made ahead, by a push or a backfill: for the protocol the group has
-- none there, since it never got a message.
SELECT
    c.partition_id, c.subscription_id, c.committed_offset, c.lease_id, c.lease_end,
    -- A lease whose messages were all removed is over (queen.end_empty_leases).
    coalesce(
        c.lease_expires_at > clock_timestamp()
        AND c.lease_end > (
            SELECT a.low_watermark FROM queen.allocator_of(c.shard, c.partition_id) a
        ), false
    ) AS lease_live,
    c.attempt, c.attempt_offset, c.retry_count, c.retry_offset,
    c.settled_lease_id, c.settled_from, c.settled_end
FROM unnest(
    %(partition_ids)b::bigint[], %(subscription_ids)b::integer[]
) AS u (partition_id, subscription_id)
JOIN queen.cursors c
    ON c.shard = %(shard)s
    AND c.partition_id = u.partition_id
    AND c.subscription_id = u.subscription_id
    AND c.consumed_at IS NOT NULL
ORDER BY c.partition_id, c.subscription_id
FOR NO KEY UPDATE OF c

-- name: subscription_group
SELECT u.consumer_group FROM queen.subscriptions u WHERE u.id = %(id)s

-- name: failure_rules
-- What to do with a message that failed.
SELECT u.id, q.retry_limit, q.retry_delay, q.retry_backoff, q.encryption_enabled
FROM queen.subscriptions u
JOIN queen.queues q ON q.id = u.queue_id
WHERE u.id = ANY (%(subscription_ids)b::integer[])

-- name: update_cursor
-- The row is locked. With its lease goes what names it.
WITH ended AS (
    DELETE FROM queen.leases l
    USING queen.cursor_of(
        %(shard)s::smallint, %(partition_id)s::bigint, %(subscription_id)s::integer
    ) c
    WHERE
        %(lease_id)s::uuid IS NULL
        AND l.shard = c.shard
        AND l.lease_id = c.lease_id
        AND l.partition_id = c.partition_id
        AND l.subscription_id = c.subscription_id
)
UPDATE queen.cursors
SET
    committed_offset = %(committed_offset)s, lease_id = %(lease_id)s, lease_end = %(lease_end)s,
    lease_expires_at = CASE WHEN %(lease_id)s::uuid IS NULL THEN NULL ELSE lease_expires_at END,
    attempt = %(attempt)s, attempt_offset = %(attempt_offset)s,
    retry_count = %(retry_count)s, retry_offset = %(retry_offset)s,
    settled_lease_id = %(settled_lease_id)s, settled_from = %(settled_from)s,
    settled_end = %(settled_end)s, consumed_at = clock_timestamp(),
    available_at = clock_timestamp() + make_interval(secs => %(delay_ms)s::float8 / 1000)
WHERE
    shard = %(shard)s
    AND partition_id = %(partition_id)s
    AND subscription_id = %(subscription_id)s

-- name: insert_dead_letter
INSERT INTO queen.dead_letters (
    shard, id, partition_id, queue_id, consumer_group, message_offset, message_id, transaction_id,
    trace_id, producer_sub, payload, error_message, sealed_error, error_key, retry_count, created_at,
    original_transaction_id
)
VALUES (
    %(shard)s, %(id)s, %(partition_id)s, %(queue_id)s::uuid, %(consumer_group)s,
    %(message_offset)s, %(message_id)s::uuid, %(transaction_id)s, %(trace_id)s, %(producer_sub)s,
    %(payload)b, %(error_message)s, %(sealed_error)b, %(error_key)b, %(retry_count)s, %(created_at)s,
    %(original_transaction_id)s
)

-- name: lease_fates
-- What became of leases, aligned with the parameters: `live`, `settled` by an ack that ended its
-- batch and was the last to do so, or `gone`.
SELECT
    CASE
        WHEN c.lease_id = u.lease_id AND c.lease_expires_at > clock_timestamp() THEN 'live'
        WHEN c.settled_lease_id = u.lease_id THEN 'settled'
        ELSE 'gone'
    END
FROM unnest(
    %(partition_ids)b::bigint[], %(subscription_ids)b::integer[], %(lease_ids)b::uuid[]
) WITH ORDINALITY AS u (partition_id, subscription_id, lease_id, place)
LEFT JOIN queen.cursors c
    ON c.shard = %(shard)s::smallint
    AND c.partition_id = u.partition_id
    AND c.subscription_id = u.subscription_id
ORDER BY u.place

-- name: take_back
-- Undo the claim of one partition whose messages nobody received: end its lease, or, without one,
-- commit less. It is listed again, as it may have been taken for read to the end.
WITH back AS (
    UPDATE queen.cursors c
    SET
        committed_offset = CASE
            WHEN %(lease_id)s::uuid IS NULL THEN %(start)s::bigint
            ELSE c.committed_offset
        END,
        lease_id = NULL, lease_end = NULL, lease_expires_at = NULL,
        attempt = greatest(c.attempt - 1, 0)
    WHERE
        c.shard = %(shard)s::smallint
        AND c.partition_id = %(partition_id)s::bigint
        AND c.subscription_id = %(subscription_id)s::integer
        AND c.lease_id IS NOT DISTINCT FROM %(lease_id)s::uuid
        AND (%(lease_id)s::uuid IS NOT NULL OR c.committed_offset = %(end)s::bigint)
    RETURNING c.shard, c.partition_id, c.subscription_id
),
ended AS (
    DELETE FROM queen.leases l
    USING back b
    WHERE
        l.shard = b.shard
        AND l.lease_id = %(lease_id)s::uuid
        AND l.partition_id = b.partition_id
        AND l.subscription_id = b.subscription_id
),
listed AS (
    INSERT INTO queen.pending (shard, subscription_id, partition_id)
    SELECT b.shard, b.subscription_id, b.partition_id
    FROM back b
    JOIN queen.subscriptions s ON s.id = b.subscription_id AND s.queue_wide
    ON CONFLICT DO NOTHING
)
SELECT count(*) FROM back
