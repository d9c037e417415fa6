-- expect_group: note that a group reads a queue as soon as it exists.
--
-- Parameters: the queue by name, the group, and where it starts, as of subscribe.
-- Returns:    the queue's id when it exists by now: the group is to be registered. Else null: it is
--             registered with the queue's creation, and starts where it would have started now.
-- Writes:     expected_groups, once an hour for a group that asks again and again.
-- Locks:      the queue's name (queue_name_lock), which its creation holds until its commit: so either
--             the creation sees this group, or this function the queue.
-- Isolation:  READ COMMITTED; the look under the lock has a snapshot of its own.
CREATE OR REPLACE FUNCTION queen.expect_group(
    p_queue text,
    p_consumer_group text,
    p_mode text,
    p_starts_at timestamptz,
    p_conflation boolean
) RETURNS uuid LANGUAGE plpgsql
AS $$
DECLARE
    v_id uuid;
    v_most bigint;
    v_now timestamptz := clock_timestamp();
BEGIN
    SELECT q.id INTO v_id FROM queen.queues q WHERE q.name = p_queue;
    IF FOUND OR EXISTS (
        SELECT 1 FROM queen.expected_groups e
        WHERE
            e.queue = p_queue AND e.consumer_group = p_consumer_group
            AND e.asked_at > v_now - interval '1 hour'
    ) THEN
        RETURN v_id;
    END IF;

    PERFORM queen.queue_name_lock(p_queue);
    SELECT q.id INTO v_id FROM queen.queues q WHERE q.name = p_queue;
    IF FOUND THEN
        RETURN v_id;
    END IF;

    -- As many as there may be queues. The one that asked least recently makes room: a client that
    -- asks for ever new names must not keep the groups of others from being remembered.
    SELECT l.queues INTO v_most FROM queen.limits l;
    IF v_most <= (SELECT count(*) FROM (SELECT 1 FROM queen.expected_groups LIMIT v_most) e) THEN
        DELETE FROM queen.expected_groups e
        WHERE e.ctid = (
            SELECT o.ctid FROM queen.expected_groups o
            ORDER BY o.asked_at
            LIMIT 1
            FOR UPDATE SKIP LOCKED
        );
    END IF;

    INSERT INTO queen.expected_groups AS e (
        queue, consumer_group, mode, starts_at, conflation, asked_at
    )
    VALUES (
        p_queue, p_consumer_group, p_mode, coalesce(p_starts_at, v_now), p_conflation, v_now
    )
    ON CONFLICT (queue, consumer_group) DO UPDATE SET asked_at = excluded.asked_at;
    RETURN NULL;
END
$$;

-- register_expected: register the groups that waited for a queue, as a part of its creation.
--
-- Parameters: the queue, which this transaction has just created under queue_name_lock.
-- Writes:     subscriptions, as many as the limit of groups allows; expected_groups.
-- Locks:      the rows it deletes.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.register_expected(p_queue_id uuid, p_queue text) RETURNS void
LANGUAGE sql
AS $$
    WITH gone AS (
        DELETE FROM queen.expected_groups e
        WHERE e.queue = p_queue
        RETURNING e.*
    )
    INSERT INTO queen.subscriptions (
        queue_id, consumer_group, queue_wide, mode, starts_at, backfilled_to, conflation
    )
    SELECT p_queue_id, g.consumer_group, true, g.mode, g.starts_at, NULL, g.conflation
    FROM gone g
    ORDER BY g.asked_at DESC
    LIMIT (SELECT l.groups_of_queue FROM queen.limits l)
    ON CONFLICT DO NOTHING
$$;

-- queue_name_lock: one transaction at a time creates a queue of this name, or waits for it to exist.
--
-- It is held until the transaction ends. Names with the same hash share it, which does no harm.
CREATE OR REPLACE FUNCTION queen.queue_name_lock(p_queue text) RETURNS void LANGUAGE sql
AS $$
    SELECT pg_advisory_xact_lock(29045, hashtext(p_queue))
$$;
