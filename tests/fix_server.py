"""Fixtures around the real server: one for the whole session, clients for it, a queue name.

Tests share `server` and never meet, because each works on queues of its own. A test that harms its
server (signals, kill -9, odd settings) starts another one with `ClusterProcess`.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.client import Client, unique
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Where a test's own server keeps its data; the folder does not exist yet."""
    with server_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def server() -> Iterator[ClusterProcess]:
    """`python cluster.py` with two workers and its own PostgreSQL, as a user would start it."""
    # What workers did is booked often, so that a test of figures need not wait for ten seconds.
    env = {"STATS_INTERVAL_MS": "250"}
    with server_directory() as directory, ClusterProcess(data_dir=directory, env=env) as cluster:
        cluster.wait_ready()
        yield cluster
        # Whatever the tests did to it, it still drains as promised.
        assert cluster.stop() == 0, cluster.output[-5000:]


@pytest.fixture
async def client(server: ClusterProcess) -> AsyncIterator[Client]:
    """A client that keeps its connections."""
    async with Client(server.url) as client:
        yield client


@pytest.fixture
async def fresh_client(server: ClusterProcess) -> AsyncIterator[Client]:
    """A client with a new connection for each request, so that both workers get some."""
    async with Client(server.url, fresh=True) as client:
        yield client


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """A queue name of this test alone; the log tells whose it is."""
    return unique(request.node.originalname.removeprefix("test_")[:60])
