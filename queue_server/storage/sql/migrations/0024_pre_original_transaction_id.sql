-- The transaction id that a message had before it was moved back from the dead letters: the copy has an
-- id of its own, and consumers that recognise repetitions need the first one.
--
-- Expand only: a column that is null, so no row is rewritten.
ALTER TABLE queen.dead_letters ADD COLUMN original_transaction_id text;
