"""A backup of the server's own PostgreSQL, as docs/operating.md says, and a start from it."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.client import Client
from tests.cluster_process import ROOT, ClusterProcess
from tests.server_directory import server_directory

pytestmark = [
    pytest.mark.databases("embedded", reason="it is about the server's own PostgreSQL"),
    pytest.mark.skipif(
        not (ROOT / ".venv/bin/python").exists(), reason="needs the virtual environment of make"
    ),
]


async def test_a_backup_made_while_it_serves_can_be_started(data_dir: Path, queue: str) -> None:
    page = (ROOT / "docs/operating.md").read_text()
    (block,) = re.findall(r"^```sh\n([^`]*pg_basebackup[^`]*)^```$", page, re.MULTILINE)
    with server_directory() as restored:
        with ClusterProcess(data_dir=data_dir) as cluster:
            async with Client(cluster.wait_ready()) as client:
                await client.push(queue, [1, 2, 3])
                (first,) = (await client.pop(queue, batch=1)).messages
                await client.ack(first)
                done = subprocess.run(
                    ["bash", "-eu", "-c", block],
                    cwd=ROOT,
                    env={"PATH": "/usr/bin:/bin", "DATA_DIR": str(data_dir)}
                    | {"BACKUP": str(restored)},
                    capture_output=True, text=True, check=False, timeout=60,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
                await client.push(queue, [4], ids=["four"])
            assert cluster.stop() == 0
        with ClusterProcess(data_dir=restored) as cluster:
            async with Client(cluster.wait_ready()) as client:
                # What was acknowledged before the backup stays so, what came after it is not there.
                assert (await client.pop(queue)).data == [2, 3]
                (result,) = await client.push(queue, [4], ids=["four"])
                assert result["status"] == "queued"
            assert cluster.stop() == 0, cluster.output[-5000:]
