"""Core-seconds: how much CPU time the server took, counted by the kernel.

Messages per second depend on who else wanted the cores; core-seconds per million messages hardly
do. They are user plus system time of a whole process tree. A process that ends passes its time on
to the parent that waits for it (cutime and cstime in /proc/PID/stat), so the sum of all four fields
over the living covers short-lived database backends as well, each once. What is missed: a process
whose parent went first, and whoever is not waited for.

Units: seconds, from the kernel's ticks of 10 ms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")  # a second
_PROC = Path("/proc")
_POSTGRES = "postgres"


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    name: str
    seconds: float


@dataclass(frozen=True)
class CoreSeconds:
    """CPU time of a server up to a moment, or (a difference of two) between two moments."""

    python: float = 0.0  # supervisor and workers
    postgres: float = 0.0
    machine: float = 0.0  # everything that ran on it, this server included
    of_worker: dict[int, float] = field(default_factory=dict)  # by pid

    @property
    def server(self) -> float:
        return self.python + self.postgres

    def __sub__(self, before: CoreSeconds) -> CoreSeconds:
        return CoreSeconds(
            self.python - before.python,
            self.postgres - before.postgres,
            self.machine - before.machine,
            {pid: s - before.of_worker.get(pid, 0.0) for pid, s in self.of_worker.items()},
        )

    def busiest_worker_share(self) -> float:
        """The busiest worker's part of all workers' time; 1 / workers when they are even."""
        total = sum(self.of_worker.values())
        return max(self.of_worker.values()) / total if total else 0.0


class Meter:
    """Reads the CPU time of a server on this machine.

    Shape: *supervisor_pid* is the process that was started as `cluster.py`. Its PostgreSQL is found
    among its children, or, with a database of its own, below *postmaster_pid*.
    """

    def __init__(self, supervisor_pid: int, postmaster_pid: int | None = None) -> None:
        self._supervisor_pid = supervisor_pid
        self._postmaster_pid = postmaster_pid

    def worker_pids(self) -> list[int]:
        """The processes that serve requests."""
        return sorted(self.read().of_worker)

    def read(self) -> CoreSeconds:
        processes = list(_processes())
        own = _tree(processes, self._supervisor_pid)
        database = [p for p in own if p.name == _POSTGRES]
        if self._postmaster_pid is not None:
            database += _tree(processes, self._postmaster_pid)
        python = [p for p in own if p.name != _POSTGRES]
        return CoreSeconds(
            python=sum(p.seconds for p in python),
            postgres=sum(p.seconds for p in database),
            machine=_machine_seconds(),
            of_worker={p.pid: p.seconds for p in python if p.parent == self._supervisor_pid},
        )


def owner_of_connection(server_port: int, client_port: int) -> int | None:
    """The process that serves the connection from *client_port* of this machine; None if none."""
    lines = (_PROC / "net" / "tcp").read_text("ascii").splitlines()[1:]
    for fields in map(str.split, lines):
        ports = [int(address.rpartition(":")[2], 16) for address in fields[1:3]]
        if ports == [server_port, client_port]:
            owners = (p.pid for p in _processes() if fields[9] in _socket_inodes(p.pid))
            return next(owners, None)
    return None


def find_supervisor(port: int) -> int | None:
    """The process on this machine that listens on *port* and is nobody's worker; None if none."""
    inodes = _listeners(port)
    owners = [p for p in _processes() if inodes & set(_socket_inodes(p.pid))]
    pids = {p.pid for p in owners}
    return next((p.pid for p in owners if p.parent not in pids), None)


def find_postmaster(port: int) -> int | None:
    """The PostgreSQL on this machine that uses *port*; None when it is elsewhere or hidden."""
    processes = list(_processes())
    names = {p.pid: p.name for p in processes}
    for process in processes:
        if process.name == _POSTGRES and names.get(process.parent) != _POSTGRES:
            try:
                # A postmaster lives in its data directory; line 4 of its pid file is the port.
                lines = (_PROC / str(process.pid) / "cwd" / "postmaster.pid").read_text("ascii")
            except OSError:
                continue
            if lines.split("\n")[3] == str(port):
                return process.pid
    return None


def _processes() -> Iterator[_Process]:
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text("utf-8", "replace")
        except OSError:
            continue  # it ended meanwhile
        # The name is in parentheses and may hold anything, also spaces and parentheses.
        head, _, tail = text.rpartition(")")
        fields = tail.split()
        ticks = sum(int(value) for value in fields[11:15])  # utime, stime, cutime, cstime
        yield _Process(int(folder.name), int(fields[1]), head.partition("(")[2], ticks / _TICKS)


def _tree(processes: list[_Process], root: int) -> list[_Process]:
    members = {root}
    grew = True
    while grew:
        found = {p.pid for p in processes if p.parent in members} - members
        members |= found
        grew = bool(found)
    return [p for p in processes if p.pid in members]


def _machine_seconds() -> float:
    fields = (_PROC / "stat").read_text("ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / _TICKS


def _listeners(port: int) -> set[str]:
    inodes = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / name).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def _socket_inodes(pid: int) -> Iterator[str]:
    try:
        for link in (_PROC / str(pid) / "fd").iterdir():
            target = str(link.readlink())
            if target.startswith("socket:["):
                yield target[8:-1]
    except OSError:
        return
