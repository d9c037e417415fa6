-- Messages that were taken out one by one keep their place in the log. Whatever counts messages by
-- offsets leaves these places out, by the table's primary key.

-- holes_between: how many messages of a partition were taken out one by one.
--
-- Parameters: the partition and the offsets [from, to).
-- Returns:    one row. One SELECT that returns a table, so that PostgreSQL inlines it.
-- Reads:      holes, an entry of the index for each.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.holes_between(
    p_shard smallint, p_partition_id bigint, p_from bigint, p_to bigint
) RETURNS TABLE (o_count bigint) LANGUAGE sql STABLE
AS $$
    SELECT count(*)
    FROM queen.holes h
    WHERE
        h.shard = p_shard
        AND h.partition_id = p_partition_id
        AND h.message_offset >= p_from
        AND h.message_offset < p_to
$$;

-- left_in_lease: how many messages of a leased batch are still in the log.
--
-- Parameters: the partition and its low watermark; the cursor's committed offset and the end of its
--             lease (null without one). Whether the lease is live is the caller's question.
-- Returns:    one row, 0 without a lease. One SELECT that returns a table, so that PostgreSQL
--             inlines it.
-- Reads:      holes.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.left_in_lease(
    p_shard smallint,
    p_partition_id bigint,
    p_low_watermark bigint,
    p_committed_offset bigint,
    p_lease_end bigint
) RETURNS TABLE (o_count bigint) LANGUAGE sql STABLE
AS $$
    SELECT greatest(p_lease_end - greatest(p_committed_offset, p_low_watermark) - count(*), 0)
    FROM queen.holes h
    WHERE
        h.shard = p_shard
        AND h.partition_id = p_partition_id
        AND h.message_offset >= greatest(p_committed_offset, p_low_watermark)
        AND h.message_offset < p_lease_end
$$;

-- end_empty_leases: end the leases of which nothing is left, because all their messages were removed.
--
-- A lease protects its batch from other consumers of its group. Without messages it protects nothing,
-- and only keeps what lies behind it from being delivered. Whatever removes messages calls this in the
-- same transaction. A claim that is being made at that moment is skipped; pop, extend_lease and
-- lock_cursors therefore also take a lease that ends at or below the low watermark for over.
--
-- Parameters: the partitions from which messages were removed.
-- Returns:    one row for each partition in which a lease ended, so that consumers can be woken.
-- Writes:     cursors; leases.
-- Locks:      cursors, FOR NO KEY UPDATE SKIP LOCKED: it never waits, so it may be called under the
--             locks of allocators. Cursors that the caller has locked are not skipped.
-- Isolation:  READ COMMITTED; it sees the removal, which the same transaction made before.
CREATE OR REPLACE FUNCTION queen.end_empty_leases(p_shard smallint, p_partition_ids bigint[])
RETURNS TABLE (o_partition_id bigint) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_places tid[];
    v_partitions bigint[];
    v_subscriptions integer[];
    v_leases uuid[];
BEGIN
    SELECT
        array_agg(l.place), array_agg(l.partition_id), array_agg(l.subscription_id),
        array_agg(l.lease_id)
    INTO v_places, v_partitions, v_subscriptions, v_leases
    FROM (
        SELECT DISTINCT u.id FROM unnest(p_partition_ids) AS u (id) ORDER BY u.id OFFSET 0
    ) e
    CROSS JOIN LATERAL queen.allocator_of(p_shard, e.id) a
    CROSS JOIN LATERAL (
        SELECT c.ctid AS place, c.partition_id, c.subscription_id, c.lease_id
        FROM queen.cursors c
        WHERE
            c.shard = p_shard
            AND c.partition_id = e.id
            AND c.lease_id IS NOT NULL
            AND 0 = (
                SELECT i.o_count
                FROM queen.left_in_lease(
                    p_shard, c.partition_id, a.low_watermark,
                    -- A conflating group was handed only the last message of its batch.
                    CASE
                        WHEN EXISTS (
                            SELECT 1 FROM queen.subscriptions s
                            WHERE s.id = c.subscription_id AND s.conflation
                        ) THEN c.lease_end - 1
                        ELSE c.committed_offset
                    END,
                    c.lease_end
                ) i
            )
        ORDER BY c.subscription_id
        FOR NO KEY UPDATE SKIP LOCKED
    ) l;
    IF v_places IS NULL THEN
        RETURN;
    END IF;

    UPDATE queen.cursors c
    SET lease_id = NULL, lease_end = NULL, lease_expires_at = NULL
    WHERE c.ctid = ANY (v_places);

    DELETE FROM queen.leases d
    USING unnest(v_partitions, v_subscriptions, v_leases)
        AS u (partition_id, subscription_id, lease_id)
    WHERE
        d.shard = p_shard
        AND d.lease_id = u.lease_id
        AND d.partition_id = u.partition_id
        AND d.subscription_id = u.subscription_id;

    RETURN QUERY SELECT DISTINCT u.id FROM unnest(v_partitions) AS u (id) ORDER BY u.id;
END
$$;
