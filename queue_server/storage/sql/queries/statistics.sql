-- name: queue_statistics
-- A page of queues, newest first, with what lies in them; how far their consumers are behind, in
-- seconds since messages were due, only if with_ages; in each row too how that is spread over all their partitions. For ages
-- all partitions are looked at: the message that has waited longest may be alone in its own.
WITH shown AS (
    SELECT
        q.id, q.name, q.namespace, q.task, q.priority, q.created_at, q.max_size,
        queen.held_for(q.delayed_processing, q.window_buffer) AS held_for
    FROM queen.queues q
    WHERE
        (%(queue)s::text IS NULL OR q.name = %(queue)s::text)
        AND (%(namespace)s::text IS NULL OR q.namespace = %(namespace)s::text)
        AND (%(task)s::text IS NULL OR q.task = %(task)s::text)
        AND (%(search)s::text IS NULL OR strpos(lower(q.name), lower(%(search)s::text)) > 0)
    ORDER BY q.created_at DESC, q.name
    LIMIT %(limit)s OFFSET %(offset)s
),
places AS MATERIALIZED (
    SELECT
        s.o_queue_id AS queue_id, s.o_total AS total, s.o_passed AS passed,
        s.o_processing AS processing, s.o_dead AS dead, s.o_depth AS depth,
        s.o_scheduled AS scheduled, s.o_next_offset AS pushed, s.o_consumed AS consumed, s.o_last_segment_at AS pushed_at,
        s.o_consumed_at AS consumed_at, f.o_at AS oldest_at
    FROM queen.partition_statistics(
        %(shard)s::smallint, ARRAY(SELECT i.id FROM shown i)
    ) s
    LEFT JOIN LATERAL queen.time_at(
        %(shard)s::smallint, s.o_partition_id,
        CASE WHEN %(with_ages)s::boolean AND s.o_depth > 0 THEN s.o_slowest END
    ) f ON true
),
sums AS (
    SELECT
        p.queue_id, count(*) AS partitions, sum(p.total) AS total, sum(p.passed) AS passed,
        sum(p.processing) AS processing, sum(p.dead) AS dead, sum(p.depth) AS depth,
        sum(p.scheduled) AS scheduled, sum(p.pushed) AS pushed, sum(p.consumed) AS consumed, max(p.pushed_at) AS pushed_at,
        max(p.consumed_at) AS consumed_at, min(p.oldest_at) AS oldest_at
    FROM places p
    GROUP BY p.queue_id
),
lags AS (
    SELECT
        p.depth,
        CASE
            WHEN p.depth > 0
                THEN greatest(extract(epoch FROM clock_timestamp() - p.oldest_at - i.held_for), 0)
            ELSE 0
        END AS seconds
    FROM places p
    JOIN shown i ON i.id = p.queue_id
    WHERE %(with_ages)s::boolean
),
spread AS (
    SELECT
        coalesce(avg(l.seconds), 0)::float8 AS seconds_avg,
        coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY l.seconds), 0)::float8
            AS seconds_median,
        coalesce(min(l.seconds), 0)::float8 AS seconds_min,
        coalesce(max(l.seconds), 0)::float8 AS seconds_max,
        coalesce(avg(l.depth), 0)::float8 AS depth_avg,
        coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY l.depth), 0)::float8
            AS depth_median,
        coalesce(min(l.depth), 0)::float8 AS depth_min,
        coalesce(max(l.depth), 0)::float8 AS depth_max
    FROM lags l
),
named AS (
    SELECT u.queue_id, count(*) AS count
    FROM queen.subscriptions u
    WHERE u.consumer_group <> '__QUEUE_MODE__' AND u.queue_id IN (SELECT i.id FROM shown i)
    GROUP BY u.queue_id
)
SELECT
    q.id, q.name, q.namespace, q.task, q.priority, q.created_at, q.max_size,
    coalesce(n.count, 0), coalesce(s.partitions, 0), coalesce(s.total, 0)::bigint,
    coalesce(s.passed, 0)::bigint, coalesce(s.processing, 0)::bigint,
    coalesce(s.dead, 0)::bigint, coalesce(s.depth, 0)::bigint, coalesce(s.scheduled, 0)::bigint,
    coalesce(s.pushed, 0)::bigint, coalesce(s.consumed, 0)::bigint, s.pushed_at, s.consumed_at,
    s.oldest_at, s.oldest_at + q.held_for,
    greatest(extract(epoch FROM clock_timestamp() - s.oldest_at - q.held_for), 0)::float8,
    -- As queen.push counts them.
    CASE
        WHEN q.max_size > 0 AND %(with_ages)s::boolean
            THEN least(
                queen.unread_count(%(shard)s::smallint, q.id, NULL),
                queen.unread_count(
                    %(shard)s::smallint, q.id, queen.reading_groups(%(shard)s::smallint, q.id)
                )
            )
        ELSE 0
    END,
    d.*
FROM shown q
LEFT JOIN sums s ON s.queue_id = q.id
LEFT JOIN named n ON n.queue_id = q.id
CROSS JOIN spread d
ORDER BY q.created_at DESC, q.name

-- name: partition_statistics
-- A page of each queue's partitions, by name, with the times of their oldest and newest message. The
-- pages are cut before anything is read about a partition.
WITH page AS MATERIALIZED (
    SELECT n.id
    FROM unnest(%(queue_ids)s::uuid[], %(offsets)b::bigint[], %(limits)b::bigint[])
        AS q (id, first, most)
    CROSS JOIN LATERAL (
        SELECT k.id
        FROM queen.partitions k
        WHERE k.shard = %(shard)s AND k.queue_id = q.id
        ORDER BY k.name
        LIMIT q.most OFFSET q.first
    ) n
)
SELECT
    s.o_queue_id, s.o_partition_id, s.o_partition, s.o_created_at, s.o_total, s.o_passed, s.o_processing,
    s.o_dead, s.o_scheduled, s.o_consumed, s.o_consumed_at, f.created_at,
    CASE WHEN s.o_total > 0 THEN s.o_last_segment_at END, s.o_last_segment_at
FROM page i
JOIN queen.partition_statistics(%(shard)s::smallint, %(queue_ids)s::uuid[]) s
    ON s.o_partition_id = i.id
LEFT JOIN LATERAL (
    SELECT g.created_at
    FROM queen.segments g
    WHERE
        s.o_total > 0
        AND g.shard = %(shard)s
        AND g.partition_id = s.o_partition_id
        AND g.base_offset >= s.o_low_watermark
    ORDER BY g.base_offset
    LIMIT 1
) f ON true
ORDER BY s.o_partition

-- name: queue_labels
SELECT q.namespace, q.task FROM queen.queues q WHERE q.id = %(queue_id)s::uuid

-- name: queue_options
SELECT
    q.lease_time, q.retry_limit, q.retry_delay, q.priority, q.max_size, q.ttl, q.dead_letter_queue,
    q.dlq_after_max_retries, q.delayed_processing, q.window_buffer, q.retention_seconds,
    q.completed_retention_seconds, q.retention_enabled, q.encryption_enabled,
    q.max_wait_time_seconds, q.dedup_window_seconds, q.retry_backoff, q.delivery_limit
FROM queen.queues q
WHERE q.id = %(queue_id)s::uuid

-- name: queue_depth
-- What the slowest named group of each partition has not committed, by partition name; queue mode
-- where no named group has a place. The protocol has it so for one route; else the slowest consumer
-- is the slowest of all. Sums over all partitions, with a page of these; a row without a partition
-- where the page is empty. LATERAL as in queen.partition_statistics.
WITH places AS MATERIALIZED (
    SELECT
        p.name, n.depth AS pending, n.leased AS processing,
        least(a.next_offset - f.o_offset - e.o_count, n.depth - n.leased) AS scheduled
    FROM queen.partitions p
    JOIN queen.queues q ON q.id = p.queue_id
    JOIN queen.allocators a ON a.shard = p.shard AND a.partition_id = p.id
    LEFT JOIN LATERAL (
        SELECT
            min(c.committed_offset) AS place,
            max(l.o_count) FILTER (WHERE c.lease_expires_at > clock_timestamp()) AS leased
        FROM queen.cursors c
        JOIN queen.subscriptions u ON u.id = c.subscription_id
        CROSS JOIN LATERAL queen.left_in_lease(
            p.shard, p.id, a.low_watermark, c.committed_offset, c.lease_end
        ) l
        WHERE c.shard = p.shard AND c.partition_id = p.id
        GROUP BY u.consumer_group = '__QUEUE_MODE__'
        ORDER BY u.consumer_group = '__QUEUE_MODE__'
        LIMIT 1
    ) k ON true
    CROSS JOIN LATERAL (
        SELECT greatest(coalesce(k.place, 0), a.low_watermark) AS place
    ) d
    CROSS JOIN LATERAL queen.holes_between(p.shard, p.id, d.place, a.next_offset) h
    CROSS JOIN LATERAL queen.scheduled_from(
        p.shard, p.id, d.place, a.next_offset, a.last_segment_at, q.delayed_processing,
        q.window_buffer
    ) f
    CROSS JOIN LATERAL queen.holes_between(p.shard, p.id, f.o_offset, a.next_offset) e
    CROSS JOIN LATERAL (
        SELECT c.depth, least(coalesce(k.leased, 0), c.depth) AS leased
        FROM (SELECT a.next_offset - d.place - h.o_count AS depth) c
    ) n
    WHERE p.shard = %(shard)s AND p.queue_id = %(queue_id)s::uuid
)
SELECT
    s.partitions, s.pending, s.processing, s.scheduled, s.partitions_pending, s.partitions_ready,
    g.name, g.pending, g.processing, g.scheduled
FROM (
    SELECT
        count(*) AS partitions, coalesce(sum(e.pending), 0)::bigint AS pending,
        coalesce(sum(e.processing), 0)::bigint AS processing,
        coalesce(sum(e.scheduled), 0)::bigint AS scheduled,
        count(*) FILTER (WHERE e.pending > 0) AS partitions_pending,
        count(*) FILTER (WHERE e.pending > e.processing) AS partitions_ready
    FROM places e
) s
LEFT JOIN (
    SELECT e.* FROM places e
    WHERE %(partition)s::text IS NULL OR e.name = %(partition)s::text
    ORDER BY e.name LIMIT %(limit)s OFFSET %(offset)s
) g ON true
ORDER BY g.name

-- name: group_depth
-- What one group has not committed; without a cursor that is all there is. Rows as of queue_depth.
WITH places AS MATERIALIZED (
    SELECT
        p.name,
        n.depth AS pending,
        m.leased AS processing,
        least(a.next_offset - f.o_offset - e.o_count, n.depth - m.leased) AS scheduled
    FROM queen.partitions p
    JOIN queen.queues q ON q.id = p.queue_id
    JOIN queen.allocators a ON a.shard = %(shard)s AND a.partition_id = p.id
    LEFT JOIN queen.cursors c
        ON c.shard = %(shard)s
        AND c.partition_id = p.id
        AND c.subscription_id = %(subscription_id)s
    CROSS JOIN LATERAL (
        SELECT greatest(coalesce(c.committed_offset, 0), a.low_watermark) AS place
    ) d
    CROSS JOIN LATERAL queen.holes_between(p.shard, p.id, d.place, a.next_offset) h
    CROSS JOIN LATERAL queen.left_in_lease(
        p.shard, p.id, a.low_watermark, c.committed_offset, c.lease_end
    ) l
    CROSS JOIN LATERAL queen.scheduled_from(
        p.shard, p.id, d.place, a.next_offset, a.last_segment_at, q.delayed_processing,
        q.window_buffer
    ) f
    CROSS JOIN LATERAL queen.holes_between(p.shard, p.id, f.o_offset, a.next_offset) e
    CROSS JOIN LATERAL (SELECT a.next_offset - d.place - h.o_count AS depth) n
    CROSS JOIN LATERAL (
        SELECT
            CASE WHEN c.lease_expires_at > clock_timestamp() THEN l.o_count ELSE 0 END AS leased
    ) m
    WHERE p.shard = %(shard)s AND p.queue_id = %(queue_id)s::uuid
)
SELECT
    s.partitions, s.pending, s.processing, s.scheduled, s.partitions_pending, s.partitions_ready,
    g.name, g.pending, g.processing, g.scheduled
FROM (
    SELECT
        count(*) AS partitions, coalesce(sum(e.pending), 0)::bigint AS pending,
        coalesce(sum(e.processing), 0)::bigint AS processing,
        coalesce(sum(e.scheduled), 0)::bigint AS scheduled,
        count(*) FILTER (WHERE e.pending > 0) AS partitions_pending,
        count(*) FILTER (WHERE e.pending > e.processing) AS partitions_ready
    FROM places e
) s
LEFT JOIN (
    SELECT e.* FROM places e
    WHERE %(partition)s::text IS NULL OR e.name = %(partition)s::text
    ORDER BY e.name LIMIT %(limit)s OFFSET %(offset)s
) g ON true
ORDER BY g.name

-- name: deepest_partitions
-- The partitions with the most messages that their slowest consumer has not committed.
SELECT
    s.o_partition_id, s.o_partition, q.name, q.namespace, q.task, q.priority, s.o_created_at,
    s.o_total, s.o_depth, s.o_processing, s.o_scheduled,
    CASE
        WHEN f.o_at IS NOT NULL THEN greatest(
            extract(
                epoch FROM
                clock_timestamp() - f.o_at - queen.held_for(q.delayed_processing, q.window_buffer)
            ),
            0
        )
    END::float8
FROM (
    SELECT i.*
    FROM queen.partition_statistics(
        %(shard)s::smallint,
        ARRAY(
            SELECT k.id FROM queen.queues k
            WHERE %(queue)s::text IS NULL OR k.name = %(queue)s::text
        )
    ) i
    WHERE i.o_depth >= %(depth_min)s
    ORDER BY i.o_depth DESC, i.o_partition_id
    LIMIT %(limit)s
) s
JOIN queen.queues q ON q.id = s.o_queue_id
LEFT JOIN LATERAL queen.time_at(
    %(shard)s::smallint, s.o_partition_id, CASE WHEN s.o_depth > 0 THEN s.o_slowest END
) f ON true
ORDER BY s.o_depth DESC, s.o_partition_id

-- name: namespace_statistics
SELECT
    q.namespace, count(DISTINCT q.id), count(s.o_partition_id),
    coalesce(sum(s.o_total), 0)::bigint,
    coalesce(sum(greatest(s.o_total - s.o_passed - s.o_processing, 0)), 0)::bigint
FROM queen.queues q
LEFT JOIN queen.partition_statistics(
    %(shard)s::smallint, ARRAY(SELECT i.id FROM queen.queues i WHERE i.namespace <> '')
) s ON s.o_queue_id = q.id
WHERE q.namespace <> ''
GROUP BY q.namespace
ORDER BY q.namespace

-- name: task_statistics
SELECT
    q.task, count(DISTINCT q.id), count(s.o_partition_id), coalesce(sum(s.o_total), 0)::bigint,
    coalesce(sum(greatest(s.o_total - s.o_passed - s.o_processing, 0)), 0)::bigint
FROM queen.queues q
LEFT JOIN queen.partition_statistics(
    %(shard)s::smallint, ARRAY(SELECT i.id FROM queen.queues i WHERE i.task <> '')
) s ON s.o_queue_id = q.id
WHERE q.task <> ''
GROUP BY q.task
ORDER BY q.task

-- name: lease_statistics
-- Leases that are live, and what is left of their batches.
SELECT
    count(DISTINCT c.lease_id), count(DISTINCT c.partition_id),
    coalesce(sum(i.o_count), 0)::bigint
FROM queen.leases l
CROSS JOIN LATERAL queen.cursor_of(l.shard, l.partition_id, l.subscription_id) c
JOIN queen.subscriptions u ON u.id = c.subscription_id
CROSS JOIN LATERAL queen.allocator_of(l.shard, l.partition_id) a
CROSS JOIN LATERAL queen.left_in_lease(
    l.shard, l.partition_id, a.low_watermark, c.committed_offset, c.lease_end
) i
WHERE
    l.shard = %(shard)s
    AND c.lease_id = l.lease_id
    AND c.lease_expires_at > clock_timestamp()
    AND c.lease_end > a.low_watermark
    AND (%(queue_ids)b::uuid[] IS NULL OR u.queue_id = ANY (%(queue_ids)b::uuid[]))

-- name: dead_letter_statistics
-- By dead_letters_by_partition alone.
SELECT coalesce(sum(c.count), 0)::bigint, count(*)
FROM (
    SELECT count(*) AS count
    FROM queen.dead_letters d
    WHERE
        d.shard = %(shard)s
        AND (%(queue_ids)b::uuid[] IS NULL OR d.queue_id = ANY (%(queue_ids)b::uuid[]))
    GROUP BY d.queue_id, d.partition_id
) c

-- name: list_groups
-- One row for each group and queue; its last sign of life, and whether its messages count as the
-- queue's.
SELECT
    u.consumer_group, q.name, u.mode, u.starts_at, u.created_at, u.conflation,
    count(g.o_partition_id), count(*) FILTER (WHERE g.o_lag > 0),
    coalesce(sum(g.o_lag), 0)::bigint,
    greatest(extract(epoch FROM clock_timestamp() - min(g.o_due_at)), 0)::float8,
    coalesce(sum(g.o_scheduled), 0)::bigint, min(g.o_oldest_at), min(g.o_due_at), t.o_state,
    t.o_counted, greatest(t.o_seen_at, max(g.o_consumed_at)), t.o_acked_at
FROM queen.group_places(%(shard)s::smallint, NULL, NULL) g
JOIN queen.subscriptions u ON u.id = g.o_subscription_id
JOIN queen.queues q ON q.id = u.queue_id
JOIN queen.group_states(NULL) t ON t.o_subscription_id = u.id
GROUP BY u.id, q.name, t.o_state, t.o_counted, t.o_seen_at, t.o_acked_at
ORDER BY q.name, u.consumer_group

-- name: get_group
-- A page of a group's places on each queue, by partition; of too many rows the first of each queue.
SELECT
    r.name, r.conflation, r.places, r.o_partition, r.o_committed, r.o_lag,
    greatest(extract(epoch FROM clock_timestamp() - r.o_due_at), 0)::float8, r.o_consumed_at,
    r.o_leased
FROM (
    SELECT
        q.name, u.conflation, g.*, count(g.o_partition_id) OVER (PARTITION BY q.id) AS places,
        row_number() OVER (PARTITION BY q.id ORDER BY g.o_partition) AS place
    FROM queen.group_places(%(shard)s::smallint, %(consumer_group)s::text, NULL) g
    JOIN queen.subscriptions u ON u.id = g.o_subscription_id
    JOIN queen.queues q ON q.id = u.queue_id
) r
WHERE r.place > %(offset)s AND r.place <= %(offset)s + %(limit)s
ORDER BY r.place, r.name
LIMIT %(rows)s

-- name: lagging_groups
-- Worst first, by how long the oldest message is due.
SELECT
    u.consumer_group, q.name, g.o_partition, g.o_partition_id, g.o_lag,
    extract(epoch FROM clock_timestamp() - g.o_due_at)::float8 AS lag_seconds, g.o_oldest_at,
    g.o_consumed_at
FROM queen.group_places(%(shard)s::smallint, %(consumer_group)s::text, %(queue)s::text) g
JOIN queen.subscriptions u ON u.id = g.o_subscription_id
JOIN queen.queues q ON q.id = u.queue_id
WHERE g.o_due_at <= clock_timestamp() - make_interval(secs => %(lag_s_min)s)
ORDER BY g.o_due_at, g.o_partition_id, u.id
LIMIT %(limit)s

-- name: subscription_of
SELECT u.id, u.conflation
FROM queen.subscriptions u
WHERE u.queue_id = %(queue_id)s::uuid AND u.consumer_group = %(consumer_group)s

-- name: database_sizes
SELECT
    current_database(), pg_database_size(current_database()), d.blks_hit, d.blks_read,
    d.numbackends, d.xact_commit, d.xact_rollback
FROM pg_stat_database d
WHERE d.datname = current_database()

-- name: table_statistics
SELECT
    t.relname, t.n_live_tup, t.n_dead_tup, t.n_tup_upd, t.n_tup_hot_upd, t.last_autovacuum,
    t.autovacuum_count, pg_total_relation_size(t.relid), pg_relation_size(t.relid),
    coalesce(i.heap_blks_hit, 0), coalesce(i.heap_blks_read, 0),
    coalesce(i.idx_blks_hit, 0), coalesce(i.idx_blks_read, 0)
FROM pg_stat_user_tables t
JOIN pg_statio_user_tables i ON i.relid = t.relid
WHERE t.schemaname = 'queen'
ORDER BY 8 DESC, 1

-- name: active_queries
SELECT
    a.pid, a.state, a.query_start,
    date_part('epoch', clock_timestamp() - a.query_start), left(a.query, 200), a.wait_event
FROM pg_stat_activity a
WHERE
    a.datname = current_database()
    -- The servers' own: what other programs ask is nobody's business here.
    AND a.usename = current_user
    AND a.application_name = current_setting('application_name')
    AND a.pid <> pg_backend_pid()
    AND a.state IS NOT NULL
    AND a.state <> 'idle'
ORDER BY a.query_start

-- name: buffer_settings
SELECT s.name, current_setting(s.name)
FROM pg_settings s
WHERE s.name IN ('shared_buffers', 'effective_cache_size', 'work_mem', 'maintenance_work_mem')
ORDER BY s.name
