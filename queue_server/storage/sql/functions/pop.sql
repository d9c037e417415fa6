-- readable_at: when a group may read a partition that has messages for it.
--
-- Parameters: what can stand in the way: the end of a lease (null without one), the delay after a
--             nack, the age that the oldest unread message must have, and the age that the newest
--             message must have.
-- Returns:    the time when none of them does any more.
-- Reads:      nothing. One expression, so that PostgreSQL inlines it.
CREATE OR REPLACE FUNCTION queen.readable_at(
    p_lease_expires_at timestamptz,
    p_available_at timestamptz,
    p_oldest_at timestamptz,
    p_delay interval,
    p_newest_at timestamptz,
    p_window interval
) RETURNS timestamptz LANGUAGE sql STABLE
AS $$
    SELECT greatest(
        p_lease_expires_at, p_available_at, p_oldest_at + p_delay, p_newest_at + p_window,
        '-infinity'::timestamptz
    )
$$;

-- candidates: the partitions that hold messages for a group, readable now or later.
--
-- Parameters: the group; p_partition_id 0 = any partition pending for it, in ascending id between
--             the two bounds and without those left out; the queue's visibility rules, null where
--             they do not apply.
-- Returns:    a row a partition: its cursor's fields, its watermarks, when it is readable, and the
--             time of the oldest unread message (null unless p_delay or p_with_oldest ask for it).
-- Reads:      pending, cursors, allocators by primary key; segments for the oldest message.
-- Locks:      none here; queen.pop locks the cursors it takes and looks at them again.
-- Plan:       the look-ups of single rows have a LIMIT, which keeps PostgreSQL from turning them
--             around. Until a table is analysed it takes it for tiny and reads all of it by the
--             first column of an index, rather than one row by all columns; a minute in which
--             every pop reads every cursor.
CREATE OR REPLACE FUNCTION queen.candidates(
    p_shard smallint,
    p_subscription_id integer,
    p_partition_id bigint,
    p_first bigint,
    p_last bigint,
    p_delay interval,
    p_window interval,
    p_stale_before timestamptz,
    p_with_oldest boolean,
    p_left_out bigint[]
) RETURNS TABLE (o_partition_id bigint, o_readable_at timestamptz, o_oldest_at timestamptz)
LANGUAGE sql STABLE
AS $$
    SELECT
        u.partition_id,
        queen.readable_at(
            -- A lease whose messages were all removed is over (queen.end_empty_leases).
            CASE
                WHEN u.lease_id IS NOT NULL AND u.lease_end > a.low_watermark
                    THEN u.lease_expires_at
            END,
            u.available_at, o.o_at, p_delay, a.last_segment_at, p_window
        ),
        o.o_at
    FROM (
        SELECT p.partition_id
        FROM queen.pending p
        WHERE
            p_partition_id = 0
            AND p.shard = p_shard
            AND p.subscription_id = p_subscription_id
            AND p.partition_id > p_first
            AND p.partition_id <= p_last
            AND p.partition_id NOT IN (SELECT l.id FROM unnest(p_left_out) AS l (id))
        UNION ALL
        SELECT p_partition_id WHERE p_partition_id <> 0
    ) p
    CROSS JOIN LATERAL queen.cursor_of(p_shard, p.partition_id, p_subscription_id) u
    CROSS JOIN LATERAL queen.allocator_of(p_shard, p.partition_id) a
    LEFT JOIN LATERAL queen.time_at(
        p_shard, p.partition_id,
        CASE
            WHEN p_delay IS NOT NULL OR p_with_oldest
                THEN greatest(u.committed_offset, a.low_watermark)
        END
    ) o ON true
    WHERE
        a.next_offset > u.committed_offset
        AND (p_stale_before IS NULL OR a.last_segment_at >= p_stale_before)
$$;

-- pop: lease messages to consumers; one call serves many of them.
--
-- Parameters: one element for each request. `p_partition_ids` 0 = any partition of the group's
--             queue; `p_start_after` where the round over the partitions begins, so that consumers
--             spread; `p_partition_limits` how many partitions, or, negative, among how many pops
--             the readable ones are to be shared; `p_lease_seconds` 0 = the queue's. Elements in a
--             row with one lease id are one request over several queues: what one leaves of the
--             limits is for the next. Requests in a row of one group for any partition share one
--             look at what there is. `p_raw_bytes_max` bounds what one request is handed out,
--             `p_inline_bytes_max` how much of it comes with the answer. `p_key_ids` are the
--             encryption keys that the caller has, `p_left_out` partitions that it cannot read.
-- Returns:    o_status 'segment':   one row for each run of messages [o_from, o_to) handed out, in
--                                   order, with its segment; a null o_body is to be read with
--                                   read_segments (it is beyond the inline limit, or the run starts
--                                   inside the segment, so the caller may have it already);
--             o_status 'taken_over': likewise, from a lease that ran out unacknowledged;
--             o_status 'exhausted': the message at o_from was claimed o_attempt times without an
--                                   acknowledgement, which is the queue's limit: bury it;
--             o_status 'unreadable': the message at o_from is encrypted with the key o_body, which
--                                   the caller does not have: nothing was claimed there. What lies
--                                   before such a message is handed out without it;
--             o_status 'unknown':   the subscription is gone, resolve it again;
--             o_status 'no_cursor': the group has no cursor on the named partition, seed it;
--             no row for a request: there is nothing to hand out.
-- Calls:      candidates, allocator_of, cursor_of, offset_at, retire_pending.
-- Writes:     cursors; leases; pending of partitions that are read to the end and idle.
-- Locks:      cursors, then allocators, both SKIP LOCKED: a pop never waits for another, nor for a
--             push.
-- Isolation:  READ COMMITTED. A candidate is looked for without a lock and judged again under the
--             cursor's lock. Only committed segments below a committed next_offset are handed out; a
--             next_offset that changes meanwhile is at worst too low, and its push wakes the waiter.
--             So does what becomes readable after the look that a request shares, as all of them
--             were asked before it.
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
    p_inline_bytes_max bigint,
    p_key_ids bytea[],
    p_left_out bigint[]
) RETURNS TABLE (
    o_request integer,
    o_status text,
    o_partition_id bigint,
    o_from bigint,
    o_to bigint,
    o_attempt integer,
    o_retry_count integer,
    o_priority integer,
    o_partition_limit integer,
    o_lease_expires_at timestamptz,
    o_base_offset bigint,
    o_next_offset bigint,
    o_created_at timestamptz,
    o_first_message_id uuid,
    o_codec smallint,
    o_body bytea
) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    r record;
    c record;
    s record;
    v_now timestamptz;
    v_lease_id uuid;
    v_delay interval;
    v_window interval;
    v_stale_before timestamptz;
    v_visible_before timestamptz;
    v_first bigint;
    v_last bigint;
    v_partitions_left integer;
    v_messages_left bigint;
    v_raw_bytes_left bigint;
    v_inline_bytes_left bigint;
    v_candidates bigint[];
    v_next integer;
    v_left_over bigint[];
    v_look_subscription_id integer;
    v_look_limit integer;
    v_looks_left integer;
    v_round_start bigint;
    v_round_over boolean;
    v_partition_id bigint;
    v_place bigint;
    v_start bigint;
    v_end bigint;
    v_segment_end bigint;
    v_holes bigint[];
    v_hole bigint;
    v_read_out bigint[];
    v_key_id bytea;
    v_unreadable integer := 0;
    v_leases uuid[];
    v_leased_partitions bigint[];
    v_leased_subscriptions integer[];
BEGIN
    v_inline_bytes_left := p_inline_bytes_max;
    FOR r IN
        SELECT u.*, k.*
        FROM unnest(
            p_subscription_ids, p_partition_ids, p_start_after, p_message_limits,
            p_partition_limits, p_lease_seconds, p_lease_ids, p_auto_acks
        ) WITH ORDINALITY AS u (
            subscription_id, partition_id, start_after, message_limit,
            partition_limit, lease_seconds, lease_id, auto_ack, request
        )
        LEFT JOIN LATERAL (
            SELECT
                CASE
                    WHEN u.lease_seconds > 0 THEN u.lease_seconds
                    WHEN q.lease_time > 0 THEN q.lease_time
                    ELSE 60
                END AS lease_length,
                CASE WHEN w.mode = 'timestamp' THEN w.starts_at END AS starts_at,
                q.priority, q.delivery_limit, w.conflation, q.delayed_processing, q.window_buffer,
                least(nullif(q.max_wait_time_seconds, 0), nullif(q.ttl, 0)) AS stale_seconds
            FROM queen.subscriptions w
            JOIN queen.queues q ON q.id = w.queue_id
            WHERE w.id = u.subscription_id
            OFFSET 0
        ) k ON true
        ORDER BY u.request
    LOOP
        v_now := clock_timestamp();
        o_request := r.request;
        o_status := 'segment';

        IF r.lease_length IS NULL THEN
            o_status := 'unknown';
            RETURN NEXT;
            CONTINUE;
        END IF;

        v_read_out := NULL;
        v_delay := NULL;
        v_window := NULL;
        v_stale_before := NULL;
        v_visible_before := 'infinity';
        IF r.delayed_processing > 0 THEN
            v_delay := make_interval(secs => r.delayed_processing);
            v_visible_before := v_now - v_delay;
        END IF;
        IF r.window_buffer > 0 THEN
            v_window := make_interval(secs => r.window_buffer);
        END IF;
        IF r.stale_seconds > 0 THEN
            v_stale_before := v_now - make_interval(secs => r.stale_seconds);
        END IF;
        o_priority := r.priority;

        IF r.lease_id IS DISTINCT FROM v_lease_id THEN
            v_lease_id := r.lease_id;
            v_messages_left := r.message_limit;
            v_raw_bytes_left := p_raw_bytes_max;
            v_partitions_left := r.partition_limit;
            IF v_partitions_left < 0 THEN
                SELECT greatest(ceil(count(*) / (-r.partition_limit)::numeric), 1)
                INTO v_partitions_left
                FROM (
                    SELECT 1
                    FROM queen.candidates(
                        p_shard, r.subscription_id, r.partition_id, 0, 9223372036854775807,
                        v_delay, v_window, v_stale_before, false, p_left_out
                    ) k
                    WHERE k.o_readable_at <= v_now
                    LIMIT 64 * least(-r.partition_limit, 64)
                ) n;
                v_partitions_left := least(v_partitions_left, 64);
            END IF;
            o_partition_limit := v_partitions_left;
        END IF;

        IF r.partition_id <> 0 OR r.subscription_id IS DISTINCT FROM v_look_subscription_id THEN
            v_look_subscription_id := CASE WHEN r.partition_id = 0 THEN r.subscription_id END;
            v_candidates := '{}';
            v_next := 1;
            v_left_over := '{}';
            v_look_limit := 0;
            v_round_start := CASE WHEN r.partition_id = 0 THEN r.start_after ELSE 0 END;
            v_round_over := false;
            v_first := v_round_start;
            v_last := 9223372036854775807;
        END IF;
        v_looks_left := 2;
        LOOP
            EXIT WHEN v_partitions_left = 0 OR v_messages_left = 0 OR v_raw_bytes_left <= 0;

            IF v_next > cardinality(v_candidates) THEN
                IF v_round_over OR v_looks_left = 0 THEN
                    EXIT WHEN cardinality(v_left_over) = 0;
                    v_candidates := v_left_over;
                    v_left_over := '{}';
                    v_next := 1;
                    CONTINUE;
                END IF;
                v_looks_left := v_looks_left - 1;
                v_next := 1;
                IF
                    r.partition_id <> 0
                    AND v_delay IS NULL AND v_window IS NULL AND v_stale_before IS NULL
                THEN
                    -- Nothing to choose from: whether it is readable is seen when it is locked.
                    v_candidates := ARRAY[r.partition_id];
                    v_round_over := true;
                    CONTINUE;
                END IF;
                -- A few more than are wanted, for those that somebody else takes in between, and
                -- twice as many each time, as more requests may follow in the row.
                v_look_limit := greatest(least(2 * v_look_limit, 64), v_partitions_left + 4);
                SELECT coalesce(array_agg(n.o_partition_id), '{}') INTO v_candidates
                FROM (
                    SELECT k.o_partition_id
                    FROM queen.candidates(
                        p_shard, r.subscription_id, r.partition_id, v_first, v_last,
                        v_delay, v_window, v_stale_before, false, p_left_out
                    ) k
                    WHERE k.o_readable_at <= v_now
                    LIMIT v_look_limit
                ) n;
                -- Two arcs make the round: from its start to the end, then from the beginning.
                IF cardinality(v_candidates) = v_look_limit THEN
                    v_first := v_candidates[v_look_limit];
                ELSIF v_last > v_round_start AND v_round_start > 0 THEN
                    v_first := 0;
                    v_last := v_round_start;
                ELSE
                    v_round_over := true;
                END IF;
                CONTINUE;
            END IF;
            v_partition_id := v_candidates[v_next];
            v_next := v_next + 1;

            SELECT
                u.ctid AS place, u.partition_id, u.committed_offset, u.attempt, u.attempt_offset,
                u.retry_count, u.retry_offset, u.consumed_at, u.lease_id, u.lease_expires_at,
                a.next_offset, a.low_watermark,
                (
                    SELECT array_agg(h.message_offset ORDER BY h.message_offset)
                    FROM queen.holes h
                    WHERE
                        h.shard = p_shard
                        AND h.partition_id = v_partition_id
                        AND h.message_offset >= u.committed_offset
                        AND h.message_offset < a.next_offset
                ) AS holes
            INTO c
            FROM (
                -- As queen.cursor_of, and locked.
                SELECT
                    k.ctid, k.partition_id, k.committed_offset, k.attempt, k.attempt_offset,
                    k.retry_count, k.retry_offset, k.consumed_at, k.lease_id, k.lease_expires_at
                FROM queen.cursors k
                WHERE
                    k.shard = p_shard
                    AND k.partition_id = v_partition_id
                    AND k.subscription_id BETWEEN r.subscription_id AND r.subscription_id
                    -- Said again of the row that is locked; and nothing is locked in vain, as a pop
                    -- that comes with the news of a push would pass over it.
                    AND (
                        SELECT
                            k.committed_offset < x.next_offset
                            AND (
                                k.lease_id IS NULL
                                OR k.lease_expires_at <= v_now
                                -- All its messages were removed while it was being made.
                                OR k.lease_end <= x.low_watermark
                            )
                        FROM queen.allocator_of(p_shard, v_partition_id) x
                    )
                    AND (k.available_at IS NULL OR k.available_at <= v_now)
                ORDER BY k.subscription_id DESC
                LIMIT 1
                FOR NO KEY UPDATE SKIP LOCKED
            ) u
            CROSS JOIN LATERAL queen.allocator_of(p_shard, v_partition_id) a;
            CONTINUE WHEN NOT FOUND;
            o_status := 'segment';
            o_partition_id := c.partition_id;
            v_start := greatest(c.committed_offset, c.low_watermark);
            IF c.consumed_at IS NULL AND r.starts_at IS NOT NULL THEN
                -- The cursor may have been made before that time, for one that was to come.
                v_start := greatest(
                    v_start, queen.offset_at(p_shard, c.partition_id, r.starts_at)
                );
            END IF;
            IF v_stale_before IS NOT NULL THEN
                v_start := greatest(
                    v_start, queen.offset_at(p_shard, c.partition_id, v_stale_before)
                );
            END IF;
            v_holes := c.holes;
            WHILE v_start = ANY (v_holes) LOOP
                v_start := v_start + 1;
            END LOOP;
            IF r.conflation THEN
                -- The newest visible message stands for all before it.
                v_end := CASE
                    WHEN v_delay IS NULL THEN c.next_offset
                    ELSE queen.offset_at(p_shard, c.partition_id, v_visible_before)
                END;
                WHILE v_end > v_start AND (v_end - 1) = ANY (v_holes) LOOP
                    v_end := v_end - 1;
                END LOOP;
                v_start := greatest(v_start, v_end - 1);
            END IF;

            -- A conflating group keeps its place: what the newest message stands for is
            -- committed with it.
            v_place := CASE
                WHEN r.conflation THEN greatest(c.committed_offset, c.low_watermark)
                ELSE v_start
            END;
            o_attempt := CASE
                WHEN r.auto_ack OR c.attempt_offset <> v_place THEN 1
                ELSE c.attempt + 1
            END;
            IF r.delivery_limit > 0 AND o_attempt > r.delivery_limit THEN
                o_status := 'exhausted';
                o_from := v_start;
                o_attempt := c.attempt;
                RETURN NEXT;
                o_status := 'segment';
                CONTINUE;
            END IF;
            -- A lease that is still there ran out, unless its messages were removed: nobody ended it.
            IF c.lease_id IS NOT NULL THEN
                IF c.lease_expires_at <= v_now THEN
                    o_status := 'taken_over';
                END IF;
                DELETE FROM queen.leases l
                WHERE
                    l.shard = p_shard
                    AND l.lease_id = c.lease_id
                    AND l.partition_id = c.partition_id
                    AND l.subscription_id = r.subscription_id;
            END IF;
            -- The budget of a message that was removed is not the next one's.
            o_retry_count := CASE WHEN c.retry_offset < v_place THEN 0 ELSE c.retry_count END;
            o_lease_expires_at := v_now + make_interval(secs => r.lease_length);

            v_end := v_start;
            v_key_id := NULL;
            FOR s IN
                SELECT
                    g.base_offset, g.next_offset, g.created_at, g.first_message_id, g.codec,
                    g.raw_bytes,
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
                EXIT WHEN s.created_at > v_visible_before;
                IF s.codec & 2 <> 0 THEN
                    -- domain/segment.py: where the id of the key lies in an encrypted body.
                    v_key_id := substring(
                        s.body FROM CASE WHEN s.codec & 4 <> 0 THEN 2 ELSE 1 END FOR 8
                    );
                    EXIT WHEN v_key_id <> ALL (p_key_ids);
                    v_key_id := NULL;
                END IF;
                o_base_offset := s.base_offset;
                o_next_offset := s.next_offset;
                o_created_at := s.created_at;
                o_first_message_id := s.first_message_id;
                o_codec := s.codec;
                o_from := greatest(v_start, s.base_offset);
                IF o_from = s.base_offset AND v_inline_bytes_left > 0 THEN
                    o_body := s.body;
                    v_inline_bytes_left := v_inline_bytes_left - s.body_bytes;
                ELSE
                    o_body := NULL;
                END IF;
                -- A run a stretch between holes; nearly always there is none.
                LOOP
                    WHILE o_from = ANY (v_holes) LOOP
                        o_from := o_from + 1;
                    END LOOP;
                    EXIT WHEN o_from >= s.next_offset OR v_messages_left = 0;
                    v_segment_end := s.next_offset;
                    IF v_holes IS NOT NULL THEN
                        SELECT min(h.h) INTO v_hole FROM unnest(v_holes) AS h (h)
                        WHERE h.h > o_from;
                        v_segment_end := least(v_segment_end, v_hole);
                    END IF;
                    o_to := least(v_segment_end, o_from + v_messages_left);
                    v_messages_left := v_messages_left - (o_to - o_from);
                    v_raw_bytes_left := v_raw_bytes_left
                        - s.raw_bytes * (o_to - o_from) / (s.next_offset - s.base_offset);
                    v_end := o_to;
                    RETURN NEXT;
                    o_from := o_to;
                    o_body := NULL;
                END LOOP;
                EXIT WHEN r.conflation AND v_end > v_start;
            END LOOP;

            IF v_end = v_start THEN
                IF v_key_id IS NOT NULL THEN
                    o_status := 'unreadable';
                    o_from := v_start;
                    o_body := v_key_id;
                    RETURN NEXT;
                    o_status := 'segment';
                    -- It must not take the place of one that can be read: look further. The caller
                    -- leaves it out from now on, so there is an end to it.
                    v_unreadable := v_unreadable + 1;
                    IF v_unreadable <= 1000 THEN
                        v_looks_left := greatest(v_looks_left, 1);
                    END IF;
                END IF;
                -- Nothing but holes and stale messages: pass them.
                IF v_start > c.committed_offset THEN
                    UPDATE queen.cursors u
                    SET
                        committed_offset = v_start, lease_id = NULL, lease_end = NULL,
                        lease_expires_at = NULL
                    WHERE u.ctid = c.place;
                END IF;
                CONTINUE;
            END IF;

            v_partitions_left := v_partitions_left - 1;
            IF r.auto_ack THEN
                IF v_end >= c.next_offset THEN
                    v_read_out := v_read_out || c.partition_id;
                ELSIF v_messages_left = 0 OR v_raw_bytes_left <= 0 THEN
                    -- The rest is for others in the row, when they have been round.
                    v_left_over := v_left_over || c.partition_id;
                END IF;
                UPDATE queen.cursors u
                SET
                    committed_offset = v_end, lease_id = NULL, lease_end = NULL,
                    lease_expires_at = NULL, attempt = 0, attempt_offset = -1,
                    retry_count = 0, retry_offset = -1, available_at = NULL,
                    consumed_at = v_now
                WHERE u.ctid = c.place;
            ELSE
                UPDATE queen.cursors u
                SET
                    committed_offset = v_place, lease_id = r.lease_id, lease_end = v_end,
                    lease_expires_at = o_lease_expires_at, attempt = o_attempt,
                    attempt_offset = v_place, retry_count = o_retry_count,
                    retry_offset = CASE WHEN u.retry_offset < v_place THEN -1 ELSE u.retry_offset END,
                    available_at = NULL, consumed_at = v_now
                WHERE u.ctid = c.place;
                v_leases := v_leases || r.lease_id;
                v_leased_partitions := v_leased_partitions || c.partition_id;
                v_leased_subscriptions := v_leased_subscriptions || r.subscription_id;
            END IF;
        END LOOP;
        IF r.partition_id <> 0 AND v_partitions_left > 0 THEN
            PERFORM 1 FROM queen.cursor_of(p_shard, r.partition_id, r.subscription_id);
            IF NOT FOUND THEN
                o_status := 'no_cursor';
                RETURN NEXT;
            END IF;
        END IF;
        IF v_read_out IS NOT NULL AND r.partition_id = 0 THEN
            PERFORM queen.retire_pending(p_shard, r.subscription_id, v_read_out);
        END IF;
    END LOOP;

    IF v_leases IS NOT NULL THEN
        INSERT INTO queen.leases (shard, lease_id, partition_id, subscription_id)
        SELECT p_shard, n.lease_id, n.partition_id, n.subscription_id
        FROM unnest(v_leases, v_leased_partitions, v_leased_subscriptions)
            AS n (lease_id, partition_id, subscription_id)
        -- A call that is repeated because its answer was lost brings the same leases.
        ON CONFLICT DO NOTHING;
    END IF;
END
$$;
