"""The reference pages, made from the code when the documentation is built.

Two comments in the pages stand for them, and are replaced before the page is parsed:

    <!-- the settings -->   in configuration.md: queue_server/settings/model.py
    <!-- the routes -->     in api.md: the OpenAPI document, queue_server/http/openapi.py

So nothing that is generated is kept, and nothing can go stale.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from queue_server import __version__
from queue_server.http.document_page import schema_words
from queue_server.http.openapi import document
from queue_server.http.routes import routes
from queue_server.settings import Settings, options

_HERE = Path(__file__).resolve().parent

# The last word of a field's name is its unit.
_UNITS = {"ms": "ms", "s": "s", "bytes": "bytes", "days": "days"}

_REF = "#/components/schemas/"


def settings_page() -> str:
    """Every setting in a table for each part of `Settings`, in the order of the class."""
    parts = []
    for heading, names in _groups():
        rows = "".join(_setting_row(name) for name in names)
        parts.append(
            f"## {heading[0].upper()}{heading[1:]}\n\n"
            "| Variable, option | Default | Unit | What it does |\n|---|---|---|---|\n" + rows
        )
    return "\n".join(parts)


def _groups() -> list[tuple[str, list[str]]]:
    """The parts that comments `# -- name --` divide the class into, with their fields."""
    groups: list[tuple[str, list[str]]] = []
    for heading, name in re.findall(
        r"^    (?:# -- (.+) --|(\w+): .+ = setting\()", inspect.getsource(Settings), re.MULTILINE
    ):
        if heading:
            groups.append((heading, []))
        else:
            groups[-1][1].append(name)
    assert [name for _, names in groups for name in names] == list(options())
    return groups


def _setting_row(name: str) -> str:
    option = options()[name]
    names = [f"`{one}`" for one in (*option.env, option.flag) if one]
    # The key of a certificate, or 64 digits, would help nobody.
    example = f" Such as `{option.example}`." if len(option.example) <= 60 else ""
    unit = _UNITS.get(name.rsplit("_", 1)[-1], "")
    return _row([", ".join(names), _default(name), unit, f"{option.text}{example}"])


def _default(name: str) -> str:
    option = options()[name]
    if option.default_text:
        return option.default_text
    value = option.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if str(value) else "none"


def routes_page() -> str:
    """Every route under its tag, with parameters, bodies and answers; then the types."""
    told = document(routes(), __version__, None)
    operations: dict[str, list[str]] = {tag["name"]: [] for tag in told["tags"]}
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            operations[operation["tags"][0]].append(_operation(method, path, operation))
    parts = [f"{told['info']['description']}\n"]
    parts += [f"## {tag}\n\n{''.join(texts)}" for tag, texts in operations.items()]
    schemas = told["components"]["schemas"]
    parts.append("## Types\n\n")
    parts += [_type(name, schemas[name]) for name in sorted(schemas)]
    return "".join(parts)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [
        f"({_anchor('route', operation['operationId'])})=\n",
        f"### `{method.upper()} {path}`\n\n",
        f"{_text(operation['summary'])}. {_text(operation['description'])}\n\n",
    ]
    if operation["parameters"]:
        parts.append("| Parameter | In | Type | |\n|---|---|---|---|\n")
        parts += [
            _row(
                [f"`{one['name']}`", one["in"], _schema(one["schema"]), one.get("description", "")]
            )
            for one in operation["parameters"]
        ]
        parts.append("\n")
    body = operation.get("requestBody")
    if body is not None:
        needed = "" if body["required"] else " (may be left out)"
        parts.append(f"Body{needed}: {_content(body)}\n\n")
    parts.append("| Answer | | Body |\n|---|---|---|\n")
    refusals: list[str] = []
    error = operation["responses"]["400"]  # every route has it
    for status, answer in operation["responses"].items():
        if int(status) >= 400 and _content(answer) == _content(error):
            refusals.append(status)
        else:
            parts.append(_row([status, answer["description"], _content(answer) or "none"]))
    if refusals:
        parts.append(_row([", ".join(refusals), "Refused, or failed", _content(error)]))
    return "".join([*parts, "\n"])


def _content(described: Mapping[str, Any]) -> str:
    return " ".join(
        _schema(content["schema"]) if media_type == "application/json" else f"`{media_type}`"
        for media_type, content in described.get("content", {}).items()
    )


def _type(name: str, schema: Mapping[str, Any]) -> str:
    parts = [f"({_anchor('type', name)})=\n### {name}\n\n"]
    if "description" in schema:
        parts.append(f"{_text(schema['description'])}\n\n")
    if "properties" in schema:
        required = schema.get("required", ())
        parts.append("| Field | Type | |\n|---|---|---|\n")
        parts += [
            _row([f"`{field}`", _schema(of), "" if field in required else "may be absent"])
            for field, of in schema["properties"].items()
        ]
    else:
        parts.append(f"{_schema(schema)}\n")
    return "".join([*parts, "\n"])


def _schema(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, with links to those that have a name."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return f"[{name}](#{_anchor('type', name)})"
    if "anyOf" in schema:
        return " or ".join(map(_schema, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_schema(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_schema(schema['additionalProperties'])}"
    return " ".join(schema_words(schema)) or "any JSON value"


def _anchor(kind: str, name: str) -> str:
    return f"{kind}-{name}".lower().replace("_", "-")


def _row(cells: list[str]) -> str:
    shown = " | ".join(_cell(cell) for cell in cells)
    return f"| {shown} |\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*") if text != "`*`" else text


def _text(text: str) -> str:
    return " ".join(text.split()).replace("*", "\\*").replace("<", "&lt;")


_PLACES = {"<!-- the settings -->": settings_page, "<!-- the routes -->": routes_page}


def _fill(_app: Any, page: str, source: list[str]) -> None:
    """Put the generated text in its place; unlink what a repository shows and these pages do not.

    That is folders, and Markdown elsewhere in the repository. Other files can be downloaded.
    """
    for place, make in _PLACES.items():
        if place in source[0]:
            source[0] = source[0].replace(place, make())
    folder = (_HERE / page).parent

    def unlinked(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        elsewhere = target.suffix == ".md" and not target.is_relative_to(_HERE)
        return link[1] if target.is_dir() or elsewhere else link[0]

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\((\.[^)#]*)\)", unlinked, source[0])


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", _fill)
    return {"version": __version__, "parallel_read_safe": True}
