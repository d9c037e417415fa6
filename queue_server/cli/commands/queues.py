"""`queues`: list, look at, make and delete queues."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
import typer

from queue_server.cli.client import Client, segment
from queue_server.cli.exits import CliError, Exit, usage_error
from queue_server.cli.output import count, duration, some
from queue_server.cli.session import Queue, Session, Yes, server_command
from queue_server.domain.options import OptionChanges

_PAGE = 1000
# Queues of which the deepest are found, the newest ones: each costs the server a count.
_QUEUES_MAX = 10_000
# What a list of queues shows beside what lies in them.
RATED = ("pushedPerSecond", "ackedPerSecond", "oldestUnreadAt", "oldestDueAt")
# The more a column matters, the longer it is kept on a narrow terminal.
_LISTED = (
    "queue",
    ">depth",
    ">oldest",
    ">pushed/s",
    ">acked/s",
    "slowest group",
    ">its lag",
    ">dead letters",
    ">processing",
    ">stored",
    ">partitions",
)
_PARTITIONS_SHOWN = 20
_QUEUES = "/api/v1/resources/queues"
# Partitions of one answer; a queue may have more.
_PARTITIONS_PAGE = 10_000
_UNITS = {
    "leaseTime": "s",
    "retryDelay": "ms",
    "ttl": "s",
    "maxSize": "messages",
    "delayedProcessing": "s",
    "windowBuffer": "s",
    "retentionSeconds": "s",
    "completedRetentionSeconds": "s",
    "maxWaitTimeSeconds": "s",
    "dedupWindowSeconds": "s",
}
_OFF_AT_ZERO = frozenset(
    {
        "maxSize",
        "delayedProcessing",
        "windowBuffer",
        "retentionSeconds",
        "completedRetentionSeconds",
        "maxWaitTimeSeconds",
        "deliveryLimit",
    }
)
_FIELDS = {field.encode_name: field for field in msgspec.structs.fields(OptionChanges)}


def add_to(parent: typer.Typer) -> None:
    app = typer.Typer(
        no_args_is_help=True,
        help="List, look at, make and delete queues.",
        epilog="Example: queue-server queues ls --search order",
    )
    parent.add_typer(app, name="queues")
    server_command(app, "ls")(list_queues)
    server_command(app, "show")(show)
    server_command(app, "create")(create)
    server_command(app, "delete")(delete)


def list_queues(
    session: Session,
    search: Annotated[str, typer.Option(help="A part of the name, in any case.")] = "",
    namespace: Annotated[str, typer.Option(help="Only queues of this namespace.")] = "",
    task: Annotated[str, typer.Option(help="Only queues with this task.")] = "",
    limit: Annotated[
        int, typer.Option(min=1, help="At most so many, those with the most to read first.")
    ] = 1000,
) -> None:
    """List queues and what lies in them, those with the most to read first.

    The depth is what the slowest consumer has not acknowledged, of the groups in use and those
    without one, and the oldest of these messages has been due for as long as shown; scheduled are
    those that are not due yet (delayedProcessing, windowBuffer). The slowest group comes with its
    own lag. Rates are of the last minute; an acknowledgement counts for each group. With --json:
    one object, `{"queues": [...]}`, with a queue as the server's /api/v1/resources/queues tells it,
    and its `pushedPerSecond`, `ackedPerSecond`, `oldestUnreadAt` and `oldestDueAt`.

    \b
    Examples:
      queue-server queues ls
      queue-server queues ls --search order --limit 20
      queue-server queues ls --json | jq -r '.queues[] | select(.depth > 0) | .name'
    """
    most = max(limit, _QUEUES_MAX)
    queues = read_queues(session.client, most, search=search, namespace=namespace, task=task)
    queues = queues[:limit]
    if session.json:
        session.out.value({"queues": queues})
        return
    if not queues:
        session.out.notice("no queues")
        return
    delayed = is_delayed(queues)
    session.out.table(
        listed(queues),
        [
            [
                queue["name"],
                queue["depth"],
                *_scheduled(delayed, queue.get("scheduled")),
                age(queue["oldestDueAt"]),
                rate(queue["pushedPerSecond"]),
                rate(queue["ackedPerSecond"]),
                *slowest_group(queue),
                queue["messages"].get("deadLetter", 0),
                queue["messages"]["processing"],
                queue["messages"]["total"],
                queue["partitions"],
            ]
            for queue in queues
        ],
    )


def slowest_group(queue: dict[str, Any]) -> tuple[str | None, int | None]:
    """Name and lag of the group that is furthest behind; None where none is."""
    slowest = queue.get("slowestGroup")
    if not slowest or slowest["lag"] <= slowest["scheduled"]:
        return None, None
    return slowest["group"], slowest["lag"]


def read_queues(client: Client, most: int = _QUEUES_MAX, **filter_: str) -> list[dict[str, Any]]:
    """Return the queues that match *filter_* (search, namespace, task), the deepest first.

    Of more than *most*, the newest are sorted.

    Shape: entries of /api/v1/resources/queues with rates and age, which are None for queues that
    the server does not rate: it does for those that say most, some two thousand.
    """
    given = {name: value or None for name, value in filter_.items()}
    queues: list[dict[str, Any]] = []
    for offset in range(0, most, _PAGE):
        found = client.get(_QUEUES, given | {"limit": _PAGE, "offset": offset})["queues"]
        queues += found
        if len(found) < _PAGE:
            break
    rated = client.get("/api/v1/dashboard/queues", {"search": given.get("search")})["queues"]
    by_name = {queue["name"]: queue for queue in rated}
    for queue in queues:
        more = by_name.get(queue["name"], {})
        queue |= {name: more.get(name) for name in RATED}
    return sorted(queues, key=lambda queue: (-queue["depth"], queue["name"]))


def age(since: str | None) -> str | None:
    """Return how long ago an ISO 8601 time was, as a text, or in how long it will be."""
    if since is None:
        return None
    passed = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(since)
    seconds = passed.total_seconds()
    return duration(seconds) if seconds >= 0 else f"in {duration(-seconds)}"


def listed(queues: Iterable[dict[str, Any]]) -> list[str]:
    """Return the columns of a list of queues: with scheduled messages only where there are any."""
    first, *others = _LISTED
    depth, *others = others
    return [first, depth, *_scheduled(is_delayed(queues), ">scheduled"), *others]


def is_delayed(queues: Iterable[dict[str, Any]]) -> bool:
    return any(queue.get("scheduled") for queue in queues)


def rate(per_second: float | None) -> str | None:
    """Return a rate with a decimal where it would be lost otherwise."""
    if per_second is None:
        return None
    if 0 < per_second < 0.05:
        return "<0.1"
    return f"{per_second:,.0f}" if per_second >= 10 or not per_second else f"{per_second:.1f}"


def show(
    session: Session,
    queue: Queue,
    partitions: Annotated[
        int, typer.Option(min=0, help="So many partitions, those with the most to read first.")
    ] = _PARTITIONS_SHOWN,
) -> None:
    """Show a queue: its messages, options and partitions.

    Scheduled are the messages that are not due yet (delayedProcessing, windowBuffer) for the
    slowest consumer.

    With --json: the answer of the server's /api/v1/resources/queues/QUEUE, with all partitions.

    \b
    Examples:
      queue-server queues show orders
      queue-server queues show orders --json | jq .options.leaseTime
    """
    found = read_queue(session.client, queue)
    if session.json:
        session.out.value(found)
        return
    totals, line = found["totals"], session.out.line
    line((found["name"], "bold"), f"  created {found['createdAt'][:19].replace('T', ' ')}")
    for label in ("namespace", "task"):
        if found[label]:
            line(f"{label} {found[label]}")
    line()
    delayed = bool(found.get("scheduled"))
    session.out.table(
        [
            "partition",
            ">pending",
            *_scheduled(delayed, ">scheduled"),
            ">processing",
            ">completed",
            ">stored",
            ">dead letters",
        ],
        [
            *(
                [one["name"], *_figures(one["stats"], _scheduled(delayed, one.get("scheduled")))]
                for one in sorted(
                    found["partitions"], key=lambda one: (-one["stats"]["pending"], one["name"])
                )[:partitions]
            ),
            [
                f"all {count(len(found['partitions']))}",
                *_figures(totals, _scheduled(delayed, found.get("scheduled"))),
            ],
        ],
    )
    line()
    stored = session.client.get(f"/api/v1/dashboard/queues/{segment(queue)}/options")
    session.out.table(
        ["option", "value"],
        [[name, option_text(name, stored.get(name))] for name in sorted(_FIELDS)],
        keys=2,
    )


def option_text(name: str, value: Any) -> str:
    """Return what an option is set to, with its unit, or that it does nothing.

    *value* is as stored: None where nothing is set, which the protocol echoes as a number that
    enforces nothing.
    """
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "off"
    if not value and name in _OFF_AT_ZERO:
        return "off"
    # Numbers as they are set, without separators.
    return f"{value} {_UNITS[name]}" if name in _UNITS else str(value)


def create(
    session: Session,
    queue: Queue,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            show_default=False,
            help="An option of the queue, such as leaseTime=60; may be repeated. null puts the"
            " default back. docs/queue-options.md says what they do.",
        ),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Its namespace.", show_default=False)] = "",
    task: Annotated[str, typer.Option(help="Its task.", show_default=False)] = "",
) -> None:
    """Make a queue, or change options of one that exists.

    A push makes its queue as needed; this is for options. Options that are not named stay.
    With --json: `{"queue", "created", "options"}`, with all options as they are now.

    \b
    Examples:
      queue-server queues create orders
      queue-server queues create orders --set leaseTime=60 --set deadLetterQueue=true
      queue-server queues create orders --set leaseTime=null
    """
    options = dict(_option(text) for text in set_ or [])
    try:
        read_queue(session.client, queue)
        created = False
    except CliError as exc:
        if exc.exit_code is not Exit.NOT_FOUND:
            raise
        created = True
    body = {
        "queue": queue,
        "namespace": namespace or None,
        "task": task or None,
        "options": options,
    }
    answer = session.client.request("POST", "/api/v1/configure", body=body, repeatable=True)
    if warning := answer.get("warning"):
        session.out.notice(("warning: ", "yellow"), warning)
    if session.json:
        session.out.value({"queue": queue, "created": created, "options": answer["options"]})
        return
    session.out.line("created " if created else "changed ", (queue, "bold"))
    for name in options:
        session.out.line(f"  {name} = {msgspec.json.encode(answer['options'].get(name)).decode()}")


def delete(session: Session, queue: Queue, yes: Yes = False) -> None:
    """Delete a queue with everything in it: messages, groups' places, dead letters.

    With --json: `{"queue", "deleted", "messages"}`, the messages that it held.

    \b
    Examples:
      queue-server queues delete orders
      queue-server queues delete orders --yes
    """
    found = read_queue(session.client, queue)
    totals = found["totals"]
    session.out.confirm(
        f"delete queue {queue!r} with {some(len(found['partitions']), 'partition')},"
        f" {some(totals['total'], 'message')} ({count(totals['pending'])} of them pending) and"
        f" {some(totals['deadLetter'], 'dead letter')}",
        yes=yes,
    )
    answer = session.client.request("DELETE", f"{_QUEUES}/{segment(queue)}")
    if not answer["existed"]:
        raise CliError(f"queue {queue!r} was gone already", exit_code=Exit.NOT_FOUND)
    if session.json:
        session.out.value({"queue": queue, "deleted": True, "messages": totals["total"]})
        return
    session.out.line("deleted ", (queue, "bold"), f" with {some(totals['total'], 'message')}")


def read_queue(client: Client, queue: str) -> dict[str, Any]:
    """What the server tells of a queue. Errors: `CliError`, also when it does not exist."""
    try:
        found: dict[str, Any] = client.get(
            f"{_QUEUES}/{segment(queue)}", {"limit": _PARTITIONS_PAGE}
        )
        page = found
        while page.get("truncated") and page["partitions"]:
            at = {"limit": _PARTITIONS_PAGE, "offset": len(found["partitions"])}
            page = client.get(f"{_QUEUES}/{segment(queue)}", at)
            found["partitions"] += page["partitions"]
        found["truncated"] = False
    except CliError as exc:
        if exc.exit_code is Exit.NOT_FOUND:
            exc.message = f"queue {queue!r} does not exist"
            exc.fix = "queue-server queues ls shows what there is"
        raise
    return found


def _option(text: str) -> tuple[str, Any]:
    name, equals, value_text = text.partition("=")
    if not equals or name not in _FIELDS:
        raise usage_error(
            f"--set {text}: there is no such option of a queue",
            "it is OPTION=VALUE, with one of " + ", ".join(_FIELDS),
        )
    try:
        value = msgspec.json.decode(value_text, type=_FIELDS[name].type)
    except msgspec.DecodeError:
        kind = "true, false" if bool in _FIELDS[name].type.__args__ else "a whole number"
        raise usage_error(f"--set {text}: the value must be {kind} or null") from None
    return name, value


def _figures(stats: dict[str, int], scheduled: list[int]) -> list[int]:
    others = [stats[name] for name in ("processing", "completed", "total", "deadLetter")]
    return [stats["pending"], *scheduled, *others]


def _scheduled(delayed: bool, cell: Any) -> list[Any]:
    """Return the cell of a column that is there only where something is scheduled."""
    return [cell] if delayed else []
