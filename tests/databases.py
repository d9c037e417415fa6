"""Databases that servers under test are given: PostgreSQL of ours, and PgBouncer before it.

By default a server runs a PostgreSQL of its own. With `--database pg15` or `--database pgbouncer`
every server of the session gets a database in one PostgreSQL that the session starts.
"""

from __future__ import annotations

import hashlib
import itertools
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from queue_server.cluster.database import find_binaries
from queue_server.cluster.system_user import find_user

DatabaseKind = Literal["embedded", "pg15", "pgbouncer"]
KINDS: tuple[DatabaseKind, ...] = get_args(DatabaseKind)

PG15_BINARIES = Path("/usr/lib/postgresql/15/bin")
PGBOUNCER = Path("/usr/sbin/pgbouncer")
START_TIMEOUT = 30.0  # seconds


class Unavailable(Exception):
    """This machine cannot do what a test needs; the message says why."""


def unavailable(kind: DatabaseKind) -> str:
    """Why this machine has no such database; "" when it has."""
    if kind == "pg15" and not (PG15_BINARIES / "postgres").exists():
        return f"there is no PostgreSQL in {PG15_BINARIES} (Debian package postgresql-15)"
    if kind == "pgbouncer" and not PGBOUNCER.exists():
        return f"there is no {PGBOUNCER} (Debian package pgbouncer)"
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A PostgreSQL of ours on a TCP port; as a system user when we are root."""

    def __init__(self, binaries: Path, folder: Path, options: Mapping[str, str]) -> None:
        self.binaries = binaries
        self.data = folder / "postgres"
        self.port = free_port()
        self._log = folder / "postgres.log"
        self._options = dict(options)
        self._user = find_user(self.data)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        self._user.own(folder)

    @property
    def conninfo(self) -> str:
        return make_conninfo("", host="127.0.0.1", port=self.port, user="postgres",
                             dbname="postgres", connect_timeout=3)  # fmt: skip

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def initialise(self) -> None:
        self.run("initdb", f"--pgdata={self.data}", "--username=postgres", "--encoding=UTF8",
                 "--locale=C", "--auth=trust", "--no-instructions", "--wal-segsize=4")  # fmt: skip

    def copy(self, primary: Postgres) -> None:
        """Become a streaming standby of *primary*."""
        self.run("pg_basebackup", "-D", str(self.data), "-d", primary.conninfo,
                 "-R", "-X", "stream", "--checkpoint=fast")  # fmt: skip

    def run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, cwd="/", capture_output=True, text=True,
            check=False, **self._user.popen_arguments,
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        options = {
            "port": str(self.port), "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "", "fsync": "on", "jit": "off",
            "max_connections": "60", "shared_buffers": "128MB", **self._options,
        }  # fmt: skip
        command = [str(self.binaries / "postgres"), "-D", str(self.data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, **self._user.popen_arguments,
            )  # fmt: skip

    def wait_ready(self) -> None:
        """Wait until it answers; a start that collides with the end of a crash is repeated."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                psycopg.connect(self.conninfo, connect_timeout=2).close()
                return
            except psycopg.OperationalError as exc:
                if time.monotonic() > deadline:
                    said = self._log.read_text(errors="replace")[-3000:]
                    raise AssertionError(f"PostgreSQL does not answer: {exc}\n{said}") from exc
            if self._process is None or self._process.poll() is not None:
                self.start()
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> None:
        """Signal the postmaster, and see it gone."""
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class PgBouncer:
    """PgBouncer in transaction mode before *target*, a connection string.

    Without a `dbname` in it, it stands before all databases there.
    Errors: `Unavailable` when it is not installed.
    """

    def __init__(self, target: str, folder: Path, pool_size: int = 20) -> None:
        if reason := unavailable("pgbouncer"):
            raise Unavailable(reason)
        self.port = free_port()
        # It knows fewer words than libpq.
        known = {"host", "port", "user", "dbname"}
        given = {k: v for k, v in conninfo_to_dict(target).items() if k in known}
        folder.mkdir(parents=True)
        user = find_user(folder / "data")
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n{'postgres' if 'dbname' in given else '*'} ="
            f" {' '.join(f'{name}={value}' for name, value in given.items())}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {pool_size}\n"
            "max_client_conn = 500\nserver_login_retry = 1\nserver_idle_timeout = 10\n"
            # libpq's `options` carries the timeouts; PgBouncer cannot pass it on.
            "ignore_startup_parameters = extra_float_digits,options\n"
            f"logfile = {folder / 'pgbouncer.log'}\n"
        )
        user.own(folder)
        self._process = subprocess.Popen(
            [str(PGBOUNCER), "-q", str(settings)], cwd="/", start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user.popen_arguments,
        )  # fmt: skip

    @property
    def conninfo(self) -> str:
        return make_conninfo("", host="127.0.0.1", port=self.port, user="postgres",
                             dbname="postgres")  # fmt: skip

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                assert self._process.poll() is None, "PgBouncer ended; its log says why"
                assert time.monotonic() < deadline, "PgBouncer does not listen"
                time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class SharedPostgres:
    """A PostgreSQL in which every test, and every server of a test, has a database of its own.

    `admin_conninfo` leads to it directly, `conninfo` the way a server takes.
    """

    def __init__(self, admin_conninfo: str, way: str = "") -> None:
        self.admin_conninfo = admin_conninfo
        self._way = way or admin_conninfo
        self._numbers = itertools.count()

    def conninfo(self, name: str) -> str:
        return make_conninfo(self._way, dbname=name)

    def direct_conninfo(self, name: str) -> str:
        return make_conninfo(self.admin_conninfo, dbname=name)

    def execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.admin_conninfo, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The name of a new database, which is dropped afterwards."""
        name = f"test_{next(self._numbers)}"
        self.execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        try:
            yield name
        finally:
            self.execute("DROP DATABASE {} WITH (FORCE)", name)

    def stand_in(self, data_dir: Path) -> str:
        """The connection string of the database that stands for the data in a folder.

        It is made when the folder is first asked for: servers that are started on the same folder
        one after the other find what the one before has left.
        """
        name = f"data_{hashlib.sha256(bytes(data_dir)).hexdigest()[:16]}"
        with psycopg.connect(self.admin_conninfo, autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if known.fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.conninfo(name)


@contextmanager
def given_database(kind: DatabaseKind, folder: Path) -> Iterator[SharedPostgres]:
    """A PostgreSQL of the *kind*, for the servers of a whole session."""
    binaries = PG15_BINARIES if kind == "pg15" else find_binaries()
    # Many servers use it at once, and all that they do is thrown away.
    options = {"max_connections": "400", "shared_buffers": "256MB", "max_wal_size": "4GB"}
    folder.parent.chmod(0o755)
    postgres = Postgres(binaries, folder, options)
    postgres.initialise()
    postgres.start()
    try:
        postgres.wait_ready()
        if kind != "pgbouncer":
            yield SharedPostgres(postgres.conninfo)
            return
        target = make_conninfo("", host="127.0.0.1", port=postgres.port, user="postgres")
        bouncer = PgBouncer(target, folder / "bouncer", pool_size=6)
        shared = SharedPostgres(postgres.conninfo, bouncer.conninfo)
        try:
            bouncer.wait_ready()
            # As docs/operating.md tells operators to.
            for timeout in ("statement_timeout = '30s'", "lock_timeout = '10s'"):
                shared.execute(f"ALTER ROLE postgres SET {timeout}")
            yield shared
        finally:
            bouncer.stop()
    finally:
        postgres.end(signal.SIGINT)
