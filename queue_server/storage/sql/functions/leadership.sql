-- campaign: ask for cluster-wide services, or renew what one has.
--
-- Parameters: the services; who asks (unique to one life of one worker); how long a lease is to be;
--             `p_now` for tests.
-- Returns:    the services that the asker holds now, until `p_seconds` from the time of the call.
-- Writes:     leaderships; nothing when all are held by others.
-- Locks:      leaderships, ascending by service.
-- Isolation:  READ COMMITTED. Of two who take over an expired lease one waits for the other and
--             then finds it live. The clock is read first, so waiting shortens the lease.
CREATE OR REPLACE FUNCTION queen.campaign(
    p_services text[],
    p_holder text,
    p_seconds integer,
    p_now timestamptz DEFAULT NULL
) RETURNS TABLE (o_service text) LANGUAGE plpgsql
AS $$
DECLARE
    v_now timestamptz := coalesce(p_now, clock_timestamp());
BEGIN
    RETURN QUERY
    INSERT INTO queen.leaderships AS l (service, holder, expires_at, changed_at)
    SELECT u.service, p_holder, v_now + make_interval(secs => p_seconds), v_now
    FROM unnest(p_services) AS u (service)
    -- Who cannot win only looks: a refused INSERT would lock the row, and pay for a commit.
    WHERE NOT EXISTS (
        SELECT 1
        FROM queen.leaderships h
        WHERE h.service = u.service AND h.holder <> p_holder AND h.expires_at > v_now
    )
    ORDER BY u.service
    ON CONFLICT (service) DO UPDATE
    SET
        holder = excluded.holder,
        expires_at = excluded.expires_at,
        changed_at = CASE WHEN l.holder = excluded.holder THEN l.changed_at ELSE v_now END
    WHERE l.holder = excluded.holder OR l.expires_at <= v_now
    RETURNING l.service;
END
$$;

-- resign: give services up, so that another worker need not wait for the leases to end.
--
-- Parameters: who gives up all that it holds.
-- Returns:    how many services that were.
-- Writes:     leaderships.
-- Locks:      the rows it deletes.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.resign(p_holder text) RETURNS integer LANGUAGE plpgsql
AS $$
DECLARE
    v_count integer;
BEGIN
    DELETE FROM queen.leaderships l WHERE l.holder = p_holder;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;
