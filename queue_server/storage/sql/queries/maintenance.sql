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
INSERT INTO queen.held_pushes (message_count, producer_sub, traceparent, items)
VALUES (%(message_count)s, %(producer_sub)s, %(traceparent)s, %(items)b)
RETURNING id

-- name: count_held
SELECT coalesce(sum(h.message_count), 0)::bigint FROM queen.held_pushes h

-- name: read_held
-- The oldest pushes, up to a size, but at least one.
SELECT s.id, s.producer_sub, s.traceparent, s.items
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

-- name: delete_held
DELETE FROM queen.held_pushes h WHERE h.id = ANY (%(ids)s::bigint[]) RETURNING h.id
