-- allocator_of, cursor_of: the row of one partition, or of a group in it, looked for from its newest
-- version back.
--
-- Both tables are updated all the time. As long as somebody keeps an old snapshot (a pg_dump, a
-- forgotten transaction), PostgreSQL may remove none of the versions that this leaves, and a plain
-- look-up by the key passes over all of them, oldest first: the index lists versions of one key in
-- the order of their place in the table. New versions are mostly put at its end, so going backwards
-- meets the one that is wanted first (docs/design/retention.md has the figures). `BETWEEN x AND x` is an
-- equality that the planner does not see through; it would take ORDER BY for done otherwise.
-- Which end is looked at first changes nothing but the time it takes.
--
-- Parameters: the key.
-- Returns:    the row, or none.
-- Reads:      the one table by its primary key.
-- Locks:      none. Who locks a row looks for it in the same way, in its own words, as a function
--             that locks cannot be inlined; these are.
CREATE OR REPLACE FUNCTION queen.allocator_of(
    p_shard smallint, p_partition_id bigint
) RETURNS SETOF queen.allocators LANGUAGE sql STABLE
AS $$
    SELECT k.*
    FROM queen.allocators k
    WHERE k.shard = p_shard AND k.partition_id BETWEEN p_partition_id AND p_partition_id
    ORDER BY k.partition_id DESC
    LIMIT 1
$$;

CREATE OR REPLACE FUNCTION queen.cursor_of(
    p_shard smallint, p_partition_id bigint, p_subscription_id integer
) RETURNS SETOF queen.cursors LANGUAGE sql STABLE
AS $$
    SELECT k.*
    FROM queen.cursors k
    WHERE
        k.shard = p_shard
        AND k.partition_id = p_partition_id
        AND k.subscription_id BETWEEN p_subscription_id AND p_subscription_id
    ORDER BY k.subscription_id DESC
    LIMIT 1
$$;
