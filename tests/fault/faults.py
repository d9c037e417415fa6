"""The faults: each a context in which something is wrong, and after which all is well again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from tests.client import uuid7
from tests.databases import Unavailable
from tests.fault.history import QUEUE_MODE, Pop
from tests.fault.load import LEASE_S, Load
from tests.fault.system import System, Topology, more_files
from tests.fix_proxy import Weather

IDLE_CONNECTIONS = 10_000
CLOCK_SKEW_S = 300


@dataclass(frozen=True)
class Stage:
    """What a fault acts on; all its random choices come from `chance`."""

    system: System
    load: Load
    chance: random.Random


Strike = Callable[[Stage], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Fault:
    name: str
    text: str
    strike: Strike
    topology: Topology = "plain"
    # Of the server, when it has to be started in another way.
    env: Callable[[Path], dict[str, str]] = field(default=lambda folder: {})
    once: bool = False  # it leaves nothing that it could be done to again


FAULTS: dict[str, Fault] = {}


def fault(
    text: str,
    topology: Topology = "plain",
    env: Callable[[Path], dict[str, str]] = lambda folder: {},
    once: bool = False,
) -> Callable[[Strike], Strike]:
    def register(strike: Strike) -> Strike:
        name = getattr(strike, "__name__").replace("_", "-")  # noqa: B009
        FAULTS[name] = Fault(name, text, strike, topology, env, once)
        return strike

    return register


@asynccontextmanager
async def repeatedly(
    act: Callable[[], Awaitable[object]], pause_s: Callable[[], float]
) -> AsyncIterator[None]:
    """Do *act* again and again. One that has begun is finished: it may have to heal something."""
    leaving = asyncio.Event()

    async def go_on() -> None:
        while not leaving.is_set():
            await act()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), pause_s())

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        leaving.set()
        await task


# -- processes --


@fault("nothing at all: the rules hold for a server that is well")
@asynccontextmanager
async def none(_: Stage) -> AsyncIterator[None]:
    yield


@fault("SIGKILL of a worker each second")
@asynccontextmanager
async def kill_workers(stage: Stage) -> AsyncIterator[None]:
    async def kill() -> None:
        stage.system.signal_worker(signal.SIGKILL)

    async with repeatedly(kill, lambda: 1.0):
        yield


@fault("SIGKILL of the supervisor, which is started anew")
@asynccontextmanager
async def kill_supervisor(stage: Stage) -> AsyncIterator[None]:
    await stage.system.restart_server()
    yield


@fault("SIGSTOP of a worker for longer than its leases, then SIGCONT")
@asynccontextmanager
async def stop_worker(stage: Stage) -> AsyncIterator[None]:
    async def stop() -> None:
        pid = stage.system.signal_worker(signal.SIGSTOP)
        await asyncio.sleep(LEASE_S + stage.chance.uniform(0.5, 1.5))
        # In the meantime the supervisor, or another fault, may have ended it.
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async with repeatedly(stop, lambda: stage.chance.uniform(0.5, 1.5)):
        yield


# -- PostgreSQL --


@fault("PostgreSQL: stop -m immediate, and a start")
@asynccontextmanager
async def postgres_immediate(stage: Stage) -> AsyncIterator[None]:
    async with repeatedly(
        lambda: stage.system.crash_database(signal.SIGQUIT), lambda: stage.chance.uniform(1, 3)
    ):
        yield


@fault("SIGKILL of the postmaster, and a start")
@asynccontextmanager
async def postgres_kill(stage: Stage) -> AsyncIterator[None]:
    async with repeatedly(
        lambda: stage.system.crash_database(signal.SIGKILL), lambda: stage.chance.uniform(1, 3)
    ):
        yield


_OTHERS = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


@fault("pg_terminate_backend of half the connections, several times a second")
@asynccontextmanager
async def terminate_backends(stage: Stage) -> AsyncIterator[None]:
    async with await stage.system.connect() as admin:

        async def terminate() -> None:
            await admin.execute(f"SELECT pg_terminate_backend(pid) {_OTHERS} AND random() < 0.5")

        async with repeatedly(terminate, lambda: stage.chance.uniform(0.1, 0.5)):
            yield


@fault("all connections taken by somebody else")
@asynccontextmanager
async def connections_taken(stage: Stage) -> AsyncIterator[None]:
    async with _connections_taken(stage, leave=0):
        yield


@fault("max_connections reached: the server has two connections and gets no more")
@asynccontextmanager
async def connections_scarce(stage: Stage) -> AsyncIterator[None]:
    async with _connections_taken(stage, leave=2):
        yield


@asynccontextmanager
async def _connections_taken(stage: Stage, leave: int) -> AsyncIterator[None]:
    """Take connections until the server has only *leave* of its own."""

    async def take() -> None:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                await taken.enter_async_context(await stage.system.connect())

    async with contextlib.AsyncExitStack() as taken:
        admin = await taken.enter_async_context(await stage.system.connect())
        # The server is as quick as we are: of those it loses, each turn wins a few.
        for _ in range(100):
            takers = [asyncio.create_task(take()) for _ in range(8)]
            cursor = await admin.execute(
                f"SELECT pg_terminate_backend(pid) FROM (SELECT pid {_OTHERS}"
                " AND application_name = 'queue-server' ORDER BY backend_start OFFSET %s) x",
                (leave,),
            )
            await asyncio.gather(*takers)
            if cursor.rowcount == 0:
                break
        else:
            raise AssertionError("the server's connections cannot be taken")
        yield


@fault("a lock held on a row that every push, or every pop and ack, needs")
@asynccontextmanager
async def hot_lock(stage: Stage) -> AsyncIterator[None]:
    async def hold() -> None:
        async with await stage.system.connect() as admin, admin.transaction():
            table = stage.chance.choice(("allocators", "cursors"))
            await admin.execute(
                f"SELECT 1 FROM queen.{table} x JOIN queen.partitions p ON p.id = x.partition_id"
                " JOIN queen.queues q ON q.id = p.queue_id WHERE q.name = %s AND p.name = %s"
                " FOR UPDATE OF x",
                (stage.load.work, f"p{stage.chance.randrange(3)}"),
            )
            await asyncio.sleep(stage.chance.uniform(0.5, 2.5))

    async with repeatedly(hold, lambda: stage.chance.uniform(0.1, 0.5)):
        yield


@fault("a pinned xmin: a transaction with a snapshot that does not end")
@asynccontextmanager
async def pinned_xmin(stage: Stage) -> AsyncIterator[None]:
    async with await stage.system.connect() as admin, admin.transaction():
        await admin.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await admin.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await admin.execute("SELECT count(*) FROM queen.queues")
        yield


@fault("read-only mode")
@asynccontextmanager
async def read_only(stage: Stage) -> AsyncIterator[None]:
    async def switch(value: str) -> None:
        async with await stage.system.connect() as admin:
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            await admin.execute("SELECT pg_reload_conf()")

    await switch("on")
    try:
        yield
    finally:
        await switch("off")


@fault("a full disk under data and WAL", topology="small_disk")
@asynccontextmanager
async def disk_full(stage: Stage) -> AsyncIterator[None]:
    filler = await asyncio.to_thread(stage.system.fill_disk)

    async def use_up_wal() -> None:
        # The segments that are there would last for longer than the fault, the more so the more
        # the load has written before. The next one cannot be made, on which PostgreSQL ends; what
        # it leaves is not always enough to start with.
        with contextlib.suppress(psycopg.OperationalError):
            async with await stage.system.connect() as admin:
                await admin.execute("SELECT pg_switch_wal()")

    try:
        async with repeatedly(use_up_wal, lambda: 0.05):
            yield
    finally:
        filler.unlink()


@fault("failover to a streaming standby that is promoted", topology="standby", once=True)
@asynccontextmanager
async def failover(stage: Stage) -> AsyncIterator[None]:
    await stage.system.fail_over()
    yield


# -- the network between worker and database --


@asynccontextmanager
async def _weather(stage: Stage, weather: Weather) -> AsyncIterator[None]:
    proxy = stage.system.proxy
    assert proxy is not None
    proxy.weather = weather
    try:
        yield
    finally:
        proxy.weather = Weather.FINE


@fault("network: cut, again and again", topology="proxied")
@asynccontextmanager
async def network_cut(stage: Stage) -> AsyncIterator[None]:
    proxy = stage.system.proxy
    assert proxy is not None

    async def cut() -> None:
        async with _weather(stage, Weather.CUT):
            proxy.cut()
            await asyncio.sleep(stage.chance.choice((0.0, 0.0, 0.5, 2.0)))

    async with repeatedly(cut, lambda: stage.chance.uniform(0.1, 1.0)):
        yield


# Nothing tells a silent connection from one whose statement takes its time, until that is over.
@fault(
    "network: half-open, connections fall silent for good",
    topology="proxied",
    env=lambda _: {"DB_STATEMENT_TIMEOUT": "3000"},
)
@asynccontextmanager
async def network_half_open(stage: Stage) -> AsyncIterator[None]:
    async with _weather(stage, Weather.SILENT):
        yield


@fault("network: 200 ms slower", topology="proxied")
@asynccontextmanager
async def network_slow(stage: Stage) -> AsyncIterator[None]:
    async with _weather(stage, Weather.SLOW):
        yield


@fault("network: cut in the middle of an answer", topology="proxied")
@asynccontextmanager
async def network_truncate(stage: Stage) -> AsyncIterator[None]:
    async with _weather(stage, Weather.TRUNCATING):
        yield


@fault("network: cut during the commit", topology="proxied")
@asynccontextmanager
async def network_commit(stage: Stage) -> AsyncIterator[None]:
    async with _weather(stage, Weather.LOSING_ANSWERS):
        yield


# -- clients --


async def _dial(stage: Stage) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(stage.system.url)
    return await asyncio.open_connection(address.hostname, address.port)


@fault("clients that go away while they wait, and while they are answered")
@asynccontextmanager
async def clients_leave(stage: Stage) -> AsyncIterator[None]:
    load = stage.load

    async def leave(queue: str, group: str) -> None:
        begin, wall = time.monotonic(), time.time()
        target = f"/api/v1/pop/queue/{queue}?batch=200&partitions=3&wait=true&timeout=5000"
        if group != QUEUE_MODE:
            target += f"&consumerGroup={group}"
        with contextlib.suppress(OSError):
            reader, writer = await _dial(stage)
            writer.write(
                f"GET {target}&leaseSeconds={LEASE_S} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            if stage.chance.random() < 0.5:
                await asyncio.sleep(stage.chance.uniform(0, 0.05))
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(stage.chance.choice((1, 100, 5000))), 1)
            writer.transport.abort()
        load.recorder.add(
            Pop(
                client="leaver",
                begin=begin,
                end=time.monotonic(),
                wall=wall,
                outcome="unknown",
                error="left",
                queue=queue,
                group=group,
                wait_ms=5000,
                lease_s=LEASE_S,
            )
        )

    async def leave_all() -> None:
        places = ((load.work, "one"), (load.work, QUEUE_MODE), (load.park, "sitters"))
        await asyncio.gather(*(leave(queue, group) for queue, group in places))

    async with repeatedly(leave_all, lambda: stage.chance.uniform(0.02, 0.1)):
        yield


def _push_head(length: int) -> bytes:
    return (
        f"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


@fault("clients that send half a body: some leave, some stay silent")
@asynccontextmanager
async def clients_half_bodies(stage: Stage) -> AsyncIterator[None]:
    # Were one of them stored, the checker would find a message that nobody pushed.
    silent: list[asyncio.StreamWriter] = []

    async def send_half() -> None:
        item = {"queue": stage.load.work, "partition": "p0", "payload": "never",
                "transactionId": uuid7()}  # fmt: skip
        body = json.dumps({"items": [item]}).encode()
        with contextlib.suppress(OSError):
            _, writer = await _dial(stage)
            writer.write(_push_head(len(body)) + body[: len(body) // 2])
            await writer.drain()
            if stage.chance.random() < 0.5 or len(silent) > 200:
                await asyncio.sleep(0.02)
                writer.transport.abort()
            else:
                silent.append(writer)

    try:
        async with repeatedly(send_half, lambda: stage.chance.uniform(0.01, 0.05)):
            yield
    finally:
        for writer in silent:
            writer.transport.abort()


@fault("clients that send their body byte by byte")
@asynccontextmanager
async def clients_slow_bodies(stage: Stage) -> AsyncIterator[None]:
    async def send_slowly() -> None:
        body = json.dumps({"items": []}).encode() + b" " * 40
        with contextlib.suppress(OSError):
            reader, writer = await _dial(stage)
            writer.write(_push_head(len(body)))
            for byte in body:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(100), 2)
            writer.transport.abort()

    async def send_many() -> None:
        await asyncio.gather(*(send_slowly() for _ in range(50)))

    async with repeatedly(send_many, lambda: 0.1):
        yield


@fault(f"{IDLE_CONNECTIONS} idle connections")
@asynccontextmanager
async def clients_idle(stage: Stage) -> AsyncIterator[None]:
    writers: list[asyncio.StreamWriter] = []
    with more_files():
        try:
            for _ in range(IDLE_CONNECTIONS // 100):
                made = await asyncio.gather(*(_dial(stage) for _ in range(100)))
                writers += [writer for _, writer in made]
            yield
        finally:
            for writer in writers:
                writer.transport.abort()


# -- clocks --


def _settable_clock(folder: Path) -> dict[str, str]:
    """The environment of a server whose wall clock can be set; PostgreSQL does not inherit it."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unavailable("there is no C compiler for the clock that can be set")
    library, file = folder / "clock.so", folder / "clock"
    source = Path(__file__).with_name("clock.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"the clock that can be set does not compile: {done.stderr.strip()}")
    file.write_bytes(bytes(8))
    return {"LD_PRELOAD": str(library), "FAULT_CLOCK": str(file)}


@fault("the server's clock jumps by five minutes, to and fro", env=_settable_clock)
@asynccontextmanager
async def clock_jumps(stage: Stage) -> AsyncIterator[None]:
    file = Path(stage.system.cluster.env["FAULT_CLOCK"])
    skews_s = itertools.cycle((CLOCK_SKEW_S, -CLOCK_SKEW_S, 0))

    async def jump() -> None:
        with file.open("r+b") as clock:  # in place: it is mapped
            clock.write(next(skews_s).to_bytes(8, sys.byteorder, signed=True))

    async with repeatedly(jump, lambda: stage.chance.uniform(0.3, 1.5)):
        yield


# -- several --


@fault("several of the others, one after the other and at once", topology="proxied")
@asynccontextmanager
async def mixed(stage: Stage) -> AsyncIterator[None]:
    names = ("kill-workers", "stop-worker", "postgres-kill", "postgres-immediate", "hot-lock",
             "terminate-backends", "network-cut", "network-truncate", "network-commit",
             "clients-leave", "network-slow")  # fmt: skip

    async def strike() -> None:
        async with contextlib.AsyncExitStack() as several:
            for name in stage.chance.sample(names, 2):
                await several.enter_async_context(FAULTS[name].strike(stage))
            await asyncio.sleep(stage.chance.uniform(0.5, 3))

    # What one fault does to the connection of another is part of it.
    async def strike_anyhow() -> None:
        with contextlib.suppress(psycopg.OperationalError):
            await strike()

    async with repeatedly(strike_anyhow, lambda: stage.chance.uniform(0.2, 1)):
        yield
