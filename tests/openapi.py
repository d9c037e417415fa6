"""Holds answers against the server's OpenAPI document, more strictly than the document asks for."""

import copy
import json
from typing import Any

import jsonschema_rs

from tests.client import Answer, Client

Operation = tuple[str, str]  # method, path with its parameters in braces


class Document:
    """The document, read strictly: an answer of success holds what is described and no more.

    The document itself leaves objects open, because clients have to.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.operations: dict[Operation, dict[str, Any]] = {
            (method.upper(), path): operation
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        }
        self._open = document["components"]
        self._closed = copy.deepcopy(document["components"])
        _close(self._closed)
        self.seen: set[Operation] = set()  # those with an answer of success

    @classmethod
    async def fetch(cls, client: Client) -> "Document":
        answer = await client.get("/openapi.json")
        assert answer.status == 200, answer
        return cls(answer.json)

    def check(self, method: str, path: str, answer: Answer) -> None:
        """Errors: `AssertionError` when the answer is not what the document says."""
        responses = self.operations[method, path]["responses"]
        assert str(answer.status) in responses, (method, path, answer)
        described = responses[str(answer.status)].get("content")
        media_type = answer.headers.get("Content-Type", "").partition(";")[0]
        if described is None:
            assert answer.raw == b"", (method, path, answer)
        elif media_type == "application/json":
            is_success = answer.status < 400
            schema = copy.deepcopy(described["application/json"]["schema"])
            if is_success:
                _close(schema)
            schema["components"] = self._closed if is_success else self._open
            validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
            faults = [
                f"{fault.instance_path}: {fault.message}"
                for fault in validator.iter_errors(answer.json)
            ]
            assert not faults, (method, path, faults, json.dumps(answer.json)[:2000])
        else:
            assert media_type in described or "*/*" in described, (method, path, media_type)
        if answer.status < 400:
            self.seen.add((method, path))


def _close(schema: Any) -> None:
    """Forbid, in place and everywhere below, what an object's schema does not name."""
    if isinstance(schema, list):
        for one in schema:
            _close(one)
    elif isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for one in schema.values():
            _close(one)
