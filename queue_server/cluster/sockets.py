"""The sockets that outlive a worker: opened by the supervisor before it forks, kept open there.

Each worker slot has a TCP listener of its own. All are bound to one port with SO_REUSEPORT, so the
kernel spreads new connections over them. Because the supervisor holds each listener too, the
connections that wait in the queue of a worker that died or is being replaced are served, by others
(stand_in.py) or by its successor; closed with the worker, they would be reset.

Each slot also has two pairs of Unix datagram sockets, one for wake-ups and one for connections that
a worker hands over to another (cluster/acceptor.py): the slot's worker reads one end, and every
worker may write to the other. Neither end blocks. A full queue drops the wake-up, as readers must
cope with lost ones anyway, and leaves a connection where it is; datagrams for a dead worker wait
for its successor, to whom a needless wake-up does no harm.
"""

import contextlib
import errno
import socket
import time
from dataclasses import dataclass
from pathlib import Path

# The kernel caps it at net.core.somaxconn, 4096 by default. A burst of clients that connect while
# a worker is being replaced has to fit.
LISTEN_BACKLOG = 4096

# A worker orphaned by a killed supervisor closes its listener within milliseconds, but a busy
# machine may take longer to run it.
PREDECESSOR_GRACE = 10.0  # seconds


class ListenError(Exception):
    """The address cannot be listened on; the message is one line and says why."""


@dataclass
class SlotSockets:
    """The receiving end of each slot, and the end that sends to it, in slot order."""

    receivers: list[socket.socket]
    senders: list[socket.socket]

    def close(self) -> None:
        for end in (*self.receivers, *self.senders):
            end.close()


def open_listeners(
    host: str, port: int, count: int, *, predecessor_ended_badly: bool = False
) -> list[socket.socket]:
    """Open *count* listeners on one port; port 0 picks one for all.

    *predecessor_ended_badly* allows for the workers of a killed supervisor, which may hold the
    port for another moment.
    Errors: `ListenError` when the port is taken or the address is not ours.
    """
    family, address = _resolve(host, port)
    deadline = time.monotonic() + (PREDECESSOR_GRACE if predecessor_ended_badly else 0)
    while True:
        try:
            return _open_all(family, address, count)
        except OSError as exc:
            if time.monotonic() >= deadline:
                reason = exc.strerror or str(exc)
                if exc.errno == errno.EADDRINUSE:
                    reason += f" by {holder}" if (holder := holder_of(address[1])) else ""
                reason += _FIXES.get(exc.errno or 0, "")
                raise ListenError(f"cannot listen on {host}:{port}: {reason}") from exc
            time.sleep(0.05)


_FIXES = {
    errno.EADDRINUSE: (
        "; stop what listens there, or take another port: --port N, or PORT=0 for a free one"
    ),
    errno.EACCES: "; ports below 1024 are root's: take another one with --port N or PORT",
    errno.EADDRNOTAVAIL: (
        "; HOST has to be an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all"
    ),
}


def holder_of(port: int, proc: Path = Path("/proc")) -> str:
    """Return which process listens on TCP *port*; "" when it is another user's, or unknown.

    Of a server's processes it is the one that the others descend from. Its command line is not
    shown: it may hold a password.
    """
    inodes = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / name).read_text().splitlines()[1:]:
                # Source: the kernel's proc_net_tcp.rst; state 0A is LISTEN.
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    pids = [int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal()] if inodes else []
    holders = {pid for pid in pids if _holds(proc / str(pid), inodes)}
    for pid in sorted(holders):
        try:
            process = proc / str(pid)
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            words = (process / "cmdline").read_text(errors="replace").split("\0")
            name = (process / "comm").read_text(errors="replace").strip()
        except OSError:  # it has ended
            continue
        if parent not in holders:
            ours = any(Path(word).name in _PROGRAMS for word in words[:3])
            return f"{'the queue server' if ours else repr(name)} with pid {pid}"
    return ""


# How a server is started: in the words of its command line, `python -m queue_server` included.
_PROGRAMS = frozenset({"cluster.py", "queue-server", "queue_server"})


def _holds(process: Path, inodes: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) in inodes:
                    return True
    return False


def open_slot_sockets(count: int) -> SlotSockets:
    sockets = SlotSockets([], [])
    for _ in range(count):
        receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.setblocking(False)
        sender.setblocking(False)
        sockets.receivers.append(receiver)
        sockets.senders.append(sender)
    return sockets


def send_connection(sender: socket.socket, connection: socket.socket) -> bool:
    """Hand a connection over to the slot behind *sender*; False when it cannot take it now.

    The caller's own descriptor stays open.
    """
    try:
        socket.send_fds(sender, [b"c"], [connection.fileno()])
    except OSError:
        return False
    return True


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """How a client on this machine reaches a listener."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ListenError(
            f"cannot listen on {host}:{port}: {reason}; HOST has to be an address of this machine,"
            " or a name that stands for one"
        ) from exc
    # A name such as localhost may stand for both families; old clients try IPv4 only.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _open_all(
    family: socket.AddressFamily, address: tuple[str, int], count: int
) -> list[socket.socket]:
    if address[1]:
        # SO_REUSEPORT lets two servers of one user share a port by mistake, each seeing half of
        # the requests. A bind without it fails when anybody listens there.
        with _bound(family, address, reuse_port=False):
            pass
    with contextlib.ExitStack() as on_failure:
        listeners: list[socket.socket] = []
        for _ in range(count):
            listener = on_failure.enter_context(_bound(family, address, reuse_port=True))
            address = (address[0], listener.getsockname()[1])
            listeners.append(listener)
        # Nobody listens before all are bound, so that a failure has served no one.
        for listener in listeners:
            listener.listen(LISTEN_BACKLOG)
            listener.setblocking(False)
        on_failure.pop_all()
    return listeners


def _bound(
    family: socket.AddressFamily, address: tuple[str, int], *, reuse_port: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a restart would have to wait for the last connections' TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
