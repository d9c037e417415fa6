"""What a connection reads, whatever the pieces are in which it comes."""

import asyncio
import random
from collections.abc import Callable, Iterator

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from hypothesis import given
from hypothesis import strategies as st

from queue_server.http.connection import Parser

HEAD_BYTES_MAX = 4096
PLAIN = b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = (
    b"GET /h2c HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
)
SHOUTED = b"GET /shouted HTTP/1.1\r\nHost: x\r\nCONNECTION: UPGRADE\r\nUPGRADE: h2c\r\n\r\n"
TEXT = b"\r\n\r\npgrade: " * 750
BODY = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + TEXT
CHUNKED = b"POST /chunked HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED += b"1770\r\n" + TEXT[:6000] + b"\r\nbb8\r\n" + TEXT[6000:] + b"\r\n0\r\n\r\n"
LARGE = b"GET /large HTTP/1.1\r\nHost: x\r\n" + b"X: %s\r\n\r\n" % (b"a" * 4040)
TOO_LARGE = b"GET /large HTTP/1.1\r\nHost: x\r\n" + b"X: %s\r\n\r\n" % (b"a" * 4100)
REQUESTS = {
    "plain": PLAIN,
    "upgrade": UPGRADE,
    "shouted": SHOUTED,
    "body": BODY,
    "chunked": CHUNKED,
    "large": LARGE,
}


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def parser_of(
    loop: asyncio.AbstractEventLoop, is_full: Callable[[int], bool] = lambda more: False
) -> Parser:
    return Parser(
        BaseProtocol(loop),
        loop,
        2**18,
        is_full=is_full,
        head_bytes_max=HEAD_BYTES_MAX,
        max_line_size=16_000,
        max_field_size=16_000,
        max_headers=128,
        auto_decompress=False,
    )


def parsed(
    loop: asyncio.AbstractEventLoop, pieces: list[bytes], queued_max: int = 1000
) -> tuple[list[str], list[bytes], bool]:
    """The paths and bodies of all requests, and whether the connection ends with the last one.

    As aiohttp does: nothing is fed while there are *queued_max* of them.
    """
    queued: list[tuple[RawRequestMessage, StreamReader]] = []
    parser = parser_of(loop, lambda more: len(queued) + more >= queued_max)
    taken: list[tuple[RawRequestMessage, StreamReader]] = []

    def feed(data: bytes) -> None:
        messages, is_upgraded, tail = parser.feed_data(data)
        assert (is_upgraded, tail) == (False, b"")
        queued.extend(messages)

    for piece in pieces:
        if taken and taken[-1][0].should_close:
            break
        feed(piece)
        while queued:
            taken.append(queued.pop(0))
            if taken[-1][0].should_close:
                break
            if len(queued) <= queued_max // 2:
                feed(b"")
    paths = [message.path for message, _ in taken]
    bodies = [b"".join(body._buffer) for _, body in taken if body is not EMPTY_PAYLOAD]
    return paths, bodies, bool(taken) and taken[-1][0].should_close


@given(
    st.lists(st.sampled_from(list(REQUESTS.values())), max_size=6),
    st.integers(),
    st.sampled_from([1, 2, 1000]),
)
def test_the_pieces_make_no_difference(
    loop: asyncio.AbstractEventLoop, requests: list[bytes], seed: int, queued_max: int
) -> None:
    sent = b"".join(requests)
    rng = random.Random(seed)
    cuts = sorted(rng.choices(range(len(sent) + 1), k=rng.randrange(8)))
    pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    expected = [request.split(b" ", 2)[1].decode() for request in requests]
    paths, bodies, ends = parsed(loop, pieces, queued_max)
    # After some upgrades the connection ends; before, nothing is skipped.
    assert paths == expected[: len(paths)]
    if ends:
        assert paths[-1] == "/shouted" or (paths[-1] == "/h2c" and "/chunked" in paths)
    else:
        assert len(paths) == len(expected)
    assert all(body in (TEXT, b"") for body in bodies[:-1])


@pytest.mark.parametrize("before", [b"", PLAIN, UPGRADE, BODY])
def test_what_is_behind_an_upgrade_is_read(loop: asyncio.AbstractEventLoop, before: bytes) -> None:
    paths, _, ends = parsed(loop, [before + UPGRADE + UPGRADE + PLAIN + LARGE + b"GET /"])
    assert paths[-4:] == ["/h2c", "/h2c", "/plain", "/large"]
    assert not ends


@pytest.mark.parametrize("before", [b"", PLAIN, UPGRADE, BODY, CHUNKED])
@pytest.mark.parametrize("step", [1, 3, 100, 5000])
def test_a_head_is_bounded_as_a_whole(
    loop: asyncio.AbstractEventLoop, before: bytes, step: int
) -> None:
    sent = before + LARGE + TOO_LARGE
    pieces = [sent[start : start + step] for start in range(0, len(sent), step)]
    with pytest.raises(LineTooLong):
        parsed(loop, pieces)
    assert parsed(loop, [before, LARGE])[0][-1] == "/large"


def test_an_unfinished_head_is_refused_before_it_is_kept(loop: asyncio.AbstractEventLoop) -> None:
    parser = parser_of(loop)
    parser.feed_data(PLAIN + b"GET / HTTP/1.1\r\nHost: x\r\n")
    for number in range(4):
        parser.feed_data(b"X-%d: " % number + b"a" * 950 + b"\r\n")
    for _ in range(2):  # and stays refused, whatever comes
        with pytest.raises(LineTooLong):
            parser.feed_data(b"X: " + b"a" * 950 + b"\r\n")


@pytest.mark.parametrize("request_", [PLAIN, UPGRADE, BODY])
def test_a_pipeline_is_held_as_it_came(loop: asyncio.AbstractEventLoop, request_: bytes) -> None:
    queued = 0
    parser = parser_of(loop, lambda more: queued + more >= 2)
    messages, _, _ = parser.feed_data(request_ * 100)
    assert len(messages) == 2
    queued = 1
    for _ in range(98):
        messages, _, _ = parser.feed_data(b"")
        assert len(messages) == 1
    assert not parser.feed_data(b"")[0]


def test_few_requests_come_behind_a_chunked_body(loop: asyncio.AbstractEventLoop) -> None:
    queued = 0
    parser = parser_of(loop, lambda more: queued + more >= 2)
    queued += len(parser.feed_data(CHUNKED[:-5])[0])
    queued += len(parser.feed_data(b"0\r\n\r\n" + PLAIN * 5000)[0])
    assert queued < 200
