"""The named statements of sql/queries, read once at import.

A file holds statements that begin with `-- name: some_name`; further comment lines say what each is
for. They are sent as they stand: values travel as parameters only.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Final

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def _load() -> dict[str, str]:
    statements: dict[str, str] = {}
    folder = resources.files("queue_server.storage").joinpath("sql", "queries")
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".sql"):
            continue
        parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            assert name not in statements, f"statement {name} is defined twice"
            lines = [line for line in text.splitlines() if not line.startswith("--")]
            statements[name] = "\n".join(lines).strip()
    return statements


STATEMENTS: Final = _load()
