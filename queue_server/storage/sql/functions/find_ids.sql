-- find_ids: where ids are stored.
--
-- Parameters: the ranges that the sought ids fall into, as domain/ids.py makes them: each with the
--             1-based number of the list it belongs to, the partition, its bounds, and the highest
--             max_id that a stored range overlapping it can have; and the lists of 16-byte id keys.
-- Returns:    one row for each sought id that is stored: its list, its 0-based position there, the
--             offset, the message id's base and index, the time of its segment, and whether the
--             message is gone: below the low watermark, or taken out of the log by itself.
-- Reads:      id_ranges (one short index scan a range); segments and allocators (only where ranges
--             overlap); holes (only for an id that is found).
-- Locks:      none. push calls it under the allocator's lock.
-- Plan:       see pop.sql, candidates, on OFFSET 0. The sought and the stored ids are hashed, also when
--             queen.push calls, which has switched that off: by loops a repeated push of 50,000 partitions
--             would compare each with each.
-- Isolation:  READ COMMITTED; what a concurrent, uncommitted push stores is not seen.
CREATE OR REPLACE FUNCTION queen.find_ids(
    p_shard smallint,
    p_list_partition_ids bigint[],
    p_list_ids bytea[],
    p_range_lists integer[],
    p_range_partition_ids bigint[],
    p_range_min_ids bytea[],
    p_range_max_ids bytea[],
    p_range_scan_ids bytea[]
) RETURNS TABLE (
    o_list integer,
    o_position integer,
    o_offset bigint,
    o_first_message_id uuid,
    o_index integer,
    o_created_at timestamptz,
    o_gone boolean
) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = on
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY
    WITH candidates AS MATERIALIZED (
        SELECT DISTINCT r.list, x.partition_id, x.base_offset
        FROM unnest(
            p_range_lists, p_range_partition_ids, p_range_min_ids, p_range_max_ids, p_range_scan_ids
        ) AS r (list, partition_id, min_id, max_id, scan_id)
        CROSS JOIN LATERAL (
            SELECT i.partition_id, i.base_offset
            FROM queen.id_ranges i
            WHERE
                i.shard = p_shard
                AND i.partition_id = r.partition_id
                AND i.max_id >= r.min_id
                AND i.max_id <= r.scan_id
                AND i.min_id <= r.max_id
            OFFSET 0
        ) x
    ),
    stored AS MATERIALIZED (
        SELECT
            c.list, c.partition_id, s.base_offset, s.first_message_id, s.created_at, g.i,
            substring(s.ids FROM g.i * 16 + 1 FOR 16) AS id
        FROM candidates c
        CROSS JOIN LATERAL (
            SELECT g.base_offset, g.next_offset, g.first_message_id, g.created_at, g.ids
            FROM queen.segments g
            WHERE
                g.shard = p_shard
                AND g.partition_id = c.partition_id
                AND g.base_offset = c.base_offset
            OFFSET 0
        ) s
        CROSS JOIN LATERAL generate_series(0, (s.next_offset - s.base_offset)::integer - 1) AS g (i)
    ),
    sought AS MATERIALIZED (
        SELECT l.list::integer AS list, g.i, substring(l.ids FROM g.i * 16 + 1 FOR 16) AS id
        FROM unnest(p_list_ids) WITH ORDINALITY AS l (ids, list)
        CROSS JOIN LATERAL generate_series(0, length(l.ids) / 16 - 1) AS g (i)
        WHERE l.list IN (SELECT c.list FROM candidates c)
    )
    SELECT
        f.list, f.i, s.base_offset + s.i, s.first_message_id, s.i, s.created_at,
        h.taken_out IS NOT NULL OR s.base_offset + s.i < a.low_watermark
    FROM sought f
    JOIN stored s ON s.list = f.list AND s.id = f.id
    CROSS JOIN LATERAL queen.allocator_of(p_shard, s.partition_id) a
    LEFT JOIN LATERAL (
        SELECT true AS taken_out
        FROM queen.holes k
        WHERE
            k.shard = p_shard
            AND k.partition_id = s.partition_id
            AND k.message_offset = s.base_offset + s.i
        OFFSET 0
    ) h ON true;
END
$$;
