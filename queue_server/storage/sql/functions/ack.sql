-- ack: commit runs of messages. This is the short way of an acknowledgement, which most take: every
-- item `completed`, and together they name, in order, the messages that come next under the lease.
-- Comparing their ids with the log's is one comparison of bytes; no message is read.
--
-- Parameters: one element for each (partition, group) of a call; `p_calls` tells which call it
--             belongs to; `p_lease_ids` null = unfenced; `p_ids` the 16-byte id keys one after another.
-- Returns:    one row for each element: o_applied false = not that simple (the whole call is left
--             alone; storage/settle.py decides it item by item); o_released = the batch is finished;
--             o_more = the partition has messages behind it.
-- Writes:     cursors; pending of partitions that are read to the end and idle.
-- Locks:      cursors, ascending (partition, subscription); then, without waiting, an allocator.
-- Isolation:  READ COMMITTED. Everything is judged under the cursor's lock.
CREATE OR REPLACE FUNCTION queen.ack(
    p_shard smallint,
    p_calls integer[],
    p_partition_ids bigint[],
    p_subscription_ids integer[],
    p_lease_ids uuid[],
    p_ids bytea[]
) RETURNS TABLE (o_element integer, o_applied boolean, o_released boolean, o_more boolean)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    r record;
    c record;
    v_now timestamptz;
    v_end bigint;
    v_ids bytea;
    v_refused integer[] := '{}';
BEGIN
    FOR r IN
        SELECT u.*
        FROM unnest(p_partition_ids, p_subscription_ids) AS u (partition_id, subscription_id)
        ORDER BY u.partition_id, u.subscription_id
    LOOP
        PERFORM 1
        FROM queen.cursors u
        WHERE
            u.shard = p_shard
            AND u.partition_id = r.partition_id
            AND u.subscription_id = r.subscription_id
        FOR NO KEY UPDATE;
    END LOOP;

    v_now := clock_timestamp();

    FOR r IN
        SELECT u.*
        FROM unnest(p_calls, p_partition_ids, p_subscription_ids, p_lease_ids, p_ids)
            AS u (call, partition_id, subscription_id, lease_id, ids)
    LOOP
        CONTINUE WHEN r.call = ANY (v_refused);

        SELECT u.* INTO c
        FROM queen.cursors u
        WHERE
            u.shard = p_shard
            AND u.partition_id = r.partition_id
            AND u.subscription_id = r.subscription_id;

        v_end := c.committed_offset + length(r.ids) / 16;
        IF
            c.lease_id IS NULL
            OR c.lease_expires_at <= v_now
            OR c.lease_id <> coalesce(r.lease_id, c.lease_id)
            OR v_end > c.lease_end
        THEN
            v_refused := v_refused || r.call;
            CONTINUE;
        END IF;

        SELECT
            string_agg(
                substring(
                    s.ids
                    FROM (greatest(c.committed_offset - s.base_offset, 0) * 16 + 1)::integer
                    FOR (
                        (least(v_end, s.next_offset) - greatest(c.committed_offset, s.base_offset))
                        * 16
                    )::integer
                ), '' ORDER BY s.base_offset
            )
        INTO v_ids
        FROM queen.segments s
        WHERE
            s.shard = p_shard
            AND s.partition_id = r.partition_id
            AND s.base_offset < v_end
            AND s.base_offset >= (
                SELECT f.base_offset
                FROM queen.segments f
                WHERE
                    f.shard = p_shard
                    AND f.partition_id = r.partition_id
                    AND f.base_offset <= c.committed_offset
                ORDER BY f.base_offset DESC
                LIMIT 1
            );

        IF v_ids IS DISTINCT FROM r.ids THEN
            v_refused := v_refused || r.call;
        END IF;
    END LOOP;

    FOR r IN
        SELECT u.*
        FROM unnest(p_calls, p_partition_ids, p_subscription_ids, p_ids)
            WITH ORDINALITY AS u (call, partition_id, subscription_id, ids, element)
    LOOP
        o_element := r.element;
        IF r.call = ANY (v_refused) THEN
            o_applied := false;
            o_released := false;
            o_more := false;
            RETURN NEXT;
            CONTINUE;
        END IF;

        o_applied := true;
        UPDATE queen.cursors u
        SET
            committed_offset = f.v_end,
            -- The rest of a batch keeps its count; a finished one starts again.
            attempt = CASE WHEN f.finished THEN 0 ELSE u.attempt END,
            attempt_offset = CASE WHEN f.finished THEN -1 ELSE f.v_end END,
            retry_count = CASE WHEN f.finished OR u.retry_offset < f.v_end THEN 0 ELSE u.retry_count END,
            retry_offset = CASE WHEN f.finished OR u.retry_offset < f.v_end THEN -1 ELSE u.retry_offset END,
            settled_lease_id = CASE WHEN f.finished THEN u.lease_id ELSE u.settled_lease_id END,
            settled_from = CASE WHEN f.finished THEN f.committed_offset ELSE u.settled_from END,
            settled_end = CASE WHEN f.finished THEN f.v_end ELSE u.settled_end END,
            lease_id = CASE WHEN f.finished THEN NULL ELSE u.lease_id END,
            lease_end = CASE WHEN f.finished THEN NULL ELSE u.lease_end END,
            lease_expires_at = CASE WHEN f.finished THEN NULL ELSE u.lease_expires_at END,
            consumed_at = v_now
        FROM (
            SELECT
                i.committed_offset, i.committed_offset + length(r.ids) / 16 AS v_end,
                i.committed_offset + length(r.ids) / 16 = i.lease_end AS finished
            FROM queen.cursors i
            WHERE
                i.shard = p_shard
                AND i.partition_id = r.partition_id
                AND i.subscription_id = r.subscription_id
        ) f
        WHERE
            u.shard = p_shard
            AND u.partition_id = r.partition_id
            AND u.subscription_id = r.subscription_id
        RETURNING u.committed_offset, f.finished INTO v_end, o_released;

        SELECT a.next_offset > v_end INTO o_more
        FROM queen.allocators a
        WHERE a.shard = p_shard AND a.partition_id = r.partition_id;
        IF o_released AND NOT o_more THEN
            PERFORM queen.retire_pending(p_shard, r.subscription_id, ARRAY[r.partition_id]);
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
