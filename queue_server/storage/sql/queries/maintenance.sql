-- name: get_maintenance
SELECT m.push, m.pop FROM queen.maintenance m

-- name: set_maintenance
-- A null leaves it as it is.
UPDATE queen.maintenance m
SET
    push = coalesce(%(push)s::boolean, m.push),
    pop = coalesce(%(pop)s::boolean, m.pop),
    changed_at = clock_timestamp()
RETURNING m.push, m.pop

-- name: hold_push
INSERT INTO queen.held_pushes (message_count, producer_sub, traceparent, push_patterns, items)
VALUES (
    %(message_count)s, %(producer_sub)s, %(traceparent)s, %(push_patterns)s::text[], %(items)b
)
RETURNING id

-- name: count_held
-- Messages, and those of them that could not be read.
SELECT
    coalesce(sum(h.message_count), 0)::bigint,
    coalesce(sum(h.message_count) FILTER (WHERE h.failed_at IS NOT NULL), 0)::bigint
FROM queen.held_pushes h

-- name: read_held
-- The oldest pushes, up to a size, but at least one.
SELECT s.id, s.producer_sub, s.traceparent, s.push_patterns, s.items, s.message_count
FROM (
    SELECT
        h.*,
        sum(octet_length(h.items)) OVER (ORDER BY h.id) - octet_length(h.items) AS before
    FROM (
        SELECT * FROM queen.held_pushes WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
    ) h
) s
WHERE s.before < %(bytes_max)s
ORDER BY s.id

-- name: note_held_failed
-- Those of which it was not known yet.
UPDATE queen.held_pushes h SET failed_at = clock_timestamp()
WHERE h.id = ANY (%(ids)s::bigint[]) AND h.failed_at IS NULL
RETURNING h.id

-- name: delete_held
DELETE FROM queen.held_pushes h WHERE h.id = ANY (%(ids)s::bigint[]) RETURNING h.id
