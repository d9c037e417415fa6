-- Which groups are in use: when each last popped, whether it found something or not, and when it last
-- acknowledged. Workers book it, about once a minute for each group in use (queen.note_groups); a
-- table of its own, because every push reads the registrations.
CREATE TABLE queen.group_activity (
    subscription_id integer PRIMARY KEY REFERENCES queen.subscriptions (id) ON DELETE CASCADE,
    popped_at timestamptz NOT NULL,
    acked_at timestamptz  -- null: never
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);

-- What the cursors remember of the groups that there are.
INSERT INTO queen.group_activity (subscription_id, popped_at, acked_at)
SELECT
    u.id, max(c.consumed_at),
    max(c.consumed_at) FILTER (
        WHERE c.settled_lease_id IS NOT NULL OR (u.queue_wide AND c.attempt_offset = -1)
    )
FROM queen.subscriptions u
JOIN queen.cursors c ON c.subscription_id = u.id
WHERE c.consumed_at IS NOT NULL
GROUP BY u.id;

-- A group counts as idle when it has neither popped nor acknowledged for so long; 0: never.
ALTER TABLE queen.limits ADD COLUMN group_idle_seconds integer NOT NULL DEFAULT 3600;

-- It has a fourth parameter now.
DROP FUNCTION IF EXISTS queen.set_limits(bigint, bigint, bigint);
