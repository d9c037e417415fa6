-- end_before: where the messages of a partition end that were stored before a time.
--
-- Parameters: the offsets [low, high) of interest; the time; about when the first and the last of them
--             were stored; when to give up (null = never).
-- Returns:    the first of these offsets that was stored at or after the time; high when none was.
--             Null when it is too late.
-- Reads:      segments (times do not fall within a partition): a search that expects pushes to be
--             regular, and is done in two or three steps where they are; every other step halves
--             what is left, so at most twice as many as a binary search needs.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.end_before(
    p_shard smallint,
    p_partition_id bigint,
    p_low bigint,
    p_high bigint,
    p_time timestamptz,
    p_low_at timestamptz,
    p_high_at timestamptz,
    p_give_up_at timestamptz
) RETURNS bigint LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_low bigint := p_low;
    v_high bigint := p_high;
    v_low_at timestamptz := p_low_at;
    v_high_at timestamptz := p_high_at;
    v_halves boolean := false;
    v_middle bigint;
    v_segment record;
BEGIN
    IF clock_timestamp() > p_give_up_at THEN
        RETURN NULL;
    END IF;
    WHILE v_low < v_high LOOP
        IF v_halves OR p_time <= v_low_at OR p_time >= v_high_at THEN
            v_middle := (v_low + v_high) / 2;
        ELSE
            v_middle := v_low + floor(
                (v_high - v_low) * date_part('epoch', p_time - v_low_at)
                / date_part('epoch', v_high_at - v_low_at)
            )::bigint;
            v_middle := least(v_middle, v_high - 1);
        END IF;
        v_halves := NOT v_halves;
        SELECT s.base_offset, s.next_offset, s.created_at INTO v_segment
        FROM queen.segments s
        WHERE
            s.shard = p_shard
            AND s.partition_id = p_partition_id
            AND s.base_offset <= v_middle
        ORDER BY s.base_offset DESC
        LIMIT 1;

        IF NOT FOUND THEN
            v_low := v_middle + 1;  -- dropped since
        ELSIF v_segment.created_at < p_time THEN
            v_low := v_segment.next_offset;
            v_low_at := v_segment.created_at;
        ELSE
            v_high := v_segment.base_offset;
            v_high_at := v_segment.created_at;
        END IF;
    END LOOP;
    RETURN least(v_low, p_high);
END
$$;

-- newest_segments: a look at the newest segments of some partitions.
--
-- Parameters: the partitions, with the offsets [low, high) that are of interest in each; the oldest
--             time; how many segments of each partition at most, and of all.
-- Returns:    the newest p_limit of the newest p_share of each partition, newest first; without
--             bodies.
-- Reads:      segments: p_share rows and two look-ups for each partition, whatever is stored.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.newest_segments(
    p_shard smallint,
    p_partition_ids bigint[],
    p_lows bigint[],
    p_highs bigint[],
    p_from timestamptz,
    p_share integer,
    p_limit integer
) RETURNS TABLE (
    o_partition_id bigint,
    o_base_offset bigint,
    o_next_offset bigint,
    o_created_at timestamptz,
    o_first_message_id uuid,
    o_raw_bytes integer
) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY
    SELECT
        s.partition_id, s.base_offset, s.next_offset, s.created_at, s.first_message_id, s.raw_bytes
    FROM unnest(p_partition_ids, p_lows, p_highs) AS u (partition_id, low, high)
    -- The segment that holds the lowest offset, so that the index finds this end, too.
    LEFT JOIN LATERAL (
        SELECT g.base_offset
        FROM queen.segments g
        WHERE g.shard = p_shard AND g.partition_id = u.partition_id AND g.base_offset <= u.low
        ORDER BY g.base_offset DESC
        LIMIT 1
    ) f ON true
    CROSS JOIN LATERAL (
        SELECT
            g.partition_id, g.base_offset, g.next_offset, g.created_at, g.first_message_id,
            g.raw_bytes
        FROM queen.segments g
        WHERE
            g.shard = p_shard
            AND g.partition_id = u.partition_id
            AND g.base_offset >= coalesce(f.base_offset, u.low)
            AND g.base_offset < u.high
        ORDER BY g.base_offset DESC
        LIMIT p_share
    ) s
    WHERE s.created_at >= p_from
    ORDER BY s.created_at DESC, s.partition_id DESC, s.base_offset DESC
    LIMIT p_limit;
END
$$;

-- find_message: the segments that may hold a message id, looked for in a bounded run of partitions.
--
-- Parameters: the queue (null = any); the partition behind which the run begins; how many partitions
--             it has at most; the bounds of the id of the segment's first message; when it was
--             stored, [from, to).
-- Returns:    one row: partitions and base offsets of the segments, side by side, in no order; and
--             where the next run begins, null after the last one.
-- Calls:      allocator_of, end_before (once for each partition that was made before p_to and pushed to
--             since p_from).
-- Reads:      partitions, allocators, segments: those of the time, without their bodies.
-- Locks:      none.
-- Plan:       see pop.sql, candidates, on OFFSET 0.
-- Isolation:  READ COMMITTED. Partitions made since have higher ids, so a later run visits them.
CREATE OR REPLACE FUNCTION queen.find_message(
    p_shard smallint,
    p_queue text,
    p_after bigint,
    p_limit integer,
    p_id_min uuid,
    p_id_max uuid,
    p_from timestamptz,
    p_to timestamptz
) RETURNS TABLE (o_partition_ids bigint[], o_base_offsets bigint[], o_next bigint)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_ids bigint[];
    v_times timestamptz[];
BEGIN
    IF p_queue IS NULL THEN
        SELECT array_agg(l.id), array_agg(l.created_at) INTO v_ids, v_times
        FROM (
            SELECT p.id, p.created_at
            FROM queen.partitions p
            WHERE p.shard = p_shard AND p.id > p_after AND p.created_at < p_to
            ORDER BY p.id
            LIMIT p_limit
        ) l;
    ELSE
        SELECT array_agg(l.id), array_agg(l.created_at) INTO v_ids, v_times
        FROM (
            SELECT p.id, p.created_at
            FROM queen.partitions p
            WHERE
                p.shard = p_shard
                AND p.queue_id = (SELECT q.id FROM queen.queues q WHERE q.name = p_queue)
                AND p.id > p_after
                AND p.created_at < p_to
            ORDER BY p.id
            LIMIT p_limit
        ) l;
    END IF;

    SELECT
        coalesce(array_agg(s.partition_id), '{}'), coalesce(array_agg(s.base_offset), '{}')
    INTO o_partition_ids, o_base_offsets
    FROM unnest(v_ids, v_times) AS u (id, created_at)
    CROSS JOIN LATERAL (
        SELECT
            k.partition_id, k.next_offset, k.last_segment_at,
            queen.end_before(
                p_shard, k.partition_id, k.low_watermark, k.next_offset, p_from, u.created_at,
                k.last_segment_at, NULL
            ) AS low
        FROM queen.allocator_of(p_shard, u.id) k
        WHERE k.last_segment_at >= p_from AND k.next_offset > k.low_watermark
        OFFSET 0
    ) a
    -- The first segment of the time. Where the time ends has to be known only if that is before it.
    CROSS JOIN LATERAL (
        SELECT g.base_offset, g.created_at
        FROM queen.segments g
        WHERE g.shard = p_shard AND g.partition_id = a.partition_id AND g.base_offset <= a.low
        ORDER BY g.base_offset DESC
        LIMIT 1
    ) f
    CROSS JOIN LATERAL (
        SELECT
            CASE
                WHEN f.created_at >= p_from AND f.created_at < p_to
                    THEN queen.end_before(
                        p_shard, a.partition_id, f.base_offset, a.next_offset, p_to, f.created_at,
                        a.last_segment_at, NULL
                    )
            END AS high
        OFFSET 0
    ) t
    CROSS JOIN LATERAL (
        SELECT g.partition_id, g.base_offset
        FROM queen.segments g
        WHERE
            g.shard = p_shard
            AND g.partition_id = a.partition_id
            AND g.base_offset >= f.base_offset
            AND g.base_offset < t.high
            AND g.first_message_id BETWEEN p_id_min AND p_id_max
        OFFSET 0
    ) s;

    IF cardinality(v_ids) = p_limit THEN
        o_next := v_ids[p_limit];
    END IF;
    RETURN NEXT;
END
$$;

-- find_id: the partitions in which an id is stored, looked for in a bounded run of all partitions.
--
-- Parameters: the partition behind which the run begins; how many partitions it has at most; the
--             16-byte id key, and the highest max_id that a stored range with it can have, as
--             domain/ids.py makes both.
-- Returns:    one row: the partitions that have it, in no order, without those in which it was
--             removed; and where the next run begins, null after the last one.
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
    CROSS JOIN LATERAL queen.allocator_of(p_shard, c.partition_id) a
    CROSS JOIN LATERAL generate_series(0, (s.next_offset - s.base_offset)::integer - 1) AS n (i)
    WHERE
        substring(s.ids FROM n.i * 16 + 1 FOR 16) = p_id
        AND s.base_offset + n.i >= a.low_watermark
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
