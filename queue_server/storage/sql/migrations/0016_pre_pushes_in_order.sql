-- Maintenance keeps the order of pushes, and a partition is created by the transaction that pushes to it.

-- Whether a push has to ask before it is stored: all are held back, or those to some queues. Every push
-- reads it; it is written when maintenance begins and when nothing is held any more.
ALTER TABLE queen.maintenance ADD COLUMN holding boolean NOT NULL DEFAULT false;
UPDATE queen.maintenance SET holding = push;

-- The queues that a held push names. Those of an earlier version are not known; they are stored all the
-- same, and new pushes do not wait for them.
ALTER TABLE queen.held_pushes ADD COLUMN queues text[] NOT NULL DEFAULT '{}';

-- The queues whose pushes are held back, because held ones come before them.
CREATE TABLE queen.held_queues (name text PRIMARY KEY);

-- Where partition ids come from, in place of a row that each creation would lock until its push is
-- committed. A number that was drawn is never drawn again.
CREATE SEQUENCE queen.partition_numbers;
SELECT setval('queen.partition_numbers', max(h.next_partition_number), false) FROM queen.shards h;
ALTER TABLE queen.shards DROP COLUMN next_partition_number;

DROP FUNCTION IF EXISTS queen.push_v2(
    smallint, bigint[], integer[], integer[], integer[], uuid[], integer[], smallint[], bytea[],
    bytea[], boolean[], boolean, integer[], bigint[], bytea[], bytea[], bytea[]
);
