-- The partitions of a lease, for who is told the lease and nothing else.
--
-- They were found by an index on cursors (lease_id). As every claim and every acknowledgement changes
-- that column, none of them could be a HOT update: each put a new entry into every index of cursors,
-- and where an old snapshot kept the old ones, each had to look through all of them.
--
-- The version before runs on beside this one: it calls the same functions, which are replaced in the
-- same transaction. Claims and acknowledgements wait for it; a claim that waited leaves no row here, so
-- its lease cannot be extended, nor given back: it ends by its time.

-- A row for each partition of a lease, made with the lease and deleted when an acknowledgement ends it
-- or another claim takes over. One that was left behind by a lease that ended otherwise does no harm,
-- as the cursor has the last word, until the clean-up finds it.
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

-- By a statement of its own, so that what the next one sees is later than the last claim.
LOCK TABLE queen.cursors IN ACCESS EXCLUSIVE MODE;

INSERT INTO queen.leases (shard, lease_id, partition_id, subscription_id)
SELECT c.shard, c.lease_id, c.partition_id, c.subscription_id
FROM queen.cursors c
WHERE c.lease_id IS NOT NULL;

DROP INDEX queen.cursors_by_lease;
