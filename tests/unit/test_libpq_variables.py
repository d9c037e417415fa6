"""The environment variables of libpq are recognised, whatever version of it is installed."""

import re
from pathlib import Path

import pytest
from psycopg.pq import Conninfo

import queue_server
from queue_server.settings import options
from queue_server.storage.connections import libpq_variables

LISTED = sorted(one.envvar.decode() for one in Conninfo.get_defaults() if one.envvar)
# libpq's own list, src/interfaces/libpq/fe-connect.c, has these beside the parameters.
UNLISTED = ["PGDATESTYLE", "PGGEQO", "PGLOCALEDIR", "PGREQUIRESSL", "PGSERVICEFILE",
            "PGSYSCONFDIR", "PGTZ"]  # fmt: skip


@pytest.mark.parametrize("name", [*LISTED, *UNLISTED])
def test_each_variable_of_libpq_is_recognised(name: str) -> None:
    assert libpq_variables([name, "PATH"]) == [name]


def test_settings_of_the_server_are_not_taken_for_those_of_libpq() -> None:
    names = [name for option in options().values() for name in option.env]
    # The protocol's name for PG_SSL_ROOT_CERT, which the settings read first.
    assert libpq_variables([*names, "PATH", "PG", "pgport"]) == ["PGSSLROOTCERT"]


def test_connections_are_made_in_one_place() -> None:
    root = Path(queue_server.__file__).parent
    makers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"psycopg\.(Async)?[Cc]onnect(ion\.connect)?\(", path.read_text())
    }
    assert makers == {"storage/connections.py"}
