-- What `queue-server doctor` asks a database. All of it may be read by any role.

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
    (SELECT count(*) FROM pg_prepared_xacts)::int AS prepared_count,
    (SELECT extract(epoch FROM clock_timestamp() - min(x.prepared)) FROM pg_prepared_xacts x)::float8
        AS prepared_age_s,
    (SELECT extract(epoch FROM clock_timestamp() - min(a.xact_start)) FROM pg_stat_activity a
     WHERE a.pid <> pg_backend_pid() AND a.backend_type = 'client backend')::float8
        AS transaction_age_s,
    (SELECT max(age(a.backend_xmin)) FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid())
        AS xmin_age,
    (SELECT max(greatest(age(r.xmin), age(r.catalog_xmin))) FROM pg_replication_slots r)
        AS slot_xmin_age,
    (SELECT count(*) FROM pg_replication_slots r WHERE NOT r.active)::int AS idle_slot_count,
    (SELECT age(d.datfrozenxid) FROM pg_database d WHERE d.datname = current_database())
        AS frozen_age,
    pg_database_size(current_database()) AS database_bytes,
    (SELECT array_agg(e.extname::text ORDER BY e.extname) FROM pg_extension e) AS extensions
