-- Retention works in two steps, each a transaction of its own.
--
-- First the low watermark of a partition is raised: one narrow row, under the lock that pushes take,
-- for an instant. From then on nothing below it is handed out. Then the segments below are deleted,
-- in batches, without any lock that a push or a pop could wait for. Deleting them under the
-- allocator's lock would make each push to the partition wait for a batch.
--
-- Raising it is the removal. In the same transaction leases end of which nothing is left, ids become
-- new again (find_ids compares offsets with the watermark), and no count reaches below it. What a
-- crash leaves between the two steps is space, and is found by find_leftovers.
--
-- Neither step waits for the disk at its commit: a crash that undoes one brings back messages that
-- the next pass drops again.

-- find_expired: walk over partitions of queues with a rule and look for what may go.
--
-- Parameters: the queues, with the age in seconds from which their messages go, and the age from which
--             those go that every group has committed (null = no such rule); in the first queue the
--             walk begins behind the partition `p_after`; it visits at most `p_limit`
--             partitions (a queue without any counts as one). `p_now` is for tests.
-- Returns:    one row for each partition whose low watermark may rise, to o_low; o_completed tells
--             that only the second rule allows it. Then, unless the walk reached the end, one row
--             with a null o_low: it goes on behind o_partition_id in the queue numbered o_queue.
-- Reads:      partitions, allocators, segments (one row by primary key for a partition with nothing
--             to do, none for an empty one), cursors, subscriptions.
-- Locks:      none.
-- Isolation:  READ COMMITTED. What may go now may go later too, but for a cursor that is put back
--             meanwhile, which then comes after the rule.
CREATE OR REPLACE FUNCTION queen.find_expired(
    p_shard smallint,
    p_queue_ids uuid[],
    p_age_seconds integer[],
    p_completed_age_seconds integer[],
    p_after bigint,
    p_limit integer,
    p_now timestamptz DEFAULT NULL
) RETURNS TABLE (o_queue integer, o_partition_id bigint, o_low bigint, o_completed boolean)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    q record;
    c record;
    v_now timestamptz := coalesce(p_now, clock_timestamp());
    v_cutoff timestamptz;
    v_completed_cutoff timestamptz;
    v_after bigint := p_after;
    v_left integer := p_limit;
    v_seen integer;
    v_committed bigint;
    v_completed_low bigint;
BEGIN
    FOR q IN
        SELECT u.*
        FROM unnest(p_queue_ids, p_age_seconds, p_completed_age_seconds)
            WITH ORDINALITY AS u (queue_id, age_seconds, completed_age_seconds, queue)
    LOOP
        o_queue := q.queue;
        v_seen := 0;
        v_cutoff := v_now - make_interval(secs => q.age_seconds);
        v_completed_cutoff := v_now - make_interval(secs => q.completed_age_seconds);
        IF v_completed_cutoff IS NOT NULL AND EXISTS (
            SELECT 1
            FROM queen.subscriptions u
            WHERE u.queue_id = q.queue_id AND u.backfilled_to IS NOT NULL
        ) THEN
            -- A group that is just being registered has no cursor yet on some partitions, and
            -- may be about to read their history.
            v_completed_cutoff := NULL;
        END IF;

        FOR c IN
            SELECT p.id, f.created_at
            FROM (
                SELECT i.id
                FROM queen.partitions i
                WHERE i.shard = p_shard AND i.queue_id = q.queue_id AND i.id > v_after
                ORDER BY i.id
                LIMIT v_left
            ) p
            JOIN queen.allocators a ON a.shard = p_shard AND a.partition_id = p.id
            LEFT JOIN LATERAL (
                SELECT s.created_at
                FROM queen.segments s
                WHERE
                    a.next_offset > a.low_watermark
                    AND s.shard = p_shard
                    AND s.partition_id = p.id
                    AND s.base_offset >= a.low_watermark
                ORDER BY s.base_offset
                LIMIT 1
            ) f ON true
            ORDER BY p.id
        LOOP
            v_seen := v_seen + 1;
            o_partition_id := c.id;
            o_low := NULL;
            o_completed := false;
            IF c.created_at < v_cutoff THEN
                o_low := queen.offset_at(p_shard, c.id, v_cutoff);
            END IF;
            IF c.created_at < v_completed_cutoff THEN
                SELECT min(u.committed_offset) INTO v_committed
                FROM queen.cursors u
                WHERE u.shard = p_shard AND u.partition_id = c.id;
                -- Only whole segments: up to the last one that ends at or before the place.
                SELECT
                    CASE WHEN s.next_offset <= v_committed THEN s.next_offset ELSE s.base_offset END
                INTO v_completed_low
                FROM queen.segments s
                WHERE
                    s.shard = p_shard AND s.partition_id = c.id AND s.base_offset < v_committed
                ORDER BY s.base_offset DESC
                LIMIT 1;
                v_completed_low := least(
                    v_completed_low, queen.offset_at(p_shard, c.id, v_completed_cutoff)
                );
                IF v_committed > 0 AND v_completed_low > coalesce(o_low, 0) THEN
                    o_low := v_completed_low;
                    o_completed := true;
                END IF;
            END IF;
            IF o_low > 0 THEN
                RETURN NEXT;
            END IF;
        END LOOP;

        IF v_seen = v_left THEN
            -- The batch is full; o_partition_id is the last partition visited.
            o_low := NULL;
            o_completed := NULL;
            RETURN NEXT;
            RETURN;
        END IF;
        v_after := 0;
        v_left := v_left - greatest(v_seen, 1);
        IF v_left = 0 AND q.queue < cardinality(p_queue_ids) THEN
            o_queue := q.queue + 1;
            o_partition_id := 0;
            o_low := NULL;
            o_completed := NULL;
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
END
$$;

-- raise_low_watermarks: take what lies below a new low watermark out of delivery.
--
-- Parameters: one element for each partition: its queue, the new low watermark (the base of a
--             segment, or the end of the log) and why (retention_history's words); `p_wait` =
--             wait for a partition that a push holds just now, otherwise leave it out.
-- Returns:    one row for each partition raised: what is to be dropped, [o_from, o_to), and whether
--             a lease ended there. A watermark never falls.
-- Calls:      end_empty_leases.
-- Writes:     allocators; cursors and leases of which nothing is left; retention_history, one row for
--             each queue and reason (its partition_id is 0 when it sums up several: a row for each
--             partition would be millions a day).
-- Locks:      allocators, ascending, FOR NO KEY UPDATE; SKIP LOCKED unless `p_wait`. To wait, name
--             one partition only: who holds others meanwhile makes their pushes wait too. Then
--             cursors, SKIP LOCKED.
-- Isolation:  READ COMMITTED; the second statement's snapshot is taken under the locks. A claim that
--             is being made meanwhile may still hand out what goes; its lease is over from then on.
CREATE OR REPLACE FUNCTION queen.raise_low_watermarks(
    p_shard smallint,
    p_queue_ids uuid[],
    p_partition_ids bigint[],
    p_lows bigint[],
    p_types text[],
    p_wait boolean
) RETURNS TABLE (o_partition_id bigint, o_from bigint, o_to bigint, o_freed boolean)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_locked bigint[];
    v_raised bigint[];
    v_froms bigint[];
    v_tos bigint[];
    v_freed bigint[];
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);

    IF p_wait THEN
        SELECT array_agg(l.partition_id) INTO v_locked
        FROM (
            SELECT a.partition_id
            FROM queen.allocators a
            WHERE a.shard = p_shard AND a.partition_id = ANY (p_partition_ids)
            ORDER BY a.partition_id
            FOR NO KEY UPDATE
        ) l;
    ELSE
        SELECT array_agg(l.partition_id) INTO v_locked
        FROM (
            SELECT a.partition_id
            FROM queen.allocators a
            WHERE a.shard = p_shard AND a.partition_id = ANY (p_partition_ids)
            ORDER BY a.partition_id
            FOR NO KEY UPDATE SKIP LOCKED
        ) l;
    END IF;
    IF v_locked IS NULL THEN
        RETURN;
    END IF;

    WITH raised AS (
        UPDATE queen.allocators a
        SET low_watermark = n.low
        FROM (
            SELECT
                u.queue_id, u.partition_id, u.type, i.low_watermark AS was,
                least(u.low, i.next_offset) AS low
            FROM unnest(p_queue_ids, p_partition_ids, p_lows, p_types)
                AS u (queue_id, partition_id, low, type)
            JOIN queen.allocators i ON i.shard = p_shard AND i.partition_id = u.partition_id
            WHERE u.partition_id = ANY (v_locked)
        ) n
        WHERE
            a.shard = p_shard
            AND a.partition_id = n.partition_id
            AND a.low_watermark < n.low
        RETURNING n.queue_id, a.partition_id, n.type, n.was, n.low
    ),
    history AS (
        INSERT INTO queen.retention_history (
            shard, queue_id, partition_id, retention_type, messages_deleted
        )
        SELECT
            p_shard, r.queue_id, CASE WHEN count(*) = 1 THEN min(r.partition_id) ELSE 0 END,
            r.type, sum(r.low - r.was - h.hole_count)
        FROM raised r
        CROSS JOIN LATERAL (
            SELECT count(*) AS hole_count
            FROM queen.holes h
            WHERE
                h.shard = p_shard
                AND h.partition_id = r.partition_id
                AND h.message_offset >= r.was
                AND h.message_offset < r.low
        ) h
        GROUP BY r.queue_id, r.type
        HAVING sum(r.low - r.was - h.hole_count) > 0
    )
    SELECT
        array_agg(r.partition_id ORDER BY r.partition_id), array_agg(r.was ORDER BY r.partition_id),
        array_agg(r.low ORDER BY r.partition_id)
    INTO v_raised, v_froms, v_tos
    FROM raised r;
    IF v_raised IS NULL THEN
        RETURN;
    END IF;

    SELECT coalesce(array_agg(e.o_partition_id), '{}') INTO v_freed
    FROM queen.end_empty_leases(p_shard, v_raised) e;

    RETURN QUERY
    SELECT r.partition_id, r.was, r.low, r.partition_id = ANY (v_freed)
    FROM unnest(v_raised, v_froms, v_tos) AS r (partition_id, was, low);
END
$$;

-- read_droppable: the next segments to drop, with the ids that tell their entries in id_ranges.
--
-- Parameters: what is to be dropped: offsets [from, to) of partitions, below their low watermarks;
--             and how much at most: segments, messages, and bytes of bodies. At least one segment
--             is returned if there is any.
-- Returns:    one row for each segment, spans in the given order (1-based o_span).
-- Reads:      segments, from the begin of a span: never over what was dropped before, whose index
--             entries may still be there.
-- Locks:      none.
-- Isolation:  READ COMMITTED. Segments below a low watermark do not change.
CREATE OR REPLACE FUNCTION queen.read_droppable(
    p_shard smallint,
    p_partition_ids bigint[],
    p_froms bigint[],
    p_tos bigint[],
    p_segment_limit integer,
    p_message_limit integer,
    p_body_bytes_limit bigint
) RETURNS TABLE (o_span integer, o_base_offset bigint, o_next_offset bigint, o_ids bytea)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    r record;
    s record;
    v_segments bigint := p_segment_limit;
    v_messages bigint := p_message_limit;
    v_body_bytes bigint := p_body_bytes_limit;
BEGIN
    FOR r IN
        SELECT u.*
        FROM unnest(p_partition_ids, p_froms, p_tos)
            WITH ORDINALITY AS u (partition_id, first, past, span)
    LOOP
        o_span := r.span;
        FOR s IN
            SELECT g.base_offset, g.next_offset, length(g.body) AS body_bytes, g.ids
            FROM queen.segments g
            WHERE
                g.shard = p_shard
                AND g.partition_id = r.partition_id
                AND g.base_offset >= r.first
                AND g.base_offset < r.past
            ORDER BY g.base_offset
            LIMIT v_segments
        LOOP
            o_base_offset := s.base_offset;
            o_next_offset := s.next_offset;
            o_ids := s.ids;
            RETURN NEXT;
            v_segments := v_segments - 1;
            v_messages := v_messages - (s.next_offset - s.base_offset);
            v_body_bytes := v_body_bytes - s.body_bytes;
            IF v_segments = 0 OR v_messages <= 0 OR v_body_bytes <= 0 THEN
                RETURN;
            END IF;
        END LOOP;
    END LOOP;
END
$$;

-- drop_segments: delete segments below their low watermark, and what hangs on their messages.
--
-- Parameters: the segments; the keys of their id ranges; and the offsets [from, to) of partitions
--             which these segments cover.
-- Returns:    how many segments were deleted.
-- Writes:     id_ranges, segments, holes, traces, trace_names. Dead letters stay.
-- Locks:      the rows it deletes. Beside delete_queue, which holds the allocators, that can be a
--             deadlock; then one of the two is run again.
-- Isolation:  READ COMMITTED; two who drop the same segments delete each once.
CREATE OR REPLACE FUNCTION queen.drop_segments(
    p_shard smallint,
    p_partition_ids bigint[],
    p_base_offsets bigint[],
    p_range_partition_ids bigint[],
    p_range_max_ids bytea[],
    p_range_base_offsets bigint[],
    p_span_partition_ids bigint[],
    p_span_froms bigint[],
    p_span_tos bigint[]
) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_count integer;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);

    DELETE FROM queen.id_ranges x
    USING unnest(p_range_partition_ids, p_range_max_ids, p_range_base_offsets)
        AS u (partition_id, max_id, base_offset)
    WHERE
        x.shard = p_shard
        AND x.partition_id = u.partition_id
        AND x.max_id = u.max_id
        AND x.base_offset = u.base_offset;

    DELETE FROM queen.segments s
    USING unnest(p_partition_ids, p_base_offsets) AS u (partition_id, base_offset)
    WHERE
        s.shard = p_shard
        AND s.partition_id = u.partition_id
        AND s.base_offset = u.base_offset;
    GET DIAGNOSTICS v_count = ROW_COUNT;

    DELETE FROM queen.holes h
    USING unnest(p_span_partition_ids, p_span_froms, p_span_tos) AS u (partition_id, first, past)
    WHERE
        h.shard = p_shard
        AND h.partition_id = u.partition_id
        AND h.message_offset >= u.first
        AND h.message_offset < u.past;

    WITH dropped AS (
        DELETE FROM queen.traces t
        USING unnest(p_span_partition_ids, p_span_froms, p_span_tos)
            AS u (partition_id, first, past)
        WHERE
            t.shard = p_shard
            AND t.partition_id = u.partition_id
            AND t.message_offset >= u.first
            AND t.message_offset < u.past
        RETURNING t.id
    )
    DELETE FROM queen.trace_names n
    USING dropped d
    WHERE n.shard = p_shard AND n.trace_id = d.id;

    RETURN v_count;
END
$$;

-- find_leftovers: walk over all partitions and look for segments below the low watermark.
--
-- Parameters: the walk begins behind the partition `p_after` and visits at most `p_limit`.
-- Returns:    one row for each partition with such segments: they lie in [o_from, o_to). Then, unless
--             the walk reached the end, one row with a null o_from: it goes on behind o_partition_id.
-- Reads:      allocators, by primary key; the first segment of those that were ever cut.
-- Locks:      none.
-- Isolation:  READ COMMITTED. What a pass is just dropping may be among the answers, harmlessly.
CREATE OR REPLACE FUNCTION queen.find_leftovers(
    p_shard smallint,
    p_after bigint,
    p_limit integer
) RETURNS TABLE (o_partition_id bigint, o_from bigint, o_to bigint) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    r record;
    v_seen integer := 0;
BEGIN
    FOR r IN
        SELECT a.partition_id, a.low_watermark, f.base_offset
        FROM queen.allocators a
        LEFT JOIN LATERAL (
            SELECT s.base_offset
            FROM queen.segments s
            WHERE
                a.low_watermark > 0
                AND s.shard = p_shard
                AND s.partition_id = a.partition_id
                AND s.base_offset < a.low_watermark
            ORDER BY s.base_offset
            LIMIT 1
        ) f ON true
        WHERE a.shard = p_shard AND a.partition_id > p_after
        ORDER BY a.partition_id
        LIMIT p_limit
    LOOP
        v_seen := v_seen + 1;
        o_partition_id := r.partition_id;
        IF r.base_offset IS NOT NULL THEN
            o_from := r.base_offset;
            o_to := r.low_watermark;
            RETURN NEXT;
        END IF;
    END LOOP;
    IF v_seen = p_limit THEN
        o_from := NULL;
        o_to := NULL;
        RETURN NEXT;
    END IF;
END
$$;

-- remove_idle_partitions: forget partitions that are empty and that nobody has used for long.
--
-- A later push of the name makes a new partition, with offsets from 0. `Default` stays: every queue
-- has it.
--
-- Parameters: the walk begins behind the partition `p_after` and visits at most `p_limit`; idle is who
--             was not pushed to or claimed from for `p_idle_seconds`. `p_now` is for tests.
-- Returns:    how many were removed; where the walk goes on (null = it reached the end).
-- Writes:     cursors, leases, pending, allocators, partitions, holes.
-- Locks:      cursors, ascending (partition, subscription), FOR UPDATE SKIP LOCKED, then allocators,
--             ascending, FOR UPDATE SKIP LOCKED: a partition that is in use in any way is not idle.
-- Isolation:  READ COMMITTED; all is judged again under the locks. A push that waits for the allocator
--             finds the partition gone and makes it anew, as after delete_queue.
CREATE OR REPLACE FUNCTION queen.remove_idle_partitions(
    p_shard smallint,
    p_after bigint,
    p_limit integer,
    p_idle_seconds bigint,
    p_now timestamptz DEFAULT NULL
) RETURNS TABLE (o_removed integer, o_next bigint) LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz := coalesce(p_now, clock_timestamp());
    v_idle_since timestamptz := v_now - make_interval(secs => p_idle_seconds);
    v_seen integer;
    v_ids bigint[];
    v_locked bigint[];
    v_in_use bigint[];
BEGIN
    o_removed := 0;
    SELECT
        count(*), max(w.partition_id),
        array_agg(w.partition_id ORDER BY w.partition_id) FILTER (
            WHERE w.low_watermark = w.next_offset
            AND (w.last_segment_at IS NULL OR w.last_segment_at < v_idle_since)
        )
    INTO v_seen, o_next, v_ids
    FROM (
        SELECT a.partition_id, a.low_watermark, a.next_offset, a.last_segment_at
        FROM queen.allocators a
        WHERE a.shard = p_shard AND a.partition_id > p_after
        ORDER BY a.partition_id
        LIMIT p_limit
    ) w;
    IF v_seen < p_limit THEN
        o_next := NULL;
    END IF;

    -- The partition's own age counts for one that never held a message.
    SELECT array_agg(p.id) INTO v_ids
    FROM unnest(v_ids) AS u (id)
    JOIN queen.partitions p ON p.shard = p_shard AND p.id = u.id
    WHERE
        p.name <> 'Default'
        AND p.created_at < v_idle_since
        AND NOT EXISTS (
            SELECT 1
            FROM queen.dead_letters d
            WHERE d.shard = p_shard AND d.partition_id = p.id
        )
        AND NOT EXISTS (
            SELECT 1 FROM queen.segments s WHERE s.shard = p_shard AND s.partition_id = p.id
        );
    IF v_ids IS NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;

    SELECT array_agg(l.partition_id) INTO v_locked
    FROM (
        SELECT c.partition_id
        FROM queen.cursors c
        WHERE c.shard = p_shard AND c.partition_id = ANY (v_ids)
        ORDER BY c.partition_id, c.subscription_id
        FOR UPDATE SKIP LOCKED
    ) l;

    -- A cursor that was skipped is in somebody's hands: its partition is in use.
    SELECT array_agg(n.partition_id) INTO v_in_use
    FROM (
        SELECT
            c.partition_id, count(*) AS cursor_count,
            bool_or(c.lease_expires_at > v_now OR c.consumed_at >= v_idle_since) AS used
        FROM queen.cursors c
        WHERE c.shard = p_shard AND c.partition_id = ANY (v_ids)
        GROUP BY c.partition_id
    ) n
    LEFT JOIN (
        SELECT u.id, count(*) AS cursor_count FROM unnest(v_locked) AS u (id) GROUP BY u.id
    ) l ON l.id = n.partition_id
    WHERE n.used OR l.cursor_count IS DISTINCT FROM n.cursor_count;

    SELECT array_agg(l.partition_id) INTO v_ids
    FROM (
        SELECT a.partition_id
        FROM queen.allocators a
        WHERE
            a.shard = p_shard
            AND a.partition_id = ANY (v_ids)
            AND a.partition_id <> ALL (coalesce(v_in_use, '{}'))
            AND a.low_watermark = a.next_offset
            AND (a.last_segment_at IS NULL OR a.last_segment_at < v_idle_since)
        ORDER BY a.partition_id
        FOR UPDATE SKIP LOCKED
    ) l;
    IF v_ids IS NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;

    DELETE FROM queen.pending n
    USING queen.allocators a, queen.subscriptions u
    WHERE
        a.shard = p_shard
        AND a.partition_id = ANY (v_ids)
        AND u.queue_id = a.queue_id
        AND n.shard = p_shard
        AND n.subscription_id = u.id
        AND n.partition_id = a.partition_id;
    -- Those that expired and that no pop took over.
    DELETE FROM queen.leases l
    USING queen.cursors c
    WHERE
        c.shard = p_shard
        AND c.partition_id = ANY (v_ids)
        AND l.shard = p_shard
        AND l.lease_id = c.lease_id
        AND l.partition_id = c.partition_id
        AND l.subscription_id = c.subscription_id;
    DELETE FROM queen.cursors c WHERE c.shard = p_shard AND c.partition_id = ANY (v_ids);
    DELETE FROM queen.holes h WHERE h.shard = p_shard AND h.partition_id = ANY (v_ids);
    DELETE FROM queen.allocators a WHERE a.shard = p_shard AND a.partition_id = ANY (v_ids);
    DELETE FROM queen.partitions p WHERE p.shard = p_shard AND p.id = ANY (v_ids);
    GET DIAGNOSTICS o_removed = ROW_COUNT;
    RETURN NEXT;
END
$$;
