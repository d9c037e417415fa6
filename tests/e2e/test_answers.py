"""Answers of the hot path look like all others, byte by byte: what clients and proxies rely on."""

import asyncio
import email.utils
import json
import time
from urllib.parse import urlsplit

import pytest

from tests.client import Client, unique
from tests.cluster_process import ClusterProcess

ALWAYS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, POST, PUT, DELETE, OPTIONS",
    "access-control-allow-headers": "Content-Type, Authorization",
    "access-control-max-age": "86400",
    "x-request-id": "request17",
}


class Connection:
    """A connection whose answers are read to the byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> "Connection":
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    async def ask(
        self, line: str, body: bytes = b"", headers: str = ""
    ) -> tuple[str, dict[str, str], bytes]:
        head = f"{line}\r\nHost: x\r\nX-Request-Id: request17\r\n{headers}"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(20):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = text.rstrip().split("\r\n")
            pairs = [line.split(": ", 1) for line in lines]
            found = {name.lower(): value for name, value in pairs}
            assert len(found) == len(pairs), f"a header twice: {lines}"
            length = int(found.get("content-length", 0))
            return status, found, await self.reader.readexactly(length)

    async def is_closed(self) -> bool:
        async with asyncio.timeout(20):
            return await self.reader.read(1) == b""


def push_body(queue: str) -> bytes:
    return json.dumps({"items": [{"queue": queue, "payload": 1}]}).encode()


@pytest.mark.parametrize(
    ("version", "headers", "stays"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.0", "", False),
        ("1.0", "Connection: keep-alive\r\n", True),
    ],
)
async def test_a_push_is_answered_with_the_same_headers_whatever_becomes_of_the_connection(
    server: ClusterProcess, version: str, headers: str, stays: bool
) -> None:
    connection = await Connection.open(server.url)
    status, found, body = await connection.ask(
        f"POST /api/v1/push HTTP/{version}", push_body(unique("answers")), headers
    )
    assert status == f"HTTP/{version} 201 Created"
    assert json.loads(body)[0]["status"] == "queued"
    assert found["content-type"] == "application/json; charset=utf-8"
    assert {name: found.get(name) for name in ALWAYS} == ALWAYS
    date = email.utils.parsedate_to_datetime(found["date"]).timestamp()
    assert abs(date - time.time()) < 60
    if stays:
        again = await connection.ask(
            f"POST /api/v1/push HTTP/{version}", push_body(unique("answers")), headers
        )
        assert again[0] == status
    else:
        assert await connection.is_closed()
    connection.writer.close()


async def test_an_empty_pop_has_no_body_and_tells_no_length(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("answers")
    await client.configure(queue)
    connection = await Connection.open(server.url)
    for _ in range(2):
        status, found, _ = await connection.ask(f"GET /api/v1/pop/queue/{queue} HTTP/1.1")
        assert status == "HTTP/1.1 204 No Content"
        assert "content-length" not in found and "content-type" not in found
        assert {name: found.get(name) for name in ALWAYS} == ALWAYS
    connection.writer.close()


async def test_requests_sent_without_waiting_are_answered_in_order(server: ClusterProcess) -> None:
    queue = unique("answers")
    connection = await Connection.open(server.url)
    bodies = [
        json.dumps({"items": [{"queue": queue, "transactionId": f"t{i}", "payload": i}]}).encode()
        for i in range(20)
    ]
    connection.writer.write(
        b"".join(
            b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
            for body in bodies
        )
    )
    for i in range(20):
        async with asyncio.timeout(20):
            head = await connection.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = json.loads(await connection.reader.readexactly(length))
        assert answer[0]["transaction_id"] == f"t{i}"
    connection.writer.close()
