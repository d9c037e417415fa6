-- find_dead_letters: the dead letters that a filter lets through.
--
-- Parameters: queue, group and partition by name, bounds of the time of the failure [from, to), a part
--             of the error text; each null = any.
-- Returns:    rows of dead_letters, in no order.
-- Reads:      dead_letters, by queue when one is named, else all.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.find_dead_letters(
    p_shard smallint,
    p_queue text,
    p_consumer_group text,
    p_partition text,
    p_from timestamptz,
    p_to timestamptz,
    p_error text
) RETURNS SETOF queen.dead_letters LANGUAGE sql STABLE
AS $$
    SELECT d.*
    FROM queen.dead_letters d
    WHERE
        d.shard = p_shard
        AND (
            p_queue IS NULL
            OR d.queue_id = (SELECT q.id FROM queen.queues q WHERE q.name = p_queue)
        )
        AND (p_consumer_group IS NULL OR d.consumer_group = p_consumer_group)
        AND (
            p_partition IS NULL
            OR d.partition_id IN (SELECT p.id FROM queen.partitions p WHERE p.name = p_partition)
        )
        AND (p_from IS NULL OR d.failed_at >= p_from)
        AND (p_to IS NULL OR d.failed_at < p_to)
        AND (p_error IS NULL OR strpos(d.error_message, p_error) > 0)
$$;
