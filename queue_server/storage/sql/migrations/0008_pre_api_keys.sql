-- Keys that this server issues itself (queue-server keys). A key is stored as its SHA-256 alone.
CREATE TABLE queen.api_keys (
    id text PRIMARY KEY,
    name text NOT NULL,
    hash bytea NOT NULL UNIQUE,
    role text NOT NULL,
    -- Patterns of queue names; all three null: every queue.
    push text[],
    pop text[],
    administer text[],
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    CHECK (num_nulls(push, pop, administer) IN (0, 3))
);
