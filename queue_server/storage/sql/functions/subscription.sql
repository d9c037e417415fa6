-- backfill_subscription: give a group that just registered its place in the partitions that exist.
--
-- Registering commits first, so that pushes see the group; then this function is called, a bounded
-- number of partitions each time and each in its own transaction, until it returns false. A group
-- that starts at "now" needs none of it: the pushes after the registration list it.
--
-- Parameters: the subscription; how many partitions at most.
-- Returns:    whether partitions are left.
-- Writes:     cursors, pending, subscriptions.
-- Locks:      the queue FOR NO KEY UPDATE: waits for pushes that began before the group was registered
--             and create a partition, which is not to be seen before their commit. The subscription
--             (one backfill at a time), then allocators, ascending, FOR SHARE: waits for the other
--             pushes that began before, whose messages it lists.
-- Isolation:  READ COMMITTED; the last statement's snapshot is taken under the allocators' locks.
CREATE OR REPLACE FUNCTION queen.backfill_subscription(
    p_shard smallint,
    p_subscription_id integer,
    p_limit integer
) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_subscription record;
    v_ids bigint[];
BEGIN
    PERFORM 1
    FROM queen.queues q
    WHERE q.id = (SELECT u.queue_id FROM queen.subscriptions u WHERE u.id = p_subscription_id)
    FOR NO KEY UPDATE;

    SELECT u.* INTO v_subscription
    FROM queen.subscriptions u
    WHERE u.id = p_subscription_id
    FOR NO KEY UPDATE;
    IF NOT FOUND OR v_subscription.backfilled_to IS NULL THEN
        RETURN false;
    END IF;

    SELECT array_agg(l.id) INTO v_ids
    FROM (
        SELECT p.id
        FROM queen.partitions p
        WHERE
            p.shard = p_shard
            AND p.queue_id = v_subscription.queue_id
            AND p.id > v_subscription.backfilled_to
        ORDER BY p.id
        LIMIT p_limit
    ) l;

    IF v_ids IS NOT NULL THEN
        PERFORM 1
        FROM queen.allocators a
        WHERE a.shard = p_shard AND a.partition_id = ANY (v_ids)
        ORDER BY a.partition_id
        FOR SHARE;

        WITH heads AS MATERIALIZED (
            SELECT a.partition_id, a.next_offset
            FROM queen.allocators a
            WHERE a.shard = p_shard AND a.partition_id = ANY (v_ids)
            ORDER BY a.partition_id
        ),
        new_cursors AS (
            INSERT INTO queen.cursors (shard, partition_id, subscription_id, committed_offset)
            SELECT
                p_shard, h.partition_id, p_subscription_id,
                CASE v_subscription.mode
                    WHEN 'all' THEN 0
                    ELSE queen.offset_at(p_shard, h.partition_id, v_subscription.starts_at)
                END
            FROM heads h
            ON CONFLICT DO NOTHING
        )
        INSERT INTO queen.pending (shard, subscription_id, partition_id)
        SELECT p_shard, p_subscription_id, h.partition_id
        FROM heads h
        WHERE h.next_offset > 0
        ON CONFLICT DO NOTHING;
    END IF;

    IF coalesce(cardinality(v_ids), 0) < p_limit THEN
        UPDATE queen.subscriptions u SET backfilled_to = NULL WHERE u.id = p_subscription_id;
        RETURN false;
    END IF;
    UPDATE queen.subscriptions u
    SET backfilled_to = v_ids[cardinality(v_ids)]
    WHERE u.id = p_subscription_id;
    RETURN true;
END
$$;

-- subscribe: register a group on a queue, or find its registration.
--
-- Parameters: the queue, the group, whether the pop was for the whole queue, and where the group
--             starts if it is new: mode 'all', 'new' or 'timestamp' with its time, and whether it
--             conflates. What is stored wins.
-- Returns:    the subscription, whether backfill_subscription is due, and the stored policy.
-- Calls:      check_group_limit.
-- Writes:     subscriptions.
-- Locks:      for a new group its queue FOR NO KEY UPDATE; the subscription, when it changes.
-- Isolation:  READ COMMITTED; two first pops at once are one registration.
CREATE OR REPLACE FUNCTION queen.subscribe(
    p_queue_id uuid,
    p_consumer_group text,
    p_queue_wide boolean,
    p_mode text,
    p_starts_at timestamptz,
    p_conflation boolean
) RETURNS TABLE (o_subscription_id integer, o_backfill boolean, o_conflation boolean)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM queen.check_group_limit(p_queue_id, p_consumer_group);
    INSERT INTO queen.subscriptions AS u (
        queue_id, consumer_group, queue_wide, mode, starts_at, backfilled_to, conflation
    )
    VALUES (
        p_queue_id, p_consumer_group, p_queue_wide, p_mode,
        coalesce(p_starts_at, clock_timestamp()),
        CASE WHEN p_queue_wide AND p_mode <> 'new' THEN 0 END, p_conflation
    )
    ON CONFLICT (queue_id, consumer_group) DO UPDATE
    -- A group that only named partitions so far registers on the queue now.
    SET
        queue_wide = true, mode = excluded.mode, starts_at = excluded.starts_at,
        backfilled_to = 0, conflation = excluded.conflation
    WHERE NOT u.queue_wide AND excluded.queue_wide
    RETURNING u.id, u.backfilled_to IS NOT NULL, u.conflation
    INTO o_subscription_id, o_backfill, o_conflation;

    IF NOT FOUND THEN
        SELECT u.id, u.backfilled_to IS NOT NULL, u.conflation
        INTO o_subscription_id, o_backfill, o_conflation
        FROM queen.subscriptions u
        WHERE u.queue_id = p_queue_id AND u.consumer_group = p_consumer_group;
    END IF;
    RETURN NEXT;
END
$$;

-- seed_cursor: the place of a group in one partition that its pop named.
--
-- Parameters: the group, the partition, and where to start when the group is not registered on the
--             queue; a registration wins.
-- Returns:    nothing. An existing cursor stays.
-- Writes:     cursors.
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.seed_cursor(
    p_shard smallint,
    p_subscription_id integer,
    p_partition_id bigint,
    p_mode text,
    p_starts_at timestamptz
) RETURNS void LANGUAGE sql
AS $$
    INSERT INTO queen.cursors (
        shard, partition_id, subscription_id, committed_offset, consumed_at
    )
    SELECT
        p_shard, p_partition_id, u.id,
        CASE
            WHEN w.mode = 'all' THEN 0
            ELSE queen.offset_at(p_shard, p_partition_id, coalesce(w.starts_at, clock_timestamp()))
        END,
        -- A place that was chosen for this partition stays when the group registers later.
        CASE WHEN NOT u.queue_wide THEN clock_timestamp() END
    FROM queen.subscriptions u
    CROSS JOIN LATERAL (
        SELECT
            CASE WHEN u.queue_wide THEN u.mode ELSE p_mode END AS mode,
            CASE WHEN u.queue_wide THEN u.starts_at ELSE p_starts_at END AS starts_at
    ) w
    WHERE
        u.id = p_subscription_id
        -- A partition that was removed meanwhile gets none.
        AND EXISTS (
            SELECT 1 FROM queen.allocators a
            WHERE a.shard = p_shard AND a.partition_id = p_partition_id
        )
    ON CONFLICT DO NOTHING
$$;
