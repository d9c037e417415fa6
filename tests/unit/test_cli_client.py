"""The HTTP client of the command line: what it sends again, and what it says when it cannot.

The server is a script: a list of answers, one for each request; None breaks the connection off.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from queue_server.cli import client as module
from queue_server.cli.client import Client
from queue_server.cli.exits import CliError, Exit

Answer = tuple[int, bytes] | None

OK: Answer = (200, b'{"fine": true}')
UNAVAILABLE: Answer = (503, b'{"error": "no database", "code": "unavailable"}')


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REPEAT_DELAYS_S", (0.0, 0.0))


class Script:
    def __init__(self, url: str, requests: list[str]) -> None:
        self.requests = requests  # what came, such as "GET /x"
        self.url = url
        self.client = Client(url, "qk_x")


@contextlib.contextmanager
def script(*answers: Answer, headers: dict[str, str] | None = None) -> Iterator[Script]:
    left = list(answers)
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append(f"{self.command} {self.path}")
            assert self.headers["Authorization"] == "Bearer qk_x"
            answer = left.pop(0)
            if answer is None:
                self.close_connection = True
                return
            status, body = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Request-Id", "abc123")
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        found = Script(f"http://127.0.0.1:{server.server_port}", requests)
        try:
            yield found
        finally:
            found.client.close()
            server.shutdown()
            thread.join()
    assert left == [], "more was expected to be sent"


def test_a_look_is_repeated_while_the_server_cannot_serve() -> None:
    with script(UNAVAILABLE, UNAVAILABLE, OK) as server:
        assert server.client.get("/x", {"a b": "ä", "none": None, "yes": True}) == {"fine": True}
        assert server.requests == ["GET /x?a%20b=%C3%A4&yes=true"] * 3


def test_what_may_do_something_twice_is_sent_once() -> None:
    with script(UNAVAILABLE) as server, pytest.raises(CliError) as caught:
        server.client.request("DELETE", "/x")
    assert caught.value.exit_code is Exit.UNREACHABLE
    with script(OK, None) as server, pytest.raises(CliError, match="is not known"):
        client = server.client
        client.get("/first")
        client.request("POST", "/x", body={})


def test_a_pop_whose_connection_broke_is_not_repeated() -> None:
    # Its answer may have taken messages.
    with script(OK, None) as server:
        client = server.client
        client.get("/first")
        with pytest.raises(CliError):
            client.request("GET", "/api/v1/pop/queue/q")


def test_what_was_refused_for_now_is_sent_again_whatever_it_is() -> None:
    busy: Answer = (429, b'{"error": "too many"}')
    with script(busy, OK, headers={"Retry-After": "0"}) as server:
        assert server.client.request("POST", "/x", body={}) == {"fine": True}
    with script(busy, busy, busy) as server, pytest.raises(CliError) as caught:
        server.client.request("POST", "/x", body={})
    assert (caught.value.exit_code, caught.value.status) == (Exit.UNREACHABLE, 429)


def test_a_push_is_repeated_when_its_connection_broke() -> None:
    with script(OK, None, None, OK) as server:
        client = server.client
        client.get("/first")
        assert client.request("POST", "/push", body=[1], repeatable=True) == {"fine": True}


def test_a_server_that_never_answered_is_not_waited_for() -> None:
    with script(None) as server, pytest.raises(CliError, match="the connection broke"):
        server.client.get("/x")


@pytest.mark.parametrize(
    ("answer", "exit_code"),
    [
        ((400, b'{"error": "bad"}'), Exit.FAILED),
        ((401, b'{"error": "Authentication required"}'), Exit.FORBIDDEN),
        ((403, b'{"error": "no"}'), Exit.FORBIDDEN),
        ((404, b'{"error": "Queue not found", "code": "not_found"}'), Exit.NOT_FOUND),
        ((404, b'{"error": "Not Found", "code": "no_such_route"}'), Exit.FAILED),
        ((500, b"<html>not ours</html>"), Exit.FAILED),
        ((200, b"<html>not ours</html>"), Exit.UNREACHABLE),
        ((301, b""), Exit.UNREACHABLE),
    ],
)
def test_an_answer_has_its_exit_code(answer: Answer, exit_code: Exit) -> None:
    with script(answer) as server, pytest.raises(CliError) as caught:
        server.client.get("/x")
    assert caught.value.exit_code is exit_code
    assert caught.value.request_id == ("abc123" if answer and answer[0] >= 400 else None)


def test_the_path_of_the_address_is_put_before_every_route() -> None:
    with script(OK) as server:
        with contextlib.closing(Client(f"{server.url}/queues/", "qk_x")) as client:
            client.get("/health")
        assert server.requests == ["GET /queues/health"]


def test_silence_ends_with_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with (
            contextlib.closing(Client(f"127.0.0.1:{port}", timeout_s=0.1)) as client,
            pytest.raises(CliError, match=r"no answer within 0.1 s$"),
        ):
            client.get("/x")
