"""Requests made up from the OpenAPI document, valid ones and others, at a server of two workers.

Whatever comes: no answer is a 5xx, each is what the document says, a refusal has the protocol's
form and changed nothing; meanwhile `/livez` answers, and workers keep their memory. Schemathesis
makes the requests; what it checks beside its own is in hooks.py. A failure prints a curl command
for each request at fault, and the seed of the run.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.client import Client
from tests.cluster_process import ROOT, ClusterProcess
from tests.e2e.test_memory_bound import MB, PROBE_SECONDS_MAX, peaks, probed
from tests.fix_fuzz import Fuzz

SECRET = "the fuzz tests' own secret, long enough for SHA-256"

# What docs/operating.md states.
WORKER_BYTES_MAX = 512 * MB
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
    "error_form",
    "refusal_changes_nothing",
)
SETTINGS = {
    # A pop that waits is answered soon.
    "MAX_TIMEOUT": "20",
    "DEFAULT_TIMEOUT": "20",
    # Nothing but requests changes what is stored.
    "RETENTION_INTERVAL": "3600000",
    "EVICTION_INTERVAL": "3600000",
    # Without a key a push to an encrypted queue is answered 503, as it should be.
    "QUEEN_ENCRYPTION_KEY": "ab" * 32,
}
TIMES = [
    "2026-01-01T00:00:00Z",
    "2026-01-01 00:00:00+02:00",
    "1969-12-31T23:59:59.999999Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-12:00",
]
# A run that fails says all it found behind this line.
FINDINGS = "= FAILURES ="


@contextmanager
def cluster(conninfo: str, **env: str) -> Iterator[ClusterProcess]:
    with ClusterProcess(env={"DATABASE_URL": conninfo, **SETTINGS, **env}) as running:
        running.wait_ready()
        yield running
        assert running.stop() == 0, running.output[-3000:]
        errors = [record for record in running.records if record.get("level") == "error"]
        assert not errors, errors[:3]


async def names_to_send(url: str, token: str | None) -> dict[str, list[str]]:
    """Make a bit of everything, and tell what it is called."""
    known: dict[str, list[str]] = {
        "queue": ["orders", "täglich / neu"],
        "group": ["readers"],
        "partition": ["Default", "customer-7"],
        "name": ["billing"],
        "partition_id": [],
        "transaction_id": [],
        "lease_id": [],
        "id": [],
    }
    async with Client(url, token=token) as client:
        for queue in known["queue"]:
            await client.configure(queue, {"deadLetterQueue": True}, namespace="shop", task="ship")
            for partition in known["partition"]:
                pushed = await client.push(queue, list(range(8)), partition=partition)
                await client.pop(queue, group="readers", partition=partition, batch=2)
                pop = await client.pop(queue, partition=partition, batch=2)
                known["lease_id"].append(pop.lease_id)
                ids = [result["transaction_id"] for result in pushed]
                known["partition_id"].append(pushed[0]["partition_id"])
                known["transaction_id"] += ids
                message = f"/api/v1/messages/{pushed[0]['partition_id']}/{ids[-1]}"
                assert (await client.send("POST", f"{message}/dlq")).status == 200
                trace = {"transactionId": ids[0], "partitionId": pushed[0]["partition_id"]}
                await client.post("/api/v1/traces", trace | {"data": 1, "traceNames": "billing"})
        letters = (await client.get("/api/v1/dlq")).json["messages"]
        known["id"] = [letter["id"] for letter in letters]
    for parameter, field in (
        ("group", "consumerGroup"),
        ("partition_id", "partitionId"),
        ("transaction_id", "transactionId"),
        ("lease_id", "leaseId"),
    ):
        known[field] = known[parameter]
    for parameter in ("from", "to", "timestamp", "subscriptionTimestamp", "subscriptionFrom"):
        known[parameter] = TIMES
    return known | {"namespace": ["shop"], "task": ["ship"], "type": ["push", "ack"]}


def send_requests(
    server: ClusterProcess,
    conninfo: str,
    known: dict[str, list[str]],
    fuzz: Fuzz,
    folder: Path,
    token: str | None,
) -> None:
    # A connection for each request, so that both workers get some.
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
        "--header", "Connection: close",
        "--checks", ",".join(CHECKS),
        "--seed", str(fuzz.seed),
        "--max-time", str(fuzz.seconds),
        "--generation-database", "none",
        "--warnings", "off",
        "--continue-on-failure",
        "--no-color",
    ]  # fmt: skip
    if token is not None:
        command += ["--header", f"Authorization: Bearer {token}"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
            "FUZZ_KNOWN": json.dumps(known),
            "FUZZ_DATABASE_URL": conninfo,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=fuzz.seconds + 120,
    )
    if done.returncode:
        findings = done.stdout[max(done.stdout.find(FINDINGS), 0) :]
        pytest.fail(f'make fuzz ARGS="--fuzz-seed {fuzz.seed} -k requests" repeats it\n{findings}')
    print("\n".join(done.stdout.splitlines()[-12:]))


@pytest.mark.parametrize("authentication", [False, True])
async def test_any_request_is_answered_as_described(
    conninfo: str, fuzz: Fuzz, tmp_path: Path, authentication: bool
) -> None:
    env: dict[str, Any] = {}
    token = None
    if authentication:
        env = {"JWT_ENABLED": "true", "JWT_SECRET": SECRET}
        expires_at = int(time.time()) + fuzz.seconds + 600
        token = jwt.encode({"sub": "fuzz", "role": "admin", "exp": expires_at}, SECRET, "HS256")
    with cluster(conninfo, **env) as server:
        known = await names_to_send(server.url, token)
        with probed(server.url) as took:
            send_requests(server, conninfo, known, fuzz, tmp_path, token)
        assert max(took) < PROBE_SECONDS_MAX
        assert max(peaks(server)) <= WORKER_BYTES_MAX
