-- Removing a message settles what points at it. Functions whose result changes are made anew by their
-- files; what deleted queues have left behind goes.

DROP FUNCTION IF EXISTS queen.find_ids(
    smallint, bigint[], bytea[], integer[], bigint[], bytea[], bytea[], bytea[]
);
DROP FUNCTION IF EXISTS queen.raise_low_watermarks(
    smallint, uuid[], bigint[], bigint[], text[], boolean
);

DELETE FROM queen.holes h
WHERE NOT EXISTS (
    SELECT 1 FROM queen.partitions p WHERE p.shard = h.shard AND p.id = h.partition_id
);

WITH gone AS (
    DELETE FROM queen.traces t
    WHERE NOT EXISTS (
        SELECT 1 FROM queen.partitions p WHERE p.shard = t.shard AND p.id = t.partition_id
    )
    RETURNING t.shard, t.id
)
DELETE FROM queen.trace_names n
USING gone
WHERE n.shard = gone.shard AND n.trace_id = gone.id;
