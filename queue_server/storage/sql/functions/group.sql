-- delete_group: forget that a group is registered on a queue.
--
-- Its cursors are left; clear_remains takes them away. Registrations are deleted first and for good
-- (a worker that remembers the id is told 'unknown' by pop), so that pushes no longer see them.
--
-- Parameters: the queue and the group; whether to forget where the group starts, too. If not, the
--             group is registered anew with the same start, under a new id and with no cursor.
-- Returns:    the registration that was deleted, if there was one.
-- Writes:     subscriptions, subscription_remains.
-- Locks:      the queue FOR KEY SHARE (delete_queue waits, or is waited for), the subscription.
-- Isolation:  READ COMMITTED. A seek or backfill that runs finishes first.
CREATE OR REPLACE FUNCTION queen.delete_group(
    p_queue_id uuid,
    p_consumer_group text,
    p_delete_metadata boolean
) RETURNS TABLE (o_subscription_id integer) LANGUAGE plpgsql
AS $$
DECLARE
    v_subscription queen.subscriptions;
BEGIN
    PERFORM 1 FROM queen.queues q WHERE q.id = p_queue_id FOR KEY SHARE;

    DELETE FROM queen.subscriptions u
    WHERE u.queue_id = p_queue_id AND u.consumer_group = p_consumer_group
    RETURNING u.* INTO v_subscription;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    INSERT INTO queen.subscription_remains (subscription_id, queue_id)
    VALUES (v_subscription.id, p_queue_id);

    IF NOT p_delete_metadata THEN
        INSERT INTO queen.subscriptions (
            queue_id, consumer_group, queue_wide, mode, starts_at, backfilled_to, created_at,
            conflation
        )
        VALUES (
            p_queue_id, p_consumer_group, v_subscription.queue_wide, v_subscription.mode,
            v_subscription.starts_at, CASE WHEN v_subscription.queue_wide THEN 0 END,
            v_subscription.created_at, v_subscription.conflation
        );
    END IF;

    o_subscription_id := v_subscription.id;
    RETURN NEXT;
END
$$;

-- clear_remains: take away the cursors of a deleted registration, a bounded number each time.
--
-- Parameters: the registration; how many partitions at most.
-- Returns:    how many cursors were deleted, the names of the visited partitions that hold messages,
--             and whether partitions are left.
-- Writes:     cursors, leases, pending, subscription_remains.
-- Locks:      the queue FOR NO KEY UPDATE, the remains (one clean-up at a time), cursors, then
--             allocators FOR SHARE, ascending: waits for the pushes that began before the deletion,
--             which may list the group, in partitions that they create too.
-- Isolation:  READ COMMITTED; partitions made after the deletion never meet the group.
CREATE OR REPLACE FUNCTION queen.clear_remains(
    p_shard smallint,
    p_subscription_id integer,
    p_limit integer
) RETURNS TABLE (o_deleted integer, o_partitions text[], o_more boolean) LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_remains queen.subscription_remains;
    v_ids bigint[];
BEGIN
    o_deleted := 0;
    o_partitions := '{}';
    o_more := false;
    PERFORM 1
    FROM queen.queues q
    WHERE q.id = (
        SELECT r.queue_id FROM queen.subscription_remains r
        WHERE r.subscription_id = p_subscription_id
    )
    FOR NO KEY UPDATE;
    SELECT r.* INTO v_remains
    FROM queen.subscription_remains r
    WHERE r.subscription_id = p_subscription_id
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN NEXT;
        RETURN;
    END IF;

    SELECT array_agg(l.id) INTO v_ids
    FROM (
        SELECT p.id
        FROM queen.partitions p
        WHERE
            p.shard = p_shard
            AND p.queue_id = v_remains.queue_id
            AND p.id > v_remains.cleared_to
        ORDER BY p.id
        LIMIT p_limit
    ) l;

    IF v_ids IS NOT NULL THEN
        PERFORM 1
        FROM queen.cursors c
        WHERE
            c.shard = p_shard
            AND c.partition_id = ANY (v_ids)
            AND c.subscription_id = p_subscription_id
        ORDER BY c.partition_id
        FOR UPDATE;
        PERFORM 1
        FROM queen.allocators a
        WHERE a.shard = p_shard AND a.partition_id = ANY (v_ids)
        ORDER BY a.partition_id
        FOR SHARE;

        DELETE FROM queen.leases l
        USING queen.cursors c
        WHERE
            c.shard = p_shard
            AND c.partition_id = ANY (v_ids)
            AND c.subscription_id = p_subscription_id
            AND l.shard = p_shard
            AND l.lease_id = c.lease_id
            AND l.partition_id = c.partition_id
            AND l.subscription_id = p_subscription_id;
        DELETE FROM queen.cursors c
        WHERE
            c.shard = p_shard
            AND c.partition_id = ANY (v_ids)
            AND c.subscription_id = p_subscription_id;
        GET DIAGNOSTICS o_deleted = ROW_COUNT;
        DELETE FROM queen.pending p
        WHERE
            p.shard = p_shard
            AND p.subscription_id = p_subscription_id
            AND p.partition_id = ANY (v_ids);

        SELECT coalesce(array_agg(p.name), '{}') INTO o_partitions
        FROM queen.partitions p
        JOIN queen.allocators a ON a.shard = p_shard AND a.partition_id = p.id
        WHERE p.shard = p_shard AND p.id = ANY (v_ids) AND a.next_offset > a.low_watermark;
    END IF;

    IF coalesce(cardinality(v_ids), 0) < p_limit THEN
        DELETE FROM queen.subscription_remains r WHERE r.subscription_id = p_subscription_id;
    ELSE
        o_more := true;
        UPDATE queen.subscription_remains r
        SET cleared_to = v_ids[cardinality(v_ids)]
        WHERE r.subscription_id = p_subscription_id;
    END IF;
    RETURN NEXT;
END
$$;

-- seed_cursors: give a group its place in partitions in which it has none.
--
-- A transaction of its own before queen.seek: a cursor that is inserted while another transaction
-- waits for the allocator would close a circle with the push that holds it.
--
-- Parameters: the group and the partitions.
-- Returns:    whether the group is still registered.
-- Writes:     cursors, at the place where a push or a backfill would put them.
-- Locks:      the subscription FOR KEY SHARE (delete_group waits, or is waited for).
-- Isolation:  READ COMMITTED. An existing cursor stays.
CREATE OR REPLACE FUNCTION queen.seed_cursors(
    p_shard smallint,
    p_subscription_id integer,
    p_partition_ids bigint[]
) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_subscription queen.subscriptions;
BEGIN
    SELECT u.* INTO v_subscription
    FROM queen.subscriptions u
    WHERE u.id = p_subscription_id
    FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO queen.cursors (shard, partition_id, subscription_id, committed_offset)
    SELECT
        p_shard, a.partition_id, p_subscription_id,
        CASE v_subscription.mode
            WHEN 'all' THEN 0
            WHEN 'new' THEN a.next_offset
            ELSE queen.offset_at(p_shard, a.partition_id, v_subscription.starts_at)
        END
    FROM queen.allocators a
    -- Looked up for each: without statistics a NOT EXISTS compares all with all.
    LEFT JOIN LATERAL queen.cursor_of(p_shard, a.partition_id, p_subscription_id) c ON true
    WHERE
        a.shard = p_shard AND a.partition_id = ANY (p_partition_ids) AND c.partition_id IS NULL
    ORDER BY a.partition_id
    ON CONFLICT DO NOTHING;
    RETURN true;
END
$$;

-- seek: move a group to another place in partitions in which it has a cursor.
--
-- Parameters: the group, the partitions, and the time: the group goes on with the first message
--             stored at or after it; null = behind the newest message.
-- Returns:    one row: how many cursors were moved, the names of the partitions that now have
--             something to read, and the time of the newest message of the last one visited; no row
--             when the group is not registered.
-- Calls:      offset_at.
-- Writes:     cursors (leases end, the counts of deliveries and retries begin again), pending.
-- Locks:      the subscription FOR KEY SHARE, cursors, then allocators FOR SHARE, ascending: neither
--             a push nor retire_pending comes between the cursor and its pending row.
-- Isolation:  READ COMMITTED; the third statement's snapshot is taken under the allocators' locks.
CREATE OR REPLACE FUNCTION queen.seek(
    p_shard smallint,
    p_subscription_id integer,
    p_partition_ids bigint[],
    p_time timestamptz
) RETURNS TABLE (o_moved integer, o_partitions text[], o_newest_at timestamptz)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_queue_wide boolean;
BEGIN
    SELECT u.queue_wide INTO v_queue_wide
    FROM queen.subscriptions u
    WHERE u.id = p_subscription_id
    FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    PERFORM 1
    FROM queen.cursors c
    WHERE
        c.shard = p_shard
        AND c.partition_id = ANY (p_partition_ids)
        AND c.subscription_id = p_subscription_id
    ORDER BY c.partition_id
    FOR NO KEY UPDATE;
    PERFORM 1
    FROM queen.allocators a
    WHERE a.shard = p_shard AND a.partition_id = ANY (p_partition_ids)
    ORDER BY a.partition_id
    FOR SHARE;

    WITH moved AS (
        UPDATE queen.cursors c
        SET
            committed_offset = CASE
                WHEN p_time IS NULL THEN a.next_offset
                ELSE queen.offset_at(p_shard, a.partition_id, p_time)
            END,
            lease_id = NULL, lease_end = NULL, lease_expires_at = NULL,
            attempt = 0, attempt_offset = -1, retry_count = 0, retry_offset = -1,
            settled_lease_id = NULL, settled_from = NULL, settled_end = NULL, available_at = NULL,
            -- The place is chosen: where the group was to start does not count any more.
            consumed_at = coalesce(c.consumed_at, clock_timestamp())
        FROM queen.allocators a
        WHERE
            c.shard = p_shard
            AND c.partition_id = ANY (p_partition_ids)
            AND c.subscription_id = p_subscription_id
            AND a.shard = p_shard
            AND a.partition_id = c.partition_id
        RETURNING
            c.partition_id, a.last_segment_at, c.committed_offset < a.next_offset AS readable
    ),
    listed AS (
        INSERT INTO queen.pending (shard, subscription_id, partition_id)
        SELECT p_shard, p_subscription_id, m.partition_id
        FROM moved m
        WHERE m.readable AND v_queue_wide
        ORDER BY m.partition_id
        ON CONFLICT DO NOTHING
    )
    SELECT
        count(*), coalesce(array_agg(p.name) FILTER (WHERE m.readable), '{}'),
        max(m.last_segment_at)
    INTO o_moved, o_partitions, o_newest_at
    FROM moved m
    JOIN queen.partitions p ON p.shard = p_shard AND p.id = m.partition_id;
    RETURN NEXT;
END
$$;

-- note_groups: note that groups are in use.
--
-- Parameters: the registrations that popped, and those that acknowledged, which is a sign of life, too.
-- Returns:    nothing. What was noted within half a minute stays; one that is gone is passed over.
-- Writes:     group_activity.
-- Locks:      its rows, ascending; of groups that are new to it, their subscription FOR KEY SHARE, SKIP
--             LOCKED: a deletion takes both with it.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.note_groups(p_popped integer[], p_acked integer[])
RETURNS void LANGUAGE plpgsql
AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_due timestamptz := v_now - interval '30 seconds';
BEGIN
    WITH due AS (
        SELECT a.subscription_id
        FROM queen.group_activity a
        WHERE
            (a.subscription_id = ANY (p_popped || p_acked) AND a.popped_at < v_due)
            OR (
                a.subscription_id = ANY (p_acked)
                AND (a.acked_at IS NULL OR a.acked_at < v_due)
            )
        ORDER BY a.subscription_id
        FOR NO KEY UPDATE
    )
    UPDATE queen.group_activity a
    SET
        popped_at = v_now,
        acked_at = CASE WHEN a.subscription_id = ANY (p_acked) THEN v_now ELSE a.acked_at END
    FROM due d
    WHERE a.subscription_id = d.subscription_id;

    INSERT INTO queen.group_activity (subscription_id, popped_at, acked_at)
    SELECT u.id, v_now, CASE WHEN u.id = ANY (p_acked) THEN v_now END
    FROM (
        SELECT s.id
        FROM queen.subscriptions s
        WHERE
            s.id = ANY (p_popped || p_acked)
            AND NOT EXISTS (
                SELECT 1 FROM queen.group_activity a WHERE a.subscription_id = s.id
            )
        ORDER BY s.id
        FOR KEY SHARE SKIP LOCKED
    ) u
    ORDER BY u.id
    ON CONFLICT DO NOTHING;
END
$$;

-- group_states: which groups are in use.
--
-- A group that has neither popped nor acknowledged for limits.group_idle_seconds does not count while
-- another group of its queue does: its messages make the queue neither deep nor late. Where no group
-- is in use all count, so that a stopped consumer is not hidden.
--
-- Parameters: the queues; null = all.
-- Returns:    one row a registration. o_seen_at: its last sign of life; o_acked_at: null = it never
--             acknowledged. Both are up to a minute old.
-- Reads:      subscriptions, group_activity, limits.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.group_states(p_queue_ids uuid[])
RETURNS TABLE (
    o_subscription_id integer,
    o_queue_id uuid,
    o_state text,
    o_counted boolean,
    o_seen_at timestamptz,
    o_acked_at timestamptz
) LANGUAGE sql STABLE
AS $$
    SELECT
        g.id, g.queue_id,
        CASE
            WHEN g.acked_at IS NULL THEN 'never acknowledged'
            WHEN g.in_use THEN 'active'
            ELSE 'idle'
        END,
        g.in_use OR NOT bool_or(g.in_use) OVER (PARTITION BY g.queue_id),
        g.seen_at, g.acked_at
    FROM (
        SELECT
            u.id, u.queue_id, a.acked_at, greatest(u.created_at, a.popped_at, a.acked_at) AS seen_at,
            l.group_idle_seconds = 0
            OR greatest(u.created_at, a.popped_at, a.acked_at)
                > clock_timestamp() - make_interval(secs => l.group_idle_seconds) AS in_use
        FROM queen.subscriptions u
        CROSS JOIN queen.limits l
        LEFT JOIN queen.group_activity a ON a.subscription_id = u.id
        WHERE p_queue_ids IS NULL OR u.queue_id = ANY (p_queue_ids)
    ) g
$$;
