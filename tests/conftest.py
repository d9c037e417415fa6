"""Loads the fixtures: every `fix_*.py` module beside this file is a pytest plugin."""

from pathlib import Path

pytest_plugins = [f"tests.{path.stem}" for path in sorted(Path(__file__).parent.glob("fix_*.py"))]
