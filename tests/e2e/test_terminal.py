"""A server on a terminal: what it shows there, and what it does when the terminal is gone."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.cluster_process import EXIT_TIMEOUT, READY_TIMEOUT, ROOT, ClusterProcess
from tests.server_directory import server_directory


class OnTerminal:
    """A server whose controlling terminal is the test's, as if a shell had started it."""

    def __init__(
        self, args: Sequence[str], env: Mapping[str, str], log: Path | None = None
    ) -> None:
        self.shown = b""
        clean = {k: v for k, v in ClusterProcess().env.items() if k not in ("LOG_FORMAT", "TERM")}
        clean.pop("NO_COLOR", None)
        ignores_hangup = "NOHUP" in env
        self._master, terminal = pty.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            if ignores_hangup:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)

        with contextlib.ExitStack() as files:
            output = files.enter_context(log.open("wb")) if log else terminal
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "cluster.py"), "--port=0", "--workers=2", *args],
                cwd=ROOT, env=clean | {"TERM": "xterm"} | dict(env), stdin=terminal,
                stdout=output, stderr=output, start_new_session=True, preexec_fn=take_terminal,
            )  # fmt: skip
        os.close(terminal)

    def read_until(self, text: str, timeout: float = READY_TIMEOUT) -> str:
        """Everything that the terminal has shown, once *text* is there."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, self.shown.decode()
            if select.select([self._master], [], [], left)[0]:
                self.shown += os.read(self._master, 65536)
        return self.shown.decode()

    def close_window(self) -> None:
        os.close(self._master)
        self._master = -1

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(EXIT_TIMEOUT)
        finally:
            self.process.kill()
            if self._master >= 0:
                self.close_window()


@pytest.fixture
def on_terminal() -> Iterator[Callable[..., OnTerminal]]:
    with contextlib.ExitStack() as servers:

        def start(
            args: Sequence[str], env: Mapping[str, str], log: Path | None = None
        ) -> OnTerminal:
            server = OnTerminal(args, env, log)
            servers.callback(server.end)
            return server

        yield start


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.databases("embedded", reason="the schema of a first start")
def test_a_first_start_is_short_and_ends_with_its_terminal(
    on_terminal: Callable[..., OnTerminal],
) -> None:
    with server_directory() as directory:
        server = on_terminal(["--data-dir", str(directory)], {"NUM_WORKRES": "3"})
        shown = server.read_until("/docs/api").replace("\r", "")
        lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).strip().split("\n")
        # Every file of the schema and every service had a line of its own.
        assert len(lines) <= 12, shown
        assert (
            len([line for line in lines if re.search(r"schema: \d+ migrations, \d+ f", line)]) == 1
        )
        assert not re.search("applying|leading", shown)
        url = r"http://127\.0\.0\.1:\d+"
        assert re.search(rf"ready: {url}  dashboard {url}/  docs {url}/docs/api$", lines[-1])
        (warning,) = [line for line in shown.split("\n") if "NUM_WORKRES" in line]
        assert "did you mean NUM_WORKERS?" in warning
        assert warning.startswith("\x1b[33m")
        assert warning.endswith("\x1b[0m")
        assert "\x1b[" not in next(line for line in shown.split("\n") if "ready: " in line)

        # As an operator asks for new workers; the terminal is still there.
        server.process.send_signal(signal.SIGHUP)
        shown = server.read_until("all workers are replaced")
        workers = [int(pid) for pid in re.findall(r"worker \d is ready slot=\d pid=(\d+)", shown)]
        assert len(workers) == 4
        server.close_window()
        assert server.process.wait(EXIT_TIMEOUT) == 0
        assert not any(map(is_alive, workers))


def test_nohup_keeps_a_server_whose_terminal_is_gone(
    on_terminal: Callable[..., OnTerminal], conninfo: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    env = {"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8", "NOHUP": "1"}
    server = on_terminal([], env, log)

    def read_until(text: str, *, again: bool = False) -> str:
        deadline = time.monotonic() + READY_TIMEOUT
        while text not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            if again:
                server.process.send_signal(signal.SIGHUP)
            time.sleep(0.5 if again else 0.05)
        return log.read_text()

    found = re.search(r"ready: (\S+)  ", read_until("ready: "))
    assert found is not None
    assert "\x1b" not in log.read_text(), "colours in a file"
    server.close_window()
    read_until("the server stays")
    assert "replacing" not in log.read_text()
    # What comes later is a request again.
    read_until("all workers are replaced", again=True)
    with urllib.request.urlopen(f"{found[1]}/health", timeout=15) as answer:
        assert answer.status == 200
