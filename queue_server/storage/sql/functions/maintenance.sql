-- Maintenance: docs/design/maintenance.md says why these keep the order of pushes.

-- switch_maintenance: switch what is not null.
--
-- Parameters: whether pushes are to be held back, whether pops are to bring nothing.
-- Returns:    the modes afterwards.
-- Writes:     maintenance.
-- Locks:      its row FOR UPDATE: pushes that are being held finish first.
-- Isolation:  READ COMMITTED. Every push that begins after the commit meets the new mode.
CREATE OR REPLACE FUNCTION queen.switch_maintenance(p_push boolean, p_pop boolean)
RETURNS TABLE (o_push boolean, o_pop boolean, o_holding boolean) LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1 FROM queen.maintenance m FOR UPDATE;
    UPDATE queen.maintenance m
    SET
        push = coalesce(p_push, m.push),
        pop = coalesce(p_pop, m.pop),
        holding = coalesce(p_push, m.push) OR EXISTS (SELECT 1 FROM queen.held_queues),
        changed_at = clock_timestamp()
    RETURNING m.push, m.pop, m.holding INTO o_push, o_pop, o_holding;
    RETURN NEXT;
END
$$;

-- hold_push: keep a push for later, if pushes to its queues are held back.
--
-- Parameters: the queues that it names, and the push.
-- Returns:    whether it is held; if not, it is to be stored.
-- Writes:     held_queues, held_pushes.
-- Locks:      the row of maintenance FOR KEY SHARE: the mode does not change, and no queue is released,
--             between this decision and its commit. Then the names of its queues, ascending.
-- Isolation:  READ COMMITTED. The id is drawn under the lock, so under FOR UPDATE of the row no lower
--             id is still to be committed.
CREATE OR REPLACE FUNCTION queen.hold_push(
    p_queues text[],
    p_message_count integer,
    p_producer_sub text,
    p_traceparent text,
    p_push_patterns text[],
    p_items bytea
) RETURNS boolean LANGUAGE plpgsql
AS $$
DECLARE
    v_push boolean;
BEGIN
    SELECT m.push INTO v_push FROM queen.maintenance m FOR KEY SHARE;
    IF NOT v_push AND NOT EXISTS (
        SELECT 1 FROM queen.held_queues h WHERE h.name = ANY (p_queues)
    ) THEN
        RETURN false;
    END IF;

    INSERT INTO queen.held_queues (name)
    SELECT DISTINCT u.name FROM unnest(p_queues) AS u (name) ORDER BY u.name
    ON CONFLICT DO NOTHING;
    INSERT INTO queen.held_pushes (
        message_count, producer_sub, traceparent, push_patterns, queues, items
    )
    VALUES (
        p_message_count, p_producer_sub, p_traceparent, p_push_patterns, p_queues, p_items
    );
    RETURN true;
END
$$;

-- newest_held: how far a pass over the held pushes may go.
--
-- Returns:    the newest push that is held; null when none is.
-- Locks:      the row of maintenance FOR UPDATE, while pushes may be held: those that are being held
--             finish first, so none with a lower id is committed later.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.newest_held() RETURNS bigint LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1 FROM queen.maintenance m WHERE m.holding AND NOT m.push FOR UPDATE;
    RETURN (SELECT max(h.id) FROM queen.held_pushes h);
END
$$;

-- release_queues: let pushes to queues for which nothing is held any more through.
--
-- A push that failed keeps no queue: others pass it.
--
-- Returns:    how many queues were released.
-- Writes:     held_queues, maintenance.
-- Locks:      the row of maintenance FOR UPDATE: a push is held before this, and counts, or asks after
--             it and is stored.
-- Isolation:  READ COMMITTED; each statement's snapshot is taken under the lock.
CREATE OR REPLACE FUNCTION queen.release_queues() RETURNS integer LANGUAGE plpgsql
AS $$
DECLARE
    v_count integer;
BEGIN
    PERFORM 1 FROM queen.maintenance m FOR UPDATE;
    DELETE FROM queen.held_queues q
    WHERE NOT EXISTS (
        SELECT 1
        FROM (
            SELECT DISTINCT unnest(h.queues) AS name
            FROM queen.held_pushes h
            WHERE h.failed_at IS NULL
        ) n
        WHERE n.name = q.name
    );
    GET DIAGNOSTICS v_count = ROW_COUNT;
    UPDATE queen.maintenance m SET holding = false
    WHERE m.holding AND NOT m.push AND NOT EXISTS (SELECT 1 FROM queen.held_queues);
    RETURN v_count;
END
$$;
