"""What is put under stress: the real server with two workers, and the database it uses.

By default the server runs its own PostgreSQL. Faults that need more get a PostgreSQL of ours, over
TCP: through a proxy, with a standby beside it, or behind PgBouncer. It is that of the wheel, or the
system's PostgreSQL 15.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from queue_server.cluster.database import find_binaries
from queue_server.cluster.system_user import find_user
from tests.cluster_process import ClusterProcess
from tests.fix_proxy import NetworkProxy

DatabaseKind = Literal["embedded", "pg15", "pgbouncer"]
Topology = Literal["plain", "proxied", "standby", "small_disk"]

PG15_BINARIES = Path("/usr/lib/postgresql/15/bin")
PGBOUNCER = "/usr/sbin/pgbouncer"
SMALL_DISK_MB = 400
START_TIMEOUT = 30.0  # seconds


class Unavailable(Exception):
    """This machine cannot do what a fault needs; the message says why."""


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

    Errors: `Unavailable` when it is not installed.
    """

    def __init__(self, target: str, folder: Path, pool_size: int = 20) -> None:
        if not Path(PGBOUNCER).exists():
            raise Unavailable(f"{PGBOUNCER} is not installed (Debian package pgbouncer)")
        self.port = free_port()
        # It knows fewer words than libpq.
        known = {"host", "port", "user", "dbname"}
        given = {k: v for k, v in conninfo_to_dict(target).items() if k in known}
        folder.mkdir(parents=True)
        user = find_user(folder / "data")
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            "[databases]\n"
            f"postgres = {' '.join(f'{name}={value}' for name, value in given.items())}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {pool_size}\n"
            "max_client_conn = 500\nserver_login_retry = 1\n"
            # libpq's `options` carries the timeouts; PgBouncer cannot pass it on.
            "ignore_startup_parameters = extra_float_digits,options\n"
            f"logfile = {folder / 'pgbouncer.log'}\n"
        )
        user.own(folder)
        self._process = subprocess.Popen(
            [PGBOUNCER, "-q", str(settings)], cwd="/", start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user.popen_arguments,
        )  # fmt: skip

    @property
    def conninfo(self) -> str:
        return make_conninfo("", host="127.0.0.1", port=self.port, user="postgres",
                             dbname="postgres")  # fmt: skip

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class System:
    """A server with its database. Its URL stays the same when it is started anew."""

    def __init__(
        self,
        kind: DatabaseKind,
        topology: Topology,
        chance: random.Random,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.proxy: NetworkProxy | None = None
        self.primary: Postgres | None = None
        self.standby: Postgres | None = None
        self._bouncer: PgBouncer | None = None
        self._kind = kind
        self._topology = topology
        self._chance = chance
        self._env = {"LOG_LEVEL": "info", **(env or {})}
        self._port = 0
        self._mounted = False
        self._folder = Path(tempfile.mkdtemp(prefix="queue-server-fault-"))
        self._folder.chmod(0o755)
        self.data_dir = self._folder / "data"
        self.cluster: ClusterProcess
        self._outputs: list[str] = []  # of servers that were replaced

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_embedded(self) -> bool:
        return self.primary is None

    @property
    def output(self) -> str:
        return "\n".join([*self._outputs, self.cluster.output])

    # -- life --

    async def start(self) -> None:
        if self._topology == "small_disk":
            self._mount_small_disk()
        if self._kind != "embedded" or self._topology in ("proxied", "standby"):
            await asyncio.to_thread(self._start_database)
            await self._connect_parts()
        await asyncio.to_thread(self._start_server)

    def _start_database(self) -> None:
        binaries = PG15_BINARIES if self._kind == "pg15" else find_binaries()
        if not (binaries / "postgres").exists():
            raise Unavailable(f"there is no PostgreSQL in {binaries}")
        options = {}
        if self._topology == "standby":
            # An answered push has to be on the standby before it is answered.
            options = {"synchronous_standby_names": "*", "wal_level": "replica"}
        folder = self.data_dir if self._topology == "small_disk" else self._folder / "primary"
        self.primary = Postgres(binaries, folder, options)
        self.primary.initialise()
        self.primary.start()
        self.primary.wait_ready()
        if self._topology == "standby":
            self.standby = Postgres(binaries, self._folder / "standby", {"hot_standby": "on"})
            self.standby.copy(self.primary)
            self.standby.start()
            self.standby.wait_ready()

    async def _connect_parts(self) -> None:
        assert self.primary is not None
        ports = [self.primary.port]
        if self.standby is not None:
            ports.append(self.standby.port)
        if self._kind == "pgbouncer":
            if self.standby is not None:
                raise Unavailable("failover behind PgBouncer is PgBouncer's to configure")
            self._bouncer = PgBouncer(self.primary.conninfo, self._folder / "bouncer")
            ports = [self._bouncer.port]
        if self._topology == "proxied":
            self.proxy = NetworkProxy(ports[0], self._chance)
            await self.proxy.start()
            ports = [self.proxy.port]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        self._env["DATABASE_URL"] = f"postgresql://postgres@{hosts}/postgres"

    def _start_server(self) -> None:
        data_dir = self.data_dir if self.primary is None else None
        self.cluster = ClusterProcess(
            ["--port", str(self._port)], env=self._env, data_dir=data_dir
        ).start()
        self._port = urlsplit(self.cluster.wait_ready()).port or 0

    async def stop(self) -> str:
        """Drain the server and end everything; what was wrong with the drain, "" when nothing."""
        complaint = ""
        if hasattr(self, "cluster"):
            try:
                code = await asyncio.to_thread(self.cluster.stop)
                if code:
                    complaint = f"the server drained with exit code {code}"
            except subprocess.TimeoutExpired:
                complaint = "the server did not drain in time"
            await asyncio.to_thread(self.cluster.__exit__)
        if self.proxy is not None:
            await self.proxy.stop()
        if self._bouncer is not None:
            await asyncio.to_thread(self._bouncer.stop)
        for database in (self.standby, self.primary):
            if database is not None:
                await asyncio.to_thread(database.end, signal.SIGQUIT)
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.data_dir)], check=False)
        shutil.rmtree(self._folder, ignore_errors=True)
        return complaint

    def _mount_small_disk(self) -> None:
        self.data_dir.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MB}m,mode=755", "tmpfs",
             str(self.data_dir)], capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Unavailable(f"cannot mount a small disk: {done.stderr.strip()}")
        self._mounted = True

    # -- what faults do to it --

    @property
    def admin_conninfo(self) -> str:
        """The way to the database that no fault lies on."""
        if self.primary is not None:
            return self.primary.conninfo
        return make_conninfo("", host=str(self.data_dir / "run"), user="postgres",
                             dbname="postgres", connect_timeout=3)  # fmt: skip

    async def connect(self) -> psycopg.AsyncConnection:
        return await psycopg.AsyncConnection.connect(self.admin_conninfo, autocommit=True)

    def signal_worker(self, number: signal.Signals) -> int | None:
        """Signal one of the workers; its pid, None when it was gone already."""
        pid = self._chance.choice(self.cluster.worker_pids())
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return None
        return pid

    async def crash_database(self, number: signal.Signals) -> None:
        """Signal the postmaster, and wait until there is another one."""
        if self.primary is not None:
            await asyncio.to_thread(self.primary.end, number)
            self.primary.start()
            await asyncio.to_thread(self.primary.wait_ready)
            return
        pid = self.cluster.postgres_pid()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        await asyncio.to_thread(
            self.cluster.wait_until,
            lambda: self.cluster.postgres_pid() != pid,
            START_TIMEOUT,
            "PostgreSQL was not started again",
        )

    async def revive_database(self) -> None:
        """Start a PostgreSQL of ours that the fault has ended; the server looks after its own."""
        if self.primary is not None:
            await asyncio.to_thread(self.primary.wait_ready)

    async def restart_server(self) -> None:
        """SIGKILL the supervisor, see its children gone, and start another on the same port."""
        old = self.cluster
        old.kill()
        await asyncio.to_thread(old.wait)
        self._outputs.append(old.output)
        await asyncio.to_thread(self._start_server)

    async def fail_over(self) -> None:
        """The primary is gone for good; its standby takes its place."""
        assert self.primary is not None
        assert self.standby is not None
        await asyncio.to_thread(self.primary.end, signal.SIGKILL)
        await asyncio.sleep(self._chance.uniform(0, 1))
        self.primary, self.standby = self.standby, None
        async with await self.connect() as connection:
            await connection.execute("SELECT pg_promote(true, 20)")

    def fill_disk(self) -> Path:
        """Take what is left of the small disk; the file that holds it."""
        filler = self.data_dir / "filler"
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while file.write(bytes(65536)):
                pass
        return filler


@contextlib.contextmanager
def more_files() -> Iterator[None]:
    """Allow this process as many open files as it may have."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
