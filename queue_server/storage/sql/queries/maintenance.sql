-- name: get_maintenance
SELECT m.push, m.pop, m.holding FROM queen.maintenance m

-- name: switch_maintenance
SELECT * FROM queen.switch_maintenance(%(push)s::boolean, %(pop)s::boolean)

-- name: lock_maintenance
-- Until the commit no push is held, and the mode does not change.
SELECT m.push, m.pop, m.holding FROM queen.maintenance m FOR UPDATE

-- name: hold_push
SELECT queen.hold_push(
    %(queues)s::text[], %(message_count)s::integer, %(producer_sub)s::text,
    %(traceparent)s::text, %(push_patterns)s::text[], %(items)b::bytea
)

-- name: newest_held
SELECT queen.newest_held()

-- name: release_queues
SELECT queen.release_queues()

-- name: count_held
-- Messages, and those of them that could not be stored.
SELECT
    coalesce(sum(h.message_count), 0)::bigint,
    coalesce(sum(h.message_count) FILTER (WHERE h.failed_at IS NOT NULL), 0)::bigint
FROM queen.held_pushes h

-- name: read_held
-- The oldest pushes between two, up to a size, but at least one; those to some queues left out, and
-- those that are not tried for the present.
SELECT s.id, s.producer_sub, s.traceparent, s.push_patterns, s.items, s.message_count, s.queues
FROM (
    SELECT
        h.*,
        sum(octet_length(h.items)) OVER (ORDER BY h.id) - octet_length(h.items) AS before
    FROM (
        SELECT * FROM queen.held_pushes
        WHERE
            id > %(after)s AND id <= %(up_to)s
            AND NOT queues && %(blocked)s::text[]
            AND id <> ALL (%(skipped)s::bigint[])
        ORDER BY id
        LIMIT %(limit)s
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
-- Not one of which a queue was deleted since it was read.
DELETE FROM queen.held_pushes h
USING unnest(%(ids)b::bigint[], %(queue_counts)b::integer[]) AS u (id, queue_count)
WHERE h.id = u.id AND cardinality(h.queues) = u.queue_count
RETURNING h.id
