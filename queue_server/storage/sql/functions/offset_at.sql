-- time_at: when the message at an offset of a partition was stored.
--
-- Parameters: the partition and the offset.
-- Returns:    one row; none when the offset is null or below all that is stored. For an offset that
--             is to come, the time of the newest message: ask for those below next_offset.
-- Reads:      segments, one by primary key.
-- Locks:      none.
-- Isolation:  READ COMMITTED. One SELECT that returns a table, so that PostgreSQL inlines it.
CREATE OR REPLACE FUNCTION queen.time_at(p_shard smallint, p_partition_id bigint, p_offset bigint)
RETURNS TABLE (o_at timestamptz) LANGUAGE sql STABLE
AS $$
    SELECT s.created_at
    FROM queen.segments s
    WHERE s.shard = p_shard AND s.partition_id = p_partition_id AND s.base_offset <= p_offset
    ORDER BY s.base_offset DESC
    LIMIT 1
$$;

-- offset_at: the first offset of a partition that was stored at or after a time.
--
-- Parameters: the partition and the time.
-- Returns:    an offset in [low_watermark, next_offset]; the latter when nothing is that young.
-- Reads:      allocators; segments, by binary search (times do not fall within a partition).
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.offset_at(
    p_shard smallint,
    p_partition_id bigint,
    p_time timestamptz
) RETURNS bigint LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_low bigint;
    v_high bigint;
    v_segment record;
BEGIN
    SELECT a.low_watermark, a.next_offset INTO v_low, v_high
    FROM queen.allocator_of(p_shard, p_partition_id) a;

    WHILE v_low < v_high LOOP
        SELECT s.base_offset, s.next_offset, s.created_at INTO v_segment
        FROM queen.segments s
        WHERE
            s.shard = p_shard
            AND s.partition_id = p_partition_id
            AND s.base_offset <= (v_low + v_high) / 2
        ORDER BY s.base_offset DESC
        LIMIT 1;

        IF NOT FOUND THEN
            RETURN v_low;
        ELSIF v_segment.created_at >= p_time THEN
            v_high := greatest(v_segment.base_offset, v_low);
        ELSE
            v_low := greatest(v_segment.next_offset, v_low);
        END IF;
    END LOOP;
    RETURN v_low;
END
$$;
