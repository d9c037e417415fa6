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
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import make_conninfo

from queue_server.cluster.database import find_binaries
from tests.cluster_process import ClusterProcess
from tests.databases import (
    PG15_BINARIES,
    START_TIMEOUT,
    DatabaseKind,
    PgBouncer,
    Postgres,
    Unavailable,
    unavailable,
)
from tests.fix_proxy import NetworkProxy

Topology = Literal["plain", "proxied", "standby", "small_disk"]

SMALL_DISK_MB = 400


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
        if reason := unavailable(self._kind):
            raise Unavailable(reason)
        binaries = PG15_BINARIES if self._kind == "pg15" else find_binaries()
        options = {}
        if self._topology == "standby":
            # An answered push has to be on the standby before it is answered.
            options = {"synchronous_standby_names": "*", "wal_level": "replica"}
        parent = self.data_dir if self._topology == "small_disk" else self._folder
        self.primary = Postgres(binaries, parent / "primary", options)
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
