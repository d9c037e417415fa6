-- The partitions of a lease, for who is told the lease and nothing else.
--
-- They were found by an index on cursors (lease_id). As every claim and every acknowledgement changes
-- that column, none of them could be a HOT update: each put a new entry into every index of cursors,
-- and where an old snapshot kept the old ones, each had to look through all of them.
--
-- The version before runs on beside this one: it calls the same functions, which are replaced in the
-- same transaction. Only a claim that is waiting for this very transaction leaves no row here: its
-- lease cannot be extended.

-- A row for each partition of a lease, made with the lease and deleted when an acknowledgement brings
-- it to its end. One that was left behind by a lease that ended otherwise does no harm, as the cursor
-- has the last word, until the clean-up finds it.
CREATE TABLE queen.leases (
    shard smallint NOT NULL,
    lease_id uuid NOT NULL,
    partition_id bigint NOT NULL,
    subscription_id integer NOT NULL,
    PRIMARY KEY (shard, lease_id, partition_id, subscription_id)
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);

DROP INDEX queen.cursors_by_lease;

INSERT INTO queen.leases (shard, lease_id, partition_id, subscription_id)
SELECT c.shard, c.lease_id, c.partition_id, c.subscription_id
FROM queen.cursors c
WHERE c.lease_id IS NOT NULL;
