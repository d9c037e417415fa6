"""A proxy before PostgreSQL that can lose an answer or cut every connection."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Proxy:
    """Forwards a Unix socket.

    With `swallow` set to some bytes, the first message to PostgreSQL that contains them is
    forwarded, PostgreSQL is given the time to answer, and the answer is thrown away together with
    the connection: what happens when the network fails during COMMIT.
    """

    def __init__(self, target: str, folder: str) -> None:
        self.folder = folder
        self.swallow: bytes | None = None
        self.swallowed = asyncio.Event()
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

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(self._target)
        pair = {writer, up_writer}
        self._writers |= pair
        lose_answer = asyncio.Event()
        down = asyncio.create_task(self._down(up_reader, writer, lose_answer))
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
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


@pytest.fixture
async def proxy(conninfo: str) -> AsyncIterator[Proxy]:
    """A proxy before the test's database; `proxied` connects through it."""
    host = conninfo_to_dict(conninfo)["host"]
    with tempfile.TemporaryDirectory(prefix="queue-proxy-") as folder:
        proxy = Proxy(f"{host}/.s.PGSQL.5432", folder)
        await proxy.start()
        try:
            yield proxy
        finally:
            await proxy.stop()


@pytest.fixture
def proxied(conninfo: str, proxy: Proxy) -> str:
    return make_conninfo(conninfo, host=proxy.folder)
