-- What looks at dead letters all the time reads an index alone, or the rows of the page that it shows,
-- also when there are a million of them. While these indexes are made, an acknowledgement that makes a
-- dead letter waits: some seconds for each million that there are.

-- Serves the counts of queues and partitions, which come with every look at them. It is small, because
-- equal keys are stored once.
CREATE INDEX dead_letters_by_partition ON queen.dead_letters (shard, queue_id, partition_id);

-- Serves the listing of all dead letters, newest failure first.
CREATE INDEX dead_letters_by_time ON queen.dead_letters (shard, failed_at);

-- Serves the listing of messages that are dead letters, newest message first.
CREATE INDEX dead_letters_by_message_time
    ON queen.dead_letters (shard, created_at, partition_id, message_offset);

-- A count by an index has to look at the rows that no vacuum has seen yet: these stay few.
ALTER TABLE queen.dead_letters SET (
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_vacuum_scale_factor = 0.02
);
