"""Which exception answers with which status: one table."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from queue_server.domain import errors
from queue_server.domain.encryption import EncryptionKeyMissing
from queue_server.http import wire

_STATUS: Mapping[type[Exception], int] = {
    errors.BadRequest: 400,
    errors.NameTooLong: 413,
    errors.BodyTooLarge: 413,
    errors.BodyTimeout: 408,
    errors.QueueFull: 409,
    errors.LimitReached: 409,
    errors.QueueExists: 409,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Unavailable: 503,
    errors.Overloaded: 429,
    EncryptionKeyMissing: 503,
    errors.QueueServerError: 500,
}


def status_of(exc: errors.QueueServerError) -> int:
    """The status for an exception: that of its class or the nearest above it."""
    for cls in type(exc).__mro__:
        if cls in _STATUS:
            return _STATUS[cls]
    raise AssertionError("unreachable: the root has a status")


def answer(exc: errors.QueueServerError) -> web.Response:
    """The error body of wire-api 1.3."""
    headers = {}
    if exc.retry_after_s is not None:
        headers["Retry-After"] = str(exc.retry_after_s)
    if isinstance(exc, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    body = wire.error_body(exc.message, exc.code)
    if isinstance(exc, errors.BadPop):
        # A pop's refusal looks like a pop's answer.
        body = {"success": False, "error": exc.message, "messages": []}
    elif isinstance(exc, wire.BadTransaction):
        body = {"success": False, **body, "reason": "bad_request"}
    response = web.Response(
        status=status_of(exc),
        body=wire.encoder.encode(body),
        content_type="application/json",
        headers=headers,
    )
    if isinstance(exc, errors.BodyTimeout):
        response.force_close()
    return response
