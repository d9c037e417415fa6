-- Consumer groups that were deleted while some of their cursors are left.
--
-- Expand only: a new table.

-- A row for each subscription that was deleted. Its cursors go afterwards, a bounded number at a
-- time; what a crash left is finished by the next deletion of a group.
CREATE TABLE queen.subscription_remains (
    subscription_id integer PRIMARY KEY,
    queue_id uuid NOT NULL,
    cleared_to bigint NOT NULL DEFAULT 0,  -- partitions up to this id have nothing left
    deleted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Serves the administration of one group, which names it without a queue.
CREATE INDEX subscriptions_by_group ON queen.subscriptions (consumer_group);
