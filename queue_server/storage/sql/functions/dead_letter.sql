-- find_dead_letters: the dead letters that a filter lets through.
--
-- Parameters: queue, group, partition by name, bounds of the time of the failure [from, to), the error
--             text, of which the first 500 characters count, with the keyed hashes that a sealed one
--             has, and a part of it, which no sealed one has; each null = any.
-- Returns:    rows of dead_letters, in no order.
-- Reads:      dead_letters, by queue when one is given, else all; partitions when one is named.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
-- Plans:      it becomes a part of the statement that calls it, which has to be planned for its own
--             parameters (not prepared): else every filter is planned for as if it were given. The
--             queue is given by its id, because its share of all dead letters decides by which index
--             they are found.
CREATE OR REPLACE FUNCTION queen.find_dead_letters(
    p_shard smallint,
    p_queue_id uuid,
    p_consumer_group text,
    p_partition text,
    p_from timestamptz,
    p_to timestamptz,
    p_error text,
    p_error_keys bytea[],
    p_error_contains text
) RETURNS SETOF queen.dead_letters LANGUAGE sql STABLE
AS $$
    SELECT d.*
    FROM queen.dead_letters d
    WHERE
        d.shard = p_shard
        AND (p_queue_id IS NULL OR d.queue_id = p_queue_id)
        AND (p_consumer_group IS NULL OR d.consumer_group = p_consumer_group)
        AND (
            p_partition IS NULL
            OR d.partition_id = ANY (ARRAY(
                SELECT p.id
                FROM queen.partitions p
                WHERE
                    p.shard = p_shard
                    AND p.name = p_partition
                    AND (p_queue_id IS NULL OR p.queue_id = p_queue_id)
            ))
        )
        AND (p_from IS NULL OR d.failed_at >= p_from)
        AND (p_to IS NULL OR d.failed_at < p_to)
        AND (
            p_error IS NULL
            OR (d.sealed_error IS NULL AND left(d.error_message, 500) = left(p_error, 500))
            OR d.error_key = ANY (p_error_keys)
        )
        AND (p_error_contains IS NULL OR strpos(d.error_message, p_error_contains) > 0)
$$;
