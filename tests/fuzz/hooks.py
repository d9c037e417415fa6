"""What Schemathesis does beside its own; it loads this in its process (`SCHEMATHESIS_HOOKS`).

Half of the names in its requests are replaced by names of things that exist, or nearly all of them
would be about nothing. Two more checks look at each answer.
"""

import json
import os
from random import Random
from typing import Any

import psycopg
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, CheckContext, HookContext, Response

# Names by the parameter or field that holds them.
KNOWN: dict[str, list[str]] = json.loads(os.environ["FUZZ_KNOWN"])

# All that a client can change. Left out: what services write (`pending`, which pops tidy up too,
# figures, the probe), and cursors of a deleted group, which go in the background.
_STATE = """
SELECT md5(string_agg(text, '|' ORDER BY text)) FROM (
    SELECT (q.*)::text AS text FROM queen.queues q
    UNION ALL SELECT (p.*)::text FROM queen.partitions p
    UNION ALL SELECT (a.*)::text FROM queen.allocators a
    UNION ALL SELECT concat_ws(' ', s.shard, s.partition_id, s.base_offset) FROM queen.segments s
    UNION ALL SELECT (h.*)::text FROM queen.holes h
    UNION ALL SELECT (s.*)::text FROM queen.subscriptions s
    UNION ALL SELECT (c.*)::text FROM queen.cursors c
        JOIN queen.subscriptions s ON s.id = c.subscription_id
    UNION ALL SELECT d.id::text FROM queen.dead_letters d
    UNION ALL SELECT t.id::text FROM queen.traces t
) AS everything
"""

# Nothing is prepared: there may be a PgBouncer between.
_database = psycopg.connect(
    os.environ["FUZZ_DATABASE_URL"], autocommit=True, prepare_threshold=None
)
_before: dict[str, str | None] = {}


def _state() -> str | None:
    row = _database.execute(_STATE).fetchone()
    return None if row is None else str(row[0])


def _named(value: Any, random: Random) -> Any:
    """*value* with half of its names replaced by known ones."""
    if isinstance(value, list):
        return [_named(one, random) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: random.choice(KNOWN[name])
        if name in KNOWN and isinstance(one, str) and random.random() < 0.5
        else _named(one, random)
        for name, one in value.items()
    }


def _with_known_names(context: HookContext, value: Any) -> st.SearchStrategy[Any]:
    return st.randoms(use_true_random=False).map(lambda random: _named(value, random))


for _place in ("path_parameters", "query", "body"):
    schemathesis.hook(f"flatmap_{_place}")(_with_known_names)


def _may_change(case: Case) -> bool:
    return case.method not in ("GET", "HEAD", "OPTIONS") or "/pop" in case.path


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    if isinstance(case.body, dict) and case.body.get("enabled") is True:
        # Maintenance stays off: with it nothing would be pushed or popped from then on.
        case.body["enabled"] = False
    if _may_change(case):
        _before[case.id] = _state()


@schemathesis.check
def refusal_changes_nothing(ctx: CheckContext, response: Response, case: Case) -> None:
    """A 4xx changed nothing."""
    before = _before.pop(case.id, None)
    if before is not None and 400 <= response.status_code < 500:
        assert _state() == before, f"a {response.status_code} changed the database"


@schemathesis.check
def error_form(ctx: CheckContext, response: Response, case: Case) -> None:
    """An error says what is wrong, in the protocol's form."""
    if response.status_code < 400 or case.method == "HEAD":
        return
    content_type = response.headers.get("content-type", [""])[0]
    assert content_type.startswith("application/json"), f"an error of type {content_type!r}"
    body = json.loads(response.content)
    assert isinstance(body, dict), "an error that is no object"
    assert isinstance(body.get("error"), str), "an error without its text"
    assert body["error"], "an error with an empty text"
    assert isinstance(body.get("code", ""), str), "an error's code that is no text"
