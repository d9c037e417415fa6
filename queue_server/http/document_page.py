"""The OpenAPI document as one page of HTML.

It is rendered here and holds no script, so a browser needs nothing but this answer: it works
offline, asks nobody else for anything, and its content security policy says so. Every text goes
through `_text`, which escapes it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #2563eb; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; display: grid;
  grid-template-columns: 16rem minmax(0, 1fr); }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; box-sizing: border-box;
  padding: 1rem; border-right: 1px solid var(--line); }
nav ul { list-style: none; padding: 0; } main { padding: 1rem 2rem; max-width: 62rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: .8rem; text-transform: uppercase; letter-spacing: .05em; margin: 1rem 0 .25rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; }
summary { padding: .4rem .8rem; cursor: pointer; }
details[open] > summary { background: var(--soft); }
details > div { padding: .2rem .8rem .8rem; }
code { font: 13px/1.45 ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid var(--line); padding: .2rem .6rem .2rem 0; vertical-align: top; }
.method { display: inline-block; width: 4.2rem; font-weight: 700; }
.about { color: #888; margin-left: .5rem; }
@media (max-width: 50rem) { body { display: block; } nav { position: static; height: auto; } }
"""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_REF = "#/components/schemas/"


def render(document: Mapping[str, Any]) -> str:
    """The page for an OpenAPI document as http/openapi.py makes it."""
    by_tag: dict[str, list[str]] = {tag["name"]: [] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag[operation["tags"][0]].append(_operation(path, method, operation))
    schemas = document["components"]["schemas"]
    info = document["info"]
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(info['title'])}: API</title><style>{_STYLE}</style></head><body>",
            "<nav><strong>", _text(info["title"]), "</strong> ", _text(info["version"]), "<ul>",
            *(f'<li><a href="#{_anchor("tag", tag)}">{_text(tag)}</a></li>' for tag in by_tag),
            '<li><a href="#types">Types</a></li></ul>',
            '<a href="../openapi.json">openapi.json</a></nav>',
            f"<main><h1>{_text(info['title'])}: API</h1>",
            *(f"<p>{_text(part)}</p>" for part in info["description"].split("\n\n")),
            *(
                f'<h2 id="{_anchor("tag", tag)}">{_text(tag)}</h2>{"".join(operations)}'
                for tag, operations in by_tag.items()
            ),
            '<h2 id="types">Types</h2>',
            *(_named_schema(name, schemas[name]) for name in sorted(schemas)),
            "</main></body></html>",
        ]
    )  # fmt: skip


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _anchor(kind: str, name: str) -> str:
    return _text(f"{kind}-{name}".replace(" ", "-"))


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [
        f'<details id="{_anchor("op", operation["operationId"])}"><summary>',
        f'<span class="method">{_text(method.upper())}</span><code>{_text(path)}</code>',
        f'<span class="about">{_text(operation["summary"])}</span></summary><div>',
        f"<p>{_text(operation['description'])}</p>",
    ]
    if operation["parameters"]:
        parts.append("<h3>Parameters</h3>")
        parts.append(_table(map(_parameter_row, operation["parameters"])))
    if "requestBody" in operation:
        needed = "" if operation["requestBody"]["required"] else " (may be left out)"
        parts.append(f"<h3>Body{needed}</h3>{_content(operation['requestBody'])}")
    parts.append("<h3>Answers</h3>")
    parts.append(
        _table(
            [_text(status), _text(answer["description"]), _content(answer)]
            for status, answer in operation["responses"].items()
        )
    )
    parts.append("</div></details>")
    return "".join(parts)


def _parameter_row(parameter: Mapping[str, Any]) -> list[str]:
    return [
        f"<code>{_text(parameter['name'])}</code>",
        _text(parameter["in"]),
        _schema(parameter["schema"]),
        _text(parameter.get("description", "")),
    ]


def _table(rows: Iterable[list[str]]) -> str:
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _content(described: Mapping[str, Any]) -> str:
    return " ".join(
        _schema(content["schema"]) if media_type == "application/json" else _text(media_type)
        for media_type, content in described.get("content", {}).items()
    )


def _named_schema(name: str, schema: Mapping[str, Any]) -> str:
    parts = [
        f'<details id="{_anchor("type", name)}"><summary><code>{_text(name)}</code></summary><div>'
    ]
    if "description" in schema:
        parts.append(f"<p>{_text(schema['description'])}</p>")
    if "properties" in schema:
        required = schema.get("required", ())
        parts.append(
            _table(
                [
                    f"<code>{_text(field)}</code>",
                    _schema(of),
                    "" if field in required else "may be absent",
                ]
                for field, of in schema["properties"].items()
            )
        )
    else:
        parts.append(_schema(schema))
    parts.append("</div></details>")
    return "".join(parts)  # fmt: skip


def _schema(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, with links to those that have a name."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return f'<a href="#{_anchor("type", name)}">{_text(name)}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_schema, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"<code>{_text(json.dumps(value))}</code>" for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_schema(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_schema(schema['additionalProperties'])}"
    return _text(" ".join(schema_words(schema))) or "any JSON value"


def schema_words(schema: Mapping[str, Any]) -> Iterator[str]:
    """What a schema without parts says, word by word; as plain text."""
    if "type" in schema:
        yield str(schema["type"])
    if "format" in schema:
        yield f"({schema['format']})"
    if "minimum" in schema:
        yield f"from {schema['minimum']}"
    if "maximum" in schema:
        yield f"to {schema['maximum']}"
    if schema.get("minLength"):
        yield "not empty"
    if schema.get("default") is not None:
        yield f"default {json.dumps(schema['default'])}"
