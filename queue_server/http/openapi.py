"""The OpenAPI document, made of the route table and of the types that its lines name.

It is made when it is first asked for, in some 50 ms, and once in each worker.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from queue_server.domain.access import Access
from queue_server.http import answers_wire as answer
from queue_server.http.route import Content, Query, Route

_ABOUT = """\
A partitioned message queue on PostgreSQL.

Unknown fields of a body and unknown parameters are ignored. A parameter that is empty counts as
absent, one that cannot be read is refused with a 400 that names it, and a number out of its bounds
is brought into them. HEAD is served where GET is, but for pops; OPTIONS is answered 204 everywhere.
A 4xx changed nothing; after a 5xx the outcome is unknown, and the same request may be sent again.
"""

_KINDS: Mapping[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "time": {"type": "string", "format": "date-time"},
}

# What any route may answer. 401 and 403 need authentication to be on, 429 a limit of requests.
_EVERYWHERE = (400, 401, 403, 429, 500, 503)
_WITH_BODY = (408, 413)

_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which to try again",
        "schema": {"type": "integer", "minimum": 0},
    }
}


def document(
    table: Sequence[Route], version: str, open_paths: Collection[str] | None
) -> dict[str, Any]:
    """*open_paths*: those that need no credential; None: no path needs one."""
    types = [answer.Error]
    for line in table:
        types += [type_ for type_ in (line.body, *line.answers.values()) if _is_json(type_)]
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    # Types are not hashable in general (a dict of something is not), their order is the same.
    schema_of = iter(schemas)
    error = next(schema_of)
    paths: dict[str, dict[str, Any]] = {}
    for line in table:
        body = next(schema_of) if _is_json(line.body) else None
        answers = {
            status: _answer(status, type_, next(schema_of) if _is_json(type_) else None)
            for status, type_ in line.answers.items()
        }
        operations = paths.setdefault(line.canonical_path, {})
        operation = _operation(line, body, answers, error)
        if open_paths is not None and not _is_open(line, open_paths):
            operation["security"] = [{"credential": []}]
        operations[line.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Queue server",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(line.tag for line in table)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "credential": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token or an API key",
                }
            },
        },
    }


def _is_json(type_: Any) -> bool:
    return type_ is not None and not isinstance(type_, Content)


def _is_open(line: Route, open_paths: Collection[str]) -> bool:
    folders = tuple(path for path in open_paths if path.endswith("/") and path != "/")
    return line.access is Access.PUBLIC or line.path in open_paths or line.path.startswith(folders)


def _operation(
    line: Route, body: dict[str, Any] | None, answers: dict[int, Any], error: dict[str, Any]
) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", line.canonical_path)
    operation: dict[str, Any] = {
        "operationId": _operation_id(line),
        "tags": [line.tag],
        "summary": line.summary,
        "description": _access_text(line),
        "parameters": [
            *(_path_parameter(name) for name in names),
            *(_parameter(query) for query in line.query),
        ],
        "responses": {
            str(status): described
            for status, described in sorted(
                ({code: _error(code, error) for code in _error_codes(line)} | answers).items()
            )
        },
    }
    if body is not None:
        operation["requestBody"] = {
            "required": line.body_required,
            "content": {"application/json": {"schema": body}},
        }
    return operation


def _operation_id(line: Route) -> str:
    """`get_status_queues_by_queue`: the method and the words of the path."""
    path = line.canonical_path.removeprefix("/api/v1").replace("{", "by_{")
    words = re.findall(r"[A-Za-z0-9]+", f"{path}index" if path.endswith("/") else path)
    return "_".join([line.method.lower(), *words])


def _access_text(line: Route) -> str:
    if line.access is Access.PUBLIC:
        return "Open to everybody."
    text = f"Access: {line.access.value}."
    if line.scope is None:
        return f"{text} Closed to credentials that are for some queues only."
    return f"{text} Credentials for some queues only: what they may {line.scope[0].value}."


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _parameter(query: Query) -> dict[str, Any]:
    schema = dict(_KINDS[query.kind])
    if query.low is not None:
        schema["minimum"] = query.low
    if query.high is not None:
        schema["maximum"] = query.high
    if query.choices:
        schema["enum"] = list(query.choices)
    return {
        "name": query.name,
        "in": "query",
        "required": False,
        "description": query.about,
        "schema": schema,
    }


def _error_codes(line: Route) -> set[int]:
    codes = {*_EVERYWHERE, *line.errors}
    return codes if line.body is None else codes | {*_WITH_BODY}


def _answer(status: int, type_: Any, schema: dict[str, Any] | None) -> dict[str, Any]:
    described: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if isinstance(type_, Content):
        described["content"] = {type_.media_type: {"schema": {"type": "string"}}}
    elif schema is not None:
        described["content"] = {"application/json": {"schema": schema}}
    return described


def _error(status: int, schema: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": schema}},
    }
    if status in {429, 503}:
        described["headers"] = _RETRY_AFTER
    return described
