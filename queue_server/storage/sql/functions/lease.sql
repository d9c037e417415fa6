-- extend_lease: put off the expiry of a live lease.
--
-- Parameters: the lease and the seconds from now. An expiry is never brought forward.
-- Returns:    one row for each partition extended: its new expiry. None for a lease that is over.
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
    v_now timestamptz := clock_timestamp();
BEGIN
    PERFORM 1
    FROM queen.cursors c
    WHERE c.shard = p_shard AND c.lease_id = p_lease_id
    ORDER BY c.partition_id, c.subscription_id
    FOR NO KEY UPDATE;

    RETURN QUERY
    UPDATE queen.cursors c
    SET lease_expires_at = greatest(c.lease_expires_at, v_now + make_interval(secs => p_seconds))
    WHERE c.shard = p_shard AND c.lease_id = p_lease_id AND c.lease_expires_at > v_now
    RETURNING c.lease_expires_at;
END
$$;

-- release_leases: give back what a pop leased when nobody received its answer.
--
-- Parameters: the leases.
-- Returns:    the partitions released, with their group, so that another consumer can be woken.
-- Writes:     cursors; the delivery that the claim had counted is taken back.
-- Locks:      cursors, ascending (partition, subscription).
-- Isolation:  READ COMMITTED. A lease that expired and was taken by somebody has another id.
CREATE OR REPLACE FUNCTION queen.release_leases(
    p_shard smallint,
    p_lease_ids uuid[]
) RETURNS TABLE (o_partition_id bigint, o_subscription_id integer) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    PERFORM 1
    FROM queen.cursors c
    WHERE c.shard = p_shard AND c.lease_id = ANY (p_lease_ids)
    ORDER BY c.partition_id, c.subscription_id
    FOR NO KEY UPDATE;

    RETURN QUERY
    UPDATE queen.cursors c
    SET
        lease_id = NULL, lease_end = NULL, lease_expires_at = NULL,
        attempt = greatest(c.attempt - 1, 0)
    WHERE c.shard = p_shard AND c.lease_id = ANY (p_lease_ids)
    RETURNING c.partition_id, c.subscription_id;
END
$$;
