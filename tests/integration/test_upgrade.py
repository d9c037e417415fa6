"""The server's own data goes to the next major version of PostgreSQL, and nothing is lost by it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from queue_server.cluster.database import DatabaseError, EmbeddedPostgres, find_binaries
from queue_server.cluster.upgrade import Upgrade
from queue_server.storage.connections import connect
from queue_server.storage.migrate import migrate
from tests.databases import PG15_BINARIES, Postgres, unavailable
from tests.server_directory import server_directory

pytestmark = [
    pytest.mark.databases("embedded", reason="it is about the PostgreSQL that the server starts"),
    pytest.mark.skipif(bool(unavailable("pg15")), reason=unavailable("pg15")),
]


@pytest.fixture(scope="module")
def old_data() -> Iterator[Path]:
    """A data directory as a server with PostgreSQL 15 would have left it, after a crash."""
    with server_directory() as folder:
        folder.parent.chmod(0o755)
        old = Postgres(PG15_BINARIES, folder, {})
        old.initialise()
        old.start()
        try:
            old.wait_ready()
            migrate(old.conninfo)
            with connect(old.conninfo) as connection:
                connection.execute("CREATE TABLE kept AS SELECT '中文' AS name, 42 AS answer")
                connection.execute("CREATE ROLE reporter LOGIN")
        finally:
            old.end(signal.SIGQUIT)
        (folder / "postgres.log").unlink()
        yield folder


@pytest.fixture
def data_dir(old_data: Path) -> Iterator[Path]:
    with server_directory() as folder:
        folder.parent.chmod(0o755)
        subprocess.run(["cp", "-a", str(old_data), str(folder)], check=True)
        yield folder


def contents(data_dir: Path) -> list[tuple[object, ...]]:
    database = EmbeddedPostgres(data_dir, pool_size=4)
    database.lock()
    try:
        database.start()
        with connect(database.conninfo) as connection:
            version = connection.info.server_version // 10000
            (row,) = connection.execute("SELECT name, answer FROM public.kept")
            roles = connection.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'reporter'")
            assert migrate(database.conninfo) == 0
            return [(version,), row, *roles]
    finally:
        database.stop(10)


def test_everything_is_there_afterwards_and_the_old_files_too(data_dir: Path) -> None:
    before = sorted(path.name for path in (data_dir / "postgres").iterdir())
    with pytest.raises(DatabaseError, match=r"PostgreSQL 15, .* PostgreSQL 18"):
        contents(data_dir)
    steps: list[str] = []
    kept = Upgrade(data_dir, None, steps.append).run()
    assert kept == data_dir / "postgres.15"
    assert contents(data_dir) == [(18,), ("中文", 42), (1,)]
    assert (kept / "PG_VERSION").read_text() == "15\n"
    assert set(before) - {"postmaster.pid"} <= {path.name for path in kept.iterdir()}
    assert not (data_dir / "upgrade").exists()
    assert any("recovers first" in step for step in steps)
    assert any("Copying user relation files" in step for step in steps)
    assert Upgrade(data_dir, None, steps.append).run() is None


def test_an_interrupted_one_is_finished_or_begun_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # Before the new files were put in place: nothing has changed, and it can be done anew.
    monkeypatch.setattr(Upgrade, "_put_in_place", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Upgrade(data_dir, PG15_BINARIES, lambda _: None).run()
    assert (data_dir / "postgres" / "PG_VERSION").read_text() == "15\n"
    monkeypatch.undo()

    # Between the two renames: a server must not take this for a place without data.
    sides = [data_dir / "postgres", data_dir / "upgrade" / "postgres"]
    rename = Path.rename

    def rename_once(path: Path, target: Path) -> Path:
        if path == sides[1]:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_once)
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Upgrade(data_dir, PG15_BINARIES, steps.append).run()
    assert "removing what an interrupted upgrade left" in steps
    monkeypatch.undo()
    assert not sides[0].exists()
    with pytest.raises(DatabaseError, match="interrupted at its last step; run `queue-server"):
        contents(data_dir)
    assert Upgrade(data_dir, PG15_BINARIES, steps.append).run() == data_dir / "postgres.15"
    assert contents(data_dir) == [(18,), ("中文", 42), (1,)]


def test_what_is_missing_is_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatabaseError, match=r"--old-bindir .* is PostgreSQL 18, .* of 15"):
        Upgrade(data_dir, find_binaries(), lambda _: None).run()
    monkeypatch.setattr("queue_server.cluster.upgrade._USUAL_FOLDERS", ("/nowhere/{}",))
    with pytest.raises(DatabaseError, match=r"PostgreSQL 15, whose programs .* --old-bindir"):
        Upgrade(data_dir, None, lambda _: None).run()
    holder = EmbeddedPostgres(data_dir, pool_size=4)
    holder.lock()
    child = os.fork()
    if not child:
        try:
            Upgrade(data_dir, None, lambda _: None).run()
        except DatabaseError as exc:
            os._exit(7 if "is in use" in str(exc) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    holder.stop(0)
