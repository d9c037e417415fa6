"""Every block of docs/quick-start.md, in its order: the first is the server, then the others."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster_process import ROOT, ClusterProcess
from tests.e2e.test_readme import documents

PAGE = ROOT / "docs/quick-start.md"

pytestmark = [
    pytest.mark.databases("embedded", reason="the page starts a server with its own PostgreSQL"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("bash", "curl", "make"))), reason="needs bash, curl and make"
    ),
    # The page uses the virtual environment that `make` makes.
    pytest.mark.skipif(
        not (ROOT / ".venv/bin/python").exists(), reason="needs the virtual environment of make"
    ),
]


def blocks() -> list[tuple[str, str]]:
    """The language and text of each block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def script(url: str) -> str:
    """All blocks but the first, as one script that says where each begins."""
    lines = []
    for number, (language, text) in enumerate(blocks()[1:]):
        assert language in ("sh", "python"), f"a block in {language!r} that nobody runs"
        command = text if language == "sh" else f"python3 - <<'END'\n{text}END\n"
        lines.append(f"printf '\\n== {number}\\n'\n{command}")
    return "".join(lines).replace("http://127.0.0.1:6632", url)


def test_every_block_does_what_the_page_says(data_dir: Path) -> None:
    language, start = blocks()[0]
    assert (language, start) == ("sh", "make run\n")
    # As the page says it, but on a free port and in a folder of the test.
    env = {"PORT": "0", "NUM_WORKERS": "2", "DATA_DIR": str(data_dir)}
    with ClusterProcess(env=env, command=["bash", "-c", f"exec {start}"]) as cluster:
        url = cluster.wait_ready(timeout=120)
        path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script(url)],
            cwd=ROOT,
            env=cluster.env | {"PATH": path, "QUEUE_SERVER_URL": url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said = re.split(r"^== \d\n", done.stdout, flags=re.MULTILINE)[1:]
        pushed, popped, acked, _, billed, looked = said

        assert [entry["status"] for entry in documents(pushed)[0]] == ["queued", "queued"]
        messages = documents(popped)[0]["messages"]
        assert [message["data"]["total"] for message in messages] == [12.5, 99.0]
        assert [entry["success"] for entry in documents(acked)[0]] == [True, True]

        totals = [json.loads(line.split(" ", 1)[1].replace("'", '"'))["total"]
                  for line in billed.splitlines() if line.startswith("billing ")]  # fmt: skip
        assert sorted(totals) == [5.0, 6.0, 12.5, 99.0]
        assert totals.index(12.5) < totals.index(99.0)
        assert totals.index(5.0) < totals.index(6.0)

        assert "1 stored in demo\n" in looked
        # The oldest message lies in the partition of the first block, so that one is taken.
        assert "2 acknowledged as completed\n" in looked
        assert re.search(r"^demo +customer-9 +shipping +1 ", looked, re.MULTILINE)
        # Stored, depth, scheduled, pending, processing, completed, dead: queue mode has read two.
        assert re.search(r"^messages +5 +3 +0 +3 +0 +2 +0$", looked, re.MULTILINE), looked

        # make passes the signal on, and ends by it.
        cluster.stop()
        assert cluster.records[-1]["event"] == "stopped", cluster.output[-5000:]
        assert cluster.records[-1]["exit_code"] == 0
