-- Serves everything that names a dead letter by its message's transaction id. A hash, because a
-- transaction id may be longer than a B-tree takes.
CREATE INDEX dead_letters_by_transaction_id ON queen.dead_letters USING hash (transaction_id);
