"""An HTTP server that does nothing: the ceiling for requests of a single message.

aiohttp under uvloop in as many processes as the server has workers, each with a listener of its own
on one port (SO_REUSEPORT). Whatever is posted is answered with the same 200 and the body that a
push of one message gets. `python -m bench.baseline 2` prints its URL and serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop
from aiohttp import web

from bench.core_seconds import Meter
from bench.lifetime import end_with_parent
from bench.server import ROOT, ServerFailed

_BODY = (
    b'[{"index":0,"status":"queued","transaction_id":"01932f1a-3c58-7c00-8f5e-1b2c3d4e5f60",'
    b'"offset":0,"message_id":"01932f1a-3c59-7000-9a0b-0c1d2e3f4a5b",'
    b'"partition_id":"281474976710673","trace_id":null,"queueName":"nothing"}]'
)

_ENDING = {signal.SIGTERM, signal.SIGINT}


@contextmanager
def running(workers: int) -> Iterator[tuple[str, Meter]]:
    """Start it in *workers* processes; its URL, and a meter of what it takes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.baseline", str(workers)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        preexec_fn=end_with_parent,  # noqa: PLW1509 -- no threads here
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        if not url:
            raise ServerFailed("the do-nothing server did not start")
        yield url, Meter(process.pid)
    finally:
        process.terminate()
        process.communicate()


async def _answer(_: web.Request) -> web.Response:
    return web.Response(body=_BODY, content_type="application/json", charset="utf-8")


async def _serve(listener: socket.socket) -> None:
    app = web.Application()
    app.router.add_post("/api/v1/push", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    await asyncio.Event().wait()


def main(workers: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    listeners: list[socket.socket] = []
    for _ in range(workers):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", listeners[0].getsockname()[1] if listeners else 0))
        listener.listen(1024)
        listeners.append(listener)
    children = []
    for listener in listeners:
        pid = os.fork()
        if not pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            uvloop.run(_serve(listener))
        children.append(pid)
    # The URL is printed once the kernel takes connections, which it does already.
    print(f"http://127.0.0.1:{listeners[0].getsockname()[1]}", flush=True)
    try:
        signal.sigwait(_ENDING)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
