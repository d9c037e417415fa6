-- name: encrypted_queues
-- How many queues are encrypted, and the first of their names.
SELECT
    count(*),
    coalesce((array_agg(q.name ORDER BY q.name))[:%(limit)s::integer], '{}')
FROM queen.queues q
WHERE q.encryption_enabled

-- name: keys_in_use
SELECT k.o_place, k.o_key_id FROM queen.keys_in_use(%(shard)s::smallint) k
