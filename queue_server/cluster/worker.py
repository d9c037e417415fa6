"""A child's life after the fork: boot, say so, serve, drain, exit.

Event loop, pool and application are born here, never in the supervisor. What is served is given as
a target, so the life and the thing that lives can be read apart; `build_server` is the one place
where the parts of this server are wired together.

Signals: SIGTERM drains. SIGINT is ignored, because a Ctrl-C reaches the whole terminal and the
supervisor decides what it means. When the supervisor is gone, however it went, its end of the
lifeline pipe closes and the worker drains too.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import random
import signal
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import uvloop

from queue_server import __version__
from queue_server.broker.ack import Acker
from queue_server.broker.activity import Activity
from queue_server.broker.administration import Administration
from queue_server.broker.coalescer import Turns
from queue_server.broker.directory import Directory
from queue_server.broker.key_check import KeyCheck
from queue_server.broker.maintenance import Maintenance
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper
from queue_server.broker.push import Pusher
from queue_server.broker.snapshot import Looks
from queue_server.broker.throughput import Throughput
from queue_server.broker.transaction import Transactor
from queue_server.broker.wakeup import Rooms
from queue_server.cluster.acceptor import Acceptor
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import StorageUnavailable
from queue_server.http.app import HttpServer, build_app
from queue_server.http.limits import ParkedPops
from queue_server.http.live import Live
from queue_server.http.state import State
from queue_server.observability.counters import Counters
from queue_server.observability.sampling import Sampler
from queue_server.observability.tasks import keep_running
from queue_server.observability.tracing import Tracing
from queue_server.services.background import Background
from queue_server.services.series import Series
from queue_server.settings import CONNECTIONS_PER_WORKER_MIN, Settings
from queue_server.storage import queues
from queue_server.storage.pool import open_pool
from queue_server.storage.readiness import Readiness
from queue_server.storage.reads import ReadTransactions
from queue_server.storage.series import Address
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

EXIT_BOOT_FAILED = 3  # apart from Python's own 1 and argparse's 2

HEARTBEAT_INTERVAL = 1.0  # seconds
BOOT_CONNECT_TIMEOUT = 20.0  # seconds; within the supervisor's limit for a boot
REASON_BYTES_MAX = 2000  # a report is one atomic write to a pipe, so below PIPE_BUF


# glibc's mallopt, source: mallopt(3). By default a block of more than 128 KiB is mapped afresh and
# what is free at the heap's end goes back at once, so a body of some megabytes costs a page fault
# every four kilobytes, again and again: a tenth of a worker's time. See docs/performance.md.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_HEAP_KEPT_BYTES = 32 * 1024 * 1024
_MAPPED_BYTES_MIN = 8 * 1024 * 1024


# Objects more than were freed until the collector looks at the youngest; Python's own is 700. It
# took 3 % of a worker's time.
_GC_ALLOCATIONS = 10_000


def keep_heap() -> None:
    """Let the C library keep what it frees for the next body; elsewhere than on glibc, nothing."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _HEAP_KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES_MIN)


@dataclass(frozen=True)
class WorkerContext:
    """What a worker is given; the sockets are its own to close."""

    index: int  # the slot it serves, from 0
    settings: Settings
    conninfo: str
    listener: socket.socket
    wakeup_receiver: socket.socket
    wakeup_senders: list[socket.socket]  # to each slot, its own among them
    handover_receiver: socket.socket
    handover_senders: list[socket.socket]  # likewise
    counters: Counters
    tls: ssl.SSLContext | None = None


class Server(Protocol):
    """What a worker runs."""

    async def start(self) -> None:
        """Return when requests are accepted; raise when that cannot be."""

    async def drain(self) -> None:
        """Stop accepting, finish what runs, close. Cancelled after `drain_timeout_ms`."""


Target = Callable[[WorkerContext], Server]


@dataclass(frozen=True)
class Pipes:
    """A worker's ends of the pipes to its supervisor."""

    report: int  # written: "ready", or why it cannot boot
    lifeline: int  # read: its end of file means that the supervisor is gone


class Worker:
    def __init__(self, context: WorkerContext, pipes: Pipes, target: Target) -> None:
        self.context = context
        self.pipes = pipes
        self.target = target
        self.row = context.counters.worker(context.index)

    def run(self) -> int:
        """Serve until told to stop; the exit code."""
        keep_heap()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._live())

    async def _live(self) -> int:
        self.should_exit = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.should_exit.set)
        loop.add_reader(self.pipes.lifeline, self._on_supervisor_gone)
        heartbeat = asyncio.create_task(self._beat())
        try:
            try:
                server = self.target(self.context)
                if not await self._boot(server):
                    return 0
            except Exception as exc:
                logger.debug("cannot boot", exc_info=True)
                self._report(f"failed {type(exc).__name__}: {exc}")
                return EXIT_BOOT_FAILED
            self.row.set_ready()
            self._report("ready")
            # What booting left lives as long as the process: keep the collector off it.
            gc.collect()
            gc.freeze()
            # A batch is thousands of objects and leaves no cycles: looked through less often.
            gc.set_threshold(_GC_ALLOCATIONS)
            await self.should_exit.wait()
            await self._drain(server)
            return 0
        finally:
            heartbeat.cancel()
            loop.remove_reader(self.pipes.lifeline)

    async def _boot(self, server: Server) -> bool:
        """False when the order to stop came before the server had started."""
        start = asyncio.ensure_future(server.start())
        stop = asyncio.ensure_future(self.should_exit.wait())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if start.done():
            await start
            return True
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start
        return False

    async def _drain(self, server: Server) -> None:
        logger.info("draining", extra={"event": "worker_draining"})
        try:
            async with asyncio.timeout(self.context.settings.drain_timeout_ms / 1000):
                await server.drain()
        except TimeoutError:
            # What is left does not listen to reason: waiting for it again, as a clean end of
            # the loop would, gains nothing.
            logger.warning("not everything finished within the drain timeout")
            os._exit(0)
        except Exception:
            logger.exception("draining failed")

    async def _beat(self) -> None:
        while True:
            self.row.beat()
            await asyncio.sleep(HEARTBEAT_INTERVAL)

    def _on_supervisor_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pipes.lifeline)
        logger.error("the supervisor is gone")
        self.should_exit.set()

    def _report(self, text: str) -> None:
        # A supervisor that is gone does not read it; the lifeline tells that.
        with contextlib.suppress(OSError):
            os.write(self.pipes.report, text.encode()[:REASON_BYTES_MAX])


def build_server(context: WorkerContext) -> Server:
    """Wire pool, broker and application together for one worker."""
    return QueueServer(context)


def keyring_of(settings: Settings) -> Keyring:
    """The keys for queues that are encrypted at rest; the settings have checked their form."""
    return Keyring.of_texts(
        settings.encryption_key,
        settings.encryption_old_keys,
        fallback_plaintext=settings.encryption_fallback_plaintext,
    )


class QueueServer:
    """One worker's share of the queue server: its pool, its broker, its HTTP application."""

    def __init__(self, context: WorkerContext) -> None:
        settings = context.settings
        row = context.counters.worker(context.index)
        self._context = context
        pool_size = max(CONNECTIONS_PER_WORKER_MIN, settings.db_pool_size // settings.workers)
        self._pool = open_pool(
            context.conninfo,
            size=pool_size,
            connection_timeout_ms=settings.db_connection_timeout_ms,
            statement_timeout_ms=settings.db_statement_timeout_ms,
            lock_timeout_ms=settings.db_lock_timeout_ms,
        )
        transactions = Transactions(self._pool, on_retry=row.add_retry)
        reads = ReadTransactions(
            self._pool,
            on_retry=row.add_retry,
            # One connection always stays for those who push, pop and acknowledge.
            connections_max=min(settings.read_connections, pool_size - 1),
            deadline_s=settings.read_timeout_ms / 1000,
        )
        others = [
            sender for slot, sender in enumerate(context.wakeup_senders) if slot != context.index
        ]
        self._rooms = Rooms(others, row)
        directory = Directory(transactions)
        keyring = keyring_of(settings)
        pace = Pace(settings.workers)
        activity, turns = Activity(), Turns()
        self._popper = Popper(
            transactions,
            directory,
            self._rooms,
            row,
            keyring,
            pace,
            settings.workers,
            activity,
            turns,
        )
        pusher = Pusher(transactions, directory, self._rooms, row, keyring, activity, turns)
        acker = Acker(transactions, directory, self._rooms, row, keyring, pace, activity, turns)
        administration = Administration(
            transactions, reads, directory, self._rooms, pusher, keyring
        )
        throughput = Throughput(context.counters)
        address = Address(socket.gethostname(), context.listener.getsockname()[1], context.index)
        looks = Looks(reads, settings.metrics_queues_max, keyring)
        self._live_events = Live(
            reads,
            looks,
            throughput,
            self._rooms,
            context.counters,
            row,
            sockets_max=settings.ws_max_connections,
            worker_name=f"{address.hostname}-{address.worker_id}",
            has_authentication=settings.has_authentication,
        )
        self._series = Series(
            transactions,
            row,
            activity,
            self._rooms,
            throughput,
            address,
            interval_s=settings.stats_interval_ms / 1000,
            pool_size_max=pool_size,
        )
        parked_pops = ParkedPops(settings.max_parked_pops, settings.max_parked_pops_per_address)
        self._sampler = Sampler(row, transactions.pool_stats, lambda: parked_pops.count)
        self._tracing = Tracing(context.index, __version__) if settings.tracing else None
        maintenance = Maintenance(transactions, pusher, keyring, activity, self._rooms.wake_all)
        self._maintenance = maintenance
        self._key_check = KeyCheck(transactions, keyring, row, is_logging=context.index == 0)
        self._popper.are_pops_paused = lambda: maintenance.modes.pop
        self._background = Background(
            transactions, settings, administration.groups, maintenance, self._rooms
        )
        self._state = State(
            settings=settings,
            transactions=transactions,
            reads=reads,
            directory=directory,
            pusher=pusher,
            popper=self._popper,
            acker=acker,
            transactor=Transactor(transactions, pusher, acker, activity),
            counters=context.counters,
            row=row,
            administration=administration,
            readiness=Readiness(transactions, context.index),
            parked_pops=parked_pops,
            sampler=self._sampler,
            tracing=self._tracing,
            throughput=throughput,
            address=address,
            looks=looks,
            live=self._live_events,
            maintenance=maintenance,
            rooms=self._rooms,
            key_check=self._key_check,
        )
        self._http = HttpServer(
            build_app(self._state),
            settings,
            context.tls,
            # Of the drain's deadline some is kept for the steps before and after.
            finish_timeout_s=max(0.5, settings.drain_timeout_ms / 1000 - 3),
        )

        self._acceptor = Acceptor(
            context.index,
            context.listener,
            context.handover_receiver,
            context.handover_senders,
            context.counters,
            connections_max=settings.max_connections,
            per_address_max=settings.max_connections_per_address,
            silence_max_s=settings.header_timeout_ms / 1000,
            in_clear=context.tls is None,
            count_open=self._http.open_count,
            serve=self._http.serve,
        )

    async def start(self) -> None:
        await self._pool.open()
        await self._wait_for_database()
        settings = self._context.settings
        await queues.set_limits(
            self._state.transactions,
            queues.Limits(
                settings.max_queues,
                settings.max_groups_per_queue,
                settings.max_partitions_per_queue,
                settings.group_idle_s,
            ),
        )
        receiver = self._context.wakeup_receiver
        asyncio.get_running_loop().add_reader(receiver, self._rooms.receive, receiver)
        await self._maintenance.look()
        self._maintaining = keep_running(self._maintenance.watch, "maintenance")
        self._checking = keep_running(self._key_check.watch, "key-check")
        self._watch = keep_running(self._popper.watch, "floor-poll")
        self._sampling = keep_running(self._sampler.run, "sampling")
        await self._http.start()
        self._acceptor.start()
        self._background.start()
        self._series.start()

    async def _wait_for_database(self) -> None:
        """Errors: `StorageUnavailable` when it does not answer within the time for a boot."""
        give_up_at = time.monotonic() + BOOT_CONNECT_TIMEOUT
        while True:
            try:
                await queues.ping(self._state.transactions)
                return
            except StorageUnavailable:
                if time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(random.uniform(0.05, 0.15))

    async def drain(self) -> None:
        self._state.draining = True
        # No new connections, then no new waits: parked pops are answered empty.
        await self._acceptor.stop()
        self._rooms.dismiss()
        await self._live_events.close()
        # Another worker takes the services over while the last requests finish.
        await asyncio.gather(self._background.stop(), self._http.finish())
        if self._tracing is not None:
            await self._tracing.stop()
        # Leases of answers that could not be sent go back while there is still a database.
        await self._popper.finish()
        await self._series.stop()
        await self._state.looks.close()
        for task in (self._watch, self._checking, self._maintaining, self._sampling):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        asyncio.get_running_loop().remove_reader(self._context.wakeup_receiver)
        await self._pool.close()
