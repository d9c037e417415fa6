"""Push, pop and acknowledge: wire-api 3.5 to 3.8."""

from __future__ import annotations

import time

from aiohttp import web

from queue_server.broker.ack import Ack, AckOutcome
from queue_server.broker.pop import Delivery, PopRequest
from queue_server.domain.access import Use
from queue_server.domain.errors import BadParameter, BadPop, QueueServerError
from queue_server.domain.message import NewMessage
from queue_server.domain.names import (
    QUEUE_MODE,
    ConsumerGroup,
    PartitionName,
    QueueName,
    check_names,
    check_text,
)
from queue_server.domain.segment import wire_time
from queue_server.domain.subscription import start_of
from queue_server.http import wire
from queue_server.http.access import hide_partitions
from queue_server.http.memory import ITEM_BYTES, UNIFORM_ACK_BYTES, memory_of, turn_of
from queue_server.http.request import (
    check_count,
    check_nesting,
    grants_of,
    producer_sub,
    query_bool,
    query_int,
    read_body,
)
from queue_server.http.state import STATE, State
from queue_server.http.tracing import SPAN, describe, traceparent_of
from queue_server.http.uniform import UniformAcks, read_uniform_acks, uniform_answer
from queue_server.http.whole_answer import SLICE_BYTES, WholeAnswer, whole_answer
from queue_server.observability.counters import BATCH_MESSAGES, Counter, Operation
from queue_server.storage.leases import Claim, Run

# The header of an empty pop that says what it named and does not exist: `queue` or `partition`.
MISSING = "X-Missing"

BATCH_MAX = 1_000_000
PARTITIONS_MAX = 64
LEASE_SECONDS_MAX = 7 * 24 * 3600

# A larger chunk of a pop is not copied together with what comes before it.
_JOINED_BYTES_MAX = 1024 * 1024
# A chunk of a streamed pop is there as a segment, as its text, and as what is written of it. What
# its answer takes is refused before it begins (429, the lease goes back), and counted from then on.
_CHUNK_COPIES = 3


async def push(request: web.Request) -> web.StreamResponse:
    return await _json(request, await _push(request), status=201)


async def _push(request: web.Request) -> bytes:
    state = request.app[STATE]
    body = await read_body(request, is_batch=True)
    state.row.add(Counter.PUSH_REQUESTS)
    state.row.add(Counter.BYTES_RECEIVED, len(body))
    wire.push_limit.check(body, state.settings.max_batch_items)
    items = wire.push_reader.read(body).items
    check_count(len(items), state.settings.max_batch_items, "items")
    memory_of(request).grow(len(items) * ITEM_BYTES)
    await check_nesting([item.payload for item in items], "items[{}].payload".format)
    grants = grants_of(request)
    if grants is not None:
        for queue in {item.queue for item in items}:
            grants.require(Use.PUSH, queue)
    if SPAN in request:
        queues = {item.queue for item in items}
        describe(request, len(items), queue=queues.pop() if len(queues) == 1 else None)
    async with turn_of(request, len(items)):
        return await _store(request, items, len(body))


async def _store(request: web.Request, items: list[NewMessage], size_bytes: int) -> bytes:
    state = request.app[STATE]
    answer, is_stored = await state.maintenance.push(
        items, size_bytes, producer_sub(request), traceparent_of(request), grants_of(request)
    )
    if not is_stored:
        return answer
    if state.live.is_listened_to:
        state.live.pushed(items, answer)
    state.row.observe(BATCH_MESSAGES[Operation.PUSH], len(items))
    return answer


async def pop(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    state.row.add(Counter.POP_REQUESTS)
    try:
        wanted = _pop_request(request, state)
    except BadParameter as exc:
        raise BadPop(exc.message) from None
    autopilot = (
        query_bool(request, "autopilot")
        and "queue" in request.match_info
        and wanted.partition is None
    )
    if wanted.wait_ms:
        with state.parked_pops.one_more(request.remote):
            answer = await state.popper.pop(wanted)
    else:
        answer = await state.popper.pop(wanted)
    echo: dict[str, object] = {}
    if answer.conflation:
        echo["conflation"] = True
    if wanted.conflation != answer.conflation and (wanted.conflation or answer.conflation):
        echo["conflationConflict"] = True
    delivery = answer.delivery
    if delivery is None:
        state.popper.note_empty(wanted.queue)
        if wanted.conflation:
            # Who asked must see whether it was granted, so here nothing has a body.
            return await _json(
                request, wire.encoder.encode({"success": True, "messages": [], **echo})
            )
        if answer.missing is not None:
            # Empty, as the protocol has it; a misspelt name is not to look like an idle consumer.
            return web.Response(status=204, headers={MISSING: answer.missing})
        return WholeAnswer(state.heads, status=204)
    if autopilot:
        echo["autopilot"] = {
            "partitions": delivery.partition_limit,
            "batch": delivery.message_limit,
        }
    try:
        return await _send(request, state, delivery, wanted.group, echo)
    except BaseException as exc:
        # Nobody has it: a client that left, a body that could not be read, a worker that stops.
        state.popper.give_back(delivery)
        if isinstance(exc, ConnectionError) and request.transport is not None:
            request.transport.abort()
        raise


def _pop_request(request: web.Request, state: State) -> PopRequest:
    """What the path and the query ask for.

    Errors: `BadRequest`, `BadPop` where it says what the pop asks for; `NameTooLong`.
    """
    settings, query = state.settings, request.query
    queue = request.match_info.get("queue")
    partition = request.match_info.get("partition")
    group = ConsumerGroup(query.get("consumerGroup") or query.get("consumer_group") or QUEUE_MODE)
    namespace = task = None
    if queue is None:
        namespace, task = query.get("namespace") or None, query.get("task") or None
        if namespace is None and task is None:
            raise BadPop("a pop without a queue needs namespace or task")
        for label, text in (("namespace", namespace), ("task", task)):
            check_text(text or "", label)
    check_names(queue or "", group, "consumer group")
    if partition is not None:
        check_names(queue or "", partition, "partition")
    # Each is read, whatever the other says.
    auto_ack = query_bool(request, "autoAck") | query_bool(request, "commitOnDelivery")
    conflation = query_bool(request, "conflation")
    if conflation and group == QUEUE_MODE:
        raise BadPop("conflation needs a consumerGroup")
    if conflation and auto_ack:
        raise BadPop("conflation cannot be combined with autoAck")
    wait_ms = query_int(request, "timeout", settings.default_timeout_ms, 0, settings.max_timeout_ms)
    if not query_bool(request, "wait"):
        wait_ms = 0
    # What is not said is the server's choice: the defaults, or by the group's pace.
    autopilot = query_bool(request, "autopilot") and queue is not None and partition is None
    # What is delivered together can be acknowledged together.
    batch_max = min(BATCH_MAX, settings.max_batch_items)
    message_limit: int | None = query_int(
        request, "batch", settings.default_batch_size, 1, batch_max
    )
    if autopilot and "batch" not in query:
        message_limit = None
    partition_limit: int | None = query_int(request, "partitions", 1, 1, PARTITIONS_MAX)
    if "partitions" not in query:
        if conflation and message_limit is not None:
            partition_limit = min(message_limit, PARTITIONS_MAX)
        elif autopilot:
            partition_limit = None
    return PopRequest(
        queue=None if queue is None else QueueName(queue),
        group=group,
        partition=None if partition is None else PartitionName(partition),
        namespace=namespace,
        task=task,
        grants=grants_of(request) if queue is None else None,
        start=start_of(
            group,
            query.get("subscriptionMode"),
            query.get("subscriptionFrom"),
            settings.default_subscription_mode,
        ),
        message_limit=message_limit,
        partition_limit=partition_limit,
        lease_seconds=query_int(request, "leaseSeconds", 0, 0, LEASE_SECONDS_MAX),
        auto_ack=auto_ack,
        conflation=conflation,
        wait_ms=wait_ms,
    )


async def _send(
    request: web.Request,
    state: State,
    delivery: Delivery,
    group: ConsumerGroup,
    echo: dict[str, object],
) -> web.StreamResponse:
    """Send a delivery, one segment at a time when it is large: a slow reader holds no more."""
    encode = wire.encoder.encode
    lease_id = "" if delivery.lease_id is None else str(delivery.lease_id)
    first = delivery.partitions[delivery.claims[0].partition_id]
    head = encode(
        {
            "success": True,
            "queue": first.queue,
            "partition": first.partition,
            "partitionId": str(first.id),
            "leaseId": lease_id,
            "consumerGroup": group,
            "partitionsClaimed": len(delivery.claims),
            **echo,
        }
    )[:-1] + b',"messages":['  # fmt: skip

    def claim_text(claim: Claim, run: Run) -> bytes:
        partition = delivery.partitions[claim.partition_id]
        text = encode(
            {
                "createdAt": wire_time(run.created_at),
                "queue": partition.queue,
                "partition": partition.partition,
                "partitionId": str(partition.id),
                "leaseId": lease_id,
                "consumerGroup": group,
                "deliveryAttempt": claim.attempt,
                "retryCount": claim.retry_count,
                "priority": claim.priority,
            }
        )
        return b"," + text[1:-1]

    span = request.get(SPAN)
    describe(request, delivery.message_count, queue=first.queue, group=group)
    pieces = [head]
    size_bytes = len(head)
    waiting_bytes = 0
    memory = memory_of(request)
    response: web.StreamResponse | None = None
    try:
        async for chunk in state.popper.chunks(delivery, claim_text):
            if state.live.is_listened_to:
                state.live.delivered(chunk)
            size_bytes += len(chunk)
            if span is not None:
                span.link_messages(chunk)
            if size_bytes <= SLICE_BYTES:
                pieces.append(chunk)
                continue
            if response is None:
                waiting_bytes = delivery.inline_bytes
            weight_bytes = waiting_bytes + _CHUNK_COPIES * size_bytes
            if response is None and delivery.lease_id is not None:
                memory.grow(weight_bytes)
            elif weight_bytes > memory.held_bytes:
                memory.set(weight_bytes)  # what is committed or begun is not refused
            if response is None:
                response = web.StreamResponse(
                    status=200, headers={"Content-Type": "application/json; charset=utf-8"}
                )
                await response.prepare(request)
            if len(chunk) <= _JOINED_BYTES_MAX:
                pieces.append(chunk)
                await _write(request, state, response, b"".join(pieces))
            else:
                await _write(request, state, response, b"".join(pieces))
                await _write(request, state, response, chunk)
            pieces.clear()
            size_bytes = 0
    except QueueServerError as exc:
        if response is None:
            raise
        # Half an answer is out and cannot be taken back: break off, so that it is not taken for
        # a whole one.
        raise ConnectionResetError(f"a pop answer breaks off: {exc.message}") from exc
    pieces.append(b"]}")
    if response is None:
        # Sent here and not by aiohttp: should it fail, the lease is given back.
        response = await _json(request, b"".join(pieces))
        await response.prepare(request)
    else:
        await _write(request, state, response, b"".join(pieces))
        await response.write_eof()
    state.popper.note_sent(delivery)
    state.row.observe(BATCH_MESSAGES[Operation.POP], delivery.message_count)
    return response


async def _write(
    request: web.Request, state: State, response: web.StreamResponse, piece: bytes
) -> None:
    begin = time.perf_counter_ns()
    with memoryview(piece) as view:
        for start in range(0, len(view), SLICE_BYTES):
            await response.write(view[start : start + SLICE_BYTES])
    state.row.add(Counter.POP_SEND_US, (time.perf_counter_ns() - begin) // 1000)
    state.row.add(Counter.BYTES_SENT, len(piece))


async def ack(request: web.Request) -> web.StreamResponse:
    return await _json(request, await _ack_one(request))


async def _ack_one(request: web.Request) -> bytes:
    state = request.app[STATE]
    state.row.add(Counter.ACK_REQUESTS)
    one = wire.ack_reader.read(await read_body(request))
    describe(request, 1)
    return await _ack(state, await hide_partitions(request, Use.POP, [one]), QUEUE_MODE)


async def ack_batch(request: web.Request) -> web.StreamResponse:
    return await _json(request, await _ack_batch(request))


async def _ack_batch(request: web.Request) -> bytes:
    state = request.app[STATE]
    state.row.add(Counter.ACK_REQUESTS)
    raw = await read_body(request, is_batch=True)
    wire.ack_batch_limit.check(raw, state.settings.max_batch_items)
    uniform = read_uniform_acks(raw)
    if uniform is not None:
        check_count(len(uniform.ids), state.settings.max_batch_items, "acknowledgments")
        memory_of(request).grow(len(uniform.ids) * UNIFORM_ACK_BYTES)
        describe(request, len(uniform.ids))
        likes = await hide_partitions(request, Use.POP, [run.like for run in uniform.runs])
        answer = await _ack_uniform(state, uniform, likes)
        if answer is not None:
            return answer
    body = wire.ack_batch_reader.read(raw)
    check_count(len(body.acknowledgments), state.settings.max_batch_items, "acknowledgments")
    memory_of(request).grow(len(body.acknowledgments) * ITEM_BYTES)
    group = ConsumerGroup(body.consumer_group) if body.consumer_group else QUEUE_MODE
    describe(request, len(body.acknowledgments))
    acks = await hide_partitions(request, Use.POP, body.acknowledgments)
    async with turn_of(request, len(acks)):
        return await _ack(state, acks, group)


async def _ack_uniform(state: State, acks: UniformAcks, likes: list[Ack]) -> bytes | None:
    """*likes*: what the runs say. None when it is not that simple, and nothing was done."""
    group = ConsumerGroup(acks.group) if acks.group else QUEUE_MODE
    _check_groups(likes, group)
    outcomes = await state.acker.ack_runs(likes, [run.keys for run in acks.runs], group)
    if outcomes is None:
        return None
    if state.live.is_listened_to and all(outcome.result.success for outcome in outcomes):
        # The short way is for what is completed.
        state.live.acknowledged((id_.decode(), True, None) for id_ in acks.ids)
    state.row.observe(BATCH_MESSAGES[Operation.ACK], len(acks.ids))
    entries = [
        (run.count, _ack_entry(0, like, outcome))
        for run, like, outcome in zip(acks.runs, likes, outcomes, strict=True)
    ]
    return uniform_answer(acks.ids, entries)


async def _ack(state: State, acks: list[Ack], group: ConsumerGroup) -> bytes:
    _check_groups(acks, group)
    outcomes = await state.acker.ack(acks, group)
    if state.live.is_listened_to:
        state.live.acknowledged(
            (ack.transaction_id, ack.is_completed, ack.error)
            for ack, outcome in zip(acks, outcomes, strict=True)
            if outcome.result.success
        )
    state.row.observe(BATCH_MESSAGES[Operation.ACK], len(acks))
    return wire.encoder.encode(
        [
            _ack_entry(index, ack, outcome)
            for index, (ack, outcome) in enumerate(zip(acks, outcomes, strict=True))
        ]
    )


def _check_groups(acks: list[Ack], group: ConsumerGroup) -> None:
    """Errors: `BadRequest`."""
    for name in {ack.consumer_group for ack in acks}:
        check_text(name or group, "consumerGroup")


def _ack_entry(index: int, ack: Ack, outcome: AckOutcome) -> wire.AckEntry | wire.AckEntryNoop:
    result, partition = outcome.result, outcome.partition
    entry = wire.AckEntryNoop if result.noop else wire.AckEntry
    return entry(
        index,
        ack.transaction_id,
        result.success,
        result.error,
        None if partition is None else partition.queue,
        None if partition is None else partition.partition,
        result.lease_released,
        result.dead_letter,
    )


async def _json(request: web.Request, body: bytes, status: int = 200) -> WholeAnswer:
    state = request.app[STATE]
    state.row.add(Counter.BYTES_SENT, len(body))
    return await whole_answer(request, state.heads, body, status)
