-- How many queues, groups and partitions there may be.

-- One row: the limits of the server that started last.
CREATE TABLE queen.limits (
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    queues bigint NOT NULL,
    groups_of_queue bigint NOT NULL,
    partitions_of_queue bigint NOT NULL
);

INSERT INTO queen.limits (queues, groups_of_queue, partitions_of_queue)
VALUES (100000, 1000, 1000000);

-- Ids of partitions rise. Up to this one, however many of the new ones are of this queue, it cannot
-- have more partitions than it may, so they need not be counted (queen.check_partition_limit).
CREATE TABLE queen.partition_quotas (
    shard smallint NOT NULL,
    queue_id uuid NOT NULL REFERENCES queen.queues (id) ON DELETE CASCADE,
    unchecked_to bigint NOT NULL,
    PRIMARY KEY (shard, queue_id)
);

-- Serves the deletion of a queue.
CREATE INDEX partition_quotas_by_queue ON queen.partition_quotas (queue_id);

-- It has a third parameter now.
DROP FUNCTION IF EXISTS queen.unread_count(smallint, uuid);
