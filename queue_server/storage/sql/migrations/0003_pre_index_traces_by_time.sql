-- Serves the deletion of traces that are older than a week. A trace is written by hand of a consumer,
-- so one more index entry costs nothing that matters.
CREATE INDEX traces_by_time ON queen.traces (shard, created_at);
