-- Maintenance: pushes held back, pops that bring nothing.
--
-- Expand only: new tables.

-- One row, which all workers of all hosts look at every second.
CREATE TABLE queen.maintenance (
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    push boolean NOT NULL DEFAULT false,  -- pushes are held back
    pop boolean NOT NULL DEFAULT false,  -- pops bring nothing
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

INSERT INTO queen.maintenance DEFAULT VALUES;

-- Pushes that were accepted in maintenance: a row for each request. No queue is touched by them.
CREATE TABLE queen.held_pushes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_count integer NOT NULL,
    producer_sub text,
    traceparent text,
    -- Its items as JSON, each with its transaction id: so a push that is made twice is stored once.
    -- Encrypted, if the server has a key.
    items bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

ALTER TABLE queen.held_pushes ALTER COLUMN items SET STORAGE EXTERNAL;
