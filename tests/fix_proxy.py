"""Proxies before PostgreSQL that do what networks do: cut, lose, delay, fall silent."""

import asyncio
import contextlib
import enum
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Proxy:
    """Forwards a Unix socket to the PostgreSQL of *target*, a connection string.

    With `swallow` set to some bytes, the first message to PostgreSQL that contains them is
    forwarded, PostgreSQL is given the time to answer, and the answer is thrown away together with
    the connection: what happens when the network fails during COMMIT.

    While `silent`, nothing passes; a connection that lived then stays silent for good.
    """

    def __init__(self, target: str, folder: str) -> None:
        self.folder = folder
        self.swallow: bytes | None = None
        self.swallowed = asyncio.Event()
        self.silent = False
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(
            self._serve, path=str(Path(self.folder) / ".s.PGSQL.5432")
        )

    async def stop(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Cut every connection at once."""
        for writer in list(self._writers):
            writer.transport.abort()

    def leads_to(self, conninfo: str) -> str:
        """The same connection string, by way of this proxy."""
        return make_conninfo(conninfo, host=self.folder, port=5432)

    async def open_target(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        given = conninfo_to_dict(self._target)
        host, port = str(given["host"]), int(given.get("port") or 5432)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await self.open_target()
        pair = {writer, up_writer}
        self._writers |= pair
        lose_answer = asyncio.Event()
        down = asyncio.create_task(self._down(up_reader, writer, lose_answer))
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    if self.silent:
                        await asyncio.Event().wait()
                    if self.swallow is not None and self.swallow in data:
                        self.swallow = None
                        lose_answer.set()
                    up_writer.write(data)
                    await up_writer.drain()
        finally:
            down.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await down
            for one in pair:
                one.close()
            self._writers -= pair

    async def _down(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lose_answer: asyncio.Event,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if lose_answer.is_set():
                    # The server has answered, so it has committed; nobody will know.
                    self.swallowed.set()
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()


class Weather(enum.Enum):
    """How a network is."""

    FINE = "everything passes"
    CUT = "connections break and no new one is made"
    SILENT = "nothing passes any more, and nobody is told"
    SLOW = "everything takes 200 ms longer"
    TRUNCATING = "now and then a connection breaks in the middle of an answer"
    LOSING_ANSWERS = "now and then a request is carried out and its connection breaks"


# Of the pieces that pass: a few a second under load.
STRIKE_SHARE = 0.01


class NetworkProxy:
    """Forwards TCP to *port* of this host, through a network whose `weather` can change.

    A connection that lived in silent weather stays silent for good, as when a firewall has
    forgotten it; new ones are made once the weather is better.
    """

    def __init__(self, target: int, chance: random.Random) -> None:
        self.weather = Weather.FINE
        self.port = 0
        self.strikes = 0
        self._target = target
        self._chance = chance
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut every connection at once."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        pair = {writer}
        try:
            if self.weather is Weather.CUT:
                return
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
            pair.add(up_writer)
            self._writers |= pair
            losing = asyncio.Event()
            ways = [
                asyncio.create_task(self._pass(reader, up_writer, losing, is_answer=False)),
                asyncio.create_task(self._pass(up_reader, writer, losing, is_answer=True)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the database is not there
        except asyncio.CancelledError:
            pass  # the proxy stops
        finally:
            for one in pair:
                one.transport.abort()
            self._writers -= pair
            self._tasks.discard(task)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        losing: asyncio.Event,
        *,
        is_answer: bool,
    ) -> None:
        """Pass on what comes, until one side closes or the connection breaks."""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                match self.weather:
                    case Weather.SILENT:
                        await asyncio.Event().wait()
                    case Weather.SLOW:
                        await asyncio.sleep(0.1)  # once each way
                    case Weather.TRUNCATING if is_answer and self._strikes():
                        writer.write(data[: len(data) // 2])
                        await writer.drain()
                        return
                    case Weather.LOSING_ANSWERS if not is_answer:
                        # A statement of its own is a commit; that of a longer transaction is rare.
                        if self._strikes() or (
                            b"COMMIT\x00" in data and self._chance.random() < 0.3
                        ):
                            losing.set()
                if losing.is_set() and is_answer:
                    return
                writer.write(data)
                await writer.drain()
                if losing.is_set() and self._chance.random() < 0.3:
                    return  # it may not even have been carried out

    def _strikes(self) -> bool:
        struck = self._chance.random() < STRIKE_SHARE
        self.strikes += struck
        return struck


@pytest.fixture
async def proxy(conninfo: str) -> AsyncIterator[Proxy]:
    """A proxy before the test's database; `proxied` connects through it."""
    with tempfile.TemporaryDirectory(prefix="queue-proxy-") as folder:
        proxy = Proxy(conninfo, folder)
        await proxy.start()
        try:
            yield proxy
        finally:
            await proxy.stop()


@pytest.fixture
def proxied(conninfo: str, proxy: Proxy) -> str:
    return proxy.leads_to(conninfo)
