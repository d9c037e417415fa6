"""`doctor`: what is wrong, or may become so, with a server, its database and its machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import typer

from queue_server import __version__
from queue_server.cli.exits import CliError, Exit
from queue_server.cli.output import count, duration, some
from queue_server.cli.session import Session, full_command
from queue_server.settings import Settings

if TYPE_CHECKING:
    from queue_server.domain.encryption import EncryptionState
    from queue_server.storage.diagnostics import Diagnosis

_MIB = 1024 * 1024
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}

# Besides the workers' pools: the supervisor's migrations, this command, a psql, a backup.
_OTHER_CONNECTIONS = 4
_SHARED_BUFFERS_MIN = 128 * _MIB
_MAX_WAL_MIN = 1024 * _MIB
# Leases end by the database's clock alone; tokens and the times in logs are this machine's.
_CLOCK_WARN_S = 1.0
_CLOCK_FAIL_S = 30.0
_OLD_TRANSACTION_S = 600.0
_OLD_XMIN = 10_000_000  # transactions; dead rows since then stay in every table
_KINDS = {"session": "pid", "prepared": "the prepared transaction", "slot": "the slot"}
_FROZEN_WARN = 1_000_000_000  # PostgreSQL stops taking writes at two thousand million
_FROZEN_FAIL = 1_800_000_000
_DISK_WARN = 0.15  # of the disk is free
_DISK_FAIL = 0.05
_SLOW_HEALTH_S = 1.0
# Settings that name a given database.
_GIVEN = ("database_url", "pg_host", "pg_port", "pg_db", "pg_user", "pg_password")
_NAME_IT = (
    "run it on the server's machine, as its user and with its environment, or name the database:"
    " --data-dir, --database-url"
)


class Check(msgspec.Struct):
    """One line of `doctor`."""

    check: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str | None = None


class Running(msgspec.Struct, frozen=True):
    """What is known of the server that answers."""

    unknown_place: str = ""  # why its database cannot be found from here
    is_up: bool = False
    has_other_keys: bool = False  # it was started with a key that this command has not


def add_to(app: typer.Typer) -> None:
    full_command(app, "doctor")(doctor)


def doctor(session: Session) -> None:
    """Check server, database and machine.

    Each line says what to do about what was found. Nothing is changed. Run it as the server's user,
    on its machine. Database and limits are those of the server at --url; where it does not answer,
    or --data-dir, --database-url, DATABASE_URL or PG_HOST name a database, those of a server that
    is started with the same options and environment as this command. Ends with 1 when a check
    fails; warnings are no failure.

    With --json: `{"ok", "checks": [{"check", "status", "found", "fix"}]}`; a status is ok, warn or
    fail.

    \b
    Examples:
      queue-server doctor
      queue-server doctor --database-url postgresql://queue@db/queue --url http://10.0.0.5:6632
      queue-server doctor --json | jq '.checks[] | select(.status != "ok")'
    """
    checks: list[Check] = []
    for check in _all(session):
        checks.append(check)
        if not session.json:
            session.out.line(
                (f"{check.status:4}", _STYLES[check.status]), f"  {check.check}: {check.found}"
            )
            if check.fix:
                session.out.line((f"      {check.fix}", "bold"))
    failed = sum(check.status == "fail" for check in checks)
    if session.json:
        session.out.value({"ok": not failed, "checks": checks})
    elif not failed:
        warned = sum(check.status == "warn" for check in checks)
        session.out.line()
        session.out.line(f"{some(len(checks), 'check')}, {some(warned, 'warning')}, nothing fails")
    if failed:
        raise CliError(f"{failed} of {len(checks)} checks fail")


def _all(session: Session) -> Iterator[Check]:
    server = list(_server(session))
    yield from server
    running = _ask_running(session) if server[0].status != "fail" else Running()
    if running.unknown_place:
        yield Check("database", "warn", f"not checked: {running.unknown_place}", _NAME_IT)
    else:
        yield from _database(session, running)
    yield from _machine(session.settings)


def _ask_running(session: Session) -> Running:
    """Ask the server what it runs with, and have *session* use the same.

    A database that is named by the command line or the environment stays.
    """
    settings = session.settings
    try:
        settings_there = session.client.get("/api/v1/system/settings")["settings"]
        hostname = session.client.get("/api/v1/dashboard/workers")["hostname"]
    except CliError:
        # Its credential may not, or it is of another version.
        return Running(is_up=True)
    values = {one["name"]: one["value"] for one in settings_there}
    is_given = any(values[name] not in ("", 0, "not set") for name in _GIVEN)
    has_other_keys = values["encryption_key"] == "set" and not settings.encryption_key
    if session.names_database:
        return Running(is_up=True, has_other_keys=has_other_keys)
    if is_given:
        return Running("it was given to the server, which does not pass its password on")
    if hostname != socket.gethostname():
        return Running(f"it is on the server's machine, {hostname}")
    same = {name: values[name] for name in ("workers", "db_pool_size", "max_connections")}
    session.settings = dataclasses.replace(settings, data_dir=Path(values["data_dir"]), **same)
    return Running(is_up=True, has_other_keys=has_other_keys)


def _server(session: Session) -> Iterator[Check]:
    client = session.client
    began = time.monotonic()
    try:
        health = client.get_health()
    except CliError as exc:
        yield Check("server", "fail", exc.message, exc.fix or None)
        return
    took_s = time.monotonic() - began
    if health.get("status") != "healthy":
        reason = str(health.get("error", "no reason given"))
        yield Check(
            "server", "fail", f"{client.url} cannot serve: {reason}", "see the database below"
        )
        return
    yield Check(
        "server",
        "warn" if took_s > _SLOW_HEALTH_S else "ok",
        f"{client.url} is healthy, answered in {took_s * 1000:.0f} ms,"
        f" {health.get('workers', '?')} workers, up {health.get('uptime', '?')}",
        "it is slow to answer: are its CPUs or its database busy?"
        if took_s > _SLOW_HEALTH_S
        else None,
    )
    version = str(health.get("version", "unknown"))
    yield Check(
        "version of the server",
        "ok" if version == __version__ else "warn",
        version,
        None if version == __version__ else f"this command is of version {__version__}",
    )


def _database(session: Session, running: Running) -> Iterator[Check]:
    from queue_server.domain.encryption import Keyring
    from queue_server.storage import diagnostics, encryption, migrate

    settings = session.settings
    keyring = Keyring.of_texts(
        settings.encryption_key,
        settings.encryption_old_keys,
        fallback_plaintext=settings.encryption_fallback_plaintext,
    )
    keys: EncryptionState | None = None
    try:
        with session.database(read_only=True) as connection:
            found = diagnostics.diagnose(connection)
            plan = migrate.plan(connection)
            if plan.is_current:
                keys = encryption.diagnose(connection, keyring)
    except CliError as exc:
        if exc.exit_code is not Exit.UNREACHABLE:
            raise
        if running.is_up and not session.names_database:
            yield Check("database", "warn", f"not checked: {exc.message}", _NAME_IT)
        else:
            yield Check("database", "fail", exc.message, exc.fix or None)
        return
    whose = "its own" if settings.conninfo is None else "given"
    yield Check(
        "database",
        "ok",
        f"PostgreSQL {found.server_version // 10000}.{found.server_version % 10000} ({whose}),"
        f" {found.database_bytes / _MIB:,.0f} MiB",
    )
    if plan.problem:
        yield Check("schema", "fail", plan.problem, "start the version that fits the database")
    elif plan.is_current:
        yield Check("schema", "ok", f"that of version {__version__}")
    else:
        yield Check(
            "schema",
            "warn",
            f"not that of version {__version__}",
            "a start of this version applies what is missing; queue-server migrate --plan lists it",
        )
    if keys is not None and running.has_other_keys:
        yield Check(
            "encryption keys",
            "warn",
            "not checked: the server has a key, and this command has none",
            "give this command the server's environment",
        )
    elif keys is not None:
        yield _encryption(keys)
    yield from _durability(found)
    yield from _connections(found, settings)
    yield _timeouts(found)
    yield _session(found)
    yield from _housekeeping(found)
    yield from _sizes(found)
    yield _clock(found)
    yield Check("time zone", "ok", f"{found.settings.get('TimeZone')}; times are kept in UTC")
    yield (
        Check("encoding", "ok", "UTF8")
        if found.is_utf8
        else Check(
            "encoding",
            "fail",
            "not UTF8: names and payloads of other scripts are refused",
            "make the database anew with ENCODING 'UTF8'",
        )
    )
    yield Check("extensions", "ok", f"{', '.join(found.extensions)}; none is needed")


def _encryption(keys: EncryptionState) -> Check:
    problems = keys.problems()
    if problems:
        return Check(
            "encryption keys",
            # Data that cannot be read is as good as lost; pushes that are refused are not.
            "fail" if keys.unknown_keys else "warn",
            "; ".join(problems),
            "give the server, and this command, the keys: docs/security.md, Encryption",
        )
    has = "there is a key" if keys.can_seal else "there is no key, and none is needed"
    return Check("encryption keys", "ok", f"{keys.queue_count} queues are encrypted; {has}")


def _durability(found: Diagnosis) -> Iterator[Check]:
    lost = "acknowledged messages are lost when PostgreSQL or the machine crashes"
    if found.is_standby:
        yield Check("writable", "fail", "it is a standby", "name the primary")
    for name, bad, why in (
        ("fsync", ("off",), f"{lost}, and the database may be damaged"),
        ("synchronous_commit", ("off",), lost),
        ("full_page_writes", ("off",), "a crash may damage the database"),
    ):
        value = found.settings.get(name, "?")
        if value in bad and name == "synchronous_commit" and not found.is_pooled:
            yield Check(name, "ok", f"{value} by default, on for the connections of the server")
        elif value in bad:
            yield Check(name, "fail", f"{value}: {why}", f"ALTER SYSTEM SET {name} = on, reload")
        else:
            yield Check(name, "ok", value)
    yield Check("wal_level", "ok", found.settings.get("wal_level", "?"))


def _connections(found: Diagnosis, settings: Settings) -> Iterator[Check]:
    limit = int(found.settings["max_connections"])
    reserved = sum(
        int(found.settings.get(name, "0"))
        for name in ("superuser_reserved_connections", "reserved_connections")
    )
    needed = settings.db_pool_size + _OTHER_CONNECTIONS
    text = (
        f"{limit}, of which {reserved} are reserved and {found.connection_count} in use;"
        f" {settings.workers} workers need {settings.db_pool_size}"
    )
    if limit - reserved < needed:
        yield Check(
            "max_connections",
            "fail",
            text,
            f"raise max_connections to {needed + reserved} or more, or lower DB_POOL_SIZE",
        )
    else:
        yield Check("max_connections", "ok", text)


def _timeouts(found: Diagnosis) -> Check:
    """Behind a pooler those of the role hold: PgBouncer drops what the server asks for."""
    if not found.is_pooled:
        return Check("timeouts", "ok", "the server sets its own")
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    values = {name: found.settings.get(name, "?") for name in names}
    text = ", ".join(f"{name} {value}" for name, value in values.items()) + ", behind a pooler"
    if "0" not in values.values():
        return Check("timeouts", "ok", text)
    return Check(
        "timeouts",
        "warn",
        f"{text}, which does not pass the server's on: 0 waits for ever",
        "give the role statement_timeout = '30s', lock_timeout = '10s' and"
        " idle_in_transaction_session_timeout = '30s' (ALTER ROLE ... SET),"
        " then RECONNECT in PgBouncer",
    )


def _session(found: Diagnosis) -> Check:
    """The server sets them for its connections, but not where a pooler or a right is between."""
    # The durability has a check of its own.
    problems = [one for one in found.session_problems if not one.startswith("synchronous_commit")]
    text = ", ".join(problems)
    if not problems:
        return Check("session settings", "ok", "those that the server relies on")
    if not found.is_pooled and not any("session_replication_role" in one for one in problems):
        return Check("session settings", "ok", f"the server sets its own, instead of {text}")
    return Check(
        "session settings",
        "fail",
        f"{text}: the server does not start with them",
        "ALTER ROLE ... RESET and ALTER DATABASE ... RESET them, then RECONNECT in a PgBouncer",
    )


def _housekeeping(found: Diagnosis) -> Iterator[Check]:
    for name in ("autovacuum", "track_counts"):
        value = found.settings.get(name, "?")
        if value == "on":
            yield Check(name, "ok", value)
        else:
            yield Check(
                name,
                "fail",
                f"{value}: small tables that change all the time grow, and everything slows down",
                f"ALTER SYSTEM SET {name} = on, reload",
            )
    horizon = found.horizon
    if horizon.prepared:
        oldest_s = max(one.open_s or 0 for one in horizon.prepared)
        yield Check(
            "prepared transactions",
            "warn",
            f"{len(horizon.prepared)}, the oldest since {duration(oldest_s)}:"
            " they hold locks and keep dead rows",
            "this server makes none; COMMIT PREPARED or ROLLBACK PREPARED those in"
            " pg_prepared_xacts",
        )
    else:
        yield Check("prepared transactions", "ok", "none")
    oldest = horizon.oldest_session
    if oldest is not None and (oldest.open_s or 0) > _OLD_TRANSACTION_S:
        yield Check(
            "oldest transaction",
            "warn",
            f"that of pid {oldest.name} ({oldest.application or 'no name'}), open since"
            f" {duration(oldest.open_s or 0)}: dead rows cannot be removed meanwhile",
            f"if nobody needs it: SELECT pg_terminate_backend({oldest.name})",
        )
    else:
        text = "none" if oldest is None else duration(oldest.open_s or 0)
        yield Check("oldest transaction", "ok", text)
    if horizon.xmin_age > _OLD_XMIN:
        holder = horizon.holders[0]
        yield Check(
            "oldest xmin",
            "warn",
            f"{count(horizon.xmin_age)} transactions ago, kept by {_KINDS[holder.kind]}"
            f" {holder.name}: no row that died since can be removed",
            "end it; see backend_xmin in pg_stat_activity and xmin in pg_replication_slots",
        )
    else:
        yield Check("oldest xmin", "ok", f"{count(horizon.xmin_age)} transactions ago")
    if horizon.idle_slots:
        log_bytes = sum(one.log_bytes or 0 for one in horizon.idle_slots)
        unbounded = found.settings.get("max_slot_wal_keep_size") == "-1"
        yield Check(
            "replication slots",
            "warn",
            f"{len(horizon.idle_slots)} without a reader keep {log_bytes / _MIB:,.0f} MiB of log"
            + (" until the disk is full" if unbounded else ""),
            "drop those that nobody needs (pg_drop_replication_slot), or set"
            " max_slot_wal_keep_size",
        )
    if found.frozen_age > _FROZEN_WARN:
        yield Check(
            "transaction ids",
            "fail" if found.frozen_age > _FROZEN_FAIL else "warn",
            f"the oldest is {count(found.frozen_age)} transactions old; at 2,000,000,000"
            " PostgreSQL takes no more writes",
            "find what holds vacuum back (above), then VACUUM FREEZE",
        )
    else:
        yield Check("transaction ids", "ok", f"{count(found.frozen_age)} since the last freeze")


def _sizes(found: Diagnosis) -> Iterator[Check]:
    for name, size, least, fix in (
        (
            "shared_buffers",
            found.shared_buffers_bytes,
            _SHARED_BUFFERS_MIN,
            "a quarter of the memory is usual; needs a restart of PostgreSQL",
        ),
        (
            "max_wal_size",
            found.max_wal_bytes,
            _MAX_WAL_MIN,
            "frequent checkpoints write whole pages again: 4GB suits a queue",
        ),
    ):
        text = f"{size / _MIB:,.0f} MiB"
        small = size < least
        yield Check(name, "warn" if small else "ok", text, fix if small else None)


def _clock(found: Diagnosis) -> Check:
    off = abs(found.clock_ahead_s)
    side = "ahead of" if found.clock_ahead_s > 0 else "behind"
    text = (
        f"the database's is {off:.3f} s {side} this machine's"
        f" (to {max(found.clock_precision_s, 0.001):.3f} s)"
    )
    if off - found.clock_precision_s <= _CLOCK_WARN_S:
        return Check("clocks", "ok", text)
    return Check(
        "clocks",
        "fail" if off > _CLOCK_FAIL_S else "warn",
        f"{text}: tokens expire by this one, leases and delays by the other",
        "run a time service (NTP) on both",
    )


def _machine(settings: Settings) -> Iterator[Check]:
    if settings.conninfo is None:
        yield _disk(settings)
    else:
        yield Check("disk", "ok", "that of the database is on its own machine: watch it there")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A worker's connections, its pool's (of two descriptors each), listeners, pipes, logs.
    needed = settings.max_connections + 2 * settings.connections_per_worker + 100
    if hard != resource.RLIM_INFINITY and hard < needed:
        yield Check(
            "open files",
            "warn",
            f"at most {count(hard)} (ulimit -Hn), {count(needed)} may be needed by a worker with"
            f" MAX_CONNECTIONS={settings.max_connections}",
            "raise the limit (LimitNOFILE= of a unit), or lower MAX_CONNECTIONS",
        )
    else:
        text = "unlimited" if hard == resource.RLIM_INFINITY else count(hard)
        yield Check("open files", "ok", f"{text}, {count(needed)} needed")
    yield _reuse_port(settings.host)
    cpus = len(os.sched_getaffinity(0))
    yield Check(
        "workers",
        "warn" if settings.workers > 2 * cpus else "ok",
        f"{settings.workers} on {cpus} CPUs",
        "more than one for each CPU only costs memory" if settings.workers > 2 * cpus else None,
    )


def _disk(settings: Settings) -> Check:
    for path in (settings.data_dir, *settings.data_dir.parents):
        # Absent, or in a folder that this user may not enter.
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(path)
            break
    share = usage.free / usage.total
    text = f"{usage.free / _MIB / 1024:,.1f} GiB free at {settings.data_dir} ({share:.0%})"
    if share >= _DISK_WARN:
        return Check("disk", "ok", text)
    return Check(
        "disk",
        "fail" if share < _DISK_FAIL else "warn",
        f"{text}: when it is full, pushes fail",
        "make room, or let messages go sooner (retentionSeconds)",
    )


def _reuse_port(host: str) -> Check:
    """Workers listen on one port by it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as first, socket.socket(family) as second:
            for one in (first, second):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            first.bind(address)
            first.listen()
            second.bind((address[0], first.getsockname()[1]))
            second.listen()
    except OSError as exc:
        return Check(
            "SO_REUSEPORT",
            "fail",
            f"two processes cannot listen on one port of {host}: {exc.strerror or exc}",
            "check HOST; the kernel must be Linux 3.9 or newer",
        )
    return Check("SO_REUSEPORT", "ok", f"several workers can listen on one port of {host}")
