"""A small synchronous HTTP client for one server, on the standard library.

A request is repeated only where that cannot do anything twice: when the server refused it for now
(429), or when it is *repeatable* (a look, a push with transaction ids, an acknowledgement under its
lease) and the connection broke or the answer was a 503. A server that never answered is not waited
for: most likely the address is wrong.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from queue_server import __version__
from queue_server.cli.exits import CliError, Exit, usage_error

T = TypeVar("T")

# Waited before each repetition; a Retry-After of the server beats it, up to the bound below.
_REPEAT_DELAYS_S = (0.2, 1.0, 2.0)
_RETRY_AFTER_MAX_S = 5.0
# A text that is no JSON (a proxy's page) is shown up to here.
_ERROR_TEXT_MAX = 300


class _Answer(msgspec.Struct):
    status: int
    body: bytes
    request_id: str | None
    retry_after: str | None


class Client:
    """Requests to the server at *url*, with *token* as their credential."""

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise usage_error(
                f"{url!r} is no address of a server", "give one such as http://127.0.0.1:6632"
            )
        if parts.username is not None or parts.password is not None:
            raise usage_error(
                "the address holds a user or password",
                "give the credential as --token-file or QUEUE_SERVER_TOKEN",
            )
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._path = parts.path.rstrip("/")
        self.timeout_s = timeout_s
        self._headers = {"User-Agent": f"queue-server/{__version__}", "Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(parts.hostname, port, context=context)
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port)
        self._answered = False  # there is a server

    def close(self) -> None:
        self._connection.close()

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """The parsed answer of a look at something."""
        return self.request("GET", path, query, repeatable=True)

    def get_health(self) -> dict[str, Any]:
        """The answer of /health, also that of a server that cannot serve."""
        raw = self.request_raw("GET", "/health", repeatable=True, accept=(503,))
        return self.decode(raw, dict[str, Any])

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        *,
        repeatable: bool = False,
        timeout_s: float | None = None,
        accept: tuple[int, ...] = (),
    ) -> Any:
        """The parsed body of the answer; None for an empty one.

        Errors: `CliError` when there is no answer, or a status of 400 or more not in *accept*.
        """
        raw = self.request_raw(
            method,
            path,
            query,
            body,
            repeatable=repeatable,
            timeout_s=timeout_s,
            accept=accept,
        )
        return self._parse(raw) if raw else None

    def request_raw(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        *,
        repeatable: bool = False,
        timeout_s: float | None = None,
        accept: tuple[int, ...] = (),
    ) -> bytes:
        """As `request`, but the body as it came."""
        target = self._path + path
        if given := {name: value for name, value in (query or {}).items() if value is not None}:
            target += "?" + urlencode(
                {k: str(v).lower() if isinstance(v, bool) else v for k, v in given.items()},
                quote_via=quote,
            )
        data = None if body is None else msgspec.json.encode(body)
        for delay_s in (*_REPEAT_DELAYS_S, None):
            try:
                answer = self._send(method, target, data, timeout_s or self.timeout_s)
            except (OSError, http.client.HTTPException) as exc:
                self._connection.close()
                if not (repeatable and self._answered and delay_s is not None):
                    raise self._unreachable(exc, method) from exc
                wait_s = delay_s
            else:
                self._answered = True
                status = answer.status
                if status < 300 or status in accept:
                    return answer.body
                again = status == 429 or (status == 503 and repeatable)
                if not again or delay_s is None:
                    raise self._refused(method, path, answer)
                wait_s = _retry_after_s(answer.retry_after, delay_s)
            time.sleep(wait_s)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _send(self, method: str, target: str, data: bytes | None, timeout_s: float) -> _Answer:
        headers = dict(self._headers)
        if data is not None:
            headers["Content-Type"] = "application/json"
        kept = self._connection.sock is not None
        while True:
            try:
                self._connection.timeout = timeout_s
                if self._connection.sock is not None:
                    self._connection.sock.settimeout(timeout_s)
                self._connection.request(method, target, data, headers)
                response = self._connection.getresponse()
                break
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # A connection that was kept and that the server closed meanwhile: for a look, take
                # a new one at once. For the rest it is not known whether the request was read.
                self._connection.close()
                if not (kept and method == "GET" and "/pop" not in target):
                    raise
                kept = False
        return _Answer(
            response.status,
            response.read(),
            response.getheader("X-Request-Id"),
            response.getheader("Retry-After"),
        )

    def _parse(self, raw: bytes) -> Any:
        try:
            return msgspec.json.decode(raw)
        except msgspec.DecodeError as exc:
            raise self._no_queue_server(raw) from exc

    def decode(self, raw: bytes, type_: type[T]) -> T:
        """*raw* as a value of *type_*."""
        try:
            return msgspec.json.decode(raw, type=type_)
        except msgspec.DecodeError as exc:
            raise self._no_queue_server(raw) from exc

    def _no_queue_server(self, raw: bytes) -> CliError:
        return CliError(
            f"{self.url} answers, but not as a queue server: {_short(raw)!r}",
            "check --url",
            exit_code=Exit.UNREACHABLE,
        )

    def _unreachable(self, exc: OSError | http.client.HTTPException, method: str) -> CliError:
        unknown = "" if method == "GET" else "; whether it was carried out is not known"
        if isinstance(exc, ssl.SSLCertVerificationError):
            reason = f"its certificate is not trusted: {exc.verify_message}"
            fix = "name the authority's PEM file in SSL_CERT_FILE"
        elif isinstance(exc, ssl.SSLError):
            reason = f"no TLS with it: {exc.reason or exc}"
            fix = "is it http:// instead of https://?"
        elif isinstance(exc, TimeoutError):
            reason = f"no answer within {self.timeout_s:g} s{unknown}"
            fix = "is the server busy? Try --timeout, or queue-server doctor"
        elif isinstance(exc, ConnectionRefusedError):
            reason = "nobody listens there"
            fix = "start the server (queue-server serve), or give its address as --url"
        elif isinstance(exc, socket.gaierror):
            reason = "the name is not known"
            fix = "check --url"
        else:
            text = " ".join(str(exc).split()) or type(exc).__name__
            reason = f"the connection broke{unknown}: {text}"
            fix = "is it https:// instead of http://? Look at the server's log"
        return CliError(f"cannot reach {self.url}: {reason}", fix, exit_code=Exit.UNREACHABLE)

    def _refused(self, method: str, path: str, answer: _Answer) -> CliError:
        if answer.status < 400:
            raise self._no_queue_server(answer.body or f"a redirect, {answer.status}".encode())
        text, code = _short(answer.body), None
        try:
            body = msgspec.json.decode(answer.body)
        except msgspec.DecodeError:
            body = None
        if isinstance(body, dict):
            text = str(body.get("error") or body.get("reason") or text)
            code = body.get("code")
        exit_code, fix = _meaning(answer.status, code)
        return CliError(
            f"{method} {path} was answered {answer.status}: {text}",
            fix,
            exit_code=exit_code,
            status=answer.status,
            code=code if isinstance(code, str) else None,
            request_id=answer.request_id,
        )


def _meaning(status: int, code: object) -> tuple[Exit, str]:
    match status:
        case 401:
            return Exit.FORBIDDEN, "give a token or API key: --token-file or QUEUE_SERVER_TOKEN"
        case 403:
            return Exit.FORBIDDEN, "use a credential that may do this (docs/security.md)"
        case 404 if code == "no_such_route":
            return Exit.FAILED, "is that a queue server, and of this version? Check --url"
        case 404:
            return Exit.NOT_FOUND, ""
        case 429:
            return Exit.UNREACHABLE, "the server is at a limit; try later"
        case 503:
            return Exit.UNREACHABLE, "try later; queue-server doctor says what is wrong"
        case _ if status >= 500:
            return Exit.FAILED, "look for the request id in the server's log"
        case _:
            return Exit.FAILED, ""


def _retry_after_s(text: str | None, default_s: float) -> float:
    if text is None or not text.isdecimal():
        return default_s
    return min(float(text), _RETRY_AFTER_MAX_S)


def _short(raw: bytes) -> str:
    return " ".join(raw.decode(errors="replace").split())[:_ERROR_TEXT_MAX]


def segment(name: str) -> str:
    """*name* as one segment of a path.

    Errors: `CliError` for names that would lead to another path, also when percent-encoded.
    """
    if name in (".", ".."):
        raise usage_error(
            f"the name {name!r} cannot be part of an address",
            "use what does without the name, or choose another one",
        )
    return quote(name, safe="")
