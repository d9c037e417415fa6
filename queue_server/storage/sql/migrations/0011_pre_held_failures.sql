-- Pushes that were held back and cannot be read, as their key is missing, are told apart.
--
-- Expand only: one column without a default, so no row is rewritten.
ALTER TABLE queen.held_pushes ADD COLUMN failed_at timestamptz;
