"""Loads the fixtures, and has the two options of our own: `--part` and `--database`.

Every `fix_*.py` module beside this file is a pytest plugin.
"""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import uvloop

from queue_server.storage.connections import discard_libpq_variables
from tests.databases import KINDS, unavailable

pytest_plugins = [f"tests.{path.stem}" for path in sorted(Path(__file__).parent.glob("fix_*.py"))]

# All of them before the first is imported: one may import another.
pytest.register_assert_rewrite(*pytest_plugins, "tests.client", "tests.cluster_process")

# How long an example takes is the machine's affair: other tests run beside it.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("queue server")
    group.addoption(
        "--part",
        choices=["together", "alone"],
        help="only the tests that may run beside others, or only those marked `alone`",
    )
    group.addoption(
        "--database",
        choices=KINDS,
        default="embedded",
        help="what the servers under test keep their data in (default: %(default)s)",
    )


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of the workers: it treats lost connections in ways of its own."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    # Connections of the tests themselves depend on nothing in the developer's shell.
    discard_libpq_variables()
    if reason := unavailable(config.option.database):
        raise pytest.UsageError(f"--database {config.option.database}: {reason}")
    # As Ctrl-C: fixtures end what they have started when a time limit ends the run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("databases")
        if marker is not None and config.option.database not in marker.args:
            reason = f"with {config.option.database}: {marker.kwargs['reason']}"
            item.add_marker(pytest.mark.skip(reason=reason))
    if part := config.option.part:
        is_alone = part == "alone"
        chosen = [(item.get_closest_marker("alone") is not None) is is_alone for item in items]
        config.hook.pytest_deselected(
            items=[item for item, mine in zip(items, chosen, strict=True) if not mine]
        )
        items[:] = [item for item, mine in zip(items, chosen, strict=True) if mine]
