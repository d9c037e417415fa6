-- Figures for dashboards. They come from watermarks and cursors, a row for each partition and group;
-- of messages only those are counted one by one that were taken out of the log by themselves.

-- partition_statistics: what lies in the partitions of some queues.
--
-- Parameters: the queues.
-- Returns:    one row a partition. o_depth: what its slowest consumer has not committed, of all groups
--             that have a place there and count (queen.group_states; of all groups where none that
--             counts has one), queue mode among them (all there is while nobody has one), as
--             unread_count counts it; o_slowest: that consumer's place; o_scheduled: those of the
--             o_depth that are not due yet (queen.scheduled_from). The protocol's counters
--             follow queue mode: o_passed are the messages behind its place, or, without one, behind
--             the places of all groups; o_processing its live lease, or the largest of the groups'.
-- Reads:      subscriptions, partitions, allocators, cursors, holes and dead_letters of the queues;
--             segments of queues with a delay.
-- Calls:      group_states.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.partition_statistics(p_shard smallint, p_queue_ids uuid[])
RETURNS TABLE (
    o_queue_id uuid,
    o_partition_id bigint,
    o_partition text,
    o_created_at timestamptz,
    o_low_watermark bigint,
    o_next_offset bigint,
    o_last_segment_at timestamptz,
    o_total bigint,
    o_passed bigint,
    o_processing bigint,
    o_depth bigint,
    o_scheduled bigint,
    o_slowest bigint,
    o_consumed bigint,
    o_consumed_at timestamptz,
    o_dead bigint
) LANGUAGE sql STABLE
AS $$
    SELECT
        p.queue_id, p.id, p.name, p.created_at, a.low_watermark, a.next_offset, a.last_segment_at,
        a.next_offset - a.low_watermark - h.passed - h.ahead,
        w.passed_to - a.low_watermark - h.passed,
        n.processing,
        n.depth,
        -- What is leased was due.
        least(a.next_offset - d.o_offset - h.scheduled, n.depth - n.processing),
        w.slowest,
        coalesce(k.queue_mode, k.lowest, 0),
        k.consumed_at,
        f.count
    FROM (
        -- A deleted group's cursors stay for a while, so those of the registered ones are named.
        SELECT
            i.id, array_agg(u.id) AS subscription_ids,
            array_agg(u.id) FILTER (WHERE g.o_counted) AS counted_ids,
            max(u.id) FILTER (WHERE u.consumer_group = '__QUEUE_MODE__') AS queue_mode_id,
            max(o.delayed_processing) AS delay_s, max(o.window_buffer) AS window_s
        FROM unnest(p_queue_ids) i (id)
        JOIN queen.queues o ON o.id = i.id
        LEFT JOIN queen.subscriptions u ON u.queue_id = i.id
        LEFT JOIN queen.group_states(p_queue_ids) g ON g.o_subscription_id = u.id
        GROUP BY i.id
    ) q
    JOIN queen.partitions p ON p.shard = p_shard AND p.queue_id = q.id
    JOIN queen.allocators a ON a.shard = p_shard AND a.partition_id = p.id
    -- LATERAL: one that was grouped by partition and joined would be computed anew for each of them
    -- as long as the planner, without statistics, takes it for a single row.
    CROSS JOIN LATERAL (
        SELECT
            min(c.committed_offset) AS lowest,
            coalesce(
                min(c.committed_offset) FILTER (
                    WHERE c.subscription_id = ANY (q.counted_ids)
                ),
                min(c.committed_offset)
            ) AS slowest,
            max(c.committed_offset) FILTER (WHERE c.subscription_id = q.queue_mode_id)
                AS queue_mode,
            -- Looked up only under a lease. With columns of `a` in it the planner would put this join
            -- before all others, and read partitions one by one.
            max((
                SELECT i.o_count
                FROM queen.allocator_of(p_shard, c.partition_id) x
                CROSS JOIN LATERAL queen.left_in_lease(
                    p_shard, c.partition_id, x.low_watermark, c.committed_offset, c.lease_end
                ) i
            )) FILTER (
                WHERE
                    c.subscription_id = q.queue_mode_id
                    AND c.lease_expires_at > clock_timestamp()
            ) AS queue_mode_leased,
            max((
                SELECT i.o_count
                FROM queen.allocator_of(p_shard, c.partition_id) x
                CROSS JOIN LATERAL queen.left_in_lease(
                    p_shard, c.partition_id, x.low_watermark, c.committed_offset, c.lease_end
                ) i
            )) FILTER (WHERE c.lease_expires_at > clock_timestamp()) AS leased,
            max(c.consumed_at) AS consumed_at
        FROM queen.cursors c
        WHERE
            c.shard = p_shard
            AND c.partition_id = p.id
            AND c.subscription_id = ANY (q.subscription_ids)
    ) k
    CROSS JOIN LATERAL (
        SELECT
            greatest(coalesce(k.slowest, 0), a.low_watermark) AS slowest,
            greatest(coalesce(k.queue_mode, k.lowest, 0), a.low_watermark) AS passed_to
    ) w
    CROSS JOIN LATERAL queen.scheduled_from(
        p_shard, p.id, w.slowest, a.next_offset, a.last_segment_at, q.delay_s, q.window_s
    ) d
    CROSS JOIN LATERAL (
        SELECT
            count(*) FILTER (WHERE o.message_offset < w.passed_to) AS passed,
            count(*) FILTER (WHERE o.message_offset >= w.passed_to) AS ahead,
            count(*) FILTER (WHERE o.message_offset >= w.slowest) AS unread,
            count(*) FILTER (WHERE o.message_offset >= d.o_offset) AS scheduled
        FROM queen.holes o
        WHERE
            o.shard = p_shard
            AND o.partition_id = p.id
            AND o.message_offset >= a.low_watermark
    ) h
    CROSS JOIN LATERAL (
        SELECT
            c.depth,
            least(
                coalesce(
                    CASE WHEN k.queue_mode IS NOT NULL THEN k.queue_mode_leased ELSE k.leased END,
                    0
                ),
                c.depth
            ) AS processing
        FROM (SELECT a.next_offset - w.slowest - h.unread AS depth) c
    ) n
    CROSS JOIN LATERAL (
        -- By dead_letters_by_partition alone, however many there are.
        SELECT count(*) AS count
        FROM queen.dead_letters e
        WHERE e.shard = p_shard AND e.queue_id = q.id AND e.partition_id = p.id
    ) f
$$;

-- group_places: where groups stand in partitions, and how far they are behind.
--
-- Parameters: a group, a queue; null = any.
-- Returns:    one row for each cursor; for a group without one, a row with nulls for the partition.
--             o_oldest_at is the time of the first message not committed (null when there is none),
--             o_due_at when it was or will be due (queen.held_for). o_scheduled are those of the o_lag
--             that are not due yet, and not leased.
-- Reads:      subscriptions, partitions, allocators, cursors, holes; one segment for each that is
--             behind, and more of queues with a delay.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.group_places(p_shard smallint, p_consumer_group text, p_queue text)
RETURNS TABLE (
    o_subscription_id integer,
    o_partition_id bigint,
    o_partition text,
    o_committed bigint,
    o_lag bigint,
    o_scheduled bigint,
    o_oldest_at timestamptz,
    o_due_at timestamptz,
    o_consumed_at timestamptz,
    o_leased boolean
) LANGUAGE sql STABLE
AS $$
    SELECT
        u.id, k.partition_id, k.partition, k.committed_offset, k.lag, k.scheduled, s.o_at,
        s.o_at + queen.held_for(q.delayed_processing, q.window_buffer), k.consumed_at, k.leased
    FROM queen.subscriptions u
    JOIN queen.queues q ON q.id = u.queue_id
    LEFT JOIN LATERAL (
        SELECT
            c.partition_id, p.name AS partition, c.committed_offset, c.consumed_at,
            greatest(c.committed_offset, a.low_watermark) AS place,
            a.next_offset - greatest(c.committed_offset, a.low_watermark) - h.o_count AS lag,
            a.next_offset - d.o_offset - e.o_count AS scheduled,
            coalesce(
                c.lease_expires_at > clock_timestamp() AND c.lease_end > a.low_watermark, false
            ) AS leased
        FROM queen.partitions p
        JOIN queen.allocators a ON a.shard = p_shard AND a.partition_id = p.id
        JOIN queen.cursors c
            ON c.shard = p_shard
            AND c.partition_id = p.id
            AND c.subscription_id = u.id
        CROSS JOIN LATERAL queen.holes_between(
            p_shard, p.id, greatest(c.committed_offset, a.low_watermark), a.next_offset
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
            p_shard, p.id, n.place, a.next_offset, a.last_segment_at, q.delayed_processing,
            q.window_buffer
        ) d
        CROSS JOIN LATERAL queen.holes_between(p_shard, p.id, d.o_offset, a.next_offset) e
        WHERE p.shard = p_shard AND p.queue_id = u.queue_id
    ) k ON true
    LEFT JOIN LATERAL queen.time_at(
        p_shard, k.partition_id, CASE WHEN k.lag > 0 THEN k.place END
    ) s ON true
    WHERE
        (p_consumer_group IS NULL OR u.consumer_group = p_consumer_group)
        AND (p_queue IS NULL OR q.name = p_queue)
$$;
