"""`push`, `pop`, `ack`, `tail`: messages in and out."""

from __future__ import annotations

import contextlib
import datetime
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import typer

from queue_server.cli.client import Client, segment
from queue_server.cli.exits import CliError, Exit, usage_error
from queue_server.cli.output import count, some
from queue_server.cli.session import Queue, Session, server_command
from queue_server.domain.names import QUEUE_MODE

_STATUSES = ("completed", "failed", "retry", "dlq")
# One request asks for so many listed messages; a look of `tail` asks so often at most.
_LIST_PAGE = 1000
_LIST_PAGES_MAX = 10
# A message is stored a moment after it got its time; a look goes back so far.
_OVERLAP_S = 5
_FIRST_TIME = "1970-01-01T00:00:00Z"
_ACKS_PER_REQUEST = 1000

Group = Annotated[
    str, typer.Option("--group", "-g", show_default=False, help="Consumer group; none: queue mode.")
]
Partition = Annotated[
    str, typer.Option("--partition", "-p", show_default=False, help="Only this partition.")
]


class Pushed(msgspec.Struct, rename="camel"):
    """What `push --json` writes."""

    queue: str
    messages: int = 0  # stored now
    duplicates: int = 0  # stored before under the same transaction id
    requests: int = 0
    id_prefix: str | None = None


class _Item(msgspec.Struct, omit_defaults=True, rename="camel"):
    """A message of a push; also a line of `--items`."""

    queue: str = ""
    partition: str | None = None
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # as `pop` and `tail` write it
    transaction_id: str | None = None
    trace_id: str | None = None


class _Popped(msgspec.Struct):
    messages: list[msgspec.Raw]


class _Listed(msgspec.Struct):
    messages: list[msgspec.Raw]
    truncated: bool = False


class _Message(msgspec.Struct, rename="camel"):
    """What of a popped or listed message is shown or acknowledged."""

    transaction_id: str
    partition_id: str
    partition: str = ""
    offset: int = 0
    created_at: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")
    lease_id: str | None = None
    consumer_group: str | None = None
    delivery_attempt: int | None = None
    status: str | None = None


def add_to(app: typer.Typer) -> None:
    server_command(app, "push")(push)
    server_command(app, "pop")(pop)
    server_command(app, "ack")(ack)
    server_command(app, "tail")(tail)


# -- push --


def push(
    session: Session,
    queue: Queue,
    payloads: Annotated[
        list[str] | None,
        typer.Argument(metavar="PAYLOAD", show_default=False, help="Messages, JSON each."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", show_default=False, help="JSON Lines: a message a line; - is stdin."
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Payloads, or lines, are texts instead of JSON.")
    ] = False,
    items: Annotated[
        bool,
        typer.Option(
            "--items",
            help="Lines are objects with `payload` (or `data`), and if wanted `partition`,"
            " `transactionId`, `traceId`: what pop and tail write with --json.",
        ),
    ] = False,
    partition: Annotated[
        str,
        typer.Option("--partition", "-p", help="Where to, unless a line of --items says it."),
    ] = "Default",
    batch: Annotated[
        int, typer.Option("--batch", "-b", min=1, max=100_000, help="Messages of one request.")
    ] = 500,
    from_line: Annotated[
        int, typer.Option("--from-line", min=1, metavar="N", help="Begin with this line.")
    ] = 1,
    id_prefix: Annotated[
        str,
        typer.Option(
            "--id-prefix",
            show_default=False,
            help="Transaction ids are PREFIX-1, PREFIX-2 ... by line. The same prefix for the same"
            " file stores nothing twice. Default: a new one.",
        ),
    ] = "",
) -> None:
    """Push messages to a queue.

    From the command line, from stdin, or from a file of JSON Lines. A file is sent in batches, each
    stored as a whole or not at all. When one fails, the error says which lines are stored and how
    to go on; what is sent twice then is stored once.

    With --json: `{"queue", "messages", "duplicates", "requests", "idPrefix"}`.

    \b
    Examples:
      queue-server push orders '{"total": 12.5}' '{"total": 99}'
      queue-server push orders --partition customer-7 --text hello
      queue-server push orders --file orders.jsonl --batch 1000
      generate | queue-server push orders
      queue-server pop old --batch 100 --json | queue-server push new --items
    """
    if payloads and file is not None:
        raise usage_error("PAYLOAD and --file: one or the other")
    if text and items:
        raise usage_error("--text and --items: one or the other")
    prefix = id_prefix or uuid.uuid4().hex[:12]
    pushed = Pushed(queue, id_prefix=prefix)
    with _lines(session, payloads, file) as (lines, size_bytes, name):
        numbered = _numbered(lines, from_line, name)
        parsed = (
            (number, size, _item(line, number, name, text=text, items=items))
            for number, size, line in numbered
        )
        with session.out.progress("pushing", size_bytes, "messages") as advance:
            _push_all(session, parsed, pushed, partition, batch, name, advance)
    if session.json:
        session.out.value(pushed)
        return
    twice = f", {count(pushed.duplicates)} were stored already" if pushed.duplicates else ""
    session.out.line(f"{count(pushed.messages)} stored in ", (queue, "bold"), twice)


def _push_all(
    session: Session,
    parsed: Iterable[tuple[int, int, _Item]],
    pushed: Pushed,
    partition: str,
    batch: int,
    name: str,
    advance: Callable[[int, int], None],
) -> None:
    first, last = 0, 0  # lines of the batch
    done = 0  # the last line that is stored
    items: list[_Item] = []
    size_bytes = 0

    def send() -> None:
        nonlocal items, done, size_bytes
        try:
            answer = session.client.request(
                # Its transaction ids make a repetition harmless.
                "POST",
                "/api/v1/push",
                body={"items": items},
                repeatable=True,
            )
        except CliError as exc:
            raise _broken_off(exc, pushed, name, done, first, last) from exc
        refused = [result for result in answer if result["status"] not in ("queued", "duplicate")]
        pushed.messages += sum(result["status"] == "queued" for result in answer)
        pushed.duplicates += sum(result["status"] == "duplicate" for result in answer)
        pushed.requests += 1
        if refused:
            text = str(refused[0].get("error", refused[0]["status"]))
            raise _broken_off(CliError(text), pushed, name, done, first, last)
        advance(size_bytes, len(items))
        done, items, size_bytes = last, [], 0

    try:
        for number, size, item in parsed:
            if not items:
                first = number
            last = number
            item.queue = pushed.queue
            item.partition = item.partition or partition
            item.transaction_id = item.transaction_id or f"{pushed.id_prefix}-{number}"
            if item.payload is msgspec.UNSET:
                item.payload, item.data = item.data, msgspec.UNSET
            items.append(item)
            size_bytes += size
            if len(items) == batch:
                send()
        if items:
            send()
    except KeyboardInterrupt:
        raise _broken_off(
            CliError("interrupted", exit_code=Exit.INTERRUPTED), pushed, name, done, first, last
        ) from None
    except CliError as exc:
        if exc.exit_code is Exit.USAGE and pushed.requests:
            # A line that cannot be read; what lies before it in its batch was not sent.
            raise _broken_off(exc, pushed, name, done, done + 1, last) from exc
        raise


def _broken_off(
    exc: CliError, pushed: Pushed, name: str, done: int, first: int, last: int
) -> CliError:
    """*exc* with what was stored before it, and how to go on."""
    stored = pushed.messages + pushed.duplicates
    exc.notes.append(
        f"stored before that: {some(stored, 'message')}"
        + (f", up to {_place(name, done)}" if done else "")
        + f"; not known to be stored: from {_place(name, first or 1)}"
        + (f" to {last}" if last > first else "")
    )
    again = f"--id-prefix {pushed.id_prefix} --from-line {first or 1}"
    exc.next_step = f"to go on, without storing anything twice, repeat the command with {again}"
    return exc


def _place(name: str, number: int) -> str:
    return f"{'message' if name == 'PAYLOAD' else 'line'} {number}"


@contextlib.contextmanager
def _lines(
    session: Session, payloads: list[str] | None, file: Path | None
) -> Iterator[tuple[Iterable[bytes], int | None, str]]:
    """The messages to push, the size of all of them if known, and what they are called."""
    if payloads:
        # As the bytes they were, should they be no UTF-8: refused with their place.
        yield [payload.encode(errors="surrogateescape") for payload in payloads], None, "PAYLOAD"
    elif file is None or str(file) == "-":
        if sys.stdin.isatty():
            session.out.notice("reading messages from the terminal, one a line; Ctrl-D ends")
        yield sys.stdin.buffer, None, "stdin"
    else:
        try:
            stream: IO[bytes] = file.open("rb")
        except OSError as exc:
            raise usage_error(f"--file {file}: {exc.strerror}") from exc
        with stream:
            size = file.stat().st_size if file.is_file() else None
            yield stream, size, str(file)


def _numbered(
    lines: Iterable[bytes], from_line: int, name: str
) -> Iterator[tuple[int, int, bytes]]:
    """Lines with their number from 1 and their size, without empty ones and what comes before."""
    for number, line in enumerate(lines, 1):
        if number < from_line:
            continue
        content = line.rstrip(b"\r\n") if name != "PAYLOAD" else line
        if content.strip() or name == "PAYLOAD":
            yield number, len(line), content


def _item(line: bytes, number: int, name: str, *, text: bool, items: bool) -> _Item:
    where = f"{name}, {_place(name, number)}"
    try:
        if text:
            return _Item(payload=msgspec.Raw(msgspec.json.encode(line.decode())))
        if not items:
            line.decode()
            msgspec.json.decode(line)
            return _Item(payload=msgspec.Raw(line))
        item = msgspec.json.decode(line, type=_Item)
    except UnicodeDecodeError as exc:
        raise usage_error(f"{where}: is no UTF-8") from exc
    except msgspec.DecodeError as exc:
        fix = "a text is JSON in double quotes, or pushed with --text"
        raise usage_error(f"{where}: is no {'item' if items else 'JSON'}: {exc}", fix) from exc
    if item.payload is msgspec.UNSET and item.data is msgspec.UNSET:
        raise usage_error(f"{where}: has neither `payload` nor `data`")
    item.trace_id = item.trace_id or None
    return item


# -- pop and ack --


def pop(
    session: Session,
    queue: Queue,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Messages at most.")] = 1,
    group: Group = "",
    partition: Partition = "",
    wait: Annotated[
        float,
        typer.Option(
            "--wait", "-w", min=0, max=3600, metavar="SECONDS", help="Wait so long for a message."
        ),
    ] = 0,
    ack_: Annotated[
        bool, typer.Option("--ack", help="Count them as completed at once: no lease, no ack.")
    ] = False,
) -> None:
    """Pop messages of a queue, under a lease.

    Acknowledge them with `queue-server ack`. Without an ack they are delivered again when the lease
    ends. Nothing to pop is no error. A pop makes its group, if there is none yet: a notice says so.

    With --json: JSON Lines, a message a line, as the server tells it; `ack` reads them.

    \b
    Examples:
      queue-server pop orders --batch 10
      queue-server pop orders --group billing --wait 30 --ack
      queue-server pop orders --batch 10 --json > popped.jsonl
    """
    is_new = _is_new(session.client, queue, group)
    found = _pop(
        session.client, queue, batch=batch, group=group, partition=partition, wait_s=wait,
        commit=ack_,
    )  # fmt: skip
    if is_new and not _is_new(session.client, queue, group):
        name = group or QUEUE_MODE
        session.out.notice(
            (f"group {name!r} is new on queue {queue!r}: ", "yellow"),
            "what it does not read counts as unread from now on. To delete it: "
            f"queue-server groups delete {shlex.quote(name)} --queue {shlex.quote(queue)}",
        )
    for raw in found:
        _show(session, raw)
    if not found:
        session.out.notice((f"nothing to pop in {queue}", "dim"))
    elif not ack_ and not session.json:
        first = msgspec.json.decode(found[0], type=_Message)
        last = msgspec.json.decode(found[-1], type=_Message)
        group_option = f" --group={shlex.quote(group)}" if group else ""
        session.out.notice(
            ("to acknowledge all of them: ", "dim"),
            f"queue-server ack --partition-id {first.partition_id} --lease-id {first.lease_id}"
            # A producer chose it, and somebody may paste it into a shell.
            f" --transaction-id={shlex.quote(last.transaction_id)}{group_option}",
        )


def _is_new(client: Client, queue: str, group: str) -> bool:
    """Whether the queue does not know the group; False where nobody may see that."""
    try:
        told = client.get(f"/api/v1/consumer-groups/{segment(group or QUEUE_MODE)}", {"limit": 1})
    except CliError as exc:
        if exc.exit_code is Exit.UNREACHABLE:
            raise
        return False
    return queue not in told


def _pop(
    client: Client,
    queue: str,
    *,
    batch: int,
    group: str = "",
    partition: str = "",
    wait_s: float = 0,
    commit: bool = False,
) -> list[msgspec.Raw]:
    path = f"/api/v1/pop/queue/{segment(queue)}"
    if partition:
        path += f"/partition/{segment(partition)}"
    # The server bounds a wait; a longer one is several.
    deadline = time.monotonic() + wait_s
    while True:
        left_s = deadline - time.monotonic()
        query: dict[str, Any] = {"batch": batch, "consumerGroup": group or None}
        if commit:
            query["autoAck"] = True
        if left_s > 0:
            query |= {"wait": True, "timeout": max(1, int(min(left_s, 30) * 1000))}
        # Never repeated: the answer that was lost may have taken messages.
        raw = client.request_raw("GET", path, query, timeout_s=client.timeout_s + max(0, left_s))
        messages = client.decode(raw, _Popped).messages if raw else []
        if messages or time.monotonic() >= deadline:
            return messages


def ack(
    session: Session,
    transaction_id: Annotated[
        str, typer.Option("--transaction-id", show_default=False, help="Of one message.")
    ] = "",
    partition_id: Annotated[
        str, typer.Option("--partition-id", show_default=False, help="Of its partition.")
    ] = "",
    lease_id: Annotated[
        str,
        typer.Option("--lease-id", show_default=False, help="Refuse it when this lease has ended."),
    ] = "",
    group: Annotated[
        str,
        typer.Option(
            "--group", "-g", show_default=False, help="Its group; of lines: what they say."
        ),
    ] = "",
    status: Annotated[
        str,
        typer.Option(
            "--status",
            metavar="STATUS",
            help="completed; failed: deliver again, a dead letter in the end; retry: the same"
            " without being counted; dlq: a dead letter at once.",
        ),
    ] = "completed",
    error: Annotated[
        str, typer.Option("--error", show_default=False, help="The reason of a failure.")
    ] = "",
) -> None:
    """Acknowledge popped messages.

    One by its ids, or those that `pop --json` wrote, from stdin. An acknowledgement of a message
    covers those before it in its partition.

    With --json: JSON Lines, the server's result for each. When any is refused, the end is 1.

    \b
    Examples:
      queue-server pop orders --batch 10 --json | queue-server ack
      queue-server ack --status failed --error 'no stock' < popped.jsonl
      queue-server ack --partition-id 281474976710673 --transaction-id order-1
    """
    if status not in _STATUSES:
        raise usage_error(f"--status {status}: must be one of {', '.join(_STATUSES)}")
    if bool(transaction_id) != bool(partition_id):
        raise usage_error("--transaction-id and --partition-id: one needs the other")
    if transaction_id:
        messages = [_Message(transaction_id, partition_id, lease_id=lease_id, consumer_group=group)]
    else:
        messages = _messages_of_stdin(session)
    results = acknowledge(session.client, messages, group=group, status=status, error=error)
    refused = [result for result in results if not result["success"]]
    if session.json:
        for result in results:
            session.out.value(result)
    else:
        session.out.line(f"{count(len(results) - len(refused))} acknowledged as {status}")
    if refused:
        for result in refused[:10]:
            session.out.notice(
                ("refused: ", "red"), f"{result['transactionId']}: {result['error']}"
            )
        raise CliError(
            f"{count(len(refused))} of {count(len(results))} acknowledgements were refused",
            "a lease that ended cannot be acknowledged; pop the messages again",
        )


def acknowledge(
    client: Client,
    messages: list[_Message],
    *,
    group: str = "",
    status: str = "completed",
    error: str = "",
) -> list[dict[str, Any]]:
    """The server's results, in order."""
    results: list[dict[str, Any]] = []
    for start in range(0, len(messages), _ACKS_PER_REQUEST):
        results += client.request(
            "POST",
            "/api/v1/ack/batch",
            body={
                "acknowledgments": [
                    {
                        "transactionId": message.transaction_id,
                        "partitionId": message.partition_id,
                        "leaseId": message.lease_id or None,
                        "consumerGroup": group or message.consumer_group or None,
                        "status": status,
                        "error": error or None,
                    }
                    for message in messages[start : start + _ACKS_PER_REQUEST]
                ]
            },
            # Under its lease the same acknowledgement again says the same.
            repeatable=status == "completed" and all(message.lease_id for message in messages),
        )
    return results


def _messages_of_stdin(session: Session) -> list[_Message]:
    if sys.stdin.isatty():
        session.out.notice("reading what pop --json wrote from the terminal; Ctrl-D ends")
    messages = []
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            messages.append(msgspec.json.decode(line, type=_Message))
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise usage_error(
                f"stdin, line {number}: is no message: {exc}", "give what pop --json wrote"
            ) from exc
    if not messages:
        raise usage_error(
            "there is nothing to acknowledge",
            "pipe what pop --json wrote, or name --transaction-id and --partition-id",
        )
    return messages


# -- tail --


def tail(
    session: Session,
    queue: Queue,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=_LIST_PAGE, help="So many to begin with.")
    ] = 10,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Go on with what is pushed from now on.")
    ] = True,
    partition: Partition = "",
    group: Annotated[
        str,
        typer.Option(
            "--group",
            "-g",
            show_default=False,
            help="Consume under this group instead: messages are popped, shown, acknowledged.",
        ),
    ] = "",
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, max=3600, metavar="SECONDS",
                            help="Time between two looks.")
    ] = 1.0,
) -> None:  # fmt: skip
    """Show the newest messages, then follow.

    It ends with Ctrl-C. It browses: nothing is taken, leased or acknowledged, and no group is known
    of it. With --group it is a consumer like any other; then --lines and --interval mean nothing,
    and --no-follow ends when there is nothing left to pop.

    With --json: JSON Lines, a message a line, as the server's /api/v1/messages tells it.

    \b
    Examples:
      queue-server tail orders
      queue-server tail orders --lines 100 --no-follow --json | jq .data.total
      queue-server tail orders --group audit
    """
    if group:
        _consume(session, queue, partition, group, follow=follow)
        return
    client = session.client
    seen: dict[str, int] = {}  # the highest offset shown of each partition
    newest = _FIRST_TIME
    waiting = False
    found = _list(client, queue, partition, newest, lines) if lines else []
    if not lines and (last := _list(client, queue, partition, newest, 1)):
        newest = last[0][0].created_at
        seen = {m.partition_id: m.offset for m, _ in _list(client, queue, partition, newest, 1000)}
    while True:
        for message, raw in reversed(found):
            # In a partition offsets rise without gaps in the order in which messages appear.
            if message.offset > seen.get(message.partition_id, -1):
                seen[message.partition_id] = message.offset
                newest = max(newest, message.created_at)
                _show(session, raw)
        if not follow:
            return
        if not seen and not waiting:
            waiting = True
            session.out.notice((f"nothing in {queue} yet", "dim"))
        time.sleep(interval)
        found = _since(session, queue, partition, newest, seen)


def _since(
    session: Session, queue: str, partition: str, newest: str, seen: dict[str, int]
) -> list[tuple[_Message, msgspec.Raw]]:
    """What appeared since the last look, newest first."""
    since = _earlier(newest, _OVERLAP_S)
    found: list[tuple[_Message, msgspec.Raw]] = []
    for page in range(_LIST_PAGES_MAX):
        listed = _list(
            session.client, queue, partition, since, _LIST_PAGE, offset=page * _LIST_PAGE
        )
        fresh = [(m, raw) for m, raw in listed if m.offset > seen.get(m.partition_id, -1)]
        found += fresh
        if len(listed) < _LIST_PAGE or not fresh:
            return found
    session.out.notice(
        ("… ", "yellow"),
        f"more than {count(_LIST_PAGE * _LIST_PAGES_MAX)} new messages since the last look;"
        " the older ones of them are left out",
    )
    return found


def _list(
    client: Client, queue: str, partition: str, since: str, limit: int, offset: int = 0
) -> list[tuple[_Message, msgspec.Raw]]:
    """List stored messages, newest first. The server ends a page early when messages are large."""
    query = {"queue": queue, "partition": partition or None, "from": since}
    found: list[tuple[_Message, msgspec.Raw]] = []
    truncated = True
    while truncated and len(found) < limit:
        page = {"limit": limit - len(found), "offset": offset + len(found)}
        raw = client.request_raw("GET", "/api/v1/messages", query | page, repeatable=True)
        answer = client.decode(raw, _Listed)
        found += [(msgspec.json.decode(one, type=_Message), one) for one in answer.messages]
        truncated = answer.truncated
    return found


def _earlier(time_text: str, seconds: int) -> str:
    moment = datetime.datetime.fromisoformat(time_text)
    if moment.year < 1971:
        return time_text
    earlier = (moment - datetime.timedelta(seconds=seconds)).astimezone(datetime.UTC)
    return earlier.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _consume(session: Session, queue: str, partition: str, group: str, *, follow: bool) -> None:
    wait_s = 30.0 if follow else 0.0
    while True:
        found = _pop(
            session.client, queue, batch=100, group=group, partition=partition, wait_s=wait_s
        )
        for raw in found:
            _show(session, raw)
        if found:
            # After they were shown: who is stopped in between sees them again.
            messages = [msgspec.json.decode(raw, type=_Message) for raw in found]
            results = acknowledge(session.client, messages, group=group)
            refused = [result["error"] for result in results if not result["success"]]
            if refused:
                session.out.notice(
                    ("warning: ", "yellow"),
                    f"{count(len(refused))} acknowledgements were refused: {refused[0]}",
                )
        elif not follow:
            return


def _show(session: Session, raw: msgspec.Raw) -> None:
    """One message: a line of JSON, or where it lies and what it says."""
    if session.json:
        session.out.raw_json(bytes(raw))
        return
    message = msgspec.json.decode(raw, type=_Message)
    parts: list[str | tuple[str, str]] = [
        (message.created_at[:23].replace("T", " "), "dim"),
        "  ",
        (f"{message.partition}@{message.offset}", "cyan"),
        "  ",
        (message.transaction_id, "dim"),
        "  ",
    ]
    if message.delivery_attempt is not None and message.delivery_attempt > 1:
        parts += [(f"attempt {message.delivery_attempt}", "yellow"), "  "]
    if message.status == "dead_letter":
        parts += [("dead letter", "red"), "  "]
    parts.append(msgspec.json.format(bytes(message.data), indent=0).decode())
    session.out.line(*parts)
