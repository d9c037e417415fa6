"""The OpenAPI document says of the server what it serves, and its page shows it safely."""

import html.parser
import inspect
import re
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from aiohttp import web

from queue_server.http.app import build_app
from queue_server.http.document_page import CONTENT_SECURITY_POLICY, render
from queue_server.http.handlers.document import DOCUMENT
from queue_server.http.state import State
from queue_server.settings import Settings


@pytest.fixture(scope="module")
def app() -> web.Application:
    """The application as a worker builds it, without what answers its requests."""
    parts: dict[str, Any] = dict.fromkeys(inspect.signature(State).parameters)
    return build_app(State(**parts | {"settings": Settings()}))


@pytest.fixture(scope="module")
def document(app: web.Application) -> dict[str, Any]:
    return app[DOCUMENT].content


def test_strangers_have_it_made_once(app: web.Application) -> None:
    kept = app[DOCUMENT]
    assert kept.page is kept.page
    assert kept.encoded is kept.encoded


def test_what_is_served_is_described_and_the_other_way_round(
    app: web.Application, document: dict[str, Any]
) -> None:
    served = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    }
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert {one for one in served if one[0] != "HEAD"} == described
    # HEAD is nowhere but beside a GET, and not where GET takes.
    heads = {path for method, path in served if method == "HEAD"}
    assert heads <= {path for method, path in described if method == "GET"}
    assert not any(path.startswith("/api/v1/pop") for path in heads)


def test_it_is_an_openapi_3_1_document(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    schemathesis.openapi.from_dict(document).validate()
    for name, schema in document["components"]["schemas"].items():
        jsonschema_rs.meta.validate(
            {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
        )
        assert re.fullmatch(r"[A-Za-z0-9]+", name), f"two types of one name: {name}"


def test_every_operation_has_a_name_a_summary_and_its_errors(document: dict[str, Any]) -> None:
    operations = [one for path in document["paths"].values() for one in path.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    for one in operations:
        assert one["summary"]
        assert not one["summary"].endswith(".")
        assert {"400", "500", "503"} <= set(one["responses"])


class _Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    return reader


def test_the_page_asks_nobody_and_shows_everything(document: dict[str, Any]) -> None:
    reader = _read(render(document))
    assert "script" not in reader.tags
    for name, value in reader.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert value.startswith("#") or value == "../openapi.json"
    anchors = {value for name, value in reader.attributes if name == "id"}
    links = {value[1:] for name, value in reader.attributes if name == "href" and value[0] == "#"}
    assert links <= anchors
    for path in document["paths"]:
        assert path in reader.text
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY


def test_the_page_escapes_every_text(document: dict[str, Any]) -> None:
    """Markup in each name and text of a document is shown as it stands, and is markup nowhere."""
    evil = "</code></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"

    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                (key if key in _WORDS else key + evil): spoil(one) for key, one in value.items()
            }
        if isinstance(value, list):
            return [spoil(one) for one in value]
        return value + evil if isinstance(value, str) else value

    clean, spoiled = _read(render(document)), _read(render(spoil(document)))
    assert spoiled.tags == clean.tags
    assert {name for name, _ in spoiled.attributes} == {name for name, _ in clean.attributes}
    assert spoiled.text.count("<script>alert(1)</script>") > 1000


# What the page asks the document for; every other key is a name.
_WORDS = {
    "openapi", "info", "title", "version", "description", "tags", "name", "paths", "components",
    "schemas", "summary", "operationId", "parameters", "in", "schema", "required", "requestBody",
    "responses", "content", "application/json", "properties", "type", "anyOf", "enum", "items",
    "additionalProperties", "$ref", "format", "minimum", "maximum", "minLength", "default",
}  # fmt: skip
