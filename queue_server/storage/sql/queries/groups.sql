-- name: group_queues
-- The queues on which a group is registered, or the one named if it is.
SELECT q.id, q.name
FROM queen.subscriptions u
JOIN queen.queues q ON q.id = u.queue_id
WHERE
    u.consumer_group = %(consumer_group)s
    AND (%(queue)s::text IS NULL OR q.name = %(queue)s::text)
ORDER BY q.id

-- name: forget_expected_group
-- A creation of the queue deletes the same row, and registers the group: whichever is first.
DELETE FROM queen.expected_groups e
WHERE
    e.consumer_group = %(consumer_group)s::text
    AND (%(queue)s::text IS NULL OR e.queue = %(queue)s::text)
RETURNING 1

-- name: delete_group
SELECT * FROM queen.delete_group(
    %(queue_id)s::uuid, %(consumer_group)s::text, %(delete_metadata)s::boolean
)

-- name: note_groups
SELECT queen.note_groups(%(popped)s::integer[], %(acked)s::integer[])

-- name: find_expired_groups
-- Groups without a sign of life for so long, and without a live lease.
SELECT u.consumer_group, q.name
FROM queen.group_states(NULL) t
JOIN queen.subscriptions u ON u.id = t.o_subscription_id
JOIN queen.queues q ON q.id = u.queue_id
WHERE
    t.o_seen_at < clock_timestamp() - make_interval(secs => %(idle_s)s)
    AND NOT EXISTS (
        SELECT 1
        FROM queen.partitions p
        JOIN queen.cursors c
            ON c.shard = p.shard AND c.partition_id = p.id AND c.subscription_id = u.id
        WHERE
            p.shard = %(shard)s
            AND p.queue_id = u.queue_id
            AND (
                c.lease_expires_at > clock_timestamp()
                OR c.consumed_at > clock_timestamp() - make_interval(secs => %(idle_s)s)
            )
    )
ORDER BY q.name, u.consumer_group

-- name: clear_remains
SELECT * FROM queen.clear_remains(
    %(shard)s::smallint, %(subscription_id)s::integer, %(limit)s::integer
)

-- name: remains
-- What an interrupted deletion left; one that runs now is not older than a minute.
SELECT r.subscription_id
FROM queen.subscription_remains r
WHERE r.deleted_at < clock_timestamp() - interval '1 minute'

-- name: restart_subscriptions
-- Another start for the partitions that a group has not met yet. Backfilled again, because a group
-- that began with `new` has no place in quiet partitions.
UPDATE queen.subscriptions
SET
    mode = 'timestamp', starts_at = %(starts_at)s::timestamptz,
    backfilled_to = CASE WHEN queue_wide THEN 0 END
WHERE consumer_group = %(consumer_group)s
RETURNING id, queue_wide

-- name: find_queue
SELECT q.id FROM queen.queues q WHERE q.name = %(queue)s

-- name: list_partitions
-- A bounded run of a queue's partitions.
SELECT p.id
FROM queen.partitions p
WHERE p.shard = %(shard)s AND p.queue_id = %(queue_id)s::uuid AND p.id > %(after)s
ORDER BY p.id
LIMIT %(limit)s

-- name: register_for_seek
-- A group that is new to a queue and begins with a seek. What is stored wins.
WITH known AS (
    SELECT u.id
    FROM queen.subscriptions u
    WHERE u.queue_id = %(queue_id)s::uuid AND u.consumer_group = %(consumer_group)s
),
made AS (
    INSERT INTO queen.subscriptions (
        queue_id, consumer_group, queue_wide, mode, starts_at, backfilled_to
    )
    SELECT
        q.id, %(consumer_group)s, %(queue_wide)s::boolean, %(mode)s::text,
        coalesce(%(starts_at)s::timestamptz, clock_timestamp()),
        CASE WHEN %(queue_wide)s::boolean AND %(mode)s::text <> 'new' THEN 0 END
    FROM queen.queues q
    WHERE
        q.id = %(queue_id)s::uuid
        AND NOT EXISTS (SELECT 1 FROM known)
        AND queen.check_group_limit(%(queue_id)s::uuid, %(consumer_group)s)
    ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT id FROM known UNION ALL SELECT id FROM made

-- name: seed_cursors
SELECT queen.seed_cursors(
    %(shard)s::smallint, %(subscription_id)s::integer, %(partition_ids)b::bigint[]
)

-- name: seek
SELECT * FROM queen.seek(
    %(shard)s::smallint, %(subscription_id)s::integer, %(partition_ids)b::bigint[],
    %(time)s::timestamptz
)
