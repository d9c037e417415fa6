"""Start a server of any checkout and send it requests, with the standard library alone.

The trials run against two versions of the server, so nothing here imports it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

READY_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 20.0


class Answer(NamedTuple):
    """An HTTP answer; status 0 stands for a request that got none in time."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


class Server:
    """One `python cluster.py` of the checkout *tree*, with two workers and a free port."""

    def __init__(self, tree: Path, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.tree = tree
        self.folder = folder
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(tree / "cluster.py"), "--port", "0", "--workers", "2"],
            cwd=tree,
            env={**keep, "DATA_DIR": str(folder), "LOG_FORMAT": "json", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.rstrip("\n"))

    @property
    def log(self) -> str:
        return "\n".join(list(self._lines))

    def wait_ready(self) -> bool:
        """Wait until the server serves; False when it ended or did not in time."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if found := re.search(r"serving on http://127\.0\.0\.1:(\d+) with", self.log):
                self.port = int(found[1])
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.05)
        return False

    def wait_exit(self, timeout_s: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout_s)
        return None

    def worker_pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        pids = []
        for pid in map(int, children.split()):
            with contextlib.suppress(OSError):
                if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    pids.append(pid)
        return pids

    def peak_mb(self) -> int:
        """Return the largest peak of resident memory of a worker, in MB."""
        peaks = [0]
        for pid in self.worker_pids():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/status").read_text()
                peaks += [int(kb) // 1024 for kb in re.findall(r"VmHWM:\s+(\d+) kB", text)]
        return max(peaks)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            if self.wait_exit(20) is None:
                self.process.kill()
        self._reader.join(5)

    def kill_all(self) -> None:
        """End every process of the server at once, as a power failure does."""
        postmaster = int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0])
        os.kill(self.process.pid, signal.SIGSTOP)
        for pid in [*self.worker_pids(), postmaster, self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        while Path(f"/proc/{postmaster}").exists():
            time.sleep(0.05)

    # -- requests --

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        given = dict(headers or {})
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            given.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, data, given)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        except (OSError, http.client.HTTPException):
            return Answer(0, {}, b"")
        finally:
            connection.close()

    def raw(self, data: bytes, timeout_s: float = 5.0) -> bytes:
        """Send bytes as they are and return what comes until the end or the time-out."""
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.settimeout(timeout_s)
            received = b""
            with contextlib.suppress(OSError):
                sock.sendall(data)
                while chunk := sock.recv(65536):
                    received += chunk
            return received

    def push(self, queue: str, *ids: str, partition: str = "Default", **more: Any) -> list[str]:
        """Push messages with these transaction ids and return their statuses."""
        items = [
            {"queue": queue, "partition": partition, "transactionId": id_, "payload": id_, **more}
            for id_ in ids
        ]
        answer = self.request("POST", "/api/v1/push", {"items": items})
        if answer.status != 201:
            return [str(answer.status)] * len(ids)
        return [item["status"] for item in answer.json]

    def pop(self, queue: str, query: str = "") -> list[dict[str, Any]]:
        answer = self.request("GET", f"/api/v1/pop/queue/{quote(queue)}{query}")
        return list(answer.json["messages"]) if answer.status == 200 else []

    def configure(self, queue: str, **options: Any) -> Answer:
        body = {"queue": queue, "options": options}
        return self.request("POST", "/api/v1/configure", body)

    def ack(self, message: Mapping[str, Any], status: str) -> Answer:
        body = {
            "transactionId": message["transactionId"],
            "partitionId": message["partitionId"],
            "leaseId": message["leaseId"],
            "status": status,
        }
        return self.request("POST", "/api/v1/ack", body)

    def live_ms(self) -> int:
        """Return how long the slowest of eight `/livez` took, in ms; 5,000 stands for no answer."""
        slowest = 0.0
        for _ in range(8):
            began = time.monotonic()
            answered = self.request("GET", "/livez", timeout_s=5).status == 200
            slowest = max(slowest, time.monotonic() - began if answered else 5)
        return round(slowest * 1000)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Yield a folder for a server's data, which another system user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="queue-server-trial-"))
    try:
        yield directory / "data"
    finally:
        shutil.rmtree(directory, ignore_errors=True)
