#!/bin/sh
# Run by the image of PostgreSQL once, when it has made an empty data directory: a role for the
# server that owns its database and nothing else.
set -eu
psql --set=ON_ERROR_STOP=1 --set=password="$QUEUE_PASSWORD" --username "$POSTGRES_USER" <<'SQL'
CREATE ROLE queue LOGIN PASSWORD :'password';
CREATE DATABASE queue OWNER queue;
SQL
