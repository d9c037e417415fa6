-- What may be wrong with a database: for `queue-server doctor`, metrics and the dashboard. All of it
-- may be read by any role.

-- name: diagnose_settings
-- As they hold for this connection, in their own units; a setting that this version lacks is absent.
SELECT s.name, current_setting(s.name)
FROM pg_settings s
WHERE s.name = ANY(%(names)s::text[])

-- name: diagnose_numbers
-- Sizes and ages; null = there is none, or this role may not see it.
SELECT
    (SELECT d.encoding = pg_char_to_encoding('UTF8') FROM pg_database d
     WHERE d.datname = current_database()) AS is_utf8,
    pg_is_in_recovery() AS is_standby,
    pg_size_bytes(current_setting('shared_buffers')) AS shared_buffers_bytes,
    pg_size_bytes(current_setting('max_wal_size')) AS max_wal_bytes,
    (SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type = 'client backend')::int
        AS connection_count,
    (SELECT age(d.datfrozenxid) FROM pg_database d WHERE d.datname = current_database())
        AS frozen_age,
    pg_database_size(current_database()) AS database_bytes,
    (SELECT array_agg(e.extname::text ORDER BY e.extname) FROM pg_extension e) AS extensions

-- name: vacuum_horizon
-- What keeps rows of this database that died from being removed, or log that was written: the oldest
-- snapshot first. A transaction that has written keeps them by its id, without a snapshot too. A role
-- without pg_read_all_stats sees the sessions of its own alone.
SELECT
    'session' AS kind, a.pid::text AS name, nullif(a.application_name, '') AS application,
    greatest(age(a.backend_xmin), age(a.backend_xid)) AS xmin_age,
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS open_s,
    NULL::bigint AS log_bytes
FROM pg_stat_activity a
WHERE
    (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
    AND a.pid <> pg_backend_pid()
    AND a.leader_pid IS NULL
    AND (a.datname = current_database() OR a.datname IS NULL)
    AND a.backend_type <> 'autovacuum worker'
UNION ALL
SELECT
    'prepared', p.gid, NULL, age(p.transaction),
    extract(epoch FROM clock_timestamp() - p.prepared)::float8, NULL
FROM pg_prepared_xacts p
WHERE p.database = current_database()
UNION ALL
SELECT
    'slot', s.slot_name::text, NULL, age(s.xmin), NULL,
    -- Of a slot without a reader.
    CASE WHEN NOT s.active THEN coalesce(
        pg_wal_lsn_diff(
            CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
            s.restart_lsn
        ),
        0
    )::bigint END
FROM pg_replication_slots s
WHERE s.xmin IS NOT NULL OR NOT s.active
ORDER BY xmin_age DESC NULLS LAST, open_s DESC NULLS LAST, name
