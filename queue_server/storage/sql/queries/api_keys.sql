-- Keys that this server issues.

-- name: api_keys
SELECT id, name, hash, role, push, pop, administer, created_at, expires_at
FROM queen.api_keys ORDER BY created_at, id

-- name: create_api_key
INSERT INTO queen.api_keys (id, name, hash, role, push, pop, administer, expires_at)
VALUES (
    %(id)s::text, %(name)s::text, %(hash)s::bytea, %(role)s::text, %(push)s::text[],
    %(pop)s::text[], %(administer)s::text[],
    clock_timestamp() + make_interval(secs => %(lifetime_s)s::double precision)
)
RETURNING id, name, hash, role, push, pop, administer, created_at, expires_at

-- name: revoke_api_key
DELETE FROM queen.api_keys WHERE id = %(id)s::text RETURNING name

-- name: leased_partitions
SELECT DISTINCT partition_id FROM queen.cursors
WHERE shard = %(shard)s::smallint AND lease_id = %(lease_id)s::uuid
