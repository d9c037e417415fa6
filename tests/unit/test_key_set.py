"""Keys and tokens from elsewhere: whatever they hold, nothing ends and nothing fails with a 500."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jwt.algorithms import OKPAlgorithm

from queue_server.domain.access import Role
from queue_server.domain.errors import Unauthenticated, Unavailable
from queue_server.http import authentication
from queue_server.http.authentication import KeySet, TokenVerifier
from queue_server.observability.tasks import keep_running
from queue_server.settings import Settings

SECRET = "a secret that only the server and the tests know, and long enough for SHA-512"
EDDSA_TOKEN = jwt.encode({"sub": "me"}, Ed25519PrivateKey.generate(), algorithm="EdDSA")
DEEP = b'{"keys": ' + b"[" * 100_000


class Publisher:
    """Publishes a document, or leads to another place."""

    def __init__(self) -> None:
        self.body = b""
        self.status = 200
        self.fetches = 0
        self.led_astray = False
        self.is_hung: asyncio.Event | None = None  # ends when it is set

    async def answer(self, request: web.Request) -> web.Response:
        self.fetches += 1
        if self.is_hung is not None:
            await self.is_hung.wait()
        headers = {"Location": "/internal"} if self.status == 302 else {}
        return web.Response(body=self.body, status=self.status, headers=headers)

    async def internal(self, request: web.Request) -> web.Response:
        self.led_astray = True
        return web.Response(body=self.body)

    def publish(self, *key_ids: str) -> None:
        public = Ed25519PrivateKey.generate().public_key()
        text = json.loads(OKPAlgorithm.to_jwk(public))
        self.body = json.dumps({"keys": [text | {"kid": id_} for id_ in key_ids]}).encode()

    async def is_fetched(self, times: int) -> None:
        last = self.fetches + times
        async with asyncio.timeout(10):
            while self.fetches < last:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def published(publisher: Publisher) -> AsyncIterator[str]:
    """The address of the keys."""
    app = web.Application()
    app.router.add_get("/keys", publisher.answer)
    app.router.add_get("/internal", publisher.internal)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def refreshed(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, max_age_s: float = 0
) -> AsyncIterator[KeySet]:
    monkeypatch.setattr(authentication, "_REFETCH_INTERVAL_S", 0.0)
    async with published(publisher) as url:
        keys = KeySet(url, interval_s=0.02, timeout_ms=5000, max_age_s=max_age_s)
        task = keep_running(keys.keep_fresh, "key-set", pause_s=0.01)
        try:
            yield keys
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        b"[" * 500_000,
        b"\xff\xfe{}",
        b'{"keys": [' + b"9" * 400_000 + b"]}",
        b'{"keys": {"a": 1}}',
        b'{"keys": [{"kty": "RSA", "n": "AA", "e": "AA"}, {"kty": 7}, {"kty": "OKP", "x": []}]}',
        b"",
    ],
    ids=lambda body: repr(body[:20]),
)
async def test_no_document_ends_the_refresh(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """Once a document that cannot be read: the keys stay, and the next one replaces them."""
    publisher = Publisher()
    publisher.publish("old")
    async with refreshed(publisher, monkeypatch) as keys:
        await keys.find(Ed25519PublicKey, "old")
        publisher.body = body
        await publisher.is_fetched(3)
        await keys.find(Ed25519PublicKey, "old")
        # A token with a key that is not known asks for the document in its request.
        with pytest.raises(Unauthenticated, match="Unknown key ID"):
            await keys.find(Ed25519PublicKey, "none")
        publisher.publish("new")
        await publisher.is_fetched(2)
        await keys.find(Ed25519PublicKey, "new")
        with pytest.raises(Unauthenticated, match="Unknown key ID"):
            await keys.find(Ed25519PublicKey, "old")


async def test_an_exception_of_any_kind_does_not_end_the_refresh(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher()
    publisher.publish("old")
    async with refreshed(publisher, monkeypatch) as keys:
        await keys.find(Ed25519PublicKey, "old")
        with monkeypatch.context() as patch:
            patch.setattr(authentication, "parse_key_set", lambda _: 1 / 0)
            await publisher.is_fetched(3)
        assert "cannot read the key set" in caplog.text
        publisher.publish("new")
        await publisher.is_fetched(2)
        await keys.find(Ed25519PublicKey, "new")


async def test_a_redirect_is_not_followed_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher()
    publisher.publish("old")
    publisher.status = 302
    async with refreshed(publisher, monkeypatch) as keys:
        with pytest.raises(Unavailable):
            await keys.find(Ed25519PublicKey, "old")
        await publisher.is_fetched(2)
    assert not publisher.led_astray
    reasons = [getattr(record, "reason", "") for record in caplog.records]
    assert any("/internal" in reason and "JWT_JWKS_URL" in reason for reason in reasons)


async def test_keys_that_are_not_renewed_are_dropped_when_the_operator_wants_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher = Publisher()
    publisher.publish("old")
    async with refreshed(publisher, monkeypatch, max_age_s=0.2) as keys:
        await keys.find(Ed25519PublicKey, "old")
        generation = keys.generation
        publisher.status = 500
        # Remembered tokens are forgotten with a new generation.
        async with asyncio.timeout(10):
            while keys.generation == generation:
                await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await keys.find(Ed25519PublicKey, "old")
        publisher.status = 200
        await publisher.is_fetched(2)
        await keys.find(Ed25519PublicKey, "old")


async def test_how_long_a_fetch_of_the_keys_may_take_is_a_setting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher()
    publisher.publish("slow")
    publisher.is_hung = asyncio.Event()
    async with published(publisher) as url:
        settings = Settings(
            jwt_enabled=True, jwt_algorithm="EdDSA", jwt_jwks_url=url, jwt_jwks_timeout_ms=50
        )
        try:
            with pytest.raises(Unavailable):
                async with asyncio.timeout(4):  # the default is 5 s
                    await TokenVerifier(settings).principal_of(f"Bearer {EDDSA_TOKEN}")
        finally:
            publisher.is_hung.set()
    assert "cannot fetch the key set" in caplog.messages


# -- claims --


def signed(claims: Any) -> str:
    """A token with claims that the library would not sign."""

    def part(text: bytes) -> str:
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    start = ".".join((part(b'{"alg": "HS256"}'), part(payload)))
    key = jwt.get_algorithm_by_name("HS256")
    return f"{start}.{part(key.sign(start.encode(), key.prepare_key(SECRET)))}"


def verifier(**settings: Any) -> TokenVerifier:
    return TokenVerifier(Settings(jwt_enabled=True, jwt_secret=SECRET, **settings))


NOW = int(time.time())
ABSURD: list[Any] = [10**400, "x", [], {}]


@pytest.mark.parametrize(
    "claims",
    [
        *({name: value} for name in ("exp", "nbf", "iat") for value in ABSURD),
        b'{"exp": 1e999}', b'{"iat": NaN}', b'{"nbf": -1e999}', b'{"exp": Infinity}',
        {"exp": 10**15},
        {"sub": "\ud800"}, {"sub": "a\x00b"}, {"sub": 7}, {"sub": ["a"]},
        {"queues": ["\ud800"]}, {"queues": ["a\x00"]}, {"queues": [7]},
        b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b"[]", b"7", b"\xff",
    ],
    ids=lambda claims: repr(claims)[:30],
)  # fmt: skip
async def test_absurd_claims_are_refused(claims: Any) -> None:
    with pytest.raises(Unauthenticated):
        await verifier().principal_of(f"Bearer {signed(claims)}")


@pytest.mark.parametrize(
    ("settings", "claims", "refusal"),
    [
        ({}, {}, None),
        ({"jwt_require_exp": True}, {}, "Token has no expiry"),
        ({"jwt_require_exp": True}, {"exp": NOW + 10**9}, None),
        ({"jwt_max_lifetime_s": 3600}, {}, "Token has no expiry"),
        ({"jwt_max_lifetime_s": 3600}, {"exp": NOW + 3000}, None),
        ({"jwt_max_lifetime_s": 3600}, {"exp": NOW + 4000}, "Token is valid for too long"),
        ({"jwt_max_lifetime_s": 3600}, {"iat": NOW - 3000, "exp": NOW + 600}, None),
        (
            {"jwt_max_lifetime_s": 3600},
            {"iat": NOW - 3000, "exp": NOW + 900},
            "Token is valid for too long",
        ),
    ],
)
async def test_how_long_a_token_may_hold_is_a_setting(
    settings: dict[str, Any], claims: dict[str, Any], refusal: str | None
) -> None:
    credential = f"Bearer {signed({'sub': 'me', **claims})}"
    if refusal is None:
        assert (await verifier(**settings).principal_of(credential)).subject == "me"
        return
    with pytest.raises(Unauthenticated, match=refusal):
        await verifier(**settings).principal_of(credential)


async def test_names_of_roles_are_settings() -> None:
    names = {
        "jwt_role_admin": "root",
        "jwt_role_read_write": "app",
        "jwt_role_read_only": "viewer",
        "jwt_role_write_only": "producer",
    }
    verify = verifier(**names).principal_of
    for claim, role in (
        ("root", Role.ADMIN),
        ("app", Role.READ_WRITE),
        ("viewer", Role.READ_ONLY),
        ("producer", Role.WRITE_ONLY),
    ):
        assert (await verify(f"Bearer {signed({'role': claim})}")).roles == {role}
    for usual in ("admin", "read-write", "read-only", "write-only"):
        assert not (await verify(f"Bearer {signed({'role': usual})}")).roles
