-- push: append segments to partitions, all of them or none.
--
-- Parameters: one element for each new segment, ascending by partition id; `p_befores` says how many
--             messages this call puts into the same partition before it, `p_afters` how many from it on. Then the id ranges, one or
--             more for each segment (domain/ids.py), naming their segment by its 1-based number.
--             `p_encrypted` says which bodies are; `p_can_encrypt` that those of encrypted queues have
--             to be. It is false for a caller without a key that may store them as plain text.
--             `p_past_holding`: maintenance does not hold it back (what was held, and what an operator
--             pushes).
-- Returns:    o_status 'stored':    one row a partition: the offset of its first new message and the
--                                   segments' time;
--             o_status 'duplicate': one row for each id that is taken, by segment number and
--                                   position: nothing was written, push again without them;
--             o_status 'missing':   one row for each partition that is gone: nothing was written;
--             o_status 'held':      one row for each partition to whose queue pushes are held back:
--                                   nothing was written;
--             o_status 'encrypt':   one row for each partition whose queue wants its bodies
--                                   encrypted, or no longer does: nothing was written;
--             o_status 'full':      one row for each queue that would exceed its max_size, with a
--                                   partition of it, o_position messages in it now and o_index the
--                                   limit: nothing was written.
-- Calls:      allocator_of, find_ids, offset_at, unread_count, reading_groups.
-- Writes:     segments, id_ranges, allocators; pending and cursors of groups new to a partition.
-- Locks:      queues with a max_size, ascending (FOR NO KEY UPDATE: their pushes take turns); then
--             allocators of the partitions, ascending (FOR NO KEY UPDATE), held until the commit.
-- Isolation:  READ COMMITTED. Offsets are given and ids compared under the allocator's lock, so
--             offset order is commit order and of two pushes of one id one sees the other's. Each
--             statement after the lock has a snapshot taken after it, so a subscription committed
--             before the lock was granted is seen; a later one is taken care of by
--             backfill_subscription, which waits for this lock.
CREATE OR REPLACE FUNCTION queen.push(
    p_shard smallint,
    p_partition_ids bigint[],
    p_befores integer[],
    p_afters integer[],
    p_counts integer[],
    p_first_message_ids uuid[],
    p_raw_bytes integer[],
    p_codecs smallint[],
    p_ids bytea[],
    p_bodies bytea[],
    p_encrypted boolean[],
    p_can_encrypt boolean,
    p_past_holding boolean,
    p_range_segments integer[],
    p_range_partition_ids bigint[],
    p_range_min_ids bytea[],
    p_range_max_ids bytea[],
    p_range_scan_ids bytea[]
) RETURNS TABLE (
    o_status text,
    o_partition_id bigint,
    o_segment integer,
    o_position integer,
    o_offset bigint,
    o_first_message_id uuid,
    o_index integer,
    o_created_at timestamptz
) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_queue record;
    v_limited boolean;
    v_mistaken boolean;
    v_holding boolean;
    v_locked bigint[];
    v_count bigint;
    v_now timestamptz;
    v_base_offsets bigint[];
    v_times timestamptz[];
    v_queue_ids uuid[];
BEGIN
    SELECT
        bool_or(q.max_size > 0),
        bool_or(u.encrypted <> (q.encryption_enabled AND p_can_encrypt)),
        -- Without a lock: see "What a push costs" in docs/design/maintenance.md.
        (SELECT m.holding AND NOT p_past_holding FROM queen.maintenance m WHERE m.id)
    INTO v_limited, v_mistaken, v_holding
    FROM unnest(p_partition_ids, p_encrypted) AS u (partition_id, encrypted)
    CROSS JOIN LATERAL queen.allocator_of(p_shard, u.partition_id) a
    CROSS JOIN LATERAL (
        SELECT k.max_size, k.encryption_enabled FROM queen.queues k
        WHERE k.id = a.queue_id
        OFFSET 0
    ) q;

    IF v_holding THEN
        RETURN QUERY
        SELECT DISTINCT
            'held', a.partition_id, NULL::integer, NULL::integer, NULL::bigint, NULL::uuid,
            NULL::integer, NULL::timestamptz
        FROM unnest(p_partition_ids) AS u (partition_id)
        JOIN queen.allocators a ON a.shard = p_shard AND a.partition_id = u.partition_id
        JOIN queen.queues q ON q.id = a.queue_id
        WHERE
            (SELECT m.push FROM queen.maintenance m)
            OR EXISTS (SELECT 1 FROM queen.held_queues h WHERE h.name = q.name);
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;

    IF v_mistaken THEN
        RETURN QUERY
        SELECT DISTINCT
            'encrypt', a.partition_id, NULL::integer, NULL::integer, NULL::bigint, NULL::uuid,
            NULL::integer, NULL::timestamptz
        FROM unnest(p_partition_ids, p_encrypted) AS u (partition_id, encrypted)
        JOIN queen.allocators a ON a.shard = p_shard AND a.partition_id = u.partition_id
        JOIN queen.queues q ON q.id = a.queue_id
        WHERE u.encrypted <> (q.encryption_enabled AND p_can_encrypt);
        RETURN;
    END IF;

    -- Only a queue with a limit is locked and counted.
    IF v_limited THEN
        PERFORM 1
        FROM queen.queues q
        WHERE
            q.max_size > 0
            AND q.id IN (
                SELECT a.queue_id FROM queen.allocators a
                WHERE a.shard = p_shard AND a.partition_id = ANY (p_partition_ids)
            )
        ORDER BY q.id
        FOR NO KEY UPDATE;
    END IF;

    SELECT array_agg(l.partition_id) INTO v_locked
    FROM (
        SELECT DISTINCT u.id FROM unnest(p_partition_ids) AS u (id) ORDER BY u.id OFFSET 0
    ) e
    CROSS JOIN LATERAL (
        -- As queen.allocator_of, and locked as the outer row comes to it, hence in its order.
        SELECT k.partition_id FROM queen.allocators k
        WHERE k.shard = p_shard AND k.partition_id BETWEEN e.id AND e.id
        ORDER BY k.partition_id DESC
        LIMIT 1
        FOR NO KEY UPDATE
    ) l;

    IF
        cardinality(v_locked) IS DISTINCT FROM
        (SELECT count(DISTINCT u.id) FROM unnest(p_partition_ids) AS u (id))
    THEN
        RETURN QUERY
        SELECT DISTINCT
            'missing', m.id, NULL::integer, NULL::integer, NULL::bigint, NULL::uuid,
            NULL::integer, NULL::timestamptz
        FROM unnest(p_partition_ids) AS m (id)
        WHERE m.id <> ALL (coalesce(v_locked, '{}'));
        RETURN;
    END IF;

    IF v_limited THEN
        FOR v_queue IN
            SELECT
                q.id, q.max_size, min(a.partition_id) AS partition_id,
                sum(u.message_count) AS message_count
            FROM unnest(p_partition_ids, p_counts) AS u (partition_id, message_count)
            JOIN queen.allocators a ON a.shard = p_shard AND a.partition_id = u.partition_id
            JOIN queen.queues q ON q.id = a.queue_id
            WHERE q.max_size > 0
            GROUP BY q.id
        LOOP
            v_count := queen.unread_count(p_shard, v_queue.id, NULL);
            IF v_count + v_queue.message_count > v_queue.max_size THEN
                -- Rarely, so that other pushes need not find out who has left.
                v_count := queen.unread_count(
                    p_shard, v_queue.id, queen.reading_groups(p_shard, v_queue.id)
                );
            END IF;
            IF v_count + v_queue.message_count > v_queue.max_size THEN
                o_status := 'full';
                o_partition_id := v_queue.partition_id;
                o_position := v_count;
                o_index := v_queue.max_size;
                RETURN NEXT;
            END IF;
        END LOOP;
        IF o_status IS NOT NULL THEN
            RETURN;
        END IF;
    END IF;

    IF EXISTS (
        SELECT 1
        FROM unnest(
            p_range_partition_ids, p_range_min_ids, p_range_max_ids, p_range_scan_ids
        ) AS r (partition_id, min_id, max_id, scan_id)
        CROSS JOIN LATERAL (
            SELECT 1
            FROM queen.id_ranges i
            WHERE
                i.shard = p_shard
                AND i.partition_id = r.partition_id
                AND i.max_id >= r.min_id
                AND i.max_id <= r.scan_id
                AND i.min_id <= r.max_id
            OFFSET 0
        ) x
    ) THEN
        RETURN QUERY
        SELECT
            'duplicate', NULL::bigint, f.o_list, f.o_position, f.o_offset, f.o_first_message_id,
            f.o_index, f.o_created_at
        FROM queen.find_ids(
            p_shard, p_partition_ids, p_ids, p_range_segments, p_range_partition_ids,
            p_range_min_ids, p_range_max_ids, p_range_scan_ids
        ) f
        JOIN queen.allocators a
            ON a.shard = p_shard AND a.partition_id = p_partition_ids[f.o_list]
        JOIN queen.queues q ON q.id = a.queue_id
        -- An id is taken by a message that may be delivered, or is kept as a dead letter in its place
        -- in the log. One that was removed, or that pops pass over for its age, takes none: whoever
        -- pushes its id again would be told that the new message is stored. An append that is
        -- repeated because its answer was lost finds its own messages whatever became of them, each in
        -- the segment that it was in before.
        WHERE
            f.o_first_message_id = p_first_message_ids[f.o_list]
            OR (
                (
                    q.dedup_window_seconds IS NULL
                    OR f.o_created_at
                        > clock_timestamp() - make_interval(secs => q.dedup_window_seconds)
                )
                AND (
                    least(nullif(q.max_wait_time_seconds, 0), nullif(q.ttl, 0)) IS NULL
                    OR f.o_created_at >= clock_timestamp() - make_interval(
                        secs => least(nullif(q.max_wait_time_seconds, 0), nullif(q.ttl, 0))
                    )
                )
                AND (
                    NOT f.o_gone
                    OR (
                        f.o_offset >= a.low_watermark
                        AND EXISTS (
                            SELECT 1
                            FROM queen.dead_letters d
                            WHERE
                                d.shard = p_shard
                                AND d.partition_id = a.partition_id
                                AND d.message_offset = f.o_offset
                        )
                    )
                )
            );
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;

    v_now := clock_timestamp();

    -- The rows are locked, so where they are does not change under this statement. With `shard` beside
    -- it PostgreSQL may prefer to read the shard's whole index.
    UPDATE queen.allocators a
    SET
        next_offset = a.next_offset + n.message_count,
        last_segment_at = greatest(v_now, a.last_segment_at),
        previous_segment_at = a.last_segment_at
    FROM (
        SELECT l.ctid, sum(u.message_count) AS message_count
        FROM unnest(p_partition_ids, p_counts) AS u (partition_id, message_count)
        CROSS JOIN LATERAL (
            SELECT k.ctid FROM queen.allocators k
            WHERE k.shard = p_shard AND k.partition_id BETWEEN u.partition_id AND u.partition_id
            ORDER BY k.partition_id DESC
            LIMIT 1
        ) l
        GROUP BY l.ctid
    ) n
    WHERE a.ctid = n.ctid;

    -- What this call put into a partition lies at its end.
    SELECT
        array_agg(h.next_offset - n.message_count ORDER BY n.segment),
        array_agg(h.last_segment_at ORDER BY n.segment),
        array_agg(h.queue_id ORDER BY n.segment)
    INTO v_base_offsets, v_times, v_queue_ids
    FROM unnest(p_partition_ids, p_afters) WITH ORDINALITY
        AS n (partition_id, message_count, segment)
    CROSS JOIN LATERAL queen.allocator_of(p_shard, n.partition_id) h;

    -- The bodies are unnested in a target list: there they stream; in FROM they would be copied to
    -- a tuple store first.
    INSERT INTO queen.segments (
        shard, partition_id, base_offset, next_offset, created_at, first_message_id,
        raw_bytes, codec, ids, body
    )
    SELECT
        p_shard, n.partition_id, n.base_offset, n.base_offset + n.message_count, n.created_at,
        n.first_message_id, n.raw_bytes, n.codec, n.ids, n.body
    FROM (
        SELECT
            unnest(p_partition_ids) AS partition_id, unnest(v_base_offsets) AS base_offset,
            unnest(v_times) AS created_at, unnest(p_counts) AS message_count,
            unnest(p_first_message_ids) AS first_message_id, unnest(p_raw_bytes) AS raw_bytes,
            unnest(p_codecs) AS codec, unnest(p_ids) AS ids, unnest(p_bodies) AS body
    ) n;

    -- Indexing an array of numbers costs nothing, unlike one of bodies.
    INSERT INTO queen.id_ranges (shard, partition_id, max_id, min_id, base_offset)
    SELECT p_shard, r.partition_id, r.max_id, r.min_id, v_base_offsets[r.segment]
    FROM unnest(p_range_segments, p_range_partition_ids, p_range_min_ids, p_range_max_ids)
        AS r (segment, partition_id, min_id, max_id);

    IF EXISTS (
        SELECT 1
        FROM unnest(p_partition_ids, v_queue_ids) AS n (partition_id, queue_id)
        JOIN queen.subscriptions s ON s.queue_id = n.queue_id AND s.queue_wide
        LEFT JOIN LATERAL (
            SELECT 1 AS listed FROM queen.pending k
            WHERE
                k.shard = p_shard
                AND k.subscription_id = s.id
                AND k.partition_id = n.partition_id
            OFFSET 0
        ) p ON true
        WHERE p.listed IS NULL
    ) THEN
        -- Where a group starts that meets the partition by this push. backfill_subscription, which
        -- may come later to the same partition, chooses the same place. The first segment of a
        -- partition in this call is the one with nothing of the call before it.
        INSERT INTO queen.cursors (shard, partition_id, subscription_id, committed_offset)
        SELECT
            p_shard, n.partition_id, s.id,
            CASE
                WHEN s.mode = 'all' THEN 0
                -- One that was registered anew with its old start may start before this push.
                WHEN s.mode = 'new' AND s.backfilled_to IS NULL THEN n.base_offset
                ELSE queen.offset_at(p_shard, n.partition_id, s.starts_at)
            END
        FROM unnest(p_partition_ids, v_queue_ids, v_base_offsets, p_befores)
            AS n (partition_id, queue_id, base_offset, before)
        JOIN queen.subscriptions s ON s.queue_id = n.queue_id AND s.queue_wide
        WHERE n.before = 0
        ORDER BY n.partition_id, s.id
        ON CONFLICT DO NOTHING;

        INSERT INTO queen.pending (shard, subscription_id, partition_id)
        SELECT p_shard, s.id, n.partition_id
        FROM unnest(p_partition_ids, v_queue_ids, p_befores) AS n (partition_id, queue_id, before)
        JOIN queen.subscriptions s ON s.queue_id = n.queue_id AND s.queue_wide
        WHERE n.before = 0
        ORDER BY s.id, n.partition_id
        ON CONFLICT DO NOTHING;
    END IF;

    RETURN QUERY
    SELECT
        'stored', n.partition_id, NULL::integer, NULL::integer, n.base_offset, NULL::uuid,
        NULL::integer, n.created_at
    FROM unnest(p_partition_ids, v_base_offsets, v_times, p_befores)
        AS n (partition_id, base_offset, created_at, before)
    WHERE n.before = 0;
END
$$;

-- reading_groups: the groups of a queue for which messages are kept back when it is full.
--
-- A group that popped, never acknowledged a batch and has had nothing delivered for an hour is not in
-- use: a slip, or a trial. It must not stop all pushes.
--
-- Parameters: the queue.
-- Returns:    the other groups; an empty array when there are none.
-- Reads:      subscriptions; cursors of the groups that are older than an hour.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.reading_groups(p_shard smallint, p_queue_id uuid)
RETURNS integer[] LANGUAGE sql STABLE
AS $$
    SELECT coalesce(array_agg(u.id), '{}')
    FROM queen.subscriptions u
    WHERE
        u.queue_id = p_queue_id
        AND (
            u.created_at > clock_timestamp() - interval '1 hour'
            OR EXISTS (
                SELECT 1
                FROM queen.partitions p
                CROSS JOIN LATERAL (
                    SELECT 1
                    FROM queen.cursors c
                    WHERE
                        c.shard = p_shard
                        AND c.partition_id = p.id
                        AND c.subscription_id = u.id
                        AND (
                            -- Of the last claim, acknowledgement or seek.
                            c.consumed_at > clock_timestamp() - interval '1 hour'
                            OR c.lease_expires_at > clock_timestamp()
                            -- It acknowledged a whole batch once, ...
                            OR c.settled_lease_id IS NOT NULL
                            -- ... or it commits on delivery, or was moved here by a seek.
                            OR (u.queue_wide AND c.consumed_at IS NOT NULL AND c.attempt_offset = -1)
                        )
                    OFFSET 0
                ) k
                WHERE p.shard = p_shard AND p.queue_id = p_queue_id
            )
        )
$$;

-- unread_count: the messages of a queue that not every group has read.
--
-- Parameters: the queue; the groups that count, null = all that are registered.
-- Returns:    their number; without a group, all that are kept. Messages that were taken out one by
--             one do not count, nor do cursors that a deleted group has left.
-- Reads:      subscriptions, partitions, allocators, cursors and holes of the whole queue: for queues
--             with a max_size only.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.unread_count(
    p_shard smallint, p_queue_id uuid, p_subscription_ids integer[]
) RETURNS bigint LANGUAGE sql STABLE
AS $$
    SELECT coalesce(sum(a.next_offset - n.place - h.o_count), 0)::bigint
    FROM queen.partitions p
    CROSS JOIN (
        SELECT array_agg(u.id) AS ids
        FROM queen.subscriptions u
        WHERE
            u.queue_id = p_queue_id
            AND (p_subscription_ids IS NULL OR u.id = ANY (p_subscription_ids))
    ) s
    JOIN queen.allocators a ON a.shard = p.shard AND a.partition_id = p.id
    LEFT JOIN LATERAL (
        SELECT min(c.committed_offset) AS lowest
        FROM queen.cursors c
        WHERE
            c.shard = p_shard AND c.partition_id = p.id AND c.subscription_id = ANY (s.ids)
    ) m ON true
    CROSS JOIN LATERAL (
        SELECT greatest(a.low_watermark, coalesce(m.lowest, 0)) AS place
    ) n
    CROSS JOIN LATERAL queen.holes_between(p_shard, p.id, n.place, a.next_offset) h
    WHERE p.shard = p_shard AND p.queue_id = p_queue_id
$$;
