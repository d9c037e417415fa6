-- lock_leased: lock what leases hold, by the leases alone.
--
-- Parameters: the leases.
-- Returns:    the partitions, with the group, whose cursor holds one of them.
-- Reads:      leases, by the first columns of its primary key; a row there may be out of date, the
--             cursor is not.
-- Locks:      cursors, ascending (partition, subscription).
-- Isolation:  READ COMMITTED. A cursor that had to be waited for is judged as it is then: a lease that
--             has expired and was taken by somebody has another id.
CREATE OR REPLACE FUNCTION queen.lock_leased(
    p_shard smallint,
    p_lease_ids uuid[]
) RETURNS TABLE (o_place tid, o_partition_id bigint, o_subscription_id integer) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY
    SELECT c.ctid, e.partition_id, e.subscription_id
    FROM (
        SELECT l.partition_id, l.subscription_id, l.lease_id
        FROM queen.leases l
        WHERE l.shard = p_shard AND l.lease_id = ANY (p_lease_ids)
        ORDER BY l.partition_id, l.subscription_id
        OFFSET 0
    ) e
    CROSS JOIN LATERAL (
        -- As queen.cursor_of, and locked as the outer row comes to it, hence in its order.
        SELECT k.ctid
        FROM queen.cursors k
        WHERE
            k.shard = p_shard
            AND k.partition_id = e.partition_id
            AND k.subscription_id BETWEEN e.subscription_id AND e.subscription_id
            AND k.lease_id = e.lease_id
        ORDER BY k.subscription_id DESC
        LIMIT 1
        FOR NO KEY UPDATE
    ) c;
END
$$;

-- extend_lease: put off the expiry of a live lease.
--
-- Parameters: the lease and the seconds from now. An expiry is never brought forward.
-- Returns:    one row for each partition extended: its new expiry. None for a lease that is over,
--             because it expired, was ended, or because all its messages were removed.
-- Calls:      lock_leased, allocator_of.
-- Writes:     cursors.
-- Locks:      cursors, ascending (partition, subscription).
-- Isolation:  READ COMMITTED; a lease that ends before the lock is granted is not extended.
CREATE OR REPLACE FUNCTION queen.extend_lease(
    p_shard smallint,
    p_lease_id uuid,
    p_seconds integer
) RETURNS TABLE (o_expires_at timestamptz) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz;
    v_places tid[];
BEGIN
    SELECT array_agg(l.o_place) INTO v_places
    FROM queen.lock_leased(p_shard, ARRAY[p_lease_id]) l;
    v_now := clock_timestamp();

    RETURN QUERY
    UPDATE queen.cursors c
    SET lease_expires_at = greatest(c.lease_expires_at, v_now + make_interval(secs => p_seconds))
    WHERE
        c.ctid = ANY (v_places)
        AND c.lease_expires_at > v_now
        AND c.lease_end > (
            SELECT a.low_watermark FROM queen.allocator_of(p_shard, c.partition_id) a
        )
    RETURNING c.lease_expires_at;
END
$$;

-- release_leases: give back what a pop leased when nobody received its answer.
--
-- Parameters: the leases.
-- Returns:    the partitions released, with their group, so that another consumer can be woken.
-- Calls:      lock_leased.
-- Writes:     cursors; the delivery that the claim had counted is taken back. leases.
-- Locks:      cursors, ascending (partition, subscription).
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.release_leases(
    p_shard smallint,
    p_lease_ids uuid[]
) RETURNS TABLE (o_partition_id bigint, o_subscription_id integer) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_places tid[];
BEGIN
    SELECT array_agg(l.o_place) INTO v_places
    FROM queen.lock_leased(p_shard, p_lease_ids) l;

    DELETE FROM queen.leases l WHERE l.shard = p_shard AND l.lease_id = ANY (p_lease_ids);

    RETURN QUERY
    UPDATE queen.cursors c
    SET
        lease_id = NULL, lease_end = NULL, lease_expires_at = NULL,
        attempt = greatest(c.attempt - 1, 0)
    WHERE c.ctid = ANY (v_places)
    RETURNING c.partition_id, c.subscription_id;
END
$$;

-- sweep_leases: delete the rows of leases that ended with their group, queue or partition, or by a seek.
--
-- Parameters: the walk begins behind the lease `p_after` (null = at the first) and visits at most
--             `p_limit` rows, and those of the last one's lease.
-- Returns:    how many were deleted; where the walk goes on (null = it reached the end).
-- Reads:      leases, by primary key; a cursor each.
-- Writes:     leases.
-- Locks:      none but the rows it deletes: no cursor comes back to a lease that it does not hold.
-- Isolation:  READ COMMITTED. A lease is made in the transaction that gives it to the cursor, so none
--             is seen without the other.
CREATE OR REPLACE FUNCTION queen.sweep_leases(
    p_shard smallint,
    p_after uuid,
    p_limit integer
) RETURNS TABLE (o_deleted integer, o_next uuid) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    SELECT l.lease_id INTO o_next
    FROM queen.leases l
    WHERE l.shard = p_shard AND l.lease_id > coalesce(p_after, '00000000-0000-0000-0000-000000000000')
    ORDER BY l.lease_id
    OFFSET p_limit - 1
    LIMIT 1;

    DELETE FROM queen.leases d
    USING (
        SELECT l.ctid
        FROM queen.leases l
        LEFT JOIN LATERAL queen.cursor_of(p_shard, l.partition_id, l.subscription_id) c ON true
        WHERE
            l.shard = p_shard
            AND l.lease_id > coalesce(p_after, '00000000-0000-0000-0000-000000000000')
            AND l.lease_id <= coalesce(o_next, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
            AND c.lease_id IS DISTINCT FROM l.lease_id
    ) f
    WHERE d.ctid = f.ctid;
    GET DIAGNOSTICS o_deleted = ROW_COUNT;
    RETURN NEXT;
END
$$;
