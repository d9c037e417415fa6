"""What the README's first screen says can be pasted."""

import json
import re
import subprocess

from tests.cluster_process import ROOT, ClusterProcess


def test_the_readme_pushes_pops_and_acknowledges(server: ClusterProcess) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = next(block for block in blocks if "curl" in block)
    assert "URL=http://127.0.0.1:6632\n" in script
    script = script.replace("URL=http://127.0.0.1:6632\n", f"URL={server.url}\n")
    run = subprocess.run(
        ["bash", "-eu", "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode == 0, run.stderr
    pushed, popped, acked, deleted = documents(run.stdout)
    assert [entry["status"] for entry in pushed] == ["queued", "queued"]
    assert [message["data"]["total"] for message in popped["messages"]] == [12.5, 99.0]
    assert acked[0]["success"] is True
    assert acked[0]["leaseReleased"] is True
    # It leaves no reader behind that would be late for ever.
    assert deleted["deleted"] is True


def documents(text: str) -> list:
    """The JSON documents that follow each other in *text*."""
    decoder = json.JSONDecoder()
    documents = []
    while text := text.strip():
        document, end = decoder.raw_decode(text)
        documents.append(document)
        text = text[end:]
    return documents
