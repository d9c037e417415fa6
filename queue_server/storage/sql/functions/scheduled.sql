-- When messages are due. A queue's delayedProcessing holds each message back until it is so old, its
-- windowBuffer a whole partition until its newest message is. What is not due yet is scheduled: nobody
-- can read it, so it is not late. A message that waits to be tried again was due, and counts as such.

-- held_for: for how long a message is held back at least.
--
-- Parameters: the queue's delayed_processing and window_buffer.
-- Returns:    the time from its push until it could be read first. Messages that come after it can
--             keep a window open for longer: that is waiting, and counts as such.
-- Reads:      nothing. One expression, so that PostgreSQL inlines it.
CREATE OR REPLACE FUNCTION queen.held_for(p_delay_seconds integer, p_window_seconds integer)
RETURNS interval LANGUAGE sql IMMUTABLE
AS $$
    SELECT make_interval(secs => greatest(p_delay_seconds, p_window_seconds, 0))
$$;

-- scheduled_from: the first message of a partition that is not due yet.
--
-- Parameters: the partition; the offset from which on it is of interest; next_offset and
--             last_segment_at of its allocator; delayed_processing and window_buffer of its queue.
-- Returns:    one row, an offset in [p_from, p_next_offset]; the latter when all messages are due.
--             One SELECT that returns a table, so that PostgreSQL inlines it.
-- Reads:      nothing where there is no delay, or the newest message is due. Else segments: one, and
--             if that one is due, those of a binary search (queen.offset_at).
-- Locks:      none.
-- Isolation:  READ COMMITTED.
CREATE OR REPLACE FUNCTION queen.scheduled_from(
    p_shard smallint,
    p_partition_id bigint,
    p_from bigint,
    p_next_offset bigint,
    p_last_segment_at timestamptz,
    p_delay_seconds integer,
    p_window_seconds integer
) RETURNS TABLE (o_offset bigint) LANGUAGE sql STABLE
AS $$
    SELECT CASE
        WHEN p_delay_seconds <= 0 AND p_window_seconds <= 0 OR p_from >= p_next_offset
            THEN p_next_offset
        WHEN
            p_window_seconds > 0
            AND p_last_segment_at > n.now - make_interval(secs => p_window_seconds)
            THEN p_from
        WHEN
            p_delay_seconds <= 0
            OR p_last_segment_at <= n.now - make_interval(secs => p_delay_seconds)
            THEN p_next_offset
        WHEN
            (SELECT t.o_at FROM queen.time_at(p_shard, p_partition_id, p_from) t)
            > n.now - make_interval(secs => p_delay_seconds)
            THEN p_from
        ELSE greatest(
            queen.offset_at(
                p_shard, p_partition_id, n.now - make_interval(secs => p_delay_seconds)
            ),
            p_from
        )
    END
    FROM (SELECT clock_timestamp() AS now) n
$$;
