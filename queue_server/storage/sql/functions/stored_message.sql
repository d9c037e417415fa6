-- browse_segments: the newest segments of partitions, read backwards.
--
-- Parameters: the partitions, with the offsets [low, high) that are of interest in each; the bounds
--             of the time (null = none); how many segments at most.
-- Returns:    at least the p_limit newest segments that meet the bounds, if there are so many; some
--             more of the same time as the last of them. In no order; without bodies.
-- Calls:      offset_at.
-- Reads:      segments: about five times p_limit rows and one for each partition, whatever is stored.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.browse_segments(
    p_shard smallint,
    p_partition_ids bigint[],
    p_lows bigint[],
    p_highs bigint[],
    p_from timestamptz,
    p_to timestamptz,
    p_limit integer
) RETURNS TABLE (
    o_partition_id bigint,
    o_base_offset bigint,
    o_next_offset bigint,
    o_created_at timestamptz,
    o_first_message_id uuid
) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_lows bigint[];
    v_highs bigint[];
    v_share integer := 4 * p_limit / greatest(cardinality(p_partition_ids), 1) + 1;
    v_oldest timestamptz;
    r record;
    s record;
BEGIN
    -- The bounds as bases of segments, so that the index finds both ends.
    SELECT
        array_agg(coalesce(f.base_offset, b.low) ORDER BY b.n), array_agg(b.high ORDER BY b.n)
    INTO v_lows, v_highs
    FROM (
        SELECT
            u.n, u.partition_id,
            CASE
                WHEN p_from IS NULL THEN u.low
                ELSE greatest(u.low, queen.offset_at(p_shard, u.partition_id, p_from))
            END AS low,
            CASE
                WHEN p_to IS NULL THEN u.high
                ELSE least(u.high, queen.offset_at(p_shard, u.partition_id, p_to))
            END AS high
        FROM unnest(p_partition_ids, p_lows, p_highs)
            WITH ORDINALITY AS u (partition_id, low, high, n)
    ) b
    LEFT JOIN LATERAL (
        SELECT g.base_offset
        FROM queen.segments g
        WHERE g.shard = p_shard AND g.partition_id = b.partition_id AND g.base_offset <= b.low
        ORDER BY g.base_offset DESC
        LIMIT 1
    ) f ON true;

    -- A look at a few of each partition tells a time from which on there are enough.
    SELECT l.created_at INTO v_oldest
    FROM unnest(p_partition_ids, v_lows, v_highs) AS u (partition_id, low, high)
    CROSS JOIN LATERAL (
        SELECT g.created_at
        FROM queen.segments g
        WHERE
            g.shard = p_shard
            AND g.partition_id = u.partition_id
            AND g.base_offset >= u.low
            AND g.base_offset < u.high
        ORDER BY g.base_offset DESC
        LIMIT v_share
    ) l
    ORDER BY l.created_at DESC
    OFFSET p_limit - 1
    LIMIT 1;

    FOR r IN
        SELECT u.* FROM unnest(p_partition_ids, v_lows, v_highs) AS u (partition_id, low, high)
    LOOP
        FOR s IN
            SELECT g.base_offset, g.next_offset, g.created_at, g.first_message_id
            FROM queen.segments g
            WHERE
                g.shard = p_shard
                AND g.partition_id = r.partition_id
                AND g.base_offset >= r.low
                AND g.base_offset < r.high
            ORDER BY g.base_offset DESC
            LIMIT p_limit
        LOOP
            EXIT WHEN s.created_at < v_oldest;
            o_partition_id := r.partition_id;
            o_base_offset := s.base_offset;
            o_next_offset := s.next_offset;
            o_created_at := s.created_at;
            o_first_message_id := s.first_message_id;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$$;
