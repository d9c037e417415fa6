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
SELECT DISTINCT l.partition_id
FROM queen.leases l
CROSS JOIN LATERAL queen.cursor_of(l.shard, l.partition_id, l.subscription_id) c
WHERE
    l.shard = %(shard)s::smallint
    AND l.lease_id = %(lease_id)s::uuid
    AND c.lease_id = l.lease_id
