"""The documentation is built without a warning, its links lead somewhere, what it names exists."""

import ast
import functools
import html.parser
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

from queue_server.http.routes import routes
from queue_server.settings import options
from tests.cluster_process import ROOT
from tests.fault import checker
from tests.fault.faults import FAULTS

DOCS = ROOT / "docs"
GUARANTEES = DOCS / "guarantees.md"
# What is read in the repository; links from one into the other have to hold as well.
OTHERS = ("README.md", "CHANGELOG.md", "bench/README.md", "tests/README.md")
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in OTHERS)])


def short(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The text without its blocks and pieces of code, in which brackets are no links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "`code`", text)


@functools.cache
def anchors(page: Path) -> set[str]:
    """The names by which the headings of a page can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        assert file.exists(), f"{short(page)}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{short(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_tests_that_are_named_exist(page: Path) -> None:
    for path, _, name in re.findall(r"\b(tests/[\w/]+\.py)(::(\w+))?", page.read_text()):
        assert (ROOT / path).exists(), f"{short(page)}: {path}"
        if name:
            assert name in functions_of(ROOT / path), f"{short(page)}: {path}::{name}"


@functools.cache
def functions_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {
        one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_promise_has_a_test_and_every_rule_a_promise() -> None:
    text, faults = GUARANTEES.read_text().split("## The faults")
    table, tests = text.split("## The tests")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line[:2] == "| "][1:]
    assert len(rows) > 10
    shown = re.split(r"^- \*\*(.+)\*\*$", tests, flags=re.MULTILINE)[1:]
    assert shown[::2] == [row[0] for row in rows]
    for promise, named in zip(shown[::2], shown[1::2], strict=True):
        assert "::test_" in named, promise
    named_rules = {name for row in rows for name in re.findall(r"`(\w+)`", "".join(row[2:]))}
    rules = set(re.findall(r"^    (\w+)  +\w", checker.__doc__ or "", re.MULTILINE))
    assert len(rules) > 10
    assert named_rules == rules
    cells = [line.split(" | ")[0] for line in faults.splitlines() if line.startswith("| `")]
    assert {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)} == FAULTS.keys()


def test_what_queen_has_and_we_have_not_is_so() -> None:
    page = (DOCS / "migration.md").read_text()
    table = page.partition("## What is not here")[2]
    absent = [path.rstrip("…") for path in re.findall(r"`(/[\w/…-]+)`", table.split("\n\n")[2])]
    assert len(absent) > 5
    served = {line.path for line in routes()}
    for path in absent:
        assert not any(one == path or one.startswith(path + "/") for one in served), path


@pytest.mark.parametrize("name", ["operating.md", "comparison.md"])
def test_figures_are_those_of_the_page_on_performance(name: str) -> None:
    measured = (DOCS / "performance.md").read_text()
    page = (DOCS / name).read_text()
    table = re.findall(
        r"^\| .*(?:acknowledge|push).* \| ([\d.]+)[^|]* \| [\d,]+ ", page, re.MULTILINE
    )
    told = re.findall(r"([\d.]+) core-seconds", page) + table
    told += [
        f"{thousands} k msg/s" for thousands in re.findall(r"(\d+),000 messages a second p", page)
    ]
    assert told
    for figure in told:
        assert figure in measured, f"docs/{name}: {figure} is not in docs/performance.md"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """What `make docs` makes the reference pages with; it needs no Sphinx."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_setting(reference: ModuleType) -> None:
    rows = [line for line in reference.settings_page().splitlines() if line.startswith("| `")]
    told = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    assert told == [
        ", ".join(f"`{one}`" for one in (*option.env, option.flag) if one)
        for option in options().values()
    ]
    # A text with a bar in it would be one cell more.
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert "## The database" in reference.settings_page()
    assert "<!-- the settings -->" in (DOCS / "configuration.md").read_text()


def test_the_reference_has_every_route_and_type(reference: ModuleType) -> None:
    page = reference.routes_page()
    headings = set(re.findall(r"^### `(.+)`$", page, re.MULTILINE))
    assert headings == {f"{line.method} {line.canonical_path}" for line in routes()}
    targets = set(re.findall(r"^\(([\w-]+)\)=$", page, re.MULTILINE))
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= targets
    assert "<!-- the routes -->" in (DOCS / "api.md").read_text()


# ── what Sphinx makes of it ─────────────────────────────────────────────────────────────────────

needs_sphinx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_parser")),
    reason="needs the packages of the documentation (make docs installs them)",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as `make docs` builds them."""
    (recipe,) = re.findall(
        r"^docs: .*\n\t\$\(PY\) (-m sphinx .+) docs build/docs$",
        (ROOT / "Makefile").read_text(),
        re.MULTILINE,
    )
    folder = tmp_path_factory.mktemp("docs") / "html"
    done = subprocess.run(
        [sys.executable, *recipe.split(), "docs", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


class _Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []  # what a browser fetches to show the page
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a":
            self.links.append(given.get("href", ""))
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


@needs_sphinx
def test_every_page_is_there_and_its_links_hold_offline(built: Path) -> None:
    pages = {file: _Page(file.read_text()) for file in built.rglob("*.html")}
    for source in DOCS.rglob("*.md"):
        assert (built / source.relative_to(DOCS)).with_suffix(".html") in pages
    for file, page in pages.items():
        for target in _inside(page.loads, allow_outside=False):
            assert (file.parent / target.partition("?")[0]).exists(), f"{file.name}: {target}"
        for target in _inside(page.links, allow_outside=True):
            path, _, anchor = target.partition("#")
            to = (file.parent / unquote(path)).resolve() if path else file
            assert to.exists(), f"{file.name}: {target}"
            if anchor and to in pages:
                assert unquote(anchor) in pages[to].ids, f"{file.name}: {target}"


def _inside(targets: list[str], allow_outside: bool) -> Iterator[str]:
    for target in targets:
        if re.match(r"[a-z]+:", target) and not target.startswith("data:"):
            assert allow_outside, f"a page loads {target}"
        elif not target.startswith("data:"):
            yield target


@needs_sphinx
def test_the_reference_pages_are_filled(built: Path) -> None:
    assert "DB_POOL_SIZE" in (built / "configuration.html").read_text()
    assert "/api/v1/push" in (built / "api.html").read_text()
