-- The hot operations: one function each, called alone. Parameters are typed here, so that the type
-- psycopg picks for a list does not matter.

-- name: push
SELECT * FROM queen.push(
    %(shard)s::smallint, %(partition_ids)b::bigint[], %(befores)b::integer[],
    %(afters)b::integer[], %(counts)b::integer[], %(first_message_ids)b::uuid[], %(raw_bytes)b::integer[],
    %(codecs)b::smallint[], %(ids)b::bytea[], %(bodies)b::bytea[],
    %(encrypted)b::boolean[], %(can_encrypt)s::boolean, %(past_holding)s::boolean,
    %(range_segments)b::integer[], %(range_partition_ids)b::bigint[],
    %(range_min_ids)b::bytea[], %(range_max_ids)b::bytea[], %(range_scan_ids)b::bytea[]
)

-- name: find_ids
SELECT * FROM queen.find_ids(
    %(shard)s::smallint, %(list_partition_ids)b::bigint[], %(list_ids)b::bytea[],
    %(range_lists)b::integer[], %(range_partition_ids)b::bigint[], %(range_min_ids)b::bytea[],
    %(range_max_ids)b::bytea[], %(range_scan_ids)b::bytea[]
)

-- name: pop
SELECT * FROM queen.pop(
    %(shard)s::smallint, %(subscription_ids)b::integer[], %(partition_ids)b::bigint[],
    %(start_after)b::bigint[], %(message_limits)b::integer[], %(partition_limits)b::integer[],
    %(lease_seconds)b::integer[], %(lease_ids)b::uuid[], %(auto_acks)b::boolean[],
    %(raw_bytes_max)s::bigint, %(inline_bytes_max)s::bigint,
    %(key_ids)b::bytea[], %(left_out)b::bigint[]
)

-- name: ack
SELECT * FROM queen.ack(
    %(shard)s::smallint, %(calls)b::integer[], %(partition_ids)b::bigint[],
    %(subscription_ids)b::integer[], %(lease_ids)b::uuid[], %(ids)b::bytea[]
)

-- name: extend_lease
SELECT * FROM queen.extend_lease(
    %(shard)s::smallint, %(lease_id)s::uuid, %(seconds)s::integer
)

-- name: release_leases
SELECT * FROM queen.release_leases(%(shard)s::smallint, %(lease_ids)b::uuid[])

-- name: sweep_leases
SELECT * FROM queen.sweep_leases(%(shard)s::smallint, %(after)s::uuid, %(limit)s::integer)

-- name: claimable
SELECT * FROM queen.claimable(
    %(shard)s::smallint, %(subscription_ids)b::integer[], %(partition_ids)b::bigint[],
    %(limits)b::integer[], %(with_oldest)s::boolean, %(left_out)b::bigint[]
)

-- name: sweep_pending
SELECT queen.sweep_pending(%(shard)s::smallint, %(subscription_id)s::integer, %(limit)s::integer)
