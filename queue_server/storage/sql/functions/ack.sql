-- ack: commit runs of messages. This is the short way of an acknowledgement, which most take: every
-- item `completed`, and together they name, in order, the messages that come next under the lease.
-- Comparing their ids with the log's is one comparison of bytes; no message is read.
--
-- Parameters: one element for each (partition, group) of a call; `p_calls` tells which call it
--             belongs to; `p_lease_ids` null = unfenced; `p_ids` the 16-byte id keys one after another.
-- Returns:    one row for each element: o_applied false = not that simple (the whole call is left
--             alone; storage/settle.py decides it item by item); o_released = the batch is finished;
--             o_more = the partition has messages behind it.
-- Writes:     cursors; leases that are over; pending of partitions that are read to the end and idle.
-- Calls:      allocator_of, retire_pending.
-- Locks:      cursors, ascending (partition, subscription); then, without waiting, an allocator.
-- Isolation:  READ COMMITTED. Everything is judged under the cursor's lock: where the lock had to be
--             waited for, PostgreSQL judges the new version of the row.
-- Plan:       set by set, because a statement costs more than the rows of an element. The inner
--             SELECT locks its row as the outer one comes to it, hence in the order of the sort.
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
    v_now timestamptz;
    v_ends bigint[];
    v_finished boolean[];
    v_leases uuid[];
    v_applies boolean[];
    v_refused integer[];
    v_more boolean[];
BEGIN
    SELECT
        array_agg(c.v_end ORDER BY e.element),
        array_agg(c.v_end = c.lease_end ORDER BY e.element),
        array_agg(c.lease_id ORDER BY e.element),
        array_agg(e.call) FILTER (WHERE c.applies IS NOT TRUE)
    INTO v_ends, v_finished, v_leases, v_refused
    FROM (
        SELECT u.*
        FROM unnest(p_calls, p_partition_ids, p_subscription_ids, p_lease_ids, p_ids)
            WITH ORDINALITY AS u (call, partition_id, subscription_id, lease_id, ids, element)
        ORDER BY u.partition_id, u.subscription_id
        OFFSET 0
    ) e
    LEFT JOIN LATERAL (
        SELECT
            k.lease_id, k.lease_end, k.committed_offset + length(e.ids) / 16 AS v_end,
            CASE
                WHEN
                    k.lease_id = coalesce(e.lease_id, k.lease_id)
                    AND k.lease_expires_at > clock_timestamp()
                    AND k.committed_offset + length(e.ids) / 16 <= k.lease_end
                THEN e.ids = coalesce(
                    -- Nearly always all of them are in one segment.
                    (
                        SELECT
                            CASE
                                WHEN k.committed_offset + length(e.ids) / 16 <= f.next_offset
                                THEN substring(
                                    f.ids
                                    FROM ((k.committed_offset - f.base_offset) * 16 + 1)::integer
                                    FOR length(e.ids)
                                )
                            END
                        FROM queen.segments f
                        WHERE
                            f.shard = p_shard
                            AND f.partition_id = e.partition_id
                            AND f.base_offset <= k.committed_offset
                        ORDER BY f.base_offset DESC
                        LIMIT 1
                    ),
                    (
                        SELECT
                            string_agg(
                                substring(
                                    s.ids
                                    FROM (
                                        greatest(k.committed_offset - s.base_offset, 0) * 16 + 1
                                    )::integer
                                    FOR (
                                        (
                                            least(
                                                k.committed_offset + length(e.ids) / 16,
                                                s.next_offset
                                            )
                                            - greatest(k.committed_offset, s.base_offset)
                                        ) * 16
                                    )::integer
                                ), '' ORDER BY s.base_offset
                            )
                        FROM queen.segments s
                        WHERE
                            s.shard = p_shard
                            AND s.partition_id = e.partition_id
                            AND s.base_offset < k.committed_offset + length(e.ids) / 16
                            AND s.base_offset >= (
                                SELECT f.base_offset
                                FROM queen.segments f
                                WHERE
                                    f.shard = p_shard
                                    AND f.partition_id = e.partition_id
                                    AND f.base_offset <= k.committed_offset
                                ORDER BY f.base_offset DESC
                                LIMIT 1
                            )
                    )
                )
            END AS applies
        FROM queen.cursors k
        WHERE
            k.shard = p_shard
            AND k.partition_id = e.partition_id
            -- As queen.cursor_of, and locked.
            AND k.subscription_id BETWEEN e.subscription_id AND e.subscription_id
        ORDER BY k.subscription_id DESC
        LIMIT 1
        FOR NO KEY UPDATE
    ) c ON true;

    v_now := clock_timestamp();

    SELECT array_agg(u.call <> ALL (coalesce(v_refused, '{}')) ORDER BY u.element) INTO v_applies
    FROM unnest(p_calls) WITH ORDINALITY AS u (call, element);

    -- The rows are locked, so where they are does not change under this statement. With `shard` beside
    -- it PostgreSQL may prefer to read the shard's whole index.
    UPDATE queen.cursors u
    SET
        committed_offset = f.v_end,
        -- The rest of a batch keeps its count; a finished one starts again.
        attempt = CASE WHEN f.finished THEN 0 ELSE u.attempt END,
        attempt_offset = CASE WHEN f.finished THEN -1 ELSE f.v_end END,
        retry_count = CASE WHEN f.finished OR u.retry_offset < f.v_end THEN 0 ELSE u.retry_count END,
        retry_offset = CASE WHEN f.finished OR u.retry_offset < f.v_end THEN -1 ELSE u.retry_offset END,
        settled_lease_id = CASE WHEN f.finished THEN u.lease_id ELSE u.settled_lease_id END,
        settled_from = CASE WHEN f.finished THEN u.committed_offset ELSE u.settled_from END,
        settled_end = CASE WHEN f.finished THEN f.v_end ELSE u.settled_end END,
        lease_id = CASE WHEN f.finished THEN NULL ELSE u.lease_id END,
        lease_end = CASE WHEN f.finished THEN NULL ELSE u.lease_end END,
        lease_expires_at = CASE WHEN f.finished THEN NULL ELSE u.lease_expires_at END,
        consumed_at = v_now
    FROM (
        SELECT l.ctid, n.v_end, n.finished
        FROM unnest(p_partition_ids, p_subscription_ids, v_ends, v_finished, v_applies)
            AS n (partition_id, subscription_id, v_end, finished, applies)
        CROSS JOIN LATERAL (
            SELECT k.ctid FROM queen.cursors k
            WHERE
                k.shard = p_shard
                AND k.partition_id = n.partition_id
                AND k.subscription_id BETWEEN n.subscription_id AND n.subscription_id
            ORDER BY k.subscription_id DESC
            LIMIT 1
        ) l
        WHERE n.applies
    ) f
    WHERE u.ctid = f.ctid;

    DELETE FROM queen.leases d
    USING (
        SELECT l.ctid
        FROM unnest(p_partition_ids, p_subscription_ids, v_leases, v_finished, v_applies)
            AS n (partition_id, subscription_id, lease_id, finished, applies)
        CROSS JOIN LATERAL (
            SELECT k.ctid FROM queen.leases k
            WHERE
                k.shard = p_shard
                AND k.lease_id = n.lease_id
                AND k.partition_id = n.partition_id
                AND k.subscription_id = n.subscription_id
            OFFSET 0
        ) l
        WHERE n.applies AND n.finished
    ) f
    WHERE d.ctid = f.ctid;

    SELECT array_agg(coalesce(a.next_offset > n.v_end, false) ORDER BY n.element) INTO v_more
    FROM unnest(p_partition_ids, v_ends) WITH ORDINALITY AS n (partition_id, v_end, element)
    LEFT JOIN LATERAL queen.allocator_of(p_shard, n.partition_id) a ON true;

    FOR r IN
        SELECT n.subscription_id, array_agg(n.partition_id) AS partition_ids
        FROM unnest(p_partition_ids, p_subscription_ids, v_finished, v_applies, v_more)
            AS n (partition_id, subscription_id, finished, applies, more)
        WHERE n.applies AND n.finished AND NOT n.more
        GROUP BY n.subscription_id
    LOOP
        PERFORM queen.retire_pending(p_shard, r.subscription_id, r.partition_ids);
    END LOOP;

    RETURN QUERY
    SELECT
        n.element::integer, n.applies, n.applies AND n.finished, n.applies AND n.more
    FROM unnest(v_finished, v_applies, v_more) WITH ORDINALITY AS n (finished, applies, more, element);
END
$$;
