-- name: read_segments
-- The bodies that a pop did not hand out with its answer. By primary key.
SELECT s.partition_id, s.base_offset, s.next_offset, s.created_at, s.first_message_id, s.codec, s.body
FROM unnest(%(partition_ids)b::bigint[], %(base_offsets)b::bigint[]) AS u (partition_id, base_offset)
CROSS JOIN LATERAL (
    SELECT *
    FROM queen.segments g
    WHERE
        g.shard = %(shard)s
        AND g.partition_id = u.partition_id
        AND g.base_offset = u.base_offset
    OFFSET 0
) s

-- name: read_segment_at
-- The segment that holds an offset. By primary key, backwards.
SELECT s.partition_id, s.base_offset, s.next_offset, s.created_at, s.first_message_id, s.codec, s.body
FROM queen.segments s
WHERE
    s.shard = %(shard)s
    AND s.partition_id = %(partition_id)s
    AND s.base_offset <= %(offset)s
    AND s.next_offset > %(offset)s
ORDER BY s.base_offset DESC
LIMIT 1
