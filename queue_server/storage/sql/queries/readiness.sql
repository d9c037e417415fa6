-- Whether requests could be served.

-- name: probe_write
-- Writes, so that it fails where a push would, and tells which migrations there are.
WITH written AS (
    INSERT INTO queen.write_probe (slot, written_at)
    VALUES (%(slot)s::smallint, clock_timestamp())
    ON CONFLICT (slot) DO UPDATE SET written_at = excluded.written_at
)
SELECT name FROM public.queue_server_schema WHERE starts_with(name, 'migrations/')
