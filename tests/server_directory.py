"""Folders for the data of servers under test."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def server_directory() -> Iterator[Path]:
    """A folder for a server's data that is gone afterwards.

    Not below `tmp_path`: started by root, the server runs PostgreSQL as a system user, and pytest
    takes the way to all its folders away from other users whenever another session begins.
    """
    directory = Path(tempfile.mkdtemp(prefix="queue-server-test-"))
    try:
        yield directory / "data"
    finally:
        shutil.rmtree(directory, ignore_errors=True)
