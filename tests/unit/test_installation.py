"""A start without the packages, or with an old Python, ends with the fix instead of a traceback."""

import ast
import os
import subprocess
import sys

import pytest

from queue_server.installation import PACKAGES
from tests.cluster_process import ROOT

ENTRIES = {
    "cluster.py": ["cluster.py"],
    "module": ["-m", "queue_server", "status"],
    "serve": ["-m", "queue_server", "serve"],
    "producer": ["bench/producer.py"],
    "consumer": ["bench/consumer.py"],
    "bench": ["-m", "bench"],
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=clean, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_missing_packages_are_named_with_the_fix(entry: list[str]) -> None:
    done = run("-S", *entry)  # without site-packages
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "aiohttp" in line
    assert "`make run`" in line


@pytest.mark.parametrize("entry", ["cluster.py", "bench/consumer.py"])
def test_an_old_python_is_named_with_the_fix(entry: str) -> None:
    old = "import runpy, sys; sys.version_info = (3, 9, 2, 'final', 0); sys.path.insert(0, '.'); "
    done = run("-c", f"{old}runpy.run_path({entry!r}, run_name='__main__')")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Python 3.9 is too old, 3.11 or newer is needed" in line


def test_an_old_python_can_read_what_names_the_fix() -> None:
    for name in ("cluster.py", "queue_server/__init__.py", "queue_server/installation.py"):
        ast.parse((ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 7))


def test_every_package_that_is_looked_for_is_one_that_we_import() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "queue_server").rglob("*.py")]
    for name in PACKAGES:
        assert any(f"import {name}" in text or f"from {name}" in text for text in sources), name
