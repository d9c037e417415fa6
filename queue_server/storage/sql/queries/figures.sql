-- name: last_minute
-- What was booked for queues in the last whole minute.
SELECT
    m.queue, m.push_requests, m.push_messages, m.pop_messages, m.pop_empty, m.transactions,
    m.ack_success, m.ack_failed, m.lag_ms_sum, m.lag_ms_max
FROM queen.queue_minutes m
WHERE
    m.queue = ANY (%(queues)s::text[])
    AND m.minute = date_trunc('minute', clock_timestamp()) - interval '1 minute'

-- name: database_connections
-- Connections of clients to all databases of the server, and how many there may be.
SELECT
    (SELECT sum(d.numbackends) FROM pg_stat_database d)::bigint,
    current_setting('max_connections')::bigint

-- name: last_minute_age
SELECT extract(epoch FROM clock_timestamp() - date_trunc('minute', clock_timestamp()))::float8
