"""Start the real command, wait for what it says, signal it, and leave nothing behind.

    with ClusterProcess(data_dir=tmp_path / "data") as cluster:
        cluster.wait_ready()
        requests_go_to(cluster.url)
        cluster.signal(signal.SIGTERM)
        assert cluster.wait() == 0

A test waits for a line of the log (`wait_for_line`), never for a while: the supervisor logs each
event worth waiting for. Logs are read as JSON, so `records` gives the fields too.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

ROOT = Path(__file__).resolve().parent.parent

# A first start on a busy two-core machine runs initdb, the migrations and two interpreters.
READY_TIMEOUT = 60.0  # seconds
EXIT_TIMEOUT = 15.0  # seconds; the server promises 10

# Settings of the developer's shell must not reach the server under test.
_FOREIGN_ENVIRONMENT = re.compile(
    r"^(PG|DB_|QUEEN_|LOG_|CORS_|DEFAULT_|MAX_|JWT_|RETENTION_|EVICTION_|PARTITION_|TRACE_|TLS_)"
    r"|^(METRICS_|STATS_|OTEL_|TRACING$)"
    r"|^(STATS_|METRICS_)"
    r"|^(HOST|PORT|NUM_WORKERS|DATA_DIR|DATABASE_URL|DRAIN_TIMEOUT|POP_DEFAULT_TIMEOUT_MS"
    r"|HEADER_TIMEOUT|BODY_TIMEOUT|READER_TIMEOUT|REQUEST_RATE|ALLOW_ANONYMOUS"
    r"|NOTIFY_SOCKET|WATCHDOG_USEC|WATCHDOG_PID)$"
)


class ClusterProcess:
    """One `python cluster.py`: two workers and a free port unless *args* say otherwise.

    *env* is added to this process's environment (from which the server's settings are removed).
    Without *data_dir* the server gets no `--data-dir`: for tests that give a DATABASE_URL.
    With `--database` other than `embedded` a database stands in for the folder.
    """

    # From a data directory to the connection string of the database that stands in for it.
    stand_in: ClassVar[Callable[[Path], str] | None] = None

    def __init__(
        self,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        data_dir: Path | None = None,
        command: Sequence[str] = (sys.executable, str(ROOT / "cluster.py")),
    ) -> None:
        self.command = list(command)
        # What tells any of the server's commands where its data is.
        self.data_args: list[str] = []
        if data_dir is not None:
            stand_in = ClusterProcess.stand_in
            self.data_args = (
                ["--data-dir", str(data_dir)]
                if stand_in is None
                else ["--database-url", stand_in(data_dir)]
            )
        self.args = [*_default_args(args), *args, *self.data_args]
        clean = {k: v for k, v in os.environ.items() if not _FOREIGN_ENVIRONMENT.match(k)}
        self.env = clean | {"LOG_FORMAT": "json"} | dict(env or {})
        self.lines: list[str] = []  # everything it wrote to stdout and stderr so far
        self._news = threading.Condition()
        self._ended = False  # no process holds our end of the pipe any more

    # -- life --

    def start(self) -> Self:
        self.process = subprocess.Popen(
            [*self.command, *self.args],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> str:
        """Wait until every worker accepts requests; the server's base URL."""
        self.wait_for_line("serving on http", timeout)
        return self.url

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = EXIT_TIMEOUT) -> int:
        """The supervisor's exit code, once it and its workers are gone and their output read."""
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def stop(self, timeout: float = EXIT_TIMEOUT) -> int:
        """Drain the server as an operator does; its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """SIGKILL the supervisor alone; workers and PostgreSQL are to notice by themselves."""
        self.process.kill()
        self.process.wait()

    def kill_at_once(self) -> None:
        """As when the machine loses its power: nobody is told, and nobody says goodbye.

        Not for a server with its own PostgreSQL, which would live on.
        """
        # A supervisor that stands still starts no successors meanwhile.
        self.signal(signal.SIGSTOP)
        for pid in self.worker_pids():
            os.kill(pid, signal.SIGKILL)
        self.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        workers = self.worker_pids()
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(EXIT_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
        # Orphans of a killed supervisor end by themselves; a broken one must not outlive the test.
        self._reader.join(EXIT_TIMEOUT)
        if self._reader.is_alive():
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reader.join(EXIT_TIMEOUT)
        if self.process.stdout:
            self.process.stdout.close()

    # -- what it said --

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        """Such as `http://127.0.0.1:43121`, without a slash at the end."""
        for line in self.lines:
            if found := re.search(r"serving on (https?://\S+?) with", line):
                return found[1]
        raise AssertionError(f"the server is not ready yet:\n{self.output}")

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The log records so far; lines that are no JSON are left out."""
        records = []
        for line in list(self.lines):
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    records.append(record)
        return records

    def worker_pids(self) -> list[int]:
        """The last process that became ready in each slot, in slot order; it may be dead."""
        ready = {r["slot"]: r["pid"] for r in self.records if r.get("event") == "worker_ready"}
        return [ready[slot] for slot in sorted(ready)]

    def postgres_pid(self) -> int:
        """The embedded postmaster that became ready last."""
        return int([r["pid"] for r in self.records if r.get("event") == "postgres_ready"][-1])

    def wait_for_line(self, text: str, timeout: float = READY_TIMEOUT, start: int = 0) -> str:
        """Wait for a line that contains *text*, among those from index *start* on."""
        found: list[str] = []

        def seen() -> bool:
            found[:] = [line for line in self.lines[start:] if text in line]
            return bool(found)

        self.wait_until(seen, timeout, f"no line with {text!r}")
        return found[0]

    def wait_until(self, condition: Callable[[], bool], timeout: float, complaint: str) -> None:
        """Wait until *condition* holds, asked again after each line of output."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not condition():
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    how = "the server ended" if self._ended else f"after {timeout} s"
                    raise AssertionError(f"{complaint}: {how}\n{self.output}")
                self._news.wait(left)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def _default_args(args: Sequence[str]) -> list[str]:
    given = {arg.split("=", 1)[0] for arg in args}
    defaults: list[str] = []
    for option, value in (("--workers", "2"), ("--port", "0")):
        if option not in given:
            defaults += [option, value]
    return defaults
