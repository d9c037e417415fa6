"""The supervisor stands in for workers that are not there: it passes their connections on.

The kernel goes on giving a slot its share of new connections when its worker has died, drains or
has not booted yet. Without this they wait for the successor, which for a worker that keeps dying is
seconds away, although others serve. So the supervisor accepts them and hands each over to a ready
worker, by the sockets through which workers hand over to each other (cluster/acceptor.py); and what
others had handed over to a worker that died.

The successor may accept beside it: whoever comes first has the connection. What cannot be passed
on at once, as all sockets are full, is kept for the next pass, and until then nothing more is
accepted. What a crash of the supervisor leaves: its kept connections are closed, unanswered.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from queue_server.cluster.sockets import send_connection
from queue_server.observability.counters import Counters, Life

logger = logging.getLogger(__name__)

# Connections of one slot in one pass: the supervisor has other things to do.
_PASS_MAX = 64
# After a pass that could not go on: for lack of descriptors, or of room in the workers' sockets.
_REST_S = 0.05


@dataclass(frozen=True)
class Absent:
    """A slot without a worker that accepts; *is_dead*: nor one that reads what it is handed."""

    listener: socket.socket
    receiver: socket.socket
    is_dead: bool

    def sources(self) -> list[socket.socket]:
        return [self.listener, self.receiver] if self.is_dead else [self.listener]


class StandIn:
    """Passes connections on to ready workers. *senders*: to each slot, in slot order."""

    def __init__(self, senders: Sequence[socket.socket], counters: Counters) -> None:
        self._senders = senders
        self._rows = [counters.worker(slot) for slot in range(counters.worker_count)]
        self._kept: list[socket.socket] = []
        self._resting_until = 0.0

    def sources(self, absent: Sequence[Absent]) -> list[socket.socket]:
        """What to wait for: where connections of *absent* slots arrive, if somebody takes them."""
        if not self._ready() or time.monotonic() < self._resting_until:
            return []
        return [source for slot in absent for source in slot.sources()]

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to do that no socket tells of."""
        return bool(self._kept) or time.monotonic() < self._resting_until

    def pass_on(self, readable: Sequence[socket.socket]) -> None:
        """Take what has arrived at *readable* and give it to the workers with the fewest."""
        counts = self._ready()
        self._kept = [kept for kept in self._kept if not self._send(kept, counts)]
        for source in readable:
            for _ in range(_PASS_MAX):
                if self._kept:
                    self._resting_until = time.monotonic() + _REST_S
                    return
                connection = self._take(source)
                if connection is None:
                    break
                if not self._send(connection, counts):
                    self._kept.append(connection)

    def close(self) -> None:
        """Let go of what is kept; in a child, of its copy."""
        for connection in self._kept:
            connection.close()
        self._kept = []

    def _take(self, source: socket.socket) -> socket.socket | None:
        try:
            if source.family != socket.AF_UNIX:
                return source.accept()[0]
            _, descriptors, _, _ = socket.recv_fds(source, 1, 1)
            return socket.socket(fileno=descriptors[0]) if descriptors else None
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        except OSError as exc:
            self._resting_until = time.monotonic() + _REST_S
            logger.warning("cannot take a connection for a worker that is not there: %s", exc)
            return None

    def _send(self, connection: socket.socket, counts: dict[int, int]) -> bool:
        """Hand a connection over, and let go of it; False when nobody has room for it."""
        for slot in sorted(counts, key=lambda slot: counts[slot]):
            if send_connection(self._senders[slot], connection):
                connection.close()
                counts[slot] += 1
                return True
        return False

    def _ready(self) -> dict[int, int]:
        """The slots whose workers take connections, and how many each has."""
        return {
            slot: row.get(Life.CONNECTIONS) for slot, row in enumerate(self._rows) if row.is_ready()
        }
