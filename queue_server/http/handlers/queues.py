"""Configure and delete queues: wire-api 3.4 and 3.11."""

from __future__ import annotations

import logging

from aiohttp import web

from queue_server.domain.access import Use
from queue_server.domain.errors import BadRequest
from queue_server.domain.names import DEFAULT_PARTITION, QueueName, check_label, check_names
from queue_server.http import wire
from queue_server.http.request import grants_of, read_body
from queue_server.http.state import STATE
from queue_server.observability.logging import client_text
from queue_server.storage import queues

logger = logging.getLogger(__name__)

_NO_KEY = "encryptionEnabled is set, but this server has no QUEEN_ENCRYPTION_KEY: "
_REFUSED = "pushes to the queue are refused until it has one"
_STORED_PLAIN = "messages are stored as plain text until it has one"

_MODES: dict[str | None, queues.ConfigureMode] = {
    None: "merge", "merge": "merge", "replace": "replace", "create": "create",
}  # fmt: skip


async def configure(request: web.Request) -> web.Response:
    state = request.app[STATE]
    raw = await read_body(request)
    body = wire.configure_reader.read(raw)
    mode = _MODES.get(body.mode)
    if mode is None:
        raise BadRequest(
            'mode must be "merge" or "replace", or "create" to refuse a queue that exists, '
            f"not {str(body.mode)[:100]!r}"
        )
    check_names(body.queue, "", "partition")
    grants = grants_of(request)
    if grants is not None:
        grants.require(Use.ADMINISTER, body.queue)
    for label, text in (("namespace", body.namespace), ("task", body.task)):
        check_label(text or "", label)
    changes = body.options
    if changes is None:
        changes = wire.flat_options_reader.read(raw)
    configured = await queues.configure(
        state.transactions,
        QueueName(body.queue),
        body.namespace,
        body.task,
        changes,
        mode=mode,
        grants=grants,
    )
    state.live.tell("queue.created", {"queue": body.queue, "partition": DEFAULT_PARTITION})
    answer: dict[str, object] = {
        "configured": True,
        "queueId": configured.queue_id,
        "partitionId": str(configured.default_partition_id),
        "queue": body.queue,
        "namespace": configured.namespace,
        "task": configured.task,
        "options": wire.options_body(configured.options),
    }
    warnings = wire.unknown_options(raw)
    if configured.options.encryption_enabled and not state.settings.encryption_key:
        # Accepted, as every broker does, but never in silence.
        plain = state.settings.encryption_fallback_plaintext
        warnings.append(_NO_KEY + (_STORED_PLAIN if plain else _REFUSED))
        logger.warning("queue '%s': %s", client_text(body.queue), warnings[-1])
    if warnings:
        answer["warning"] = "; ".join(warnings)
    return web.Response(
        status=201, body=wire.encoder.encode(answer), content_type="application/json"
    )


async def delete(request: web.Request) -> web.Response:
    state = request.app[STATE]
    queue = QueueName(request.match_info["queue"])
    check_names(queue, "", "partition")
    existed = await queues.delete_queue(state.transactions, queue)
    state.directory.forget_queue(queue)
    answer: dict[str, object] = {"deleted": existed, "queue": queue, "existed": existed}
    if not existed:
        answer["message"] = "Queue not found, nothing was deleted"
    return web.Response(body=wire.encoder.encode(answer), content_type="application/json")
