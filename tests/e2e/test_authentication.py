"""Who gets in, and as whom (wire-api 5.13), on two workers that ask for tokens.

Tokens are made here with PyJWT, as an identity provider would make them; what the server must
refuse is also made by hand, because a library refuses to make it.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import ClientSession, WSServerHandshakeError, web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm
from queen import Queen

from tests.client import Answer, Client, eventually, unique
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory

SECRET = "a secret that only the server and the tests know, and long enough for SHA-512"

PrivateKey = RSAPrivateKey | Ed25519PrivateKey | str


def claims(role: str | None = "read-write", sub: str | None = "alice", **more: Any) -> Any:
    now = int(time.time())
    named = {"role": role, "sub": sub, "iat": now, "exp": now + 3600} | more
    return {name: value for name, value in named.items() if value is not None}


def token(
    *args: Any, key: PrivateKey = SECRET, alg: str = "HS256", kid: str = "", **more: Any
) -> str:
    headers = {"kid": kid} if kid else None
    return jwt.encode(claims(*args, **more), key, algorithm=alg, headers=headers)


def pem(key: RSAPrivateKey | Ed25519PrivateKey) -> str:
    encoded = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded.decode()


def unsigned(header: dict[str, Any], body: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(body).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@contextmanager
def cluster(
    conninfo: str = "", data_dir: Path | None = None, **env: str
) -> Iterator[ClusterProcess]:
    settings = {"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8", "JWT_ENABLED": "true", **env}
    with ClusterProcess(env=settings, data_dir=data_dir) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-3000:]
        # No credential is worth a line in a log.
        assert SECRET not in cluster.output
        assert "eyJ" not in cluster.output


@pytest.fixture(scope="module")
def shared() -> Iterator[ClusterProcess]:
    with (
        server_directory() as directory,
        cluster(data_dir=directory, JWT_SECRET=SECRET, LOG_LEVEL="debug") as running,
    ):
        yield running


async def ask(
    server: ClusterProcess, credential: str | None, target: str = "/api/v1/status"
) -> Answer:
    headers = {} if credential is None else {"Authorization": credential}
    async with Client(server.url, fresh=True) as client:
        return await client.send("GET", target, headers=headers)


async def refusal(server: ClusterProcess, credential: str | None) -> str:
    answer = await ask(server, credential)
    assert answer.status == 401, answer
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    return answer.error


# -- who gets in --


async def test_without_a_token_nothing_is_answered_but_what_is_public(
    shared: ClusterProcess,
) -> None:
    async with Client(shared.url, fresh=True) as client:
        for path in ("/health", "/metrics"):
            assert (await client.get(path)).status == 200
        preflight = await client.send("OPTIONS", "/api/v1/push")
        assert preflight.status == 204
        for method, path in (
            ("GET", "/api/v1/status"),
            ("POST", "/api/v1/push"),
            ("GET", "/api/v1/pop/queue/q"),
            ("DELETE", "/api/v1/resources/queues/q"),
            ("GET", "/api/v1/no-such-route"),
            ("GET", "/health/x"),
        ):
            answer = await client.send(method, path)
            assert (answer.status, answer.error) == (401, "Authentication required"), path
        known = await client.send(
            "GET", "/api/v1/no-such-route", headers={"Authorization": f"Bearer {token()}"}
        )
        assert known.status == 404


async def test_the_api_document_says_which_routes_need_a_credential(
    shared: ClusterProcess,
) -> None:
    """It is open itself, as is its page, and right about every route."""
    async with Client(shared.url, fresh=True) as client:
        assert (await client.get("/docs/api")).status == 200
        document = (await client.get("/openapi.json")).json
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                answer = await client.send(method.upper(), re.sub(r"\{\w+\}", "x", path))
                needed = operation.get("security") == [{"credential": []}]
                assert (answer.status == 401) is needed, (method, path, answer)


async def test_the_scheme_is_read_in_any_case_and_may_be_left_out(shared: ClusterProcess) -> None:
    for credential in (f"Bearer {token()}", f"bearer  {token()}", f"BEARER {token()} ", token()):
        assert (await ask(shared, credential)).status == 200
    assert await refusal(shared, "Bearer ") == "Authentication required"
    assert await refusal(shared, "Basic YTpi") == "Bad token header"


async def test_what_a_refusal_says(shared: ClusterProcess) -> None:
    now = time.time()
    rsa = generate_private_key(65537, 2048)
    for bad, text in (
        ("not.a.token", "Bad token header"),
        (
            token(key="another secret that is long enough for a signature"),
            "Invalid token signature",
        ),
        (token() + "x", "Invalid token signature"),
        (token(alg="HS512"), "Unsupported token algorithm"),
        (token(key=rsa, alg="RS256"), "Unsupported token algorithm"),
        (unsigned({"alg": "none"}, claims("admin")), "Unsupported token algorithm"),
        (unsigned({"alg": "HS256"}, claims("admin")), "Invalid token signature"),
        (unsigned({"alg": ["HS256"]}, claims("admin")), "Unsupported token algorithm"),
        (unsigned({}, claims("admin")), "Unsupported token algorithm"),
        (token(exp=now - 40), "Token has expired"),
        (token(nbf=now + 60), "Token not yet valid"),
        (token(iat=now + 60), "Token issued in the future"),
        (token(iat="yesterday"), "Invalid token claims"),
        ("x" * 9000, "Authentication required"),
    ):
        assert await refusal(shared, f"Bearer {bad}") == text, bad[:60]
    # Half a minute of skew is forgiven, and what is not there is not asked for.
    for good in (
        token(exp=now - 20),
        token(nbf=now + 20),
        token(iat=now + 20),
        jwt.encode({"role": "read-only"}, SECRET),
    ):
        assert (await ask(shared, f"Bearer {good}")).status == 200


async def test_a_remembered_token_expires_all_the_same(conninfo: str) -> None:
    with cluster(conninfo, JWT_SECRET=SECRET, JWT_CLOCK_SKEW="0", NUM_WORKERS="2") as server:
        expires_at = int(time.time()) + 2
        short = f"Bearer {token(exp=expires_at)}"
        async with Client(server.url) as client:  # one connection: the same worker throughout
            headers = {"Authorization": short}
            statuses: list[tuple[float, int]] = []
            while time.time() < expires_at + 1:
                begun = time.time()
                answer = await client.send("GET", "/api/v1/system/maintenance", headers=headers)
                statuses.append((begun, answer.status))
        assert {status for at, status in statuses if at > expires_at} == {401}
        assert statuses[0][1] == 403  # it held: the role is what it lacks


async def test_issuer_and_audience(conninfo: str) -> None:
    with cluster(
        conninfo, JWT_SECRET=SECRET, JWT_ISSUER="https://login", JWT_AUDIENCE="queues"
    ) as server:
        for more, text in (
            ({"iss": "https://login", "aud": "queues"}, None),
            ({"iss": "https://login", "aud": ["other", "queues"]}, None),
            ({"iss": "https://evil", "aud": "queues"}, "Invalid token issuer"),
            ({"aud": "queues"}, "Invalid token issuer"),
            ({"iss": "https://login", "aud": ["other"]}, "Invalid token audience"),
            ({"iss": "https://login"}, "Invalid token audience"),
        ):
            credential = f"Bearer {token(**more)}"
            if text is None:
                assert (await ask(server, credential)).status == 200
            else:
                assert await refusal(server, credential) == text


# -- who may do what --


async def test_a_role_opens_what_it_opens(shared: ClusterProcess) -> None:
    queue = unique("roles")
    item = {"items": [{"queue": queue, "payload": 1}]}

    async def statuses(**named: Any) -> list[int]:
        async with Client(shared.url, token=token(**named)) as client:
            return [
                (await client.get("/api/v1/status")).status,
                (await client.post("/api/v1/push", item)).status,
                (await client.get(f"/api/v1/pop/queue/{queue}?autoAck=true")).status,
                (await client.get("/api/v1/system/maintenance")).status,
            ]

    assert await statuses(role="admin") == [200, 201, 200, 200]
    assert await statuses(role="read-write") == [200, 201, 200, 403]
    assert await statuses(role="read-only") == [200, 403, 403, 403]
    assert await statuses(role="write-only") == [403, 201, 403, 403]
    assert await statuses(role=None) == [403, 403, 403, 403]
    assert await statuses(role="root") == [403, 403, 403, 403]
    assert await statuses(role=None, roles=["x", "admin"]) == [200, 201, 200, 200]
    assert await statuses(role="read-only", roles=["write-only"]) == [200, 201, 403, 403]
    assert await statuses(role=7, roles="admin") == [403, 403, 403, 403]
    async with Client(shared.url, token=token("read-only")) as client:
        refused = await client.send("DELETE", f"/api/v1/resources/queues/{queue}")
        assert (refused.status, refused.error) == (403, "Insufficient permissions")


async def test_names_of_roles_and_claims_are_settings(conninfo: str) -> None:
    with cluster(
        conninfo,
        JWT_SECRET=SECRET,
        JWT_ROLES_CLAIM="https://example/role",
        JWT_ROLES_ARRAY_CLAIM="groups",
        JWT_ROLE_READ_ONLY="viewer",
        JWT_QUEUES_CLAIM="allowed",
        JWT_SKIP_PATHS="/health,/api/v1/status/,/metrics/prometheus",
        METRICS_PUBLIC_NAMES="true",
    ) as server:
        more: dict[str, Any]
        named = unique("named")
        more = {"https://example/role": "admin"}
        async with Client(server.url, token=token(None, **more)) as client:
            await client.push(named, [1])
        for claim, status in (("queues", 200), ("allowed", 403)):
            more = {"groups": ["viewer"], claim: ["mine"]}
            assert (await ask(server, f"Bearer {token(None, **more)}")).status == status
        for more in ({"https://example/role": "viewer"}, {"groups": ["viewer"]}):
            assert (await ask(server, f"Bearer {token(**{'role': None} | more)}")).status == 200
        for more in ({"role": "viewer"}, {"groups": ["read-only"]}, {"https": {"role": "viewer"}}):
            assert (await ask(server, f"Bearer {token(**{'role': None} | more)}")).status == 403
        # The paths given replace the usual ones; a folder opens what lies in it.
        assert (await ask(server, None, "/metrics")).status == 401
        assert (await ask(server, None, "/api/v1/status")).status == 401
        assert (await ask(server, None, "/api/v1/status/queues")).status == 200

        async def is_named() -> bool:
            return named in (await ask(server, None, "/metrics/prometheus")).raw.decode()

        await eventually(is_named, deadline=30)


# -- as whom: wire-api 4.1 --


async def test_producer_sub_stamped_from_jwt(shared: ClusterProcess) -> None:
    queue = unique("stamped")
    async with (
        Client(shared.url, token=token(sub="alice")) as alice,
        Client(shared.url, token=token(sub="bob")) as bob,
        Client(shared.url, token=token(sub="")) as nobody,
        Client(shared.url, token=token(sub=None)) as nameless,
    ):
        for number, client in enumerate((alice, bob, nobody, nameless)):
            await client.push(queue, [number])
        popped = await alice.pop(queue)
        assert [(m["data"], m["producerSub"]) for m in popped.messages] == [
            (0, "alice"), (1, "bob"), (2, None), (3, None),
        ]  # fmt: skip


async def test_producer_sub_spoofing_ignored_with_jwt(shared: ClusterProcess) -> None:
    queue = unique("spoofed")
    item = {"queue": queue, "payload": 1, "producerSub": "mallory", "producer_sub": "mallory"}
    async with Client(shared.url, token=token(sub="alice")) as client:
        await client.push_items([item])
        answer = await client.post(
            "/api/v1/transaction",
            {
                "operations": [
                    {"type": "push", "items": [item], "producerSub": "mallory"},
                    {"type": "push", **item},
                ]
            },
        )
        assert answer.json["success"] is True, answer
        popped = await client.pop(queue)
        assert [m["producerSub"] for m in popped.messages] == ["alice"] * 3


async def test_pushes_of_several_producers_at_once_keep_their_names(
    shared: ClusterProcess,
) -> None:
    """They meet in the same commit, and one of them repeats an id."""
    queue = unique("together")
    names = [f"producer-{n}" for n in range(8)]
    clients = [Client(shared.url, token=token(sub=name)) for name in names]
    await clients[0].push_items([{"queue": queue, "payload": names[0], "transactionId": "first"}])
    await asyncio.gather(
        *(
            client.push_items(
                [
                    {"queue": queue, "payload": name, "transactionId": "first"},
                    {"queue": queue, "payload": name},
                    {"queue": queue, "payload": name, "partition": "p"},
                ]
            )
            for _ in range(20)
            for client, name in zip(clients, names, strict=True)
        )
    )
    for partition, count in (("Default", 161), ("p", 160)):
        popped = await clients[0].pop(queue, partition=partition, batch=1000)
        assert len(popped.messages) == count
        assert all(m["producerSub"] == m["data"] for m in popped.messages)
    for client in clients:
        await client.close()


async def test_a_dead_letter_keeps_its_producer_when_it_is_moved_back(
    shared: ClusterProcess,
) -> None:
    queue = unique("buried")
    async with (
        Client(shared.url, token=token(sub="alice")) as alice,
        Client(shared.url, token=token(sub="operator", role="admin")) as operator,
    ):
        await alice.configure(queue, {"retryLimit": 0})
        await alice.push(queue, [1])
        message = (await alice.pop(queue)).messages[0]
        assert (await alice.ack(message, "failed"))["dlq"] is True
        listed = (await operator.get(f"/api/v1/dlq?queue={queue}")).json["messages"][0]
        assert listed["producerSub"] == "alice"
        path = f"/api/v1/messages/{message['partitionId']}/{message['transactionId']}/retry"
        assert (await operator.send("POST", path)).status == 200
        assert (await alice.pop(queue)).messages[0]["producerSub"] == "alice"


async def test_the_official_client_with_a_token(shared: ClusterProcess) -> None:
    queue = unique("official")
    client = Queen({"url": shared.url, "bearer_token": token(sub="alice"), "handle_signals": False})
    try:
        await client.queue(queue).create()
        assert (await client.queue(queue).push([{"data": {"n": 1}}]))[0]["status"] == "queued"
        message = (await client.queue(queue).batch(1).wait(False).pop())[0]
        assert message["producerSub"] == "alice"
        assert (await client.ack(message, True))["success"] is True
    finally:
        await client.close()


# -- public keys --


async def test_a_public_key_and_its_family(conninfo: str) -> None:
    rsa, other = generate_private_key(65537, 2048), generate_private_key(65537, 2048)
    text = pem(rsa)
    with cluster(
        conninfo, JWT_ALGORITHM="RS256", JWT_PUBLIC_KEY=text.replace("\n", "\\n")
    ) as server:
        for algorithm in ("RS256", "RS384", "RS512"):
            assert (await ask(server, f"Bearer {token(key=rsa, alg=algorithm)}")).status == 200
        assert await refusal(server, token(key=other, alg="RS256")) == "Invalid token signature"
        # The public key is no secret: whoever signs with it as if it were one is refused.
        head = unsigned({"alg": "HS256", "typ": "JWT"}, claims("admin")).rsplit(".", 1)[0]
        mac = hmac.new(text.encode(), head.encode(), hashlib.sha256).digest()
        forged = f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        assert await refusal(server, forged) == "Unsupported token algorithm"


async def test_auto_takes_each_family_there_is_a_key_for(conninfo: str) -> None:
    ed, rsa = Ed25519PrivateKey.generate(), generate_private_key(65537, 2048)
    with cluster(
        conninfo, JWT_ALGORITHM="auto", JWT_PUBLIC_KEY=pem(ed), JWT_SECRET=SECRET
    ) as server:
        assert (await ask(server, token(key=ed, alg="EdDSA"))).status == 200
        assert (await ask(server, token(alg="HS384"))).status == 200
        assert await refusal(server, token(key=rsa, alg="RS256")) == "Unsupported token algorithm"
        assert (
            await refusal(server, unsigned({"alg": "none"}, claims()))
            == "Unsupported token algorithm"
        )


class Provider:
    """An identity provider: it publishes keys and counts who asks."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.fetch_count = 0
        self.broken = False

    def publish(self, **keys: RSAPrivateKey | Ed25519PrivateKey) -> None:
        self.keys = [{"kty": "EC", "crv": "P-256", "kid": "unusable"}, {"kty": "oct", "k": "AAAA"}]
        for kid, key in keys.items():
            text = (
                OKPAlgorithm.to_jwk(key.public_key())
                if isinstance(key, Ed25519PrivateKey)
                else RSAAlgorithm.to_jwk(key.public_key())
            )
            self.keys.append(json.loads(text) | {"kid": kid})

    async def answer(self, _request: web.Request) -> web.Response:
        self.fetch_count += 1
        if self.broken:
            return web.Response(status=500)
        return web.json_response({"keys": self.keys})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/keys", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
        await runner.cleanup()


async def test_a_key_set_is_fetched_and_follows_its_publisher(conninfo: str) -> None:
    ed, late = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    rsa = generate_private_key(65537, 2048)
    provider = Provider()
    provider.publish(ed=ed, rsa=rsa)
    async with provider.serving() as url:
        with cluster(
            conninfo, JWT_ALGORITHM="auto", JWT_JWKS_URL=url, JWT_JWKS_REFRESH_INTERVAL="5"
        ) as server:
            async with Client(server.url) as client:  # one worker throughout

                async def status(credential: str) -> tuple[int, str]:
                    headers = {"Authorization": f"Bearer {credential}"}
                    answer = await client.send("GET", "/api/v1/status", headers=headers)
                    return answer.status, "" if answer.status == 200 else answer.error

                good = token(key=ed, alg="EdDSA", kid="ed")
                assert await status(good) == (200, "")
                assert await status(token(key=ed, alg="EdDSA")) == (
                    200,
                    "",
                )  # the first of its kind
                assert await status(token(key=rsa, alg="RS512", kid="rsa")) == (200, "")
                assert await status(token(key=rsa, alg="RS256", kid="ed")) == (
                    401,
                    "Unknown key ID",
                )
                assert await status(token(alg="HS256")) == (401, "Unsupported token algorithm")
                # Strangers cannot make it ask again and again.
                before = provider.fetch_count
                for number in range(20):
                    unknown = token(key=late, alg="EdDSA", kid=f"stranger-{number}")
                    assert await status(unknown) == (401, "Unknown key ID")
                assert provider.fetch_count - before <= 4  # two workers, each at most once in 5 s

                # A new key is found, and a token of one that is gone is forgotten.
                provider.publish(late=late)
                deadline = time.monotonic() + 20
                new = token(key=late, alg="EdDSA", kid="late")
                while (await status(new))[0] != 200:
                    assert time.monotonic() < deadline
                assert await status(good) == (401, "Unknown key ID")

                # While the provider is down the keys at hand stay good.
                provider.broken = True
                fetches = provider.fetch_count
                while provider.fetch_count < fetches + 2:
                    assert await status(new) == (200, "")
                    assert time.monotonic() < deadline + 20


async def test_a_provider_that_is_down_at_the_start_delays_nobody(conninfo: str) -> None:
    provider = Provider()
    ed = Ed25519PrivateKey.generate()
    provider.publish(ed=ed)
    provider.broken = True
    async with provider.serving() as url:
        with cluster(
            conninfo, JWT_ALGORITHM="EdDSA", JWT_JWKS_URL=url, JWT_JWKS_REFRESH_INTERVAL="5"
        ) as server:
            good = token(key=ed, alg="EdDSA", kid="ed")
            answer = await ask(server, f"Bearer {good}")
            assert (answer.status, "JWT_JWKS_URL" in answer.error) == (503, True)
            assert int(answer.headers["Retry-After"]) >= 1
            provider.broken = False
            deadline = time.monotonic() + 20
            while (await ask(server, f"Bearer {good}")).status != 200:
                assert time.monotonic() < deadline


# -- the start --


def test_the_server_does_not_start_with_a_door_that_cannot_work(conninfo: str) -> None:
    for env, text in (
        ({"JWT_ENABLED": "true"}, "JWT_SECRET"),
        ({"JWT_ENABLED": "true", "JWT_ALGORITHM": "none"}, "JWT_ALGORITHM"),
        ({"HOST": "0.0.0.0"}, "ALLOW_ANONYMOUS"),
    ):
        with ClusterProcess(env={"DATABASE_URL": conninfo, **env}) as server:
            assert server.wait() == 2
            assert text in server.output


# -- dashboards --


async def open_live(
    server: ClusterProcess, *protocols: str, authorization: str | None = None
) -> int | str | None:
    """Open the WebSocket of dashboards: the protocol agreed on, or the status of the refusal."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with ClientSession() as session:
        try:
            async with session.ws_connect(
                server.url + "/ws/dashboard", protocols=protocols, headers=headers
            ) as ws:
                assert (await ws.receive_json())["event"] == "connected"
                return ws.protocol
        except WSServerHandshakeError as exc:
            return exc.status


async def test_pages_of_any_origin_may_use_a_credential_that_they_have(
    shared: ClusterProcess,
) -> None:
    """And Host is not looked at: who comes is known."""
    headers = {
        "Origin": "http://page.example",
        "Sec-Fetch-Site": "cross-site",
        "Host": "any.example",
    }
    async with Client(shared.url, token=token()) as client:
        assert (await client.send("GET", "/api/v1/status", headers=headers)).status == 200


async def test_a_websockets_credential_counts_for_a_websocket_alone(
    shared: ClusterProcess,
) -> None:
    headers = {"Sec-WebSocket-Protocol": f"queue-server, bearer.{token()}"}
    async with Client(shared.url) as client:
        assert (await client.send("GET", "/api/v1/status", headers=headers)).status == 401


async def test_a_websocket_needs_a_credential_that_may_read(shared: ClusterProcess) -> None:
    """A browser cannot send a header with it: the credential may come as a subprotocol."""
    assert await open_live(shared) == 401
    assert await open_live(shared, "queue-server", "bearer.nonsense") == 401
    reader = token("read-only")
    assert await open_live(shared, "queue-server", f"bearer.{reader}") == "queue-server"
    assert await open_live(shared, authorization=f"Bearer {reader}") is None
    producer = token("write-only")
    assert await open_live(shared, "queue-server", f"bearer.{producer}") == 403


async def test_a_reader_may_use_the_whole_dashboard_and_no_more(shared: ClusterProcess) -> None:
    credential = f"Bearer {token('read-only')}"
    for path in (
        "resources/overview", "resources/namespaces", "resources/tasks", "resources/queues",
        "resources/partitions", "status", "status/queues", "status/analytics", "status/buffers",
        "analytics/system-metrics", "analytics/worker-metrics", "analytics/postgres-stats",
        "analytics/queue-lag", "analytics/queue-ops", "analytics/queue-parked-replicas",
        "analytics/retention", "analytics/throughput", "analytics/queue-stats",
        "analytics/queues", "analytics/queue-depths", "messages", "dlq", "traces/names",
        "consumer-groups", "consumer-groups/lagging",
    ):  # fmt: skip
        answer = await ask(shared, credential, f"/api/v1/{path}")
        assert answer.status == 200, (path, answer)
    async with Client(shared.url, token=credential.removeprefix("Bearer ")) as client:
        for path in ("system/maintenance", "system/maintenance/pop", "stats/refresh"):
            assert (await client.post(f"/api/v1/{path}", {"enabled": True})).status == 403
        assert (await client.post("/api/v1/push", {"items": []})).status == 403
