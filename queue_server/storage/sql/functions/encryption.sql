-- keys_in_use: the encryption keys that something in the log, among the dead letters or among the pushes
-- held back is encrypted with.
--
-- Parameters: none but the shard.
-- Returns:    a row for each place and key: where, and the id of the key.
-- Reads:      segments by segments_by_key and dead_letters by dead_letters_by_key, a row for each key;
--             held_pushes, a few bytes of each.
-- Locks:      none.
-- Isolation:  READ COMMITTED; something that is stored meanwhile is found by the next call.
CREATE OR REPLACE FUNCTION queen.keys_in_use(p_shard smallint)
RETURNS TABLE (o_place text, o_key_id bytea) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    o_place := 'segments';
    o_key_id := '';
    LOOP
        SELECT substring(s.body FROM CASE WHEN s.codec & 4 <> 0 THEN 2 ELSE 1 END FOR 8)
        INTO o_key_id
        FROM queen.segments s
        WHERE
            s.shard = p_shard
            AND s.codec & 2 <> 0
            AND substring(s.body FROM CASE WHEN s.codec & 4 <> 0 THEN 2 ELSE 1 END FOR 8) > o_key_id
        ORDER BY substring(s.body FROM CASE WHEN s.codec & 4 <> 0 THEN 2 ELSE 1 END FOR 8)
        LIMIT 1;
        EXIT WHEN NOT FOUND;
        RETURN NEXT;
    END LOOP;

    o_place := 'dead letters';
    o_key_id := '';
    LOOP
        SELECT substring(d.payload FROM 2 FOR 8) INTO o_key_id
        FROM queen.dead_letters d
        WHERE
            d.shard = p_shard
            AND d.payload < '\x04'
            AND substring(d.payload FROM 2 FOR 8) > o_key_id
        ORDER BY substring(d.payload FROM 2 FOR 8)
        LIMIT 1;
        EXIT WHEN NOT FOUND;
        RETURN NEXT;
    END LOOP;

    RETURN QUERY
    SELECT DISTINCT 'held pushes', substring(h.items FROM 2 FOR 8)
    FROM queen.held_pushes h
    WHERE substring(h.items FROM 1 FOR 1) IN ('\x02', '\x03');
END
$$;
