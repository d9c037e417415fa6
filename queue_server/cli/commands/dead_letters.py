"""`dlq`: look at dead letters, move them back, remove them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer

from queue_server.cli.client import Client, segment
from queue_server.cli.exits import CliError, Exit, usage_error
from queue_server.cli.output import count, some
from queue_server.cli.session import Queue, Session, Yes, server_command

_DLQ = "/api/v1/dlq"
_PAGE = 1000
# What one request moves or removes: so many that it takes about a second.
_AT_ONCE_MIN = 500
_AT_ONCE_MAX = 10_000
_QUICK_S = 1.0
_SLOW_S = 4.0
# For one of large payloads on a busy machine.
_TIMEOUT_S = 120.0

Group = Annotated[
    str, typer.Option("--group", "-g", show_default=False, help="Only of this consumer group.")
]
Partition = Annotated[
    str, typer.Option("--partition", "-p", show_default=False, help="Only of this partition.")
]
Error = Annotated[
    str, typer.Option("--error", "-e", show_default=False, help="Only with this in their reason.")
]
Reason = Annotated[
    str | None,
    typer.Option(
        "--reason",
        "-r",
        show_default=False,
        help="Only with this as their whole reason.",
    ),
]
From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="TIME",
        show_default=False,
        help="Only those that failed since then (ISO 8601).",
    ),
]
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="TIME",
        show_default=False,
        help="Only those that failed before (ISO 8601).",
    ),
]


def add_to(parent: typer.Typer) -> None:
    app = typer.Typer(
        no_args_is_help=True,
        help="Look at dead letters, move them back, remove them.",
        epilog="Example: queue-server dlq ls orders --error timeout",
    )
    parent.add_typer(app, name="dlq")
    server_command(app, "ls")(list_letters)
    server_command(app, "show")(show)
    server_command(app, "redrive")(redrive)
    server_command(app, "purge")(purge)


def list_letters(
    session: Session,
    queue: Annotated[
        str, typer.Argument(metavar="QUEUE", show_default=False, help="Of which queue.")
    ] = "",
    group: Group = "",
    partition: Partition = "",
    error: Error = "",
    reason: Reason = None,
    from_: From = "",
    to: To = "",
    limit: Annotated[int, typer.Option(min=1, max=_PAGE, help="At most so many.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="After so many others.")] = 0,
) -> None:
    """List dead letters, the newest failure first.

    With --json: `{"deadLetters": [...], "total"}`, as the server's /api/v1/dlq tells them.

    \b
    Examples:
      queue-server dlq ls
      queue-server dlq ls orders --group billing --error timeout --from 2026-02-03T00:00:00Z
    """
    query = _query(queue, group, partition, error, reason, from_, to)
    found = session.client.get(_DLQ, query | {"limit": limit, "offset": offset})
    letters, total = found["messages"], found["total"]
    if session.json:
        session.out.value({"deadLetters": letters, "total": total})
        return
    if not letters:
        session.out.notice("no dead letters")
        return
    for letter in letters:
        # A reason is long, and an id is wanted whole: no table holds both on a narrow terminal.
        session.out.line(
            (letter["failedAt"][:19].replace("T", " "), "dim"),
            f"  {letter['queue']}",
            f"  {letter['partition']}",
            f"  {letter['consumerGroup']}",
            f"  {some(letter['retryCount'] or 0, 'retry', 'retries')}",
        )
        session.out.line("  ", (letter["errorMessage"] or "no reason given", "red"))
        session.out.line(("  id ", "dim"), letter["id"])
    if total > len(letters):
        session.out.notice((f"{count(len(letters))} of {count(total)}; --limit, --offset", "dim"))


def show(
    session: Session,
    queue: Queue,
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `dlq ls` shows it.")],
) -> None:
    """Show one dead letter, with its payload.

    With --json: the entry, as the server's /api/v1/dlq tells it.

    \b
    Examples:
      queue-server dlq show orders 0192f0b0-1d2c-7aa0-8a11-2f1e6f3f9a10
    """
    letter = _find(session.client, queue, id_)
    if session.json:
        session.out.value(letter)
        return
    session.out.table(
        ["field", "value"],
        [
            [name, str(value)]
            for name, value in letter.items()
            if name != "data" and value is not None
        ],
        keys=2,
    )
    session.out.line()
    payload = msgspec.json.format(msgspec.json.encode(letter["data"]), indent=2).decode()
    for text in payload.split("\n"):
        session.out.line(text)


def redrive(
    session: Session,
    queue: Queue,
    id_: Annotated[str, typer.Option("--id", show_default=False, help="This one alone.")] = "",
    to_queue: Annotated[
        str, typer.Option("--to-queue", show_default=False, help="With --id: to another queue.")
    ] = "",
    group: Group = "",
    partition: Partition = "",
    error: Error = "",
    reason: Reason = None,
    from_: From = "",
    to: To = "",
    limit: Annotated[
        int, typer.Option(min=0, help="At most so many, the oldest first; 0: all.")
    ] = 0,
    yes: Yes = False,
) -> None:
    """Move dead letters back to the end of their partitions, where all groups read them again.

    Says how many messages and deliveries that makes, and asks. A message that several groups
    gave up is pushed once. One that is in the queue already stays (a duplicate).

    With --json: `{"queue", "moved", "duplicates", "remaining"}`.

    \b
    Examples:
      queue-server dlq redrive orders --error timeout
      queue-server dlq redrive orders --reason 'card timeout' --limit 100
      queue-server dlq redrive orders --id 0192f0b0-1d2c-7aa0-8a11-2f1e6f3f9a10 --yes
    """
    query = _query(queue, group, partition, error, reason, from_, to)
    if to_queue and not id_:
        raise usage_error("--to-queue goes with --id")
    if id_:
        if any(value is not None for name, value in query.items() if name != "queue"):
            raise usage_error("--id and a filter: one or the other")
        letter = _find(session.client, queue, id_)
        target = to_queue or queue
        session.out.confirm(
            f"move dead letter {id_} ({letter['errorMessage']}) to queue {target!r}", yes=yes
        )
        answer = session.client.request(
            "POST", f"{_DLQ}/{segment(id_)}/replay", body={"queue": to_queue} if to_queue else {}
        )
        moved = int(answer["result"] == "moved")
        _report(session, queue, moved, 1 - moved, 1 - moved)
        return
    preview = session.client.request("POST", f"{_DLQ}/redrive", body=query | {"dryRun": True})
    total = preview["remaining"]
    wanted = min(limit, total) if limit else total
    if not wanted:
        _report(session, queue, 0, 0, 0)
        return
    session.out.confirm(
        f"move {count(wanted)} of {count(total)} dead letters of queue {queue!r}"
        f"{_filter_text(query)} back to where they came from; all of them are of"
        f" {some(preview['messages'], 'message')}, and"
        f" {some(preview['deliveries'], 'delivery', 'deliveries')} to groups would follow",
        yes=yes,
    )

    def step(at_once: int) -> dict[str, Any]:
        # What was moved is gone from the dead letters, and the copy has an id of its own: the same
        # request again moves nothing twice. It might move more than the limit.
        answer: dict[str, Any] = session.client.request(
            "POST",
            f"{_DLQ}/redrive",
            body=query | {"limit": at_once},
            repeatable=not limit,
            timeout_s=_TIMEOUT_S,
        )
        return answer

    moved, last = _in_steps(session, "moved", wanted, step)
    _report(session, queue, moved, last["duplicates"], last["remaining"])


def purge(
    session: Session,
    queue: Queue,
    group: Group = "",
    partition: Partition = "",
    error: Error = "",
    reason: Reason = None,
    from_: From = "",
    to: To = "",
    yes: Yes = False,
) -> None:
    """Remove dead letters for good. Says how many, and asks.

    With --json: `{"queue", "deleted", "remaining"}`.

    \b
    Examples:
      queue-server dlq purge orders --to 2026-01-01T00:00:00Z
      queue-server dlq purge orders --yes
    """
    query = _query(queue, group, partition, error, reason, from_, to)
    total = session.client.get(_DLQ, query | {"limit": 1})["total"]
    deleted = remaining = 0
    if total:
        session.out.confirm(
            f"remove {some(total, 'dead letter')} of queue {queue!r}{_filter_text(query)} for good",
            yes=yes,
        )

        def step(at_once: int) -> dict[str, Any]:
            answer: dict[str, Any] = session.client.request(
                "DELETE", _DLQ, query | {"limit": at_once}, timeout_s=_TIMEOUT_S
            )
            return answer

        deleted, last = _in_steps(session, "deleted", total, step)
        remaining = last["remaining"]
    if session.json:
        session.out.value({"queue": queue, "deleted": deleted, "remaining": remaining})
        return
    came = f"; {count(remaining)} remain" if remaining else ""
    session.out.line(f"{count(deleted)} removed{came}")


def _in_steps(
    session: Session, did: str, wanted: int, step: Callable[[int], dict[str, Any]]
) -> tuple[int, dict[str, Any]]:
    """Send requests until *wanted* are done, or there are no more to be done.

    What comes meanwhile is left: a consumer that still fails would make it endless.

    Shape: how many are done, which the answers tell as *did*; the last answer.
    Errors: `CliError`, which tells how many were done before.
    """
    done, at_once = 0, _AT_ONCE_MIN
    try:
        with session.out.progress(did, wanted) as advance:
            while True:
                begin = time.monotonic()
                answer = step(min(at_once, wanted - done))
                took_s = time.monotonic() - begin
                done += answer[did]
                advance(answer[did], answer[did])
                if not answer[did] or not answer["remaining"] or done >= wanted:
                    return done, answer
                if took_s < _QUICK_S:
                    at_once = min(at_once * 2, _AT_ONCE_MAX)
                elif took_s > _SLOW_S:
                    at_once = max(at_once // 2, _AT_ONCE_MIN)
    except KeyboardInterrupt:
        raise CliError(
            f"interrupted; {count(done)} {did} before that", exit_code=Exit.INTERRUPTED
        ) from None
    except CliError as exc:
        exc.notes.append(f"{count(done)} {did} before that")
        raise


def _report(session: Session, queue: str, moved: int, duplicates: int, remaining: int) -> None:
    if session.json:
        session.out.value(
            {"queue": queue, "moved": moved, "duplicates": duplicates, "remaining": remaining}
        )
        return
    twice = f", {count(duplicates)} are in the queue already and stay" if duplicates else ""
    session.out.line(f"{count(moved)} moved{twice}; {count(remaining)} remain")


def _find(client: Client, queue: str, id_: str) -> dict[str, Any]:
    try:
        letter: dict[str, Any] = client.get(f"{_DLQ}/{segment(id_)}")
    except CliError as exc:
        if exc.code != "not_found":
            raise
    else:
        if letter["queue"] == queue:
            return letter
    raise CliError(
        f"queue {queue!r} has no dead letter {id_}",
        "queue-server dlq ls shows what there is",
        exit_code=Exit.NOT_FOUND,
    )


def _query(
    queue: str, group: str, partition: str, error: str, reason: str | None, from_: str, to: str
) -> dict[str, str | None]:
    return {
        "queue": queue or None,
        "consumerGroup": group or None,
        "partition": partition or None,
        "error": reason,
        "errorContains": error or None,
        "from": from_ or None,
        "to": to or None,
    }


def _filter_text(query: dict[str, str | None]) -> str:
    given = [
        f"{name} {value!r}"
        for name, value in query.items()
        if value is not None and name != "queue"
    ]
    return f" with {', '.join(given)}" if given else ""
