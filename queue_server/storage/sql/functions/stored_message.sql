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

-- find_id: the partitions in which an id is stored, looked for in a bounded run of all partitions.
--
-- Parameters: the partition behind which the run begins; how many partitions it has at most; the
--             16-byte id key, and the highest max_id that a stored range with it can have, as
--             domain/ids.py makes both.
-- Returns:    one row: the partitions that have it, in no order, without those in which it is a
--             hole; and where the next run begins, null after the last one.
-- Reads:      partitions; id_ranges (one index scan of a few rows for each of them), segments (only
--             where a range fits).
-- Locks:      none.
-- Plan:       see pop.sql, candidates, on OFFSET 0.
-- Isolation:  READ COMMITTED. Partitions made since have higher ids, so a later run visits them.
CREATE OR REPLACE FUNCTION queen.find_id(
    p_shard smallint,
    p_after bigint,
    p_limit integer,
    p_id bytea,
    p_scan_id bytea
) RETURNS TABLE (o_partition_ids bigint[], o_next bigint) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_ids bigint[];
BEGIN
    SELECT array_agg(l.id) INTO v_ids
    FROM (
        SELECT p.id
        FROM queen.partitions p
        WHERE p.shard = p_shard AND p.id > p_after
        ORDER BY p.id
        LIMIT p_limit
    ) l;

    WITH candidates AS MATERIALIZED (
        SELECT DISTINCT x.partition_id, x.base_offset
        FROM unnest(v_ids) AS u (id)
        CROSS JOIN LATERAL (
            SELECT i.partition_id, i.base_offset
            FROM queen.id_ranges i
            WHERE
                i.shard = p_shard
                AND i.partition_id = u.id
                AND i.max_id >= p_id
                AND i.max_id <= p_scan_id
                AND i.min_id <= p_id
            OFFSET 0
        ) x
    )
    SELECT coalesce(array_agg(DISTINCT c.partition_id), '{}') INTO o_partition_ids
    FROM candidates c
    CROSS JOIN LATERAL (
        SELECT g.base_offset, g.next_offset, g.ids
        FROM queen.segments g
        WHERE
            g.shard = p_shard
            AND g.partition_id = c.partition_id
            AND g.base_offset = c.base_offset
        OFFSET 0
    ) s
    CROSS JOIN LATERAL generate_series(0, (s.next_offset - s.base_offset)::integer - 1) AS n (i)
    WHERE
        substring(s.ids FROM n.i * 16 + 1 FOR 16) = p_id
        AND NOT EXISTS (
            SELECT 1
            FROM queen.holes h
            WHERE
                h.shard = p_shard
                AND h.partition_id = c.partition_id
                AND h.message_offset = s.base_offset + n.i
        );

    IF cardinality(v_ids) = p_limit THEN
        o_next := v_ids[p_limit];
    END IF;
    RETURN NEXT;
END
$$;
