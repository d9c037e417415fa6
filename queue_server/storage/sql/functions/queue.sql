-- ensure_queue: find a queue by name, or create it.
--
-- Parameters: a fresh id, the name, the labels and lease time of an implicitly created queue.
-- Returns:    its id, and whether this call created it.
-- Calls:      check_queue_limit, queue_name_lock, register_expected.
-- Writes:     queues; subscriptions of the groups that waited for it, expected_groups.
-- Locks:      for a queue that does not exist its name, until the commit.
-- Isolation:  READ COMMITTED; two creations at once are one.
CREATE OR REPLACE FUNCTION queen.ensure_queue(
    p_id uuid,
    p_name text,
    p_namespace text,
    p_task text,
    p_lease_time integer
) RETURNS TABLE (o_queue_id uuid, o_created boolean) LANGUAGE plpgsql
AS $$
BEGIN
    o_created := false;
    SELECT q.id INTO o_queue_id FROM queen.queues q WHERE q.name = p_name;
    IF NOT FOUND THEN
        PERFORM queen.check_queue_limit();
        PERFORM queen.queue_name_lock(p_name);
        INSERT INTO queen.queues AS q (id, name, namespace, task, lease_time)
        VALUES (p_id, p_name, p_namespace, p_task, p_lease_time)
        ON CONFLICT (name) DO NOTHING
        RETURNING q.id INTO o_queue_id;
        o_created := FOUND;
        IF o_created THEN
            PERFORM queen.register_expected(o_queue_id, p_name);
        ELSE
            SELECT q.id INTO o_queue_id FROM queen.queues q WHERE q.name = p_name;
        END IF;
    END IF;
    RETURN NEXT;
END
$$;

-- ensure_partitions: find partitions of a queue by name, or create them with their allocator.
--
-- Parameters: the queue and the names.
-- Returns:    name and id of each; none at all when the queue is gone.
-- Calls:      check_partition_limit.
-- Writes:     partitions, allocators.
-- Locks:      the queue FOR SHARE: delete_queue, backfill_subscription and clear_remains wait, or are
--             waited for, until the creation and what is pushed with it are committed. Then the
--             names, ascending: another creation of the same name is waited for.
-- Isolation:  READ COMMITTED; two creations of a name at once are one. A number that is drawn for
--             a name which another creation got first is left out, which does no harm.
CREATE OR REPLACE FUNCTION queen.ensure_partitions(
    p_shard smallint,
    p_queue_id uuid,
    p_names text[]
) RETURNS TABLE (o_name text, o_partition_id bigint) LANGUAGE plpgsql
AS $$
DECLARE
    v_missing text[];
BEGIN
    PERFORM 1 FROM queen.queues q WHERE q.id = p_queue_id FOR SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    -- One look-up by the index of names for each name: see find_partitions in queries/queues.sql.
    SELECT array_agg(DISTINCT n.name) INTO v_missing
    FROM unnest(p_names) AS n (name)
    LEFT JOIN LATERAL (
        SELECT k.id FROM queen.partitions k
        WHERE
            k.shard = p_shard AND k.queue_id = p_queue_id
            AND k.name >= n.name AND k.name <= n.name
        ORDER BY k.name
        LIMIT 1
    ) p ON true
    WHERE p.id IS NULL;

    IF v_missing IS NOT NULL THEN
        PERFORM queen.check_partition_limit(p_shard, p_queue_id, cardinality(v_missing));
        WITH created AS (
            INSERT INTO queen.partitions (shard, id, queue_id, name)
            SELECT
                p_shard, (p_shard::bigint << 47) + nextval('queen.partition_numbers'), p_queue_id,
                m.name
            FROM (SELECT u.name FROM unnest(v_missing) AS u (name) ORDER BY u.name) m
            ON CONFLICT (shard, queue_id, name) DO NOTHING
            RETURNING id
        )
        INSERT INTO queen.allocators (shard, partition_id, queue_id)
        SELECT p_shard, c.id, p_queue_id FROM created c;
    END IF;

    RETURN QUERY
    SELECT p.name, p.id
    FROM (SELECT DISTINCT u.name FROM unnest(p_names) AS u (name)) n
    CROSS JOIN LATERAL (
        SELECT k.name, k.id FROM queen.partitions k
        WHERE
            k.shard = p_shard AND k.queue_id = p_queue_id
            AND k.name >= n.name AND k.name <= n.name
        ORDER BY k.name
        LIMIT 1
    ) p;
END
$$;

-- create_partitions: find partitions of several queues by name, or create them and their queues.
--
-- It is a part of the transaction that pushes to them: what is refused leaves no queue and no
-- partition behind.
--
-- Parameters: the queues, ascending, each with a fresh id, its labels and its number of names; the
--             names of all in one, and the lease time of an implicitly created queue.
-- Returns:    queue and partition of each name.
-- Calls:      ensure_queue, ensure_partitions.
-- Writes:     queues, partitions, allocators.
-- Locks:      as these, queue by queue. Queues with a max_size are locked before (lock_limited_queues).
-- Isolation:  READ COMMITTED. A queue that is deleted meanwhile is created anew.
CREATE OR REPLACE FUNCTION queen.create_partitions(
    p_shard smallint,
    p_ids uuid[],
    p_queues text[],
    p_namespaces text[],
    p_tasks text[],
    p_lease_time integer,
    p_counts integer[],
    p_names text[]
) RETURNS TABLE (o_queue text, o_queue_id uuid, o_name text, o_partition_id bigint)
LANGUAGE plpgsql
AS $$
DECLARE
    v_end integer := 0;
BEGIN
    FOR i IN 1 .. cardinality(p_queues) LOOP
        o_queue := p_queues[i];
        v_end := v_end + p_counts[i];
        LOOP
            SELECT e.o_queue_id INTO o_queue_id
            FROM queen.ensure_queue(
                p_ids[i], o_queue, p_namespaces[i], p_tasks[i], p_lease_time
            ) e;
            RETURN QUERY
            SELECT p_queues[i], o_queue_id, e.o_name, e.o_partition_id
            FROM queen.ensure_partitions(
                p_shard, o_queue_id, p_names[v_end - p_counts[i] + 1 : v_end]
            ) e;
            EXIT WHEN FOUND;
        END LOOP;
    END LOOP;
END
$$;

-- delete_queue: remove a queue and all that hangs on it.
--
-- Parameters: the name.
-- Returns:    whether it existed.
-- Writes:     every table with something of the queue in it; not the figures of past minutes, which
--             go by their names.
-- Locks:      the queue (FOR UPDATE: no partition is created meanwhile), the held pushes that name
--             it, its subscriptions, its cursors, its allocators; each ascending. A push that holds
--             an allocator finishes first and is deleted with the rest; one that waits for it finds
--             the partition gone.
-- Isolation:  READ COMMITTED. One transaction: nobody sees half a queue.
CREATE OR REPLACE FUNCTION queen.delete_queue(p_shard smallint, p_name text) RETURNS boolean
LANGUAGE plpgsql
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_queue_id uuid;
    v_subscription_ids integer[];
    v_ids bigint[];
BEGIN
    SELECT q.id INTO v_queue_id FROM queen.queues q WHERE q.name = p_name FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;

    -- What maintenance has held back for it goes, too, or it would come back without its options. Of
    -- a push that names other queues the rest stays: `queues` says which of its items are wanted.
    DELETE FROM queen.held_pushes h WHERE h.queues = ARRAY[p_name];
    UPDATE queen.held_pushes h
    SET queues = array_remove(h.queues, p_name)
    WHERE p_name = ANY (h.queues);

    SELECT array_agg(l.id) INTO v_subscription_ids
    FROM (
        SELECT u.id FROM queen.subscriptions u
        WHERE u.queue_id = v_queue_id ORDER BY u.id FOR UPDATE
    ) l;
    SELECT array_agg(l.id) INTO v_ids
    FROM (
        SELECT p.id FROM queen.partitions p
        WHERE p.shard = p_shard AND p.queue_id = v_queue_id ORDER BY p.id
    ) l;

    PERFORM 1 FROM queen.cursors c
    WHERE c.shard = p_shard AND c.partition_id = ANY (v_ids)
    ORDER BY c.partition_id, c.subscription_id FOR UPDATE;
    PERFORM 1 FROM queen.allocators a
    WHERE a.shard = p_shard AND a.partition_id = ANY (v_ids)
    ORDER BY a.partition_id FOR UPDATE;

    DELETE FROM queen.pending p
    WHERE p.shard = p_shard AND p.subscription_id = ANY (v_subscription_ids);
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
    WITH gone AS (
        DELETE FROM queen.traces t
        WHERE t.shard = p_shard AND t.partition_id = ANY (v_ids)
        RETURNING t.id
    )
    DELETE FROM queen.trace_names n
    USING gone
    WHERE n.shard = p_shard AND n.trace_id = gone.id;
    DELETE FROM queen.holes h WHERE h.shard = p_shard AND h.partition_id = ANY (v_ids);
    DELETE FROM queen.subscriptions u WHERE u.queue_id = v_queue_id;
    DELETE FROM queen.dead_letters d WHERE d.shard = p_shard AND d.queue_id = v_queue_id;
    DELETE FROM queen.id_ranges x WHERE x.shard = p_shard AND x.partition_id = ANY (v_ids);
    DELETE FROM queen.segments s WHERE s.shard = p_shard AND s.partition_id = ANY (v_ids);
    DELETE FROM queen.allocators a WHERE a.shard = p_shard AND a.partition_id = ANY (v_ids);
    DELETE FROM queen.partitions p WHERE p.shard = p_shard AND p.queue_id = v_queue_id;
    DELETE FROM queen.queues q WHERE q.id = v_queue_id;
    RETURN true;
END
$$;
