"""Loads the fixtures: every `fix_*.py` module beside this file is a pytest plugin."""

from pathlib import Path

import pytest

pytest_plugins = [f"tests.{path.stem}" for path in sorted(Path(__file__).parent.glob("fix_*.py"))]

# All of them before the first is imported: one may import another.
pytest.register_assert_rewrite(*pytest_plugins, "tests.client", "tests.cluster_process")
