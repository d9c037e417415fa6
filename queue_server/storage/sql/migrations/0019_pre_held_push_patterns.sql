-- A push is stored after maintenance as its credential might have stored it: one for some queues only
-- does not label a new queue further than its patterns allow.
ALTER TABLE queen.held_pushes ADD COLUMN push_patterns text[];  -- null: it was for all queues
