"""`groups`: consumer groups, how far they are behind, where they stand."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from queue_server.cli.client import Client, segment
from queue_server.cli.commands.queues import age
from queue_server.cli.exits import CliError, Exit, usage_error
from queue_server.cli.output import count, duration, some
from queue_server.cli.session import Queue, Session, Yes, server_command

_GROUPS = "/api/v1/consumer-groups"
# So many places the server tells at most.
_LAGGING_MAX = 1000
_BEGINNING = "1970-01-01T00:00:00Z"

Group = Annotated[str, typer.Argument(metavar="GROUP", help="Its name; __QUEUE_MODE__: no group.")]


def add_to(parent: typer.Typer) -> None:
    app = typer.Typer(
        no_args_is_help=True,
        help="List consumer groups, see their lag, move or delete them.",
        epilog="Example: queue-server groups lag --min-seconds 60",
    )
    parent.add_typer(app, name="groups")
    server_command(app, "ls")(list_groups)
    server_command(app, "lag")(lag)
    server_command(app, "seek")(seek)
    server_command(app, "delete")(delete)


def list_groups(
    session: Session,
    queue: Annotated[
        str, typer.Option("--queue", "-q", show_default=False, help="Only on this queue.")
    ] = "",
) -> None:
    """List the groups of each queue; __QUEUE_MODE__ stands for consumers without a group.

    A group is active, idle (it has neither popped nor acknowledged for GROUP_IDLE_SECONDS), or has
    never acknowledged anything. One that has not popped for so long, shown dim, does not count in
    the queue's depth while others are in use.

    With --json: `{"groups": [...]}`, as the server's /api/v1/consumer-groups tells them.

    \b
    Examples:
      queue-server groups ls
      queue-server groups ls --queue orders --json | jq '.groups[].totalLag'
    """
    found = [
        group for group in session.client.get(_GROUPS) if not queue or group["queueName"] == queue
    ]
    if session.json:
        session.out.value({"groups": found})
        return
    if not found:
        session.out.notice("no groups" + (f" on queue {queue!r}" if queue else ""))
        return
    session.out.table(
        [
            "queue",
            "group",
            ">lag",
            ">oldest",
            "state",
            ">not active for",
            ">behind in",
            ">partitions",
            "starts at",
        ],
        [
            [
                group["queueName"],
                group["name"],
                group["totalLag"],
                duration(group["maxTimeLag"])
                if group["totalLag"] > group.get("scheduled", 0)
                else None,
                Text(group["activity"], style="" if group["counted"] else "dim"),
                age(group["lastActiveAt"]),
                group["partitionsWithLag"],
                group["members"],
                group["subscriptionMode"],
            ]
            for group in found
        ],
        keys=2,
    )


def lag(
    session: Session,
    group: Annotated[
        str, typer.Argument(metavar="GROUP", show_default=False, help="Only of this group.")
    ] = "",
    queue: Annotated[
        str, typer.Option("--queue", "-q", show_default=False, help="Only on this queue.")
    ] = "",
    min_seconds: Annotated[
        int,
        typer.Option(
            "--min-seconds", min=0, help="Only where the oldest message is due for so long."
        ),
    ] = 0,
) -> None:
    """Show where groups are behind, by partition, the worst first; at most 1000 places.

    Age counts from the time when a message was due; what is not due yet is left out.

    With --json: `{"lagging": [...]}`, as the server's /api/v1/consumer-groups/lagging tells them.

    \b
    Examples:
      queue-server groups lag
      queue-server groups lag billing --queue orders --min-seconds 300
    """
    found = session.client.get(
        f"{_GROUPS}/lagging",
        {"minLagSeconds": min_seconds, "consumerGroup": group or None, "queue": queue or None},
    )
    if len(found) == _LAGGING_MAX:
        session.out.notice(f"only the worst {count(_LAGGING_MAX)} places are shown")
    if session.json:
        session.out.value({"lagging": found})
        return
    if not found:
        session.out.notice("no group is behind")
        return
    session.out.table(
        ["queue", "partition", "group", ">lag", ">oldest", "last consumed"],
        [
            [
                one["queue_name"],
                one["partition_name"],
                one["consumer_group"],
                one["offset_lag"],
                duration(one["time_lag_seconds"]),
                (one["last_consumed_at"] or "never")[:16].replace("T", " "),
            ]
            for one in found
        ],
        keys=3,
    )


def seek(
    session: Session,
    group: Group,
    queue: Queue,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TIME",
            show_default=False,
            help="The first message at or after this time (ISO 8601; without a zone: UTC).",
        ),
    ] = "",
    to_end: Annotated[bool, typer.Option("--to-end", help="Behind the newest message.")] = False,
    to_beginning: Annotated[
        bool, typer.Option("--to-beginning", help="The oldest message that is kept.")
    ] = False,
    partition: Annotated[
        str, typer.Option("--partition", "-p", show_default=False, help="Only in this partition.")
    ] = "",
    yes: Yes = False,
) -> None:
    """Move a group on a queue: read again, or skip.

    Shows how much it will skip or read again, and asks. Its leases there end; who holds one is
    refused at the ack.

    With --json: `{"group", "queue", "partition", "to", "partitions", "lagBefore", "lagAfter",
    "skipped", "readAgain"}`, the last two as they were told before.

    \b
    Examples:
      queue-server groups seek billing orders --to-beginning
      queue-server groups seek billing orders --to 2026-02-03T10:00:00Z --yes
      queue-server groups seek billing orders --to-end --partition customer-7
    """
    if sum([bool(to), to_end, to_beginning]) != 1:
        raise usage_error("say where to: one of --to, --to-end, --to-beginning")
    target = "the end" if to_end else "the beginning" if to_beginning else _time(to)
    before = _lag(session.client, group, queue, partition)
    where = f"queue {queue!r}" + (f", partition {partition!r}" if partition else "")
    body: dict[str, Any] = {"toEnd": True}
    if not to_end:
        body = {"timestamp": _BEGINNING if to_beginning else target}
    preview = session.client.get(
        f"/api/v1/dashboard/queues/{segment(queue)}/groups/{segment(group)}/seek-preview",
        body | {"partition": partition or None},
    )
    session.out.confirm(
        f"move group {group!r} on {where} to {target}: it is {some(before, 'message')} behind now;"
        f" {some(preview['skipped'], 'message')} skipped,"
        f" {some(preview['readAgain'], 'message')} read again,"
        f" {some(preview['leasesEnded'], 'lease')} ended;"
        f" it is {some(preview['lagAfter'], 'message')} behind then",
        yes=yes,
    )
    path = f"{_GROUPS}/{segment(group)}/queues/{segment(queue)}"
    if partition:
        path += f"/partitions/{segment(partition)}"
    # The same seek again ends at the same place.
    answer = session.client.request("POST", f"{path}/seek", body=body, repeatable=True)
    after = _lag(session.client, group, queue, partition)
    moved = answer.get("partitionsUpdated", 1)
    if session.json:
        session.out.value(
            {
                "group": group,
                "queue": queue,
                "partition": partition or None,
                "to": "end" if to_end else "beginning" if to_beginning else target,
                "partitions": moved,
                "lagBefore": before,
                "lagAfter": after,
                "skipped": preview["skipped"],
                "readAgain": preview["readAgain"],
            }
        )
        return
    session.out.line(
        f"moved in {some(moved, 'partition')}; {some(after, 'message')} to be read now"
    )


def delete(
    session: Session,
    group: Group,
    queue: Annotated[
        str, typer.Option("--queue", "-q", show_default=False, help="Only on this queue.")
    ] = "",
    keep_subscription: Annotated[
        bool,
        typer.Option(
            "--keep-subscription", help="Forget its places, not where it started to read."
        ),
    ] = False,
    yes: Yes = False,
) -> None:
    """Delete a group: its places, leases and subscriptions. Messages and dead letters stay.

    When it comes again it is new. With --json: `{"group", "queue", "deletedPartitions"}`.

    \b
    Examples:
      queue-server groups delete billing --queue orders
      queue-server groups delete billing --yes
    """
    found = [
        one
        for one in session.client.get(_GROUPS)
        if one["name"] == group and queue in ("", one["queueName"])
    ]
    if not found:
        where = f"queue {queue!r}" if queue else "any queue"
        raise CliError(
            f"there is no group {group!r} on {where}",
            "queue-server groups ls shows what there is",
            exit_code=Exit.NOT_FOUND,
        )
    queues = ", ".join(repr(one["queueName"]) for one in found[:5])
    more = f" and {count(len(found) - 5)} more" if len(found) > 5 else ""
    session.out.confirm(
        f"delete group {group!r} on {queues}{more}:"
        f" its places in {some(sum(one['members'] for one in found), 'partition')},"
        f" {some(sum(one['totalLag'] or 0 for one in found), 'message')} not acknowledged",
        yes=yes,
    )
    path = f"{_GROUPS}/{segment(group)}" + (f"/queues/{segment(queue)}" if queue else "")
    answer = session.client.request(
        "DELETE", path, {"deleteMetadata": not keep_subscription}, repeatable=True
    )
    deleted = answer["deletedPartitions"]
    if session.json:
        session.out.value({"group": group, "queue": queue or None, "deletedPartitions": deleted})
        return
    session.out.line("deleted ", (group, "bold"), f", its places in {some(deleted, 'partition')}")


def _time(text: str) -> str:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise usage_error(
            f"--to {text}: is no ISO 8601 time", "such as 2026-02-03T10:15:00Z"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _lag(client: Client, group: str, queue: str, partition: str) -> int:
    """What the group has not acknowledged. Errors: `CliError` for what does not exist."""
    try:
        depth = client.get(
            f"/api/v1/resources/queues/{segment(queue)}/depth",
            {"group": group, "partition": partition or None, "limit": 1},
        )
    except CliError as exc:
        if exc.exit_code is Exit.NOT_FOUND:
            exc.message = f"queue {queue!r} does not exist"
        raise
    if not partition:
        return int(depth["pending"])
    for one in depth["partitions"]:
        if one["partition"] == partition:
            return int(one["pending"])
    raise CliError(f"queue {queue!r} has no partition {partition!r}", exit_code=Exit.NOT_FOUND)
