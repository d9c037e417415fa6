-- What a new connection is asked before it is used: storage/connections.py judges the answer.

-- name: session_state
-- The backend that answers, and how it works. No operator and no unqualified function, as the session's
-- search_path is one of the things in question.
SELECT
    pg_catalog.pg_backend_pid(),
    pg_catalog.current_setting('default_transaction_isolation'),
    pg_catalog.current_setting('array_nulls'),
    pg_catalog.current_setting('session_replication_role'),
    pg_catalog.current_setting('synchronous_commit'),
    pg_catalog.current_schemas(true)::pg_catalog.text[]

-- name: session_durable
-- For this connection alone, whatever its role or database prefers.
SELECT pg_catalog.set_config('synchronous_commit', 'on', false)
