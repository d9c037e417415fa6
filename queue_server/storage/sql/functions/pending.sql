-- is_idle: whether a partition is worth forgetting once a group has caught up with it.
--
-- A busy partition stays listed, so that a push to it writes nothing in `pending`. Busy means that
-- its last two pushes came within a second and that it was not quiet for ten since. So the pushes
-- that find their partition forgotten come at most once a second each.
--
-- Parameters: the allocator's times and the present.
-- Reads:      nothing. One expression, so that PostgreSQL inlines it.
CREATE OR REPLACE FUNCTION queen.is_idle(
    p_last_at timestamptz, p_previous_at timestamptz, p_now timestamptz
) RETURNS boolean LANGUAGE sql STABLE
AS $$
    SELECT
        p_last_at < p_now - interval '10 seconds'
        OR p_previous_at IS NULL
        OR p_last_at > p_previous_at + interval '1 second'
$$;

-- retire_pending: forget idle partitions that a group has read to the end, so that a pop need not
-- look at them.
--
-- Parameters: the group and the partitions to consider.
-- Returns:    how many were forgotten.
-- Calls:      is_idle, allocator_of, cursor_of.
-- Writes:     pending.
-- Locks:      allocators, FOR NO KEY UPDATE SKIP LOCKED: a partition that a push holds just now is
--             not idle, and this function never waits, so it may be called under cursor locks.
-- Isolation:  READ COMMITTED. The second statement's snapshot is taken under the allocator's lock:
--             a push either committed before it and is seen, or comes after it and finds no row.
CREATE OR REPLACE FUNCTION queen.retire_pending(
    p_shard smallint,
    p_subscription_id integer,
    p_partition_ids bigint[]
) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_locked bigint[];
    v_count integer;
BEGIN
    SELECT array_agg(l.partition_id) INTO v_locked
    FROM (
        SELECT u.id
        FROM unnest(p_partition_ids) AS u (id)
        CROSS JOIN LATERAL queen.allocator_of(p_shard, u.id) a
        WHERE queen.is_idle(a.last_segment_at, a.previous_segment_at, v_now)
        ORDER BY u.id
        OFFSET 0
    ) e
    CROSS JOIN LATERAL (
        -- As queen.allocator_of, and locked; judged again, as it may have been pushed to.
        SELECT a.partition_id
        FROM queen.allocators a
        WHERE
            a.shard = p_shard
            AND a.partition_id BETWEEN e.id AND e.id
            AND queen.is_idle(a.last_segment_at, a.previous_segment_at, v_now)
        ORDER BY a.partition_id DESC
        LIMIT 1
        FOR NO KEY UPDATE SKIP LOCKED
    ) l;
    IF v_locked IS NULL THEN
        RETURN 0;
    END IF;

    DELETE FROM queen.pending p
    WHERE
        p.shard = p_shard
        AND p.subscription_id = p_subscription_id
        AND p.partition_id = ANY (v_locked)
        AND (
            SELECT c.committed_offset
            FROM queen.cursor_of(p_shard, p.partition_id, p_subscription_id) c
        ) >= (
            SELECT a.next_offset FROM queen.allocator_of(p_shard, p.partition_id) a
        );
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

-- sweep_pending: retire_pending for what acknowledgements left listed because it was in use then.
--
-- Parameters: the group; how many rows at most.
-- Returns:    how many were forgotten.
-- Writes, Locks, Isolation: as retire_pending.
CREATE OR REPLACE FUNCTION queen.sweep_pending(
    p_shard smallint,
    p_subscription_id integer,
    p_limit integer
) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_ids bigint[];
BEGIN
    SELECT array_agg(x.partition_id) INTO v_ids
    FROM (
        SELECT p.partition_id
        FROM queen.pending p
        CROSS JOIN LATERAL queen.allocator_of(p_shard, p.partition_id) a
        CROSS JOIN LATERAL queen.cursor_of(p_shard, p.partition_id, p_subscription_id) c
        WHERE
            p.shard = p_shard
            AND p.subscription_id = p_subscription_id
            AND c.committed_offset >= a.next_offset
            AND queen.is_idle(a.last_segment_at, a.previous_segment_at, v_now)
        LIMIT p_limit
    ) x;
    IF v_ids IS NULL THEN
        RETURN 0;
    END IF;
    RETURN queen.retire_pending(p_shard, p_subscription_id, v_ids);
END
$$;

-- claimable: which consumers could be served now, and when to look again.
--
-- Parameters: the rooms in which consumers wait: group and partition (0 = any), and how many wait;
--             partitions that do not count for those who wait for any, as the caller cannot read them.
-- Returns:    one row a room, in order: how many partitions are claimable (no more than wait), in how
--             many seconds the next one will be that is hidden now (null without one), and the time
--             of the oldest message waiting in those that were counted (p_with_oldest; else null).
-- Calls:      candidates.
-- Reads:      subscriptions, queues, pending, cursors, allocators.
-- Locks:      none.
-- Isolation:  READ COMMITTED; an answer that is out of date wakes a consumer in vain.
CREATE OR REPLACE FUNCTION queen.claimable(
    p_shard smallint,
    p_subscription_ids integer[],
    p_partition_ids bigint[],
    p_limits integer[],
    p_with_oldest boolean,
    p_left_out bigint[]
) RETURNS TABLE (
    o_room integer, o_claimable integer, o_readable_in double precision, o_oldest_at timestamptz
)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_next timestamptz;
    r record;
    c record;
BEGIN
    FOR r IN
        SELECT
            u.room, u.subscription_id, u.partition_id, u.waiting,
            CASE
                WHEN q.delayed_processing > 0 THEN make_interval(secs => q.delayed_processing)
            END AS delay,
            CASE WHEN q.window_buffer > 0 THEN make_interval(secs => q.window_buffer) END AS win,
            v_now - make_interval(
                secs => least(nullif(q.max_wait_time_seconds, 0), nullif(q.ttl, 0))
            ) AS stale_before
        FROM unnest(p_subscription_ids, p_partition_ids, p_limits)
            WITH ORDINALITY AS u (subscription_id, partition_id, waiting, room)
        LEFT JOIN queen.subscriptions b ON b.id = u.subscription_id
        LEFT JOIN queen.queues q ON q.id = b.queue_id
        ORDER BY u.room
    LOOP
        o_room := r.room;
        o_claimable := 0;
        o_oldest_at := NULL;
        v_next := NULL;
        FOR c IN
            SELECT k.o_readable_at AS readable_at, k.o_oldest_at AS oldest_at
            FROM queen.candidates(
                p_shard, r.subscription_id, r.partition_id, 0, 9223372036854775807,
                r.delay, r.win, r.stale_before, p_with_oldest, p_left_out
            ) k
        LOOP
            IF c.readable_at <= v_now THEN
                o_claimable := o_claimable + 1;
                o_oldest_at := least(o_oldest_at, c.oldest_at);
                EXIT WHEN o_claimable >= r.waiting;
            ELSE
                v_next := least(v_next, c.readable_at);
            END IF;
        END LOOP;
        o_readable_in := extract(epoch FROM v_next - v_now);
        RETURN NEXT;
    END LOOP;
END
$$;
