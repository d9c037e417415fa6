"""Checks that Python and the packages are there, before anything that needs them is imported.

A start without them would end in a traceback of an import. This module and `cluster.py` have to be
readable by any Python 3, so they use no newer syntax; the packages are named by what is imported.
"""

import importlib.util
import sys

PYTHON_MIN = (3, 11)
PACKAGES = (
    "aiohttp",
    "cryptography",
    "jwt",
    "msgspec",
    "prometheus_client",
    "psycopg",
    "psycopg_pool",
    "rich",
    "typer",
    "uvloop",
    "zstandard",
)


def check_installation() -> None:
    """End the process with one line that names the fix when Python or a package is missing."""
    if sys.version_info < PYTHON_MIN:
        sys.exit(
            "queue-server: Python {}.{} is too old, {}.{} or newer is needed; in a checkout "
            "`make run PYTHON=python3.11` makes a virtual environment with it and starts the "
            "server".format(*sys.version_info[:2], *PYTHON_MIN)
        )
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"queue-server: {sys.executable} lacks {', '.join(missing)}; in a checkout "
            "`make run` installs them into .venv and starts the server (later: "
            "`.venv/bin/python cluster.py`), elsewhere `pip install` the project"
        )
