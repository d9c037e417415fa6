"""Parameters of the query: one that cannot be read is refused, on every route alike.

The routes and their parameters are those of the OpenAPI document, so a new one is tried as well.
"""

from typing import Any
from urllib.parse import quote

import pytest

from tests.client import Client, as_pop, segment, unique

# By kind: what cannot be read, and what can.
INTEGERS = (
    ["x", "1.5", "1e3", "0x10", " ", "\u0661", "null", "1,000"],
    ["7", "+7", "-7", "9" * 400],
)
BOOLEANS = (["x", "yes", "2", "null", " "], ["true", "FALSE", "1", "0"])
TIMES = (
    ["x", "yesterday", "2026-06-30T12:00:60Z", "2026-06-30T24:00:00Z", "2026-13-01", "1782820800"],
    ["2026-06-30", "2026-06-30T12:00Z", "2026-06-30t12:00:00.5z", "2026-06-30 12:00:00+02:00"],
)


async def parameters(client: Client, queue: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, target, and the schema of each parameter of each route that takes some."""
    document = (await client.get("/openapi.json")).json
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            target = path.replace("{queue}", segment(queue)).replace("{partition}", "Default")
            for part in ("group", "name", "partition_id", "transaction_id", "id", "lease_id"):
                target = target.replace(f"{{{part}}}", "1")
            for one in operation["parameters"]:
                if one["in"] == "query":
                    assert "{" not in target, target
                    found.append((method.upper(), target, one))
    return found


def values_of(schema: dict[str, Any]) -> tuple[list[str], list[str]] | None:
    """What cannot be read and what can; None for a text, which may be anything."""
    if "enum" in schema:
        return ["nonsense", " "], [schema["enum"][0], schema["enum"][-1].upper()]
    match schema.get("format", schema["type"]):
        case "integer":
            return INTEGERS
        case "boolean":
            return BOOLEANS
        case "date-time":
            return TIMES
    return None


async def test_a_parameter_that_cannot_be_read_is_a_400_that_names_it(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1])
    tried = 0
    for method, target, one in await parameters(client, queue):
        name, values = one["name"], values_of(one["schema"])
        if values is None:
            continue
        # What some routes demand; and nothing is to be found, nor deleted.
        base = f"{target}?queue={queue}-none&namespace=none"
        if name == "toEnd":
            base += "&timestamp=2026-06-30"
        elif name == "wait":
            base += "&timeout=0"
        elif "seek-preview" in target:
            base += "&toEnd=true"
        for value in values[0]:
            answer = await client.send(method, f"{base}&{name}={quote(value)}")
            assert answer.status == 400, (method, base, name, value, answer)
            assert answer.error.startswith(f"{name} must be "), answer
            assert repr(value) in answer.error, answer
            # In the form of a pop, or in that of all others.
            assert answer.json.get("messages") == [] or answer.json["code"] == "bad_request"
        for value in ["", *values[1]]:
            if (name, value) in (("limit", "-7"), ("limit", "9" * 400)) and method == "DELETE":
                continue  # a purge is not brought into bounds
            answer = await client.send(method, f"{base}&{name}={quote(value)}")
            assert answer.status < 400 or "must be" not in answer.error, (target, name, value)
        tried += 1
    assert tried > 80


@pytest.mark.parametrize(
    "route", ["queue/{queue}", "queue/{queue}/partition/Default", "?task={task}"]
)
async def test_a_group_never_starts_somewhere_that_it_did_not_say(
    client: Client, queue: str, route: str
) -> None:
    """What cannot be read registers nothing, so the next pop says where the group starts."""
    task = unique("task")
    await client.configure(queue, task=task)
    await client.push(queue, ["old"])
    where = route.format(queue=segment(queue), task=task)
    target = f"/api/v1/pop{where}" if where.startswith("?") else f"/api/v1/pop/{where}?x="
    for name, value in (
        ("subscriptionFrom", "2026-06-30T12:00:60Z"),
        ("subscriptionFrom", "2026-06-30T24:00:00Z"),
        ("subscriptionFrom", "1782820800"),
        ("subscriptionFrom", "yesterday"),
        ("subscriptionMode", "newest"),
    ):
        for group in ("&consumerGroup=g", ""):
            answer = await client.get(f"{target}{group}&{name}={value}")
            assert answer.status == 400, answer
            assert set(answer.json) == {"success", "error", "messages"}
            assert answer.error.startswith(f"{name} must be "), answer
            assert repr(value) in answer.error
    for group, more in (("a", "subscriptionFrom=NOW"), ("b", "subscriptionMode=New")):
        assert (await client.get(f"{target}&consumerGroup={group}&{more}")).status == 204
    earlier = f"{target}&consumerGroup=g&subscriptionFrom=2020-06-30t12:00:00z"
    assert as_pop(await client.get(earlier)).data == ["old"]
