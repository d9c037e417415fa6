"""Starts a peer's processes and ends them, each by its own process id."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.client import RequestFailed
from bench.lifetime import end_with_parent
from bench.server import ServerFailed

LOOPBACK = "127.0.0.1"

_READY_LIMIT_S = 60.0  # an Erlang system on a busy machine takes its time
_EXIT_LIMIT_S = 20.0
_LOOK_S = 0.05
_TAIL_LINES = 10


def free_port() -> int:
    """A port nobody uses now. Should another process take it first, the start fails and says so."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def takes_connections(port: int) -> Callable[[], bool]:
    """What tells whether somebody listens on *port*."""

    def ask() -> bool:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
        except OSError:
            return False
        return True

    return ask


@contextmanager
def started(
    command: Sequence[str],
    home: Path,
    is_ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* in *home* until the end of the block; entered when it *is_ready*.

    It sees PATH and *environment* alone: settings of this shell must not decide a measurement.
    Errors: `ServerFailed` with the end of its output; a `RequestFailed` of the block gets it too.
    """
    name = Path(command[0]).name
    log = home / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=home,
            env={"PATH": os.environ["PATH"], "HOME": str(home), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent,  # noqa: PLW1509 -- no threads here
        )
    try:
        deadline = time.monotonic() + _READY_LIMIT_S
        while not is_ready():
            if process.poll() is not None:
                raise ServerFailed(f"{name} ended with code {process.returncode}:\n{_tail(log)}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{name} is not ready in {_READY_LIMIT_S:.0f} s:\n{_tail(log)}")
            time.sleep(_LOOK_S)
        yield process
    except RequestFailed as exc:
        raise RequestFailed(f"{exc}\n{name} said at last:\n{_tail(log)}") from exc
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_EXIT_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:])
