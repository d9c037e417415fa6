"""Who waits for what, and how they are woken.

Consumers that wait for the same thing (queue, group, and the partition if they named one) share a
*room*. News wakes one of them for each partition it concerns, not all: the others would find the
partition leased. There are three sources of news:
- a push or a release in this worker: told at once, after the commit;
- one in another worker of this host: told by a datagram, which may be lost;
- the floor poll (broker/pop.py): asks the database now and then which rooms could be served. It
  covers lost datagrams, other hosts, and what happens by itself, such as a lease that ends.

A wake-up must not fall between a consumer's look and its sleep. So a room counts its news: who
finds nothing compares the count with the one from before the look, and looks again if it moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from queue_server.domain.access import Grants
from queue_server.domain.names import PartitionId, SubscriptionId
from queue_server.observability.counters import Counter, Row
from queue_server.storage.leases import ANY_PARTITION
from queue_server.storage.stored_messages import view_partitions
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

# How an event for dashboards begins; a list in MessagePack, which news are, does not.
_EVENT = b"{"


class RoomKey(msgspec.Struct, frozen=True, gc=False):
    """What a consumer waits for: a queue, or all queues with a label; `partition` None = any."""

    queue: str | None
    group: str
    partition: str | None = None
    namespace: str | None = None
    task: str | None = None
    grants: Grants | None = None  # who may not pop from all of them waits apart


class News(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A partition has something to read: for every group, or for the one named."""

    queue: str
    partition: str
    group: str | None = None


class Room:
    """Consumers that wait for the same thing.

    `subscription_ids` and `partition_id` are what the floor poll asks for; nothing while there is
    nothing of that name in the database yet. `queues` are those whose news concern the room.
    """

    __slots__ = (
        "_sleepers", "_slept", "key", "news_count", "occupants", "partition_id", "queues",
        "subscription_ids",
    )  # fmt: skip

    def __init__(self, key: RoomKey, slept: asyncio.Event) -> None:
        self.key = key
        self.news_count = 0
        self.occupants = 0
        self.queues: set[str] = set()
        self.subscription_ids: Sequence[SubscriptionId] = ()
        self.partition_id: PartitionId = ANY_PARTITION
        self._sleepers: deque[asyncio.Future[None]] = deque()
        self._slept = slept

    @property
    def sleeper_count(self) -> int:
        return len(self._sleepers)

    def wake(self, count: int = 1) -> int:
        """Wake up to *count* sleepers; how many. Who is looking just now will look again."""
        self.news_count += 1
        left = count
        while left > 0 and self._sleepers:
            sleeper = self._sleepers.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
                left -= 1
        return count - left

    async def sleep(self, news_count: int, timeout_s: float) -> None:
        """Return when there is news since *news_count*, or after *timeout_s*."""
        if self.news_count != news_count:
            return
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append(sleeper)
        self._slept.set()
        try:
            async with asyncio.timeout(timeout_s):
                await sleeper
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            if sleeper.done() and not sleeper.cancelled():
                # Woken and gone at the same moment: the wake-up was for somebody.
                self.wake()
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._sleepers.remove(sleeper)


class Rooms:
    """All rooms of a worker, and the datagrams between the workers of a host."""

    # Datagrams on a Unix socket may be about 200 KB; this stays far below.
    _DATAGRAM_NEWS_MAX = 64

    def __init__(self, senders: Sequence[socket.socket] = (), counters: Row | None = None) -> None:
        self._senders = senders
        self._counters = counters
        self._rooms: dict[RoomKey, Room] = {}
        self._by_queue: dict[str, set[RoomKey]] = {}
        # Set whenever somebody goes to sleep, for the floor poll.
        self.slept = asyncio.Event()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[News])
        self.draining = False
        # Called with what another worker broadcasts, a JSON object.
        self.on_event: Callable[[str], None] = lambda _event: None

    @contextlib.contextmanager
    def enter(self, key: RoomKey) -> Iterator[Room]:
        """The room for *key*, which exists as long as somebody is in it."""
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = Room(key, self.slept)
            if key.queue is not None:
                self.listen(room, [key.queue])
        room.occupants += 1
        try:
            yield room
        finally:
            room.occupants -= 1
            if room.occupants == 0:
                del self._rooms[key]
                for queue in room.queues:
                    keys = self._by_queue[queue]
                    keys.discard(key)
                    if not keys:
                        del self._by_queue[queue]

    def listen(self, room: Room, queues: Iterable[str]) -> None:
        """News of *queues* concern *room* from now on."""
        for queue in queues:
            room.queues.add(queue)
            self._by_queue.setdefault(queue, set()).add(room.key)

    def occupied(self) -> list[Room]:
        """The rooms in which somebody sleeps."""
        return [room for room in self._rooms.values() if room.sleeper_count]

    def tell(self, news: Sequence[News]) -> None:
        """Tell this worker and the others; call it after the commit."""
        self._count(Counter.WAKE_UPS_TOLD, self.hear(news))
        for start in range(0, len(news), self._DATAGRAM_NEWS_MAX):
            datagram = self._encoder.encode(news[start : start + self._DATAGRAM_NEWS_MAX])
            for sender in self._senders:
                # A full socket belongs to a worker with plenty to do; its floor poll will see.
                with contextlib.suppress(BlockingIOError, ConnectionError, OSError):
                    sender.send(datagram)

    def hear(self, news: Sequence[News]) -> int:
        """Wake those in this worker whom *news* concerns; how many."""
        woken_count = 0
        for item in news:
            for key in self._by_queue.get(item.queue, ()):
                if key.partition not in (None, item.partition):
                    continue
                if item.group not in (None, key.group):
                    continue
                woken_count += self._rooms[key].wake()
        return woken_count

    def broadcast(self, event: str) -> None:
        """Tell the other workers of this host what dashboards are to see; it may get lost."""
        datagram = event.encode()
        for sender in self._senders:
            with contextlib.suppress(BlockingIOError, ConnectionError, OSError):
                sender.send(datagram)

    def _count(self, counter: Counter, count: int) -> None:
        if count and self._counters is not None:
            self._counters.add(counter, count)

    def receive(self, receiver: socket.socket) -> None:
        """Read what the other workers sent; called when *receiver* is readable."""
        # Bounded, so that a flood of datagrams does not keep the loop from everything else.
        for _ in range(100):
            try:
                datagram = receiver.recv(256 * 1024)
            except BlockingIOError:
                return
            if datagram.startswith(_EVENT):
                self.on_event(datagram.decode())
                continue
            try:
                self._count(Counter.WAKE_UPS_RECEIVED, self.hear(self._decoder.decode(datagram)))
            except msgspec.DecodeError:
                logger.error("a wake-up datagram of %d bytes is not valid", len(datagram))

    def wake_all(self) -> None:
        """Let everybody who sleeps look again."""
        for room in self._rooms.values():
            room.wake(room.sleeper_count)

    def dismiss(self) -> None:
        """Wake everybody for good: the worker is stopping."""
        self.draining = True
        self.wake_all()


async def wake_freed(
    transactions: Transactions, rooms: Rooms, partition_ids: Sequence[PartitionId]
) -> None:
    """Tell that leases ended in these partitions: what lies behind their batches may be read."""
    if partition_ids:
        partitions = await view_partitions(transactions, partition_ids)
        rooms.tell([News(one.queue, one.partition) for one in partitions])
