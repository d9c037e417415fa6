"""A server of the benchmark's own: started fresh, in a folder that goes away with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from psycopg.conninfo import conninfo_to_dict

from bench.client import RequestFailed
from bench.core_seconds import Meter, find_postmaster
from bench.lifetime import end_with_parent

ROOT = Path(__file__).resolve().parent.parent

_READY_LIMIT_S = 60.0
_EXIT_LIMIT_S = 15.0  # it promises 10
_POSTGRES_PORT = 5432

# What the server may inherit; settings of this shell must not decide a measurement.
_ENVIRONMENT = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "TZ")


class ServerFailed(Exception):
    """The server did not start, or did not stop as it promises."""


@dataclass
class Server:
    """A running one."""

    url: str
    meter: Meter
    data_dir: Path
    conninfo: str  # of its database
    workers: int
    is_warm: bool = False
    names: int = 0  # of queues, given so far


class _LogRecord(msgspec.Struct):
    event: str = ""
    message: str = ""


@contextmanager
def running(workers: int, parent_dir: Path | None, database_url: str | None) -> Iterator[Server]:
    """Start `cluster.py` on a free port and drain it at the end.

    Its data lie below *parent_dir*, or where temporary files go. Errors: `ServerFailed`; a
    `RequestFailed` of the body is passed on with the end of the server's log.
    """
    home = Path(tempfile.mkdtemp(prefix="queue-bench-", dir=parent_dir))
    arguments = ["--port", "0", "--workers", str(workers)]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    if database_url is None:
        arguments += ["--data-dir", str(home / "data")]
    else:
        environment["DATABASE_URL"] = database_url  # not for everybody's eyes, as arguments are
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "cluster.py"), *arguments],
            cwd=ROOT,
            env=environment | {"LOG_FORMAT": "json"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent,  # noqa: PLW1509 -- no threads here
        )
    try:
        url = _wait_ready(process, log)
        postmaster = None if database_url is None else find_postmaster(_port_of(database_url))
        conninfo = database_url or f"host={home / 'data' / 'run'} user=postgres dbname=postgres"
        yield Server(url, Meter(process.pid, postmaster), home / "data", conninfo, workers)
        process.send_signal(signal.SIGTERM)
        code = process.wait(_EXIT_LIMIT_S)
        if code != 0:
            raise ServerFailed(f"the server ended with code {code}:\n{_tail(log)}")
    except RequestFailed as exc:
        # Its log goes away with it, so whatever explains the failure must be said now.
        raise RequestFailed(f"{exc}\nThe server's log ends with:\n{_tail(log)}") from exc
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_EXIT_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _READY_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_bytes().splitlines(keepends=True):
            # A last line without its end is still being written; a warning may be no JSON.
            if line.startswith(b"{") and line.endswith(b"\n"):
                record = msgspec.json.decode(line, type=_LogRecord)
                if record.event == "serving":
                    return next(w for w in record.message.split() if w.startswith("http://"))
        time.sleep(0.05)
    raise ServerFailed(f"the server did not become ready:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-10:])


def _port_of(database_url: str) -> int:
    return int(conninfo_to_dict(database_url).get("port") or _POSTGRES_PORT)
