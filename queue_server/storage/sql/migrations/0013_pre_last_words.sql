-- What servers on one database tell each other of their workers: since when each is up, what uses it,
-- and that it ended in good order, so that one which just went silent can be told from it.
--
-- Expand only: columns that are null or have a constant default, so no row is rewritten, and the
-- version before goes on to book without them.
ALTER TABLE queen.worker_minutes
    ADD COLUMN started_at timestamptz,  -- null: by a version that does not tell when it ends
    ADD COLUMN ended boolean NOT NULL DEFAULT false,
    ADD COLUMN connections integer NOT NULL DEFAULT 0,  -- of clients, when it was last written
    ADD COLUMN parked_pops integer NOT NULL DEFAULT 0,
    ADD COLUMN cpu_share real NOT NULL DEFAULT 0,  -- of one core, in the ten seconds before
    ADD COLUMN fail_rate real NOT NULL DEFAULT 0,  -- as the other rates
    ADD COLUMN request_rate real NOT NULL DEFAULT 0;
