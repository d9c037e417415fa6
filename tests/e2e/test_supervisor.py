"""The real command, signalled and hurt: what an operator sees of the supervisor."""

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from queue_server.cluster.database import find_binaries
from tests.cluster_process import ROOT, ClusterProcess
from tests.databases import Postgres, SharedPostgres
from tests.e2e.test_tls import identity
from tests.server_directory import server_directory

EXIT_LIMIT = 10.0  # seconds; promised whatever clients do


def health(url: str) -> str:
    """One request over a connection of its own."""
    with urllib.request.urlopen(f"{url}/health", timeout=15) as answer:
        return str(json.load(answer)["status"])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is only waiting for somebody to read its exit code.
    return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def many_requests(url: str) -> Iterator[list[BaseException]]:
    """Send requests, each on a new connection, until the block ends; yields what failed."""
    failures: list[BaseException] = []
    done = threading.Event()

    def send() -> None:
        while not done.is_set():
            try:
                health(url)
            except BaseException as exc:
                failures.append(exc)

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    try:
        yield failures
    finally:
        done.set()
        for sender in senders:
            sender.join()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterProcess]:
    with ClusterProcess(data_dir=tmp_path / "data") as cluster:
        cluster.wait_ready()
        yield cluster


# -- stop --


@pytest.mark.databases("embedded", reason="it is about the PostgreSQL that the server starts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(cluster: ClusterProcess, number: signal.Signals) -> None:
    assert health(cluster.url) == "healthy"
    processes = [*cluster.worker_pids(), cluster.postgres_pid()]
    began = time.monotonic()
    cluster.signal(number)
    assert cluster.wait() == 0
    assert time.monotonic() - began < EXIT_LIMIT
    assert not any(is_alive(pid) for pid in processes)


def test_clients_that_do_nothing_cannot_delay_the_end(cluster: ClusterProcess) -> None:
    port = int(cluster.url.rpartition(":")[2])
    with contextlib.ExitStack() as clients:
        for request in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(request)
        began = time.monotonic()
        assert cluster.stop() == 0
        assert time.monotonic() - began < EXIT_LIMIT


@pytest.mark.alone
def test_a_worker_that_does_not_listen_is_killed_in_time(cluster: ClusterProcess) -> None:
    stopped = cluster.worker_pids()[0]
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    assert cluster.stop() == 0
    assert time.monotonic() - began < EXIT_LIMIT
    assert not is_alive(stopped)


@pytest.mark.databases("embedded", reason="it is about the PostgreSQL that the server starts")
def test_a_second_signal_ends_at_once(cluster: ClusterProcess) -> None:
    # A stopped worker would keep the drain waiting for seconds.
    processes = [*cluster.worker_pids(), cluster.postgres_pid()]
    os.kill(processes[0], signal.SIGSTOP)
    began = time.monotonic()
    cluster.signal(signal.SIGTERM)
    cluster.wait_for_line("once more ends at once")
    cluster.signal(signal.SIGTERM)
    assert cluster.wait() == 1
    assert time.monotonic() - began < 5
    assert not any(is_alive(pid) for pid in processes)


def test_a_signal_during_the_first_start_is_obeyed(tmp_path: Path) -> None:
    with ClusterProcess(data_dir=tmp_path / "data") as cluster:
        cluster.wait_for_line("starts with pid")
        assert cluster.stop() == 0
    with ClusterProcess(data_dir=tmp_path / "data") as cluster:
        cluster.wait_ready()


# -- workers --


def test_a_killed_worker_is_replaced_while_requests_go_on(cluster: ClusterProcess) -> None:
    first, second = cluster.worker_pids()
    lines = len(cluster.lines)
    os.kill(first, signal.SIGKILL)
    # Both slots answer: connections that reach the dead worker's wait for its successor.
    for _ in range(20):
        assert health(cluster.url) == "healthy"
    cluster.wait_for_line('"worker_ready"', start=lines)
    assert cluster.worker_pids()[1] == second
    assert cluster.worker_pids()[0] != first
    assert any("died (signal 9) and is replaced at once" in line for line in cluster.lines)


def test_a_worker_that_keeps_dying_is_replaced_with_a_delay(cluster: ClusterProcess) -> None:
    for _ in range(3):
        lines = len(cluster.lines)
        os.kill(cluster.worker_pids()[0], signal.SIGKILL)
        cluster.wait_for_line('"worker_ready"', start=lines)
    ends = [r["message"] for r in cluster.records if r.get("event") == "worker_died"]
    assert "at once" in ends[0]
    assert "replaced in 0." in ends[1]
    assert health(cluster.url) == "healthy"


def test_sighup_replaces_every_worker_without_a_refused_connection(
    cluster: ClusterProcess,
) -> None:
    before = cluster.worker_pids()
    with many_requests(cluster.url) as failures:
        cluster.signal(signal.SIGHUP)
        cluster.wait_for_line("workers_replaced")
    assert failures == []
    assert not set(before) & set(cluster.worker_pids())
    assert not any(is_alive(pid) for pid in before)
    # Planned replacements are no deaths.
    assert not any(r.get("event") == "worker_died" for r in cluster.records)


def test_workers_ignore_a_ctrl_c_meant_for_the_supervisor(cluster: ClusterProcess) -> None:
    for pid in cluster.worker_pids():
        os.kill(pid, signal.SIGINT)
    assert health(cluster.url) == "healthy"
    assert cluster.stop() == 0
    assert not any(r.get("event") == "worker_died" for r in cluster.records)


# -- a killed supervisor --


def test_after_a_killed_supervisor_a_new_one_starts_on_the_same_data_and_port(
    tmp_path: Path,
) -> None:
    port = str(free_port())
    data_dir = tmp_path / "data"
    with ClusterProcess(["--port", port], data_dir=data_dir) as first:
        first.wait_ready()
        workers = first.worker_pids()
        first.kill()
        with ClusterProcess(["--port", port], data_dir=data_dir) as second:
            second.wait_ready()
            assert health(second.url) == "healthy"
            first.wait()  # its workers noticed and ended: nobody holds its output any more
            assert not any(is_alive(pid) for pid in workers)
            assert health(second.url) == "healthy"
            assert second.stop() == 0


@pytest.mark.databases("embedded", reason="it is about the PostgreSQL that the server starts")
def test_a_killed_postgres_is_started_again(cluster: ClusterProcess) -> None:
    killed = cluster.postgres_pid()
    lines = len(cluster.lines)
    os.kill(killed, signal.SIGKILL)
    cluster.wait_for_line('"postgres_died"', start=lines)
    cluster.wait_for_line('"postgres_ready"', start=lines)
    assert cluster.postgres_pid() != killed
    assert cluster.stop() == 0


# -- starts that must not succeed --


def test_a_taken_port_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener:
        port = listener.getsockname()[1]
        with ClusterProcess(["--port", str(port)], data_dir=tmp_path / "data") as cluster:
            assert cluster.wait() == 1
            message = f"cannot listen on 127.0.0.1:{port}: Address already in use by "
            assert message in cluster.output
            assert f"with pid {os.getpid()}; " in cluster.output
            assert "--port N, or PORT=0" in cluster.output
            assert "PostgreSQL" not in cluster.output
            assert "Traceback" not in cluster.output


def test_a_port_that_a_server_has_taken_names_that_server(server: ClusterProcess) -> None:
    port = server.url.rpartition(":")[2]
    # Nothing is asked of the database before.
    with ClusterProcess(["--port", port], {"DATABASE_URL": "postgresql://127.0.0.1:1/x"}) as second:
        assert second.wait() == 1
        assert f"in use by the queue server with pid {server.pid};" in second.output


def test_a_database_that_refuses_for_good_is_not_waited_for(
    postgres: SharedPostgres, own_database: str
) -> None:
    postgres.execute("CREATE ROLE {} NOLOGIN", f"{own_database}_idle")
    given = postgres.direct_conninfo(own_database)
    refusals = {
        "dbname=nowhere": 'CREATE DATABASE "nowhere" OWNER "postgres"',
        "user=nobody": 'CREATE ROLE "nobody" LOGIN',
        f"user={own_database}_idle": f'ALTER ROLE "{own_database}_idle" LOGIN',
    }
    try:
        for change, fix in refusals.items():
            name, _, value = change.partition("=")
            env = {"DATABASE_URL": make_conninfo(given, **{name: value})}
            with ClusterProcess(env=env) as cluster:
                assert cluster.wait() == 1
                (error,) = [r for r in cluster.records if r["level"] == "error"]
                assert error["message"].startswith("cannot use the database: ")
                assert fix in error["message"]
                # Each second of waiting is a warning.
                assert not [r for r in cluster.records if r["level"] == "warning"]
    finally:
        postgres.execute("DROP ROLE {}", f"{own_database}_idle")


@pytest.mark.databases("embedded", reason="it is about the PostgreSQL that the server starts")
def test_a_second_supervisor_on_one_data_dir_is_refused(
    cluster: ClusterProcess, tmp_path: Path
) -> None:
    with ClusterProcess(data_dir=tmp_path / "data") as second:
        assert second.wait() == 1
        assert f"in use by the supervisor with pid {cluster.pid}" in second.output
    assert health(cluster.url) == "healthy"


@pytest.mark.parametrize(
    ("args", "env", "name"),
    [
        (["--port", "http"], {}, "--port"),
        ([], {"NUM_WORKERS": "many"}, "NUM_WORKERS"),
        (["--workers", "4"], {"DB_POOL_SIZE": "5"}, "DB_POOL_SIZE"),
        (["--prot", "1"], {}, "did you mean --port?"),
        (["--data-dir", "x" * 300], {}, "--data-dir"),
    ],
)
def test_a_bad_setting_ends_the_start_with_one_line(
    args: list[str], env: dict[str, str], name: str
) -> None:
    command = [sys.executable, str(ROOT / "cluster.py"), *args]
    ended = subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, check=False, timeout=30
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert name in line


def program(folder: Path, *changes: str) -> list[str]:
    """A command like `cluster.py`, with *changes* made to the supervisor's module first."""
    lines = [
        "import sys",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "from queue_server.cluster import supervisor",
        "from queue_server.observability.logging import configure_logging",
        "from queue_server.settings import load_settings",
        *changes,
        "configure_logging('info', 'json')",
        "sys.exit(supervisor.Supervisor(load_settings(sys.argv[1:], {})).run())",
    ]
    (folder / "program.py").write_text("\n".join(lines))
    return [sys.executable, str(folder / "program.py")]


def test_workers_that_cannot_boot_stop_the_server_with_the_reason(tmp_path: Path) -> None:
    command = program(
        tmp_path,
        "def broken(context): raise RuntimeError('no luck today')",
        "supervisor.Supervisor.__init__.__defaults__ = (broken,)",
    )
    command += ["--port", "0", "--data-dir", str(tmp_path / "data")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert "cannot boot: RuntimeError: no luck today" in ended.stderr
    assert "serving" not in ended.stderr


def test_a_worker_without_a_sign_of_life_is_replaced(tmp_path: Path) -> None:
    command = program(tmp_path, "supervisor.HEARTBEAT_LIMIT = 3.0")
    with ClusterProcess(data_dir=tmp_path / "data", command=command) as cluster:
        cluster.wait_ready()
        stuck = cluster.worker_pids()[1]
        lines = len(cluster.lines)
        os.kill(stuck, signal.SIGSTOP)
        cluster.wait_for_line("gave no sign of life", start=lines)
        cluster.wait_for_line('"worker_ready"', start=lines)
        assert not is_alive(stuck)
        assert health(cluster.url) == "healthy"


def test_systemd_is_told_when_it_is_ready_and_that_it_lives(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with ClusterProcess(data_dir=tmp_path / "data", env=env) as cluster:
            told = [systemd.recv(4096).decode()]
            while not told[-1].startswith("READY=1"):
                told.append(systemd.recv(4096).decode())
            found = re.search(r"http://\S+", told[-1])
            assert found is not None, told
            with urllib.request.urlopen(f"{found[0]}/health", timeout=15) as answer:
                assert json.load(answer)["workers"] == 2
            while told[-1] != "WATCHDOG=1":
                told.append(systemd.recv(4096).decode())
            cluster.signal(signal.SIGTERM)
            while told[-1] != "STOPPING=1":
                told.append(systemd.recv(4096).decode())
            assert cluster.wait() == 0


def test_a_given_database_that_is_absent_can_be_waited_for_no_longer_than_asked() -> None:
    # Nobody listens there; a stop ends the waiting.
    url = f"postgresql://me:hunter2@127.0.0.1:{free_port()}/q"
    with ClusterProcess(env={"DATABASE_URL": url}) as cluster:
        cluster.wait_for_line("the database is not ready yet")
        assert cluster.stop() == 0
        assert "hunter2" not in cluster.output


# -- with a given database --


@pytest.mark.databases("embedded", reason="it is about the PostgreSQL that the server starts")
def test_a_given_database_is_used_instead_of_an_own_one(
    cluster: ClusterProcess, tmp_path: Path
) -> None:
    socket_folder = tmp_path / "data" / "run"
    env = {"PG_HOST": str(socket_folder), "DATA_DIR": str(tmp_path / "unused")}
    with ClusterProcess(env=env) as second:
        second.wait_ready()
        assert health(second.url) == "healthy"
        assert second.stop() == 0
    assert not (tmp_path / "unused").exists()


@pytest.mark.databases("embedded", reason="it is about the PostgreSQL that the server starts")
def test_variables_of_libpq_lead_nowhere(tmp_path: Path) -> None:
    # Those of an operator whose tools use another PostgreSQL, and all the others with them.
    hostile = {one.envvar.decode(): "hostile" for one in Conninfo.get_defaults() if one.envvar}
    with server_directory() as folder, other_postgres(folder) as other:
        hostile |= {
            "PGHOSTADDR": "127.0.0.1",
            "PGPORT": str(other.port),
            "PGCLIENTENCODING": "LATIN1",
            "PGOPTIONS": "-c default_transaction_read_only=on",
            "PGTZ": "hostile",
            "PGSERVICEFILE": "/nowhere",
        }
        with ClusterProcess(data_dir=tmp_path / "data", env=hostile) as cluster:
            url = cluster.wait_ready()
            body = {"items": [{"queue": "中文", "payload": "😀"}]}
            with urllib.request.urlopen(request(f"{url}/api/v1/push", body)) as answer:
                assert answer.status == 201
            with urllib.request.urlopen(f"{url}/api/v1/pop/queue/%E4%B8%AD%E6%96%87") as answer:
                assert json.load(answer)["messages"][0]["data"] == "😀"
            for command in (["keys", "list"], ["migrate", "--check"], ["doctor", "--url", url]):
                done = subprocess.run(
                    [*cluster.command, *command, *cluster.data_args],
                    env=cluster.env, capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert done.returncode == 0, done.stdout + done.stderr
            assert "ignored in the environment" not in cluster.output
            assert cluster.stop() == 0
        with psycopg.connect(other.conninfo) as connection:
            found = connection.execute("SELECT to_regnamespace('queen')").fetchone()
            assert found == (None,)

        # With a given database they count as little, but an operator may have relied on them.
        env = {"DATABASE_URL": other.conninfo, "PGSSLMODE": "verify-full", "PGPORT": "1"}
        with ClusterProcess(env=env) as cluster:
            cluster.wait_ready()
            assert cluster.wait_for_line("ignored in the environment: PGPORT, PGSSLMODE;")


@contextlib.contextmanager
def other_postgres(folder: Path) -> Iterator[Postgres]:
    """Another PostgreSQL of the machine, on a TCP port."""
    folder.parent.chmod(0o755)
    other = Postgres(find_binaries(), folder, {})
    other.initialise()
    other.start()
    try:
        other.wait_ready()
        yield other
    finally:
        other.end(signal.SIGINT)


def request(url: str, body: object) -> urllib.request.Request:
    return urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )


# -- started by root --


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_started_by_root_workers_are_an_unprivileged_user(tmp_path: Path) -> None:
    # A key that root alone may read: the supervisor reads it, also anew on SIGHUP.
    certificate, key = identity("server").write(tmp_path, "server")
    Path(key).chmod(0o600)
    env = {"TLS_CERT": certificate, "TLS_KEY": key}
    with server_directory() as data_dir, ClusterProcess(data_dir=data_dir, env=env) as cluster:
        cluster.wait_ready()

        def check() -> None:
            for pid in cluster.worker_pids():
                status = status_of(pid)
                ids = {*status["Uid"].split(), *status["Gid"].split()}
                assert "0" not in ids, status
                assert status["Groups"] == "", status
                assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")} == {0}
                assert status["NoNewPrivs"] == "1"
                if ClusterProcess.stand_in is None:
                    data = (data_dir / "postgres").stat()
                    assert ids == {str(data.st_uid), str(data.st_gid)}

        before = cluster.worker_pids()
        check()
        cluster.signal(signal.SIGHUP)
        cluster.wait_for_line("all workers are replaced")
        assert set(cluster.worker_pids()).isdisjoint(before)
        check()
        assert "can be read by" not in cluster.output
        Path(key).chmod(0o644)
        cluster.signal(signal.SIGHUP)
        cluster.wait_for_line(f"TLS_KEY={key} can be read by every user of this machine")
        cluster.wait_for_line("all workers are replaced", start=len(cluster.lines))
        os.kill(cluster.worker_pids()[0], signal.SIGKILL)
        seen = len(cluster.lines)
        cluster.wait_for_line("is ready", start=seen)
        check()
        assert cluster.stop() == 0


@pytest.mark.databases("embedded", reason="it is about the PostgreSQL that the server starts")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_data_of_the_shared_user_is_kept_and_warned_of(tmp_path: Path) -> None:
    with server_directory() as data_dir:
        with ClusterProcess(data_dir=data_dir) as cluster:
            cluster.wait_ready()
            assert cluster.stop() == 0
        try:
            shared = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("this system has no user postgres")
        for path in (data_dir / "postgres", *(data_dir / "postgres").rglob("*")):
            os.chown(path, shared.pw_uid, shared.pw_gid)
        with ClusterProcess(data_dir=data_dir) as cluster:
            cluster.wait_ready()
            assert "which other software may share" in cluster.output
            assert status_of(cluster.worker_pids()[0])["Uid"].split()[0] == str(shared.pw_uid)
            assert cluster.stop() == 0


@pytest.mark.databases("embedded", reason="it is about a way that only root can go")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_database_that_root_alone_reaches_keeps_workers_root_and_says_so(
    conninfo: str, tmp_path: Path
) -> None:
    # As with a client key, or a ~/.pgpass, that belongs to root.
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    given = conninfo_to_dict(conninfo)
    (closed / "run").symlink_to(str(given["host"]))
    url = make_conninfo(conninfo, host=str(closed / "run"))
    with ClusterProcess(env={"DATABASE_URL": url, "DB_POOL_SIZE": "8"}) as cluster:
        cluster.wait_ready()
        assert re.search(r"the workers run as root: .* cannot connect", cluster.output)
        assert status_of(cluster.worker_pids()[0])["Uid"].split()[0] == "0"
        assert cluster.stop() == 0
