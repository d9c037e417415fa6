-- retire_pending: forget partitions that a group has read to the end and that have been quiet.
--
-- A partition in use stays listed although its group has caught up, so that a push to it writes
-- nothing here; one that has been quiet for ten seconds goes, so that a pop need not look at it.
--
-- Parameters: the group and the partitions to consider.
-- Returns:    how many were forgotten.
-- Writes:     pending.
-- Locks:      allocators, FOR NO KEY UPDATE SKIP LOCKED: a partition that a push holds just now is
--             not quiet, and this function never waits, so it may be called under cursor locks.
-- Isolation:  READ COMMITTED. The second statement's snapshot is taken under the allocator's lock:
--             a push either committed before it and is seen, or comes after it and finds no row.
CREATE OR REPLACE FUNCTION queen.retire_pending(
    p_shard smallint,
    p_subscription_id integer,
    p_partition_ids bigint[]
) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_quiet_since timestamptz := clock_timestamp() - interval '10 seconds';
    v_locked bigint[];
    v_count integer;
BEGIN
    SELECT array_agg(l.partition_id) INTO v_locked
    FROM (
        SELECT a.partition_id
        FROM queen.allocators a
        WHERE
            a.shard = p_shard
            AND a.partition_id = ANY (p_partition_ids)
            AND a.last_segment_at < v_quiet_since
        ORDER BY a.partition_id
        FOR NO KEY UPDATE SKIP LOCKED
    ) l;
    IF v_locked IS NULL THEN
        RETURN 0;
    END IF;

    DELETE FROM queen.pending p
    USING queen.allocators a, queen.cursors c
    WHERE
        p.shard = p_shard
        AND p.subscription_id = p_subscription_id
        AND p.partition_id = ANY (v_locked)
        AND a.shard = p_shard
        AND a.partition_id = p.partition_id
        AND c.shard = p_shard
        AND c.partition_id = p.partition_id
        AND c.subscription_id = p_subscription_id
        AND c.committed_offset >= a.next_offset;
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
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_quiet_since timestamptz := clock_timestamp() - interval '10 seconds';
    v_ids bigint[];
BEGIN
    SELECT array_agg(x.partition_id) INTO v_ids
    FROM (
        SELECT p.partition_id
        FROM queen.pending p
        JOIN queen.allocators a ON a.shard = p_shard AND a.partition_id = p.partition_id
        JOIN queen.cursors c
            ON c.shard = p_shard
            AND c.partition_id = p.partition_id
            AND c.subscription_id = p_subscription_id
        WHERE
            p.shard = p_shard
            AND p.subscription_id = p_subscription_id
            AND c.committed_offset >= a.next_offset
            AND a.last_segment_at < v_quiet_since
        LIMIT p_limit
    ) x;
    IF v_ids IS NULL THEN
        RETURN 0;
    END IF;
    RETURN queen.retire_pending(p_shard, p_subscription_id, v_ids);
END
$$;

-- claimable: which parked consumers could be served now, and when to look again.
--
-- Parameters: the rooms in which consumers wait: group and partition (0 = any), and how many wait.
-- Returns:    one row a room, in order: how many partitions are claimable (no more than wait), and
--             the earliest end of a lease that hides messages from it (null without one).
-- Reads:      pending, cursors, allocators.
-- Locks:      none.
-- Isolation:  READ COMMITTED; an answer that is out of date wakes a consumer in vain.
CREATE OR REPLACE FUNCTION queen.claimable(
    p_shard smallint,
    p_subscription_ids integer[],
    p_partition_ids bigint[],
    p_limits integer[]
) RETURNS TABLE (o_room integer, o_claimable integer, o_lease_ends_in double precision)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    r record;
    c record;
BEGIN
    FOR r IN
        SELECT u.*
        FROM unnest(p_subscription_ids, p_partition_ids, p_limits)
            WITH ORDINALITY AS u (subscription_id, partition_id, waiting, room)
    LOOP
        o_room := r.room;
        o_claimable := 0;
        o_lease_ends_in := NULL;
        FOR c IN
            SELECT
                CASE WHEN u.lease_id IS NOT NULL THEN u.lease_expires_at END AS lease_expires_at
            FROM (
                SELECT p.partition_id
                FROM queen.pending p
                WHERE
                    r.partition_id = 0
                    AND p.shard = p_shard
                    AND p.subscription_id = r.subscription_id
                UNION ALL
                SELECT r.partition_id WHERE r.partition_id <> 0
            ) p
            JOIN queen.cursors u
                ON u.shard = p_shard
                AND u.partition_id = p.partition_id
                AND u.subscription_id = r.subscription_id
            JOIN queen.allocators a
                ON a.shard = p_shard
                AND a.partition_id = p.partition_id
            WHERE a.next_offset > u.committed_offset
        LOOP
            IF c.lease_expires_at IS NULL OR c.lease_expires_at <= v_now THEN
                o_claimable := o_claimable + 1;
                EXIT WHEN o_claimable >= r.waiting;
            ELSE
                o_lease_ends_in := least(
                    o_lease_ends_in, extract(epoch FROM c.lease_expires_at - v_now)
                );
            END IF;
        END LOOP;
        RETURN NEXT;
    END LOOP;
END
$$;
