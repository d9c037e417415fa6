"""The systemd unit, judged by systemd's own tools."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster_process import ROOT

UNIT = ROOT / "deploy" / "queue-server.service"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (package systemd)"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as installed, with a program that exists on this machine."""
    text, count = re.subn(
        r"^ExecStart=.*$",
        f"ExecStart={sys.executable} {ROOT / 'cluster.py'}",
        UNIT.read_text(),
        flags=re.MULTILINE,
    )
    assert count == 1
    path = tmp_path / UNIT.name
    path.write_text(text)
    return path


@needs_systemd
def test_systemd_finds_nothing_wrong_with_it(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_it_is_exposed_no_more_than_it_has_to(unit: Path) -> None:
    help_text = subprocess.run(
        ["systemd-analyze", "--help"], capture_output=True, text=True, check=True
    ).stdout
    if "--offline" not in help_text:
        pytest.skip("needs systemd-analyze security --offline (systemd 250)")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_it_waits_longer_than_the_server_takes() -> None:
    settings = dict(
        line.split("=", 1) for line in UNIT.read_text().splitlines() if re.match(r"[A-Z]\w+=", line)
    )
    assert settings["Type"] == "notify"
    assert settings["KillMode"] == "mixed"
    assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert int(settings["TimeoutStopSec"]) > 10
    assert int(settings["TimeoutStartSec"]) > 30 + 60
    assert int(settings["WatchdogSec"]) >= 10
