-- Limits hold wherever something is created, by whichever worker or function. They are checked only
-- then. What is over one raises SQLSTATE QS001 with a message for the client, so the transaction
-- leaves nothing behind.

-- check_queue_limit: refuse a queue that would be one too many.
--
-- Returns:    nothing; called when the queue does not exist.
-- Reads:      limits; the queues, as many as there may be.
-- Locks:      none: queues that are created at the same moment do not count each other.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.check_queue_limit() RETURNS void LANGUAGE plpgsql
AS $$
DECLARE
    v_most bigint := (SELECT l.queues FROM queen.limits l);
BEGIN
    IF v_most <= (SELECT count(*) FROM (SELECT 1 FROM queen.queues LIMIT v_most) q) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'QS001',
            MESSAGE = format(
                'there are %s queues, as many as MAX_QUEUES allows: delete some, or raise it', v_most
            );
    END IF;
END
$$;

-- check_group_limit: refuse a group that would be one too many on its queue.
--
-- Parameters: the queue and the group.
-- Returns:    true. An existing group passes.
-- Reads:      limits, the queue's subscriptions.
-- Locks:      for a new group the queue FOR NO KEY UPDATE, so that two are counted one after the other.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.check_group_limit(p_queue_id uuid, p_consumer_group text)
RETURNS boolean LANGUAGE plpgsql
AS $$
DECLARE
    v_most bigint;
    v_queue text;
BEGIN
    IF EXISTS (
        SELECT 1 FROM queen.subscriptions u
        WHERE u.queue_id = p_queue_id AND u.consumer_group = p_consumer_group
    ) THEN
        RETURN true;
    END IF;

    SELECT q.name INTO v_queue FROM queen.queues q WHERE q.id = p_queue_id FOR NO KEY UPDATE;
    SELECT l.groups_of_queue INTO v_most FROM queen.limits l;
    IF
        v_most <= (
            SELECT count(*)
            FROM (
                SELECT 1 FROM queen.subscriptions u WHERE u.queue_id = p_queue_id LIMIT v_most
            ) u
        )
        -- Registered by another while this one waited for the lock.
        AND NOT EXISTS (
            SELECT 1 FROM queen.subscriptions u
            WHERE u.queue_id = p_queue_id AND u.consumer_group = p_consumer_group
        )
    THEN
        RAISE EXCEPTION USING
            ERRCODE = 'QS001',
            MESSAGE = format(
                'queue %s has %s consumer groups, as many as MAX_GROUPS_PER_QUEUE allows: delete some,'
                ' or raise it', to_json(v_queue), v_most
            );
    END IF;
    RETURN true;
END
$$;

-- check_partition_limit: refuse partitions that would be too many for their queue.
--
-- Parameters: the queue, and how many partitions are to be created.
-- Returns:    nothing.
-- Reads:      limits; the newest partition; the queue's partitions, but not each time: they are counted
--             again when so many partitions were created, of any queue, as this one had left.
-- Writes:     partition_quotas.
-- Locks:      its row in partition_quotas, SKIP LOCKED; its first creation waits for another first one.
-- Isolation:  READ COMMITTED. Partitions that are created at the same moment do not count each other.
CREATE OR REPLACE FUNCTION queen.check_partition_limit(
    p_shard smallint, p_queue_id uuid, p_count bigint
) RETURNS void LANGUAGE plpgsql
AS $$
DECLARE
    v_newest bigint := coalesce(
        (SELECT max(p.id) FROM queen.partitions p WHERE p.shard = p_shard), 0
    );
    v_unchecked_to bigint;
    v_most bigint;
    v_count bigint;
BEGIN
    SELECT k.unchecked_to INTO v_unchecked_to
    FROM queen.partition_quotas k
    WHERE k.shard = p_shard AND k.queue_id = p_queue_id;
    IF v_newest + p_count <= v_unchecked_to THEN
        RETURN;
    END IF;

    SELECT l.partitions_of_queue INTO v_most FROM queen.limits l;
    SELECT count(*) INTO v_count
    FROM (
        SELECT 1 FROM queen.partitions p
        WHERE p.shard = p_shard AND p.queue_id = p_queue_id
        LIMIT v_most
    ) p;
    IF v_count + p_count > v_most THEN
        RAISE EXCEPTION USING
            ERRCODE = 'QS001',
            MESSAGE = format(
                'queue %s would have %s partitions, MAX_PARTITIONS_PER_QUEUE allows %s: use fewer, or'
                ' raise it',
                (SELECT to_json(q.name) FROM queen.queues q WHERE q.id = p_queue_id),
                v_count + p_count, v_most
            );
    END IF;

    IF v_unchecked_to IS NULL THEN
        INSERT INTO queen.partition_quotas (shard, queue_id, unchecked_to)
        VALUES (p_shard, p_queue_id, v_newest + v_most - v_count)
        ON CONFLICT DO NOTHING;
    ELSE
        UPDATE queen.partition_quotas k
        SET unchecked_to = v_newest + v_most - v_count
        WHERE k.ctid = (
            SELECT i.ctid FROM queen.partition_quotas i
            WHERE i.shard = p_shard AND i.queue_id = p_queue_id
            FOR NO KEY UPDATE SKIP LOCKED
        );
    END IF;
END
$$;

-- set_limits: have the limits of this server hold.
--
-- Writes:     limits, partition_quotas; nothing when they hold already.
-- Locks:      the row of limits.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.set_limits(
    p_queues bigint, p_groups_of_queue bigint, p_partitions_of_queue bigint,
    p_group_idle_seconds integer
) RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (
        SELECT 1 FROM queen.limits l
        WHERE
            l.queues = p_queues
            AND l.groups_of_queue = p_groups_of_queue
            AND l.partitions_of_queue = p_partitions_of_queue
            AND l.group_idle_seconds = p_group_idle_seconds
    ) THEN
        RETURN;
    END IF;
    UPDATE queen.limits l
    SET
        queues = p_queues, groups_of_queue = p_groups_of_queue,
        partitions_of_queue = p_partitions_of_queue, group_idle_seconds = p_group_idle_seconds;
    -- What went unchecked by the old limit is checked by the new one.
    UPDATE queen.partition_quotas k SET unchecked_to = 0;
END
$$;
