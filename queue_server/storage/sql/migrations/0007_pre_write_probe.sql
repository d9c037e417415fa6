-- One row for each worker slot, written at most once a second while somebody asks /readyz or /health:
-- whether the database takes a write shows only in a write.
CREATE TABLE queen.write_probe (
    slot smallint PRIMARY KEY,
    written_at timestamptz NOT NULL
) WITH (fillfactor = 50);
