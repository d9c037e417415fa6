-- How busy a partition is: the pause before its last push. A partition that is pushed to often stays
-- listed in `pending` when a group has caught up with it; one that is not goes at once.

ALTER TABLE queen.allocators ADD COLUMN previous_segment_at timestamptz;
