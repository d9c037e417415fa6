"""Accepts a worker's connections, and evens them out over the workers.

The kernel gives a connection to a worker by a hash of its addresses, and clients hold theirs for
long: of four, all fall to the same one of two workers in one case of eight, which then is full
while the other one idles. So a worker that accepts a connection while another one has at least two
fewer hands it over: the descriptor goes through the other's Unix socket, as the wake-ups do.

How many each has is in the shared counters. It is a hint: what is under way between workers is
known to its sender only, and connections that end are noticed with the next that comes, or a moment
later. Being wrong costs evenness, never a connection.

A connection is held, and served once its first bytes are there. Held ones can still be given away:
a worker that stops passes them on to the others, or leaves them to its successor, so a client that
had connected and not sent its request yet does not notice. Who sends nothing for the time that a
request's headers may take is closed.

What a crash leaves: a descriptor in the socket of a worker that died, like the connections in its
listener's queue, is served by others (cluster/stand_in.py), or by its successor when there are
none. When the whole server stops, what is under way in that instant is closed unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from queue_server.cluster.sockets import send_connection
from queue_server.http.limits import client_network
from queue_server.observability.counters import Counters, Life
from queue_server.observability.tasks import keep_running

logger = logging.getLogger(__name__)

# Connections taken from the listener at once; others have their turn in between.
_ACCEPTS_MAX = 64
# Connections that ended are told of at the latest now.
_NOTE_INTERVAL_S = 0.2
# Without free descriptors accepting is of no use for a while.
_PAUSE_S = 1.0
# What others handed over before they saw that this worker stops arrives within this time.
_UNDER_WAY_S = 0.05
# A worker that stops tries for so long to pass on what it holds: sockets between workers are short.
_PASSING_ON_S = 1.0

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def _refusal(status: bytes, error: bytes) -> bytes:
    body = b'{"error":"%s; try again later","code":"overloaded"}' % error
    return (
        b"HTTP/1.1 %s\r\nRetry-After: 1\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    ) % (status, len(body), body)


_FULL = _refusal(b"503 Service Unavailable", b"too many connections")
_FULL_FOR_ADDRESS = _refusal(b"429 Too Many Requests", b"too many connections of your address")

# Begins to serve a connection, and calls what it is given when the connection has ended.
Serve = Callable[[socket.socket, Callable[[], None]], Coroutine[Any, Any, object]]


class Acceptor:
    """The connections of the worker in slot *index*; *serve* begins to serve one."""

    def __init__(
        self,
        index: int,
        listener: socket.socket,
        receiver: socket.socket,
        senders: Sequence[socket.socket],
        counters: Counters,
        *,
        connections_max: int,
        per_address_max: int,
        silence_max_s: float,
        in_clear: bool,
        count_open: Callable[[], int],
        serve: Serve,
    ) -> None:
        self._index = index
        self._listener = listener
        self._receiver = receiver
        self._senders = senders
        self._rows = [counters.worker(slot) for slot in range(counters.worker_count)]
        self._connections_max = connections_max
        self._per_address_max = per_address_max  # 0: no limit, and nothing is counted
        self._by_address: Counter[str] = Counter()
        self._silence_max_s = silence_max_s
        self._in_clear = in_clear  # whether what is written to a socket can be read
        self._count_open = count_open
        self._serve = serve
        # What was handed over to each slot and may be under way: how many, and how many it had got
        # from all before the first of them.
        self._under_way = [(0, 0)] * len(self._rows)
        # Connections that have sent nothing yet, the oldest first, with when each came and what to
        # call when it ends.
        self._silent: dict[socket.socket, tuple[float, Callable[[], None]]] = {}
        self._beginning: set[asyncio.Task[object]] = set()
        self._resuming: asyncio.TimerHandle | None = None
        self._noting: asyncio.Task[None] | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener, self._accept)
        loop.add_reader(self._receiver, self._receive)
        self._noting = keep_running(self._note_now_and_then, "connections")

    async def stop(self) -> None:
        """Leave new connections to a successor: they wait in the slot's sockets."""
        if self._noting is None:
            return
        self._noting.cancel()
        self._noting = None
        # From here on nobody hands anything over; what is under way arrives while we wait.
        self._rows[self._index].set_ready(False)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        if self._resuming is not None:
            self._resuming.cancel()
        await asyncio.sleep(_UNDER_WAY_S)
        loop.remove_reader(self._receiver)
        while self._receive():
            pass
        await self._pass_on()
        if self._beginning:
            # With TLS, a handshake depends on the client.
            await asyncio.wait(self._beginning, timeout=_PASSING_ON_S)

    async def _pass_on(self) -> None:
        """Give away what is held: to the others, else to the successor, by our own socket."""
        give_up_at = time.monotonic() + _PASSING_ON_S
        while True:
            for connection in list(self._silent):
                if any(self._send(slot, connection) for slot in (*self._others(), self._index)):
                    self._drop(connection)
            if not self._silent or time.monotonic() > give_up_at:
                break
            await asyncio.sleep(0.01)  # those that send something meanwhile are served here
        for connection in list(self._silent):
            self._drop(connection)

    async def _note_now_and_then(self) -> None:
        while True:
            self._note_open()
            self._close_silent()
            await asyncio.sleep(_NOTE_INTERVAL_S)

    def _close_silent(self) -> None:
        """Close the connections that have been held for too long."""
        came_before = time.monotonic() - self._silence_max_s
        for connection, (came_at, _) in list(self._silent.items()):
            if came_at > came_before:
                return
            self._drop(connection)

    def _note_open(self) -> int:
        """Tell the other workers how many connections are open here; the number."""
        count = self._count_open() + len(self._beginning) + len(self._silent)
        self._rows[self._index].words[Life.CONNECTIONS] = count
        return count

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_MAX):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno not in _OUT_OF_DESCRIPTORS:
                    raise
                logger.warning(
                    "cannot accept connections for a moment", extra={"reason": exc.strerror}
                )
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener)
                self._resuming = loop.call_later(
                    _PAUSE_S, loop.add_reader, self._listener, self._accept
                )
                return
            connection.setblocking(False)
            if not self._hand_over(connection):
                self._begin(connection)

    def _hand_over(self, connection: socket.socket) -> bool:
        """Give a connection to the worker with the fewest, if this one has two more; whether so."""
        own_count = self._note_open()
        slot, count = min(
            ((slot, self._estimate(slot)) for slot in self._others()),
            key=lambda entry: entry[1],
            default=(self._index, own_count),
        )
        if own_count < count + 1:
            return False
        before = self._under_way[slot]
        self._note_sent(slot)  # first, as the other may be quick
        if not self._send(slot, connection):
            self._under_way[slot] = before
            return False  # its socket is full: it is busier than it seems
        connection.close()
        return True

    def _send(self, slot: int, connection: socket.socket) -> bool:
        return send_connection(self._senders[slot], connection)

    def _others(self) -> list[int]:
        return [
            slot for slot, row in enumerate(self._rows) if slot != self._index and row.is_ready()
        ]

    def _estimate(self, slot: int) -> int:
        return self._rows[slot].get(Life.CONNECTIONS) + self._in_transit(slot)

    def _in_transit(self, slot: int) -> int:
        """How many of those handed over to a slot it has not taken yet."""
        sent, base = self._under_way[slot]
        # What it got from others counts as ours: with more than two workers this may be too low.
        return max(0, sent - (self._got(slot) - base))

    def _note_sent(self, slot: int) -> None:
        sent, base = self._under_way[slot] if self._in_transit(slot) else (0, self._got(slot))
        self._under_way[slot] = (sent + 1, base)

    def _got(self, slot: int) -> int:
        return self._rows[slot].get(Life.HANDED_IN)

    def _receive(self) -> bool:
        """Take what others handed over; whether there may be more."""
        for _ in range(_ACCEPTS_MAX):
            try:
                _, descriptors, _, _ = socket.recv_fds(self._receiver, 1, 1)
            except (BlockingIOError, InterruptedError):
                return False
            for descriptor in descriptors:
                connection = socket.socket(fileno=descriptor)
                connection.setblocking(False)
                self._begin(connection)
                self._rows[self._index].words[Life.HANDED_IN] += 1
        return True

    def _begin(self, connection: socket.socket) -> None:
        if self._note_open() >= self._connections_max:
            self._refuse(connection, _FULL)
            return
        when_closed = self._count_address(connection)
        if when_closed is None:
            self._refuse(connection, _FULL_FOR_ADDRESS)
            return
        self._silent[connection] = time.monotonic(), when_closed
        asyncio.get_running_loop().add_reader(connection, self._on_first_bytes, connection)
        self._note_open()

    def _refuse(self, connection: socket.socket, answer: bytes) -> None:
        if self._in_clear:
            with contextlib.suppress(OSError):  # it may have left already
                connection.send(answer)
        connection.close()

    def _count_address(self, connection: socket.socket) -> Callable[[], None] | None:
        """What takes a connection from the count of its address; None: there are too many."""
        if not self._per_address_max:
            return _nothing
        address = _network_of(connection)
        if self._by_address[address] >= self._per_address_max:
            return None
        self._by_address[address] += 1
        is_counted = True

        def closed() -> None:
            nonlocal is_counted
            if is_counted:
                is_counted = False
                self._by_address[address] -= 1
                if not self._by_address[address]:
                    del self._by_address[address]

        return closed

    def _let_go(self, connection: socket.socket) -> Callable[[], None]:
        """Hold a connection no longer; what to call when it has ended."""
        _, when_closed = self._silent.pop(connection)
        asyncio.get_running_loop().remove_reader(connection)
        return when_closed

    def _drop(self, connection: socket.socket) -> None:
        self._let_go(connection)()
        connection.close()

    def _on_first_bytes(self, connection: socket.socket) -> None:
        """The client has begun its request, or has left."""
        when_closed = self._let_go(connection)
        task = asyncio.create_task(self._serve(connection, when_closed))
        self._beginning.add(task)
        task.add_done_callback(functools.partial(self._begun, when_closed))

    def _begun(self, when_closed: Callable[[], None], task: asyncio.Task[object]) -> None:
        self._beginning.discard(task)
        self._note_open()  # it was counted twice for a moment
        if task.cancelled():
            when_closed()
        elif (exc := task.exception()) is not None:
            # A client that left at once, or a handshake that failed.
            logger.debug("a connection could not be served", extra={"reason": str(exc)})
            when_closed()


def _nothing() -> None:
    pass


def _network_of(connection: socket.socket) -> str:
    """Return the name under which the client's connections are counted."""
    try:
        return client_network(str(connection.getpeername()[0]))
    except OSError:
        return ""  # it has left already, as its first read will show
