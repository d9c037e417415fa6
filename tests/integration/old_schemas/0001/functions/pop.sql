-- pop: lease messages to consumers; one call serves many of them.
--
-- Parameters: one element for each request. `p_partition_ids` 0 = any partition of the group's
--             queue; `p_start_after` where the round over the partitions begins, so that consumers
--             spread; `p_lease_seconds` 0 = the queue's. `p_raw_bytes_max` bounds what one request
--             is handed out, `p_inline_bytes_max` how much of it comes with the answer.
-- Returns:    o_status 'segment':   one row for each run of messages [o_from, o_to) handed out, in
--                                   order, with its segment; a null o_body is to be read with
--                                   read_segments (it is beyond the inline limit, or the run starts
--                                   inside the segment, so the caller may have it already);
--             o_status 'unknown':   the subscription is gone, resolve it again;
--             o_status 'no_cursor': the group has no cursor on the named partition, seed it;
--             no row for a request: there is nothing to hand out.
-- Writes:     cursors.
-- Locks:      cursors, FOR NO KEY UPDATE SKIP LOCKED: a pop never waits for another, nor for a push.
-- Isolation:  READ COMMITTED. Only committed segments below a committed next_offset are handed out.
--             A cursor that changed between snapshot and lock is evaluated again by PostgreSQL; a
--             next_offset that changed meanwhile is at worst too low, and its push wakes the waiter.
CREATE OR REPLACE FUNCTION queen.pop(
    p_shard smallint,
    p_subscription_ids integer[],
    p_partition_ids bigint[],
    p_start_after bigint[],
    p_message_limits integer[],
    p_partition_limits integer[],
    p_lease_seconds integer[],
    p_lease_ids uuid[],
    p_auto_acks boolean[],
    p_raw_bytes_max bigint,
    p_inline_bytes_max bigint
) RETURNS TABLE (
    o_request integer,
    o_status text,
    o_partition_id bigint,
    o_from bigint,
    o_to bigint,
    o_attempt integer,
    o_retry_count integer,
    o_lease_expires_at timestamptz,
    o_base_offset bigint,
    o_next_offset bigint,
    o_created_at timestamptz,
    o_codec smallint,
    o_body bytea
) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    r record;
    c record;
    s record;
    v_now timestamptz;
    v_lease_seconds integer;
    v_first bigint;
    v_last bigint;
    v_partitions_left integer;
    v_messages_left bigint;
    v_raw_bytes_left bigint;
    v_inline_bytes_left bigint;
    v_start bigint;
    v_end bigint;
BEGIN
    v_inline_bytes_left := p_inline_bytes_max;
    FOR r IN
        SELECT u.*
        FROM unnest(
            p_subscription_ids, p_partition_ids, p_start_after, p_message_limits,
            p_partition_limits, p_lease_seconds, p_lease_ids, p_auto_acks
        ) WITH ORDINALITY AS u (
            subscription_id, partition_id, start_after, message_limit,
            partition_limit, lease_seconds, lease_id, auto_ack, request
        )
    LOOP
        v_now := clock_timestamp();
        o_request := r.request;
        o_status := 'segment';
        v_messages_left := r.message_limit;
        v_partitions_left := r.partition_limit;
        v_raw_bytes_left := p_raw_bytes_max;

        SELECT
            CASE
                WHEN r.lease_seconds > 0 THEN r.lease_seconds
                WHEN q.lease_time > 0 THEN q.lease_time
                ELSE 60
            END
        INTO v_lease_seconds
        FROM queen.subscriptions u
        JOIN queen.queues q ON q.id = u.queue_id
        WHERE u.id = r.subscription_id;

        IF NOT FOUND THEN
            o_status := 'unknown';
            RETURN NEXT;
            CONTINUE;
        END IF;

        IF r.partition_id <> 0 THEN
            PERFORM 1
            FROM queen.cursors u
            WHERE
                u.shard = p_shard
                AND u.partition_id = r.partition_id
                AND u.subscription_id = r.subscription_id;
            IF NOT FOUND THEN
                o_status := 'no_cursor';
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;

        -- Two arcs make the round: from start_after to the end, then from the beginning to it.
        FOR v_arc IN 1..2 LOOP
            EXIT WHEN v_partitions_left = 0 OR v_messages_left = 0 OR v_raw_bytes_left <= 0;
            EXIT WHEN v_arc = 2 AND (r.partition_id <> 0 OR r.start_after = 0);
            v_first := CASE v_arc WHEN 1 THEN r.start_after ELSE 0 END;
            v_last := CASE v_arc WHEN 1 THEN 9223372036854775807 ELSE r.start_after END;

            FOR c IN
                SELECT
                    u.partition_id, u.committed_offset, u.attempt, u.attempt_offset,
                    u.retry_count, a.next_offset, a.low_watermark
                FROM (
                    SELECT p.partition_id
                    FROM queen.pending p
                    WHERE
                        r.partition_id = 0
                        AND p.shard = p_shard
                        AND p.subscription_id = r.subscription_id
                        AND p.partition_id > v_first
                        AND p.partition_id <= v_last
                    UNION ALL
                    SELECT r.partition_id WHERE r.partition_id <> 0
                ) p
                JOIN queen.cursors u
                    ON u.shard = p_shard
                    AND u.partition_id = p.partition_id
                    AND u.subscription_id = r.subscription_id
                JOIN queen.allocators a
                    ON a.shard = p_shard
                    AND a.partition_id = p.partition_id
                WHERE
                    a.next_offset > u.committed_offset
                    AND (u.lease_id IS NULL OR u.lease_expires_at <= v_now)
                LIMIT v_partitions_left
                FOR NO KEY UPDATE OF u SKIP LOCKED
            LOOP
                EXIT WHEN v_messages_left = 0 OR v_raw_bytes_left <= 0;
                v_start := greatest(c.committed_offset, c.low_watermark);
                v_end := v_start;
                o_partition_id := c.partition_id;
                o_attempt := CASE
                    WHEN r.auto_ack OR c.attempt_offset <> v_start THEN 1
                    ELSE c.attempt + 1
                END;
                o_retry_count := c.retry_count;
                o_lease_expires_at := v_now + make_interval(secs => v_lease_seconds);

                FOR s IN
                    SELECT
                        g.base_offset, g.next_offset, g.created_at, g.codec, g.raw_bytes,
                        length(g.body) AS body_bytes, g.body
                    FROM queen.segments g
                    WHERE
                        g.shard = p_shard
                        AND g.partition_id = c.partition_id
                        AND g.base_offset >= (
                            SELECT f.base_offset
                            FROM queen.segments f
                            WHERE
                                f.shard = p_shard
                                AND f.partition_id = c.partition_id
                                AND f.base_offset <= v_start
                            ORDER BY f.base_offset DESC
                            LIMIT 1
                        )
                    ORDER BY g.base_offset
                LOOP
                    EXIT WHEN v_messages_left = 0 OR v_raw_bytes_left <= 0;
                    o_base_offset := s.base_offset;
                    o_next_offset := s.next_offset;
                    o_created_at := s.created_at;
                    o_codec := s.codec;
                    o_from := greatest(v_start, s.base_offset);
                    o_to := least(s.next_offset, o_from + v_messages_left);
                    IF o_from = s.base_offset AND v_inline_bytes_left > 0 THEN
                        o_body := s.body;
                        v_inline_bytes_left := v_inline_bytes_left - s.body_bytes;
                    ELSE
                        o_body := NULL;
                    END IF;
                    v_messages_left := v_messages_left - (o_to - o_from);
                    v_raw_bytes_left := v_raw_bytes_left
                        - s.raw_bytes * (o_to - o_from) / (s.next_offset - s.base_offset);
                    v_end := o_to;
                    RETURN NEXT;
                END LOOP;

                CONTINUE WHEN v_end = v_start;
                v_partitions_left := v_partitions_left - 1;
                IF r.auto_ack THEN
                    UPDATE queen.cursors u
                    SET
                        committed_offset = v_end, lease_id = NULL, lease_end = NULL,
                        lease_expires_at = NULL, attempt = 0, attempt_offset = -1,
                        retry_count = 0, retry_offset = -1, consumed_at = v_now
                    WHERE
                        u.shard = p_shard
                        AND u.partition_id = c.partition_id
                        AND u.subscription_id = r.subscription_id;
                ELSE
                    UPDATE queen.cursors u
                    SET
                        committed_offset = v_start, lease_id = r.lease_id, lease_end = v_end,
                        lease_expires_at = o_lease_expires_at,
                        attempt = o_attempt, attempt_offset = v_start, consumed_at = v_now
                    WHERE
                        u.shard = p_shard
                        AND u.partition_id = c.partition_id
                        AND u.subscription_id = r.subscription_id;
                END IF;
            END LOOP;
        END LOOP;
    END LOOP;
END
$$;
