-- name: dashboard_partitions
-- A page of a queue's partitions: by depth, or by name.
WITH shown AS (
    SELECT s.*, count(*) OVER () AS matching
    FROM queen.partition_statistics(%(shard)s::smallint, ARRAY[%(queue_id)s::uuid]) s
    WHERE %(search)s::text IS NULL OR strpos(lower(s.o_partition), lower(%(search)s::text)) > 0
    ORDER BY
        CASE WHEN %(by_name)s::boolean THEN 0 ELSE s.o_depth END DESC, s.o_partition
    LIMIT %(limit)s OFFSET %(offset)s
)
SELECT
    p.o_partition_id, p.o_partition, p.o_created_at, p.o_total, p.o_depth, p.o_scheduled,
    p.o_processing, p.o_dead, p.o_next_offset, p.o_consumed, p.o_last_segment_at, p.o_consumed_at,
    f.o_at, f.o_at + queen.held_for(q.delayed_processing, q.window_buffer), p.matching
FROM shown p
JOIN queen.queues q ON q.id = p.o_queue_id
LEFT JOIN LATERAL queen.time_at(
    %(shard)s::smallint, p.o_partition_id, CASE WHEN p.o_depth > 0 THEN p.o_slowest END
) f ON true
ORDER BY CASE WHEN %(by_name)s::boolean THEN 0 ELSE p.o_depth END DESC, p.o_partition

-- name: dashboard_groups
-- How far the groups of a queue are behind.
WITH places AS MATERIALIZED (
    SELECT
        u.id, c.partition_id,
        greatest(c.committed_offset, a.low_watermark) AS place,
        a.next_offset - greatest(c.committed_offset, a.low_watermark) - h.o_count AS lag,
        a.next_offset - d.o_offset - e.o_count AS scheduled,
        c.consumed_at,
        c.lease_expires_at > clock_timestamp() AND c.lease_end > a.low_watermark AS leased
    FROM queen.subscriptions u
    JOIN queen.queues q ON q.id = u.queue_id
    JOIN queen.partitions p ON p.shard = %(shard)s AND p.queue_id = u.queue_id
    JOIN queen.allocators a ON a.shard = %(shard)s AND a.partition_id = p.id
    JOIN queen.cursors c
        ON c.shard = %(shard)s AND c.partition_id = p.id AND c.subscription_id = u.id
    CROSS JOIN LATERAL queen.holes_between(
        p.shard, p.id, greatest(c.committed_offset, a.low_watermark), a.next_offset
    ) h
    CROSS JOIN LATERAL (
        -- Apart, as PostgreSQL inlines no function with a volatile argument.
        SELECT
            greatest(
                c.committed_offset, a.low_watermark,
                CASE WHEN c.lease_expires_at > clock_timestamp() THEN c.lease_end END
            ) AS place
    ) n
    CROSS JOIN LATERAL queen.scheduled_from(
        p.shard, p.id, n.place, a.next_offset, a.last_segment_at, q.delayed_processing,
        q.window_buffer
    ) d
    CROSS JOIN LATERAL queen.holes_between(p.shard, p.id, d.o_offset, a.next_offset) e
    WHERE u.queue_id = %(queue_id)s::uuid
),
sums AS (
    SELECT
        p.id, count(*) AS partitions, count(*) FILTER (WHERE p.lag > 0) AS lagging,
        count(*) FILTER (WHERE p.leased) AS leased, sum(p.lag)::bigint AS lag,
        sum(p.scheduled)::bigint AS scheduled, max(p.consumed_at) AS consumed_at, min(f.o_at) AS oldest_at
    FROM places p
    LEFT JOIN LATERAL queen.time_at(
        %(shard)s::smallint, p.partition_id, CASE WHEN p.lag > 0 THEN p.place END
    ) f ON true
    GROUP BY p.id
)
SELECT
    u.consumer_group, u.mode, u.starts_at, u.created_at, u.conflation, coalesce(s.partitions, 0),
    coalesce(s.lagging, 0), coalesce(s.leased, 0), coalesce(s.lag, 0), s.consumed_at, s.oldest_at,
    s.oldest_at + queen.held_for(q.delayed_processing, q.window_buffer), coalesce(s.scheduled, 0),
    t.o_state, t.o_counted, greatest(t.o_seen_at, s.consumed_at), t.o_acked_at
FROM queen.subscriptions u
JOIN queen.queues q ON q.id = u.queue_id
JOIN queen.group_states(ARRAY[%(queue_id)s::uuid]) t ON t.o_subscription_id = u.id
LEFT JOIN sums s ON s.id = u.id
WHERE u.queue_id = %(queue_id)s::uuid
ORDER BY t.o_counted DESC, coalesce(s.lag, 0) DESC, u.consumer_group

-- name: dashboard_group_partitions
-- A page of the partitions in which a group has a place, those first in which it is furthest behind.
WITH shown AS (
    SELECT
        p.id, p.name, c.committed_offset, a.low_watermark, a.next_offset,
        greatest(c.committed_offset, a.low_watermark) AS place,
        a.next_offset - greatest(c.committed_offset, a.low_watermark) - h.o_count AS lag,
        c.consumed_at,
        CASE WHEN c.lease_end > a.low_watermark THEN c.lease_expires_at END AS lease_expires_at,
        queen.held_for(q.delayed_processing, q.window_buffer) AS held_for,
        count(*) OVER () AS matching
    FROM queen.subscriptions u
    JOIN queen.queues q ON q.id = u.queue_id
    JOIN queen.partitions p ON p.shard = %(shard)s AND p.queue_id = u.queue_id
    JOIN queen.allocators a ON a.shard = %(shard)s AND a.partition_id = p.id
    JOIN queen.cursors c
        ON c.shard = %(shard)s AND c.partition_id = p.id AND c.subscription_id = u.id
    CROSS JOIN LATERAL queen.holes_between(
        p.shard, p.id, greatest(c.committed_offset, a.low_watermark), a.next_offset
    ) h
    WHERE
        u.queue_id = %(queue_id)s::uuid
        AND u.consumer_group = %(consumer_group)s
        AND (%(search)s::text IS NULL OR strpos(lower(p.name), lower(%(search)s::text)) > 0)
    ORDER BY lag DESC, p.name
    LIMIT %(limit)s OFFSET %(offset)s
)
SELECT
    s.id, s.name, s.committed_offset, s.next_offset, s.lag, s.consumed_at,
    CASE WHEN s.lease_expires_at > clock_timestamp() THEN s.lease_expires_at END, f.o_at,
    f.o_at + s.held_for, s.matching
FROM shown s
LEFT JOIN LATERAL queen.time_at(
    %(shard)s::smallint, s.id, CASE WHEN s.lag > 0 THEN s.place END
) f ON true
ORDER BY s.lag DESC, s.name

-- name: preview_seek
-- What a seek of a group would do in some partitions: how many, what it would pass over, what it
-- would read again, and the leases that would end. A group without a place owes all that is stored.
SELECT
    count(*),
    coalesce(sum(greatest(t.target - t.place - b.o_count, 0)), 0)::bigint,
    coalesce(sum(greatest(t.place - t.target - b.o_count, 0)), 0)::bigint,
    coalesce(sum(t.next_offset - t.target - h.o_count), 0)::bigint,
    count(*) FILTER (WHERE t.leased)
FROM (
    SELECT
        a.shard, a.partition_id, a.next_offset,
        greatest(coalesce(c.committed_offset, 0), a.low_watermark) AS place,
        c.lease_expires_at > clock_timestamp() AND c.lease_end > a.low_watermark AS leased,
        CASE
            WHEN %(time)s::timestamptz IS NULL THEN a.next_offset
            ELSE queen.offset_at(%(shard)s::smallint, a.partition_id, %(time)s::timestamptz)
        END AS target
    FROM queen.allocators a
    LEFT JOIN queen.subscriptions u
        ON u.queue_id = %(queue_id)s::uuid AND u.consumer_group = %(consumer_group)s
    LEFT JOIN queen.cursors c
        ON c.shard = a.shard AND c.partition_id = a.partition_id AND c.subscription_id = u.id
    WHERE a.shard = %(shard)s AND a.partition_id = ANY (%(partition_ids)b::bigint[])
    OFFSET 0
) t
CROSS JOIN LATERAL queen.holes_between(
    t.shard, t.partition_id, least(t.target, t.place), greatest(t.target, t.place)
) b
CROSS JOIN LATERAL queen.holes_between(t.shard, t.partition_id, t.target, t.next_offset) h

-- name: dead_letter_errors
-- Dead letters by their error, the most frequent first, at most so many errors of each queue. All of
-- them are read. Sealed errors are counted by their key, and come with one of the entries that have it.
SELECT
    e.queue, e.error, e.count, e.groups, e.first_failed_at, e.last_failed_at,
    s.id, s.partition_id, s.sealed_error
FROM (
    SELECT
        q.name AS queue, g.error, sum(g.count)::bigint AS count, count(*) AS groups,
        min(g.first_failed_at) AS first_failed_at, max(g.last_failed_at) AS last_failed_at,
        min(g.sealed_id) AS sealed_id,
        row_number() OVER (
            PARTITION BY q.name ORDER BY sum(g.count) DESC, g.error, g.error_key
        ) AS place
    FROM (
        SELECT
            d.queue_id, left(d.error_message, 500) AS error, d.error_key, count(*) AS count,
            min(d.failed_at) AS first_failed_at, max(d.failed_at) AS last_failed_at,
            min(d.id::text) FILTER (WHERE d.sealed_error IS NOT NULL) AS sealed_id
        FROM queen.dead_letters d
        WHERE d.shard = %(shard)s
        GROUP BY d.queue_id, d.consumer_group, left(d.error_message, 500), d.error_key
    ) g
    JOIN queen.queues q ON q.id = g.queue_id
    GROUP BY q.name, g.error, g.error_key
) e
LEFT JOIN queen.dead_letters s ON s.shard = %(shard)s AND s.id = e.sealed_id::uuid
WHERE e.place <= %(limit)s
ORDER BY e.count DESC, e.queue, e.error

-- name: schema_files
SELECT s.name, s.checksum, s.applied_at FROM public.queue_server_schema s ORDER BY s.name
