"""The parent process: fork, watch, restart, stop.

Order of a start: data directory locked, listeners open, PostgreSQL up, migrations applied, and only
then a worker is forked for each slot. No event loop and no thread ever exists in this process, so
forking is safe at any time.

A slot is a place that must always hold a living worker. What can happen to one:

    dies once                    replaced at once
    keeps dying                  replaced after up to 5 s, growing; a minute of life forgives
    cannot boot, first start     the server stops with the worker's reason, exit code 1
    cannot boot, later           as "keeps dying": the database may be restarting
    silent for HEARTBEAT_LIMIT   killed, then replaced
    SIGHUP                       drained and replaced, one slot after the other, unless it is the
                                 end of the terminal (terminal.py), which stops the server

As long as a slot has no worker that accepts, its connections go to the others (stand_in.py).

A signal handler only queues. SIGTERM and SIGINT drain: workers finish what they have, then
PostgreSQL stops. A second one ends everything at once; nothing acknowledged is lost by that.
"""

import contextlib
import logging
import os
import random
import resource
import select
import signal
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import psycopg

from queue_server import __version__
from queue_server.cluster import systemd
from queue_server.cluster.database import DatabaseError, EmbeddedPostgres
from queue_server.cluster.sockets import (
    ListenError,
    SlotSockets,
    open_listeners,
    open_slot_sockets,
    url_of,
)
from queue_server.cluster.stand_in import Absent, StandIn
from queue_server.cluster.system_user import (
    OWN_USER,
    SystemUser,
    UserError,
    make_code_readable,
    own_user,
)
from queue_server.cluster.terminal import ControllingTerminal
from queue_server.cluster.tls import TlsError, certificate_ends_at, read_tls
from queue_server.cluster.worker import (
    EXIT_BOOT_FAILED,
    Pipes,
    Target,
    Worker,
    WorkerContext,
    build_server,
)
from queue_server.observability.counters import Counter, Counters, Life
from queue_server.observability.logging import set_worker
from queue_server.settings import Settings, misspelt_variables, options
from queue_server.storage.connections import can_connect, discard_libpq_variables
from queue_server.storage.migrate import SchemaError, migrate
from queue_server.storage.refusals import explain_refusal

logger = logging.getLogger(__name__)

HEARTBEAT_LIMIT = 30.0  # seconds without a sign of life; a worker beats every second
BOOT_LIMIT = 60.0  # seconds until a worker must be ready
BOOT_ATTEMPTS_MAX = 3  # deaths without a reason before the first start is given up
STABLE_AFTER = 60.0  # seconds of life after which a death counts as the first again
RESTART_DELAY_MAX = 5.0  # seconds; a worker is ready within a tenth of one, so this is no storm
RESTART_DELAY_ALONE = 0.5  # seconds; a start every half second is no storm
DATABASE_PATIENCE = 30.0  # seconds to wait for a given server that does not answer yet
REPORT_INTERVAL = 60.0  # seconds between two status lines

# After the workers' own deadline: room for their last steps, then for PostgreSQL's. With the
# default drain timeout of 8 s the server is gone within 10 s.
KILL_MARGIN = 0.5  # seconds
DATABASE_STOP_MIN = 1.0  # seconds; what the workers leave of their time is added

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD)


class StartError(Exception):
    """The server cannot start; the message is one line and says why."""


class Interrupted(BaseException):
    """A stop was asked for during a call that only an exception can end.

    No error, and not to be caught as one: hence the base class.
    """


@dataclass
class Process:
    """A worker while it lives."""

    pid: int
    report: int  # read end of its report pipe
    started_at: float
    ready: bool = False
    said: str = ""  # why it cannot boot
    kill_at: float | None = None  # it was told to drain and has until then


@dataclass
class Slot:
    """A place for one worker, with what its successors inherit."""

    index: int
    listener: socket.socket
    process: Process | None = None
    start_at: float | None = 0.0  # when the next one is due; None while one lives
    deaths_in_a_row: int = 0


@dataclass
class Clock:
    """When the loop last did what it does now and then."""

    woke_at: float = field(default_factory=time.monotonic)
    reported_at: float = field(default_factory=time.monotonic)
    watchdog_at: float = 0.0
    # Heartbeats from before this moment prove nothing: we were stopped ourselves.
    trust_heartbeats_from: float = 0.0


class Supervisor:
    """Run the server with *settings*; each worker runs what *target* builds."""

    def __init__(self, settings: Settings, target: Target = build_server) -> None:
        self.settings = settings
        self.target = target
        self.counters = Counters(settings.workers)
        self.slots: list[Slot] = []
        self.database: EmbeddedPostgres | None = None
        self.wakeups = SlotSockets([], [])
        self.handovers = SlotSockets([], [])
        self.stand_in = StandIn([], self.counters)
        self.tls: ssl.SSLContext | None = None
        self.worker_user: SystemUser | None = None  # None: that of this process
        self.exit_code = 0
        self.should_exit = False
        self.announced = False  # all workers were ready once
        self.to_replace: deque[int] = deque()  # slots, after a SIGHUP
        self.replacing: Slot | None = None
        self._signals: deque[signal.Signals] = deque()
        self._interruptible = False
        self._clock = Clock()
        self._terminal = ControllingTerminal()
        if settings.conninfo is None:
            self.database = EmbeddedPostgres(settings.data_dir, settings.db_pool_size)

    def run(self) -> int:
        """The whole life of the server; the exit code."""
        self._catch_signals()
        logger.info("queue-server %s starts with pid %d", __version__, os.getpid())
        for text in (*self.settings.warnings, *misspelt_variables(os.environ)):
            logger.warning(text)
        settings_names = {name for option in options().values() for name in option.env}
        ignored = [name for name in discard_libpq_variables() if name not in settings_names]
        if ignored and self.database is None:
            logger.warning(
                "ignored in the environment: %s; DATABASE_URL, or PG_HOST and the like, say how to"
                " reach the database",
                ", ".join(ignored),
            )
        try:
            self._prepare()
            while not self.should_exit:
                self._start_due_workers()
                self._wait_for_news()
                self._handle_signals()
                self._watch_terminal()
                self._read_reports()
                self._reap_workers()
                self._kill_hopeless_workers()
                self._replace_next()
                self._watch_database()
                self._report_now_and_then()
        except Interrupted:
            self._handle_signals()
        except (StartError, ListenError, TlsError, DatabaseError, SchemaError) as exc:
            logger.error("%s", exc, extra={"event": "start_failed"})
            self.exit_code = 1
        self._shut_down()
        return self.exit_code

    # -- start --

    def _prepare(self) -> None:
        raise_file_limit()
        self._read_tls()
        ended_badly = self.database.lock() if self.database else False
        listeners = open_listeners(
            self.settings.host,
            self.settings.port,
            self.settings.workers,
            predecessor_ended_badly=ended_badly,
        )
        self.slots = [Slot(index, listener) for index, listener in enumerate(listeners)]
        self.wakeups = open_slot_sockets(self.settings.workers)
        self.handovers = open_slot_sockets(self.settings.workers)
        self.stand_in = StandIn(self.handovers.senders, self.counters)
        self._lifeline_read, self._lifeline_write = os.pipe()
        if self.database:
            self.database.start(give_up=self._stop_was_asked)
            self.conninfo = self.database.conninfo
        else:
            assert self.settings.conninfo is not None
            self.conninfo = self.settings.conninfo
        self._migrate()
        self._choose_worker_user()

    def _choose_worker_user(self) -> None:
        """Started by root: find an unprivileged user for the workers, and let it reach its code."""
        if os.geteuid() != 0:
            return
        user = self.database.user if self.database else own_user()
        try:
            make_code_readable(user)
            # By its files of keys and passwords, and by what a database lets in at its socket.
            if not user.can(lambda: can_connect(self.conninfo)):
                raise UserError(f"the user {user.name!r} cannot connect to the database")
        except UserError as exc:
            logger.warning("the workers run as root: %s", exc)
            return
        self.worker_user = user
        logger.info("the workers run as %s", user.name)
        if user.name == "postgres" and self.database:
            logger.warning(
                "PostgreSQL and the workers run as 'postgres', which other software may share; to"
                " change that stop the server and run: chown -R %s %s",
                OWN_USER,
                self.database.data,
            )

    def _migrate(self) -> None:
        """Bring the database to our schema; a given server may need a moment to be there."""
        give_up_at = time.monotonic() + DATABASE_PATIENCE
        while True:
            try:
                with self._interrupted_by_signals():
                    migrate(self.conninfo)
                return
            except psycopg.OperationalError as exc:
                if refusal := explain_refusal(exc, self.conninfo):
                    raise StartError(f"cannot use the database: {refusal}") from exc
                reason = " ".join(str(exc).split())
                if isinstance(exc, psycopg.errors.LockNotAvailable):
                    reason = f"a table to be migrated is in use, as by a backup: {reason}"
                if time.monotonic() > give_up_at:
                    raise StartError(f"cannot use the database: {reason}") from exc
                logger.warning("the database is not ready yet: %s", reason)
                with self._interrupted_by_signals():
                    time.sleep(1)
            except psycopg.Error as exc:
                reason = " ".join(str(exc).split())
                raise StartError(f"cannot prepare the database: {reason}") from exc

    def _start_due_workers(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.start_at is not None and slot.start_at <= now:
                self._start_worker(slot)

    def _start_worker(self, slot: Slot) -> None:
        report_read, report_write = os.pipe()
        os.set_blocking(report_read, False)
        self.counters.worker(slot.index).begin()
        # A signal between the fork and the child's own handlers would be lost in our queue's copy.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if not pid:
            self._become_worker(slot, report_write)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(report_write)
        slot.process = Process(pid, report_read, time.monotonic())
        slot.start_at = None
        logger.debug("worker %d started with pid %d", slot.index, pid)

    def _become_worker(self, slot: Slot, report: int) -> NoReturn:
        """In the child: shed what is the supervisor's, live as a worker, and never return."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number, handler in (
                (signal.SIGTERM, signal.SIG_DFL),  # until the worker's loop takes it
                (signal.SIGINT, signal.SIG_IGN),
                (signal.SIGHUP, signal.SIG_IGN),
                (signal.SIGCHLD, signal.SIG_DFL),
            ):
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            set_worker(slot.index)
            if self.worker_user:
                self.worker_user.become()
            self.counters.worker(slot.index).begin(os.getpid())
            os.close(self._lifeline_write)
            for other in self.slots:
                if other is not slot:
                    other.listener.close()
            self.stand_in.close()
            for sockets in (self.wakeups, self.handovers):
                for index, receiver in enumerate(sockets.receivers):
                    if index != slot.index:
                        receiver.close()
            context = WorkerContext(
                index=slot.index,
                settings=self.settings,
                conninfo=self.conninfo,
                listener=slot.listener,
                wakeup_receiver=self.wakeups.receivers[slot.index],
                wakeup_senders=self.wakeups.senders,
                handover_receiver=self.handovers.receivers[slot.index],
                handover_senders=self.handovers.senders,
                counters=self.counters,
                tls=self.tls,
            )
            code = Worker(context, Pipes(report, self._lifeline_read), self.target).run()
        except BaseException:
            logger.exception("the worker ended with an error")
        finally:
            # Nothing of the supervisor's, such as its exit handlers, may run here.
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)

    # -- watch --

    def _wait_for_news(self) -> None:
        """Sleep until a signal, a report, a connection to pass on, or what is due next."""
        waiting = any(slot.start_at is not None for slot in self.slots) or self.replacing
        unsettled = waiting or (self.database and not self.database.is_ready())
        reports = [slot.process.report for slot in self.slots if slot.process]
        stranded = [] if self.should_exit else self.stand_in.sources(self._absent())
        timeout = 0.05 if unsettled or self.stand_in.is_waiting else 0.5
        watched = [self._wakeup_read.fileno(), *reports, *(end.fileno() for end in stranded)]
        readable, _, _ = select.select(watched, [], [], timeout)
        self.stand_in.pass_on([end for end in stranded if end.fileno() in readable])
        if self._wakeup_read.fileno() in readable:
            with contextlib.suppress(BlockingIOError):
                self._wakeup_read.recv(4096)
        now = time.monotonic()
        if now - self._clock.woke_at > 5:
            # Ctrl-Z, or a machine that slept: the workers were stopped as well.
            self._clock.trust_heartbeats_from = now + HEARTBEAT_LIMIT
        self._clock.woke_at = now

    def _absent(self) -> list[Absent]:
        return [
            Absent(slot.listener, self.handovers.receivers[slot.index], slot.process is None)
            for slot in self.slots
            if not self.counters.worker(slot.index).is_ready()
        ]

    def _read_reports(self) -> None:
        for slot in self.slots:
            process = slot.process
            if process and not process.ready:
                report = _read_all(process.report)
                if report == "ready":
                    process.ready = True
                    self._note_ready(slot, process)
                elif report:
                    process.said = report.removeprefix("failed ")

    def _note_ready(self, slot: Slot, process: Process) -> None:
        logger.info(
            "worker %d is ready",
            slot.index,
            extra={"event": "worker_ready", "slot": slot.index, "pid": process.pid},
        )
        if not self.announced and all(s.process and s.process.ready for s in self.slots):
            self.announced = True
            scheme = "https" if self.tls else "http"
            url, count = url_of(self.slots[0].listener, scheme), len(self.slots)
            logger.info(
                "serving on %s with %d worker%s; stop with Ctrl-C or kill -TERM %d",
                url,
                count,
                "s" if count != 1 else "",
                os.getpid(),
                extra={"event": "serving"},
            )
            logger.info(
                "ready: %s  dashboard %s/  docs %s/docs/api",
                url,
                url,
                url,
                extra={"event": "ready"},
            )
            systemd.notify(f"READY=1\nSTATUS=serving on {url} with {count} workers")

    def _reap_workers(self) -> None:
        for slot in self.slots:
            if slot.process:
                pid, status = os.waitpid(slot.process.pid, os.WNOHANG)
                if pid:
                    self._bury(slot, slot.process, os.waitstatus_to_exitcode(status))

    def _bury(self, slot: Slot, process: Process, code: int) -> None:
        """Take note of a worker's end, and say when its successor is due."""
        self._read_reports()  # its last words may still be in the pipe
        os.close(process.report)
        slot.process = None
        self.counters.worker(slot.index).end()
        if self.should_exit:
            return
        if process.kill_at is not None:
            logger.info("worker %d has drained and is replaced", slot.index)
            slot.start_at = 0.0
            return
        how = process.said or (f"signal {-code}" if code < 0 else f"exit code {code}")
        if time.monotonic() - process.started_at > STABLE_AFTER:
            slot.deaths_in_a_row = 0
        slot.deaths_in_a_row += 1
        if not self.announced and not process.ready:
            if code == EXIT_BOOT_FAILED:
                raise StartError(f"worker {slot.index} cannot boot: {how}")
            if slot.deaths_in_a_row >= BOOT_ATTEMPTS_MAX:
                raise StartError(f"worker {slot.index} keeps dying before it is ready: {how}")
        alone = not any(other.process and other.process.ready for other in self.slots)
        delay = restart_delay(slot.deaths_in_a_row, alone=alone)
        slot.start_at = time.monotonic() + delay
        self.counters.supervisor.add(Counter.WORKER_RESTARTS)
        logger.error(
            "worker %d died (%s) and is replaced %s",
            slot.index,
            how,
            f"in {delay:.1f} s" if delay else "at once",
            extra={"event": "worker_died", "slot": slot.index, "pid": process.pid},
        )

    def _kill_hopeless_workers(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            process = slot.process
            if not process:
                continue
            silent = self.counters.worker(slot.index).silent_seconds()
            reason = ""
            if process.kill_at is not None and now > process.kill_at:
                reason = "did not drain in time"
            elif not process.ready and now - process.started_at > BOOT_LIMIT:
                reason = f"was not ready within {BOOT_LIMIT:.0f} s"
            elif silent > HEARTBEAT_LIMIT and now > self._clock.trust_heartbeats_from:
                reason = f"gave no sign of life for {silent:.0f} s"
            if reason:
                logger.error("worker %d %s and is killed", slot.index, reason)
                os.kill(process.pid, signal.SIGKILL)

    def _replace_next(self) -> None:
        """Go on with a replacement of all workers: the next one once the last is ready."""
        if self.replacing:
            process = self.replacing.process
            if not process or not process.ready or process.kill_at is not None:
                return
            self.replacing = None
            if not self.to_replace:
                logger.info("all workers are replaced", extra={"event": "workers_replaced"})
        if self.to_replace:
            slot = self.replacing = self.slots[self.to_replace.popleft()]
            if slot.process:
                self._tell_to_drain(slot.process)

    def _tell_to_drain(self, process: Process) -> None:
        os.kill(process.pid, signal.SIGTERM)
        patience = self.settings.drain_timeout_ms / 1000 + KILL_MARGIN
        process.kill_at = time.monotonic() + patience

    def _watch_database(self) -> None:
        if self.database:
            self.database.poll()
            self.counters.supervisor.words[Counter.DATABASE_RESTARTS] = self.database.restarts

    def _report_now_and_then(self) -> None:
        now = time.monotonic()
        interval = systemd.watchdog_interval()
        if interval and now - self._clock.watchdog_at >= interval:
            self._clock.watchdog_at = now
            systemd.notify("WATCHDOG=1")
        if now - self._clock.reported_at >= REPORT_INTERVAL:
            self._clock.reported_at = now
            logger.info(
                "%d of %d workers alive, %d restarts, up %.0f s",
                sum(slot.process is not None for slot in self.slots),
                len(self.slots),
                self.counters.total(Counter.WORKER_RESTARTS),
                self.counters.uptime_seconds(),
                extra={"event": "status"},
            )

    # -- signals --

    def _catch_signals(self) -> None:
        self._wakeup_read, self._wakeup_write = socket.socketpair()
        self._wakeup_read.setblocking(False)
        self._wakeup_write.setblocking(False)
        # The byte wakes `select`; that it is one byte for each signal does not matter.
        signal.set_wakeup_fd(self._wakeup_write.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(signal.Signals(number))
        if self._interruptible and number in _STOP_SIGNALS:
            raise Interrupted

    @contextlib.contextmanager
    def _interrupted_by_signals(self) -> Iterator[None]:
        """For calls into PostgreSQL that may wait long: here a signal does end the call."""
        self._interruptible = True
        try:
            if self._stop_was_asked():
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.popleft()
            if number == signal.SIGHUP:
                self._handle_hup()
                if self.should_exit:
                    return
            else:
                logger.info("%s: draining; once more ends at once", number.name)
                self.should_exit = True
                return

    def _read_tls(self) -> None:
        self.tls = read_tls(self.settings)
        ends_at = certificate_ends_at(self.settings)
        self.counters.supervisor.words[Life.CERTIFICATE_ENDS_AT_S] = ends_at

    def _watch_terminal(self) -> None:
        if self._terminal.watch():
            self._leave_terminal()

    def _leave_terminal(self) -> None:
        """The terminal has gone, with a SIGHUP: stop, unless nohup started the server."""
        if self._terminal.is_ignored:
            logger.info("SIGHUP: the terminal is gone; the server stays, as nohup started it")
            return
        logger.info("SIGHUP: the terminal is gone; draining")
        self.should_exit = True

    def _handle_hup(self) -> None:
        if self._terminal.note_hangup():
            self._leave_terminal()
            return
        try:
            self._read_tls()
        except TlsError as exc:
            logger.error("SIGHUP: %s; the workers stay", exc, extra={"event": "reload_failed"})
            return
        logger.info("SIGHUP: replacing the workers one by one")
        self.to_replace = deque(range(len(self.slots)))

    def _stop_was_asked(self) -> bool:
        return any(number in _STOP_SIGNALS for number in self._signals)

    # -- stop --

    def _shut_down(self) -> None:
        systemd.notify("STOPPING=1")
        self.should_exit = True
        began = time.monotonic()
        drain_seconds = self.settings.drain_timeout_ms / 1000 + KILL_MARGIN

        # Workers stop accepting, answer what waits, flush and close.
        for slot in self.slots:
            if slot.process:
                os.kill(slot.process.pid, signal.SIGTERM)
        while self._workers_live() and time.monotonic() - began < drain_seconds:
            if self._stop_was_asked():
                break
            self._wait_for_news()
            self._reap_workers()

        # Those that did not, or everybody when a second signal came.
        for slot in self.slots:
            if slot.process:
                logger.warning("worker %d is killed", slot.index)
                os.kill(slot.process.pid, signal.SIGKILL)
                _, status = os.waitpid(slot.process.pid, 0)
                self._bury(slot, slot.process, os.waitstatus_to_exitcode(status))
        for slot in self.slots:
            slot.listener.close()
        self.stand_in.close()
        self.wakeups.close()
        self.handovers.close()

        # PostgreSQL comes last: workers need it until their end.
        if self.database:
            left = drain_seconds - (time.monotonic() - began)
            self.database.stop(max(0, left) + DATABASE_STOP_MIN, self._stop_was_asked)
        if self._stop_was_asked():
            logger.warning("ended at once")
            self.exit_code = 1
        logger.info("stopped", extra={"event": "stopped", "exit_code": self.exit_code})

    def _workers_live(self) -> bool:
        return any(slot.process for slot in self.slots)


def restart_delay(deaths_in_a_row: int, *, alone: bool = False) -> float:
    """Seconds until the next start: none at first, then 0.5, 1, 2 … with some randomness.

    *alone*: nobody serves meanwhile, so it comes soon, however often it died.
    """
    if deaths_in_a_row <= 1:
        return 0.0
    limit = RESTART_DELAY_ALONE if alone else RESTART_DELAY_MAX
    delay = min(0.5 * 2.0 ** min(deaths_in_a_row - 2, 10), limit)
    # Workers that died of one cause should not all come back at one moment.
    return delay * random.uniform(0.75, 1.0)


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: each waiting pop is a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _read_all(descriptor: int) -> str:
    with contextlib.suppress(BlockingIOError):
        return os.read(descriptor, 4096).decode(errors="replace")
    return ""
