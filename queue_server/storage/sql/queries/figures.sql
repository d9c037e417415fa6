-- name: queue_figures
-- What lies in each of the oldest queues, and in all others together (a null name). Queues keep
-- their place in this order, so one that is made later never ends another one's series.
WITH ranked AS (
    SELECT
        q.id,
        CASE WHEN row_number() OVER (ORDER BY q.created_at, q.name) <= %(own_max)s THEN q.name END
            AS name
    FROM queen.queues q
)
SELECT
    r.name, count(DISTINCT r.id), count(s.o_partition_id), coalesce(sum(s.o_total), 0)::bigint,
    coalesce(sum(s.o_depth), 0)::bigint,
    coalesce(sum(least(s.o_processing, s.o_depth)), 0)::bigint,
    coalesce(sum(s.o_dead), 0)::bigint,
    coalesce(extract(epoch FROM clock_timestamp() - min(f.o_at)), 0)::float8
FROM ranked r
LEFT JOIN queen.partition_statistics(
    %(shard)s::smallint, ARRAY(SELECT i.id FROM queen.queues i)
) s ON s.o_queue_id = r.id
LEFT JOIN LATERAL queen.time_at(
    %(shard)s::smallint, s.o_partition_id, CASE WHEN s.o_depth > 0 THEN s.o_slowest END
) f ON true
GROUP BY r.name
ORDER BY r.name

-- name: last_minute
-- What was booked for queues in the last whole minute.
SELECT
    m.queue, m.push_requests, m.push_messages, m.pop_messages, m.pop_empty, m.transactions,
    m.ack_success, m.ack_failed, m.lag_ms_sum, m.lag_ms_max
FROM queen.queue_minutes m
WHERE
    m.queue = ANY (%(queues)s::text[])
    AND m.minute = date_trunc('minute', clock_timestamp()) - interval '1 minute'

-- name: last_minute_age
SELECT extract(epoch FROM clock_timestamp() - date_trunc('minute', clock_timestamp()))::float8
