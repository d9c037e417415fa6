"""API keys and permissions by queue, on two workers: who may do what to which queue."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import jwt
import pytest

from tests.client import Answer, Client, eventually, segment, unique
from tests.cluster_process import ROOT, ClusterProcess
from tests.server_directory import server_directory

SECRET = "a secret that only the server and the tests know, and long enough for SHA-512"
NO_CLAIM: Any = object()


@pytest.fixture(scope="module")
def guarded() -> Iterator[ClusterProcess]:
    """A server that takes keys and tokens, with its own database."""
    env = {
        "API_KEYS_ENABLED": "true",
        "JWT_ENABLED": "true",
        "JWT_SECRET": SECRET,
        "LOG_LEVEL": "debug",
    }
    with server_directory() as directory, ClusterProcess(env=env, data_dir=directory) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-3000:]
        assert "qk_" not in cluster.output


def run(cluster: ClusterProcess, *args: str) -> subprocess.CompletedProcess[str]:
    """A `keys` command for the database of *cluster*."""
    return keys(cluster.env, *cluster.data_args, *args)


def keys(env: Mapping[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "cluster.py"), "keys", *args],
        env=env, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


def create(cluster: ClusterProcess, name: str, *args: str) -> tuple[str, str]:
    """A key and its id."""
    done = run(cluster, "create", name, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.split()[0]


def token(queues: Any = NO_CLAIM, role: str = "admin") -> str:
    now = int(time.time())
    claims = {"role": role, "sub": "tokened", "iat": now, "exp": now + 600}
    if queues is not NO_CLAIM:
        claims["queues"] = queues
    return jwt.encode(claims, SECRET, algorithm="HS256")


@pytest.fixture
async def client_of(guarded: ClusterProcess) -> AsyncIterator[Callable[[str], Client]]:
    """Clients with a credential; every request has a connection of its own."""
    async with AsyncExitStack() as stack:
        clients: list[Client] = []

        def make(credential: str) -> Client:
            client = Client(guarded.url, fresh=True, token=credential)
            clients.append(client)
            return client

        yield make
        for client in clients:
            await stack.enter_async_context(client)


async def is_known(client: Client) -> None:
    """A new key is noticed by all workers within seconds."""

    async def noticed() -> bool:
        answers = await asyncio.gather(*(client.get("/api/v1/no-such") for _ in range(8)))
        return all(answer.status != 401 for answer in answers)

    await eventually(noticed, deadline=5)


def forbidden(answer: Answer) -> None:
    assert (answer.status, answer.json["code"]) == (403, "forbidden"), answer


# -- keys --


async def test_a_key_opens_what_its_role_says_and_names_the_producer(
    guarded: ClusterProcess, client_of: Callable[[str], Client], queue: str
) -> None:
    key, _ = create(guarded, "billing")
    assert len(key) == len("qk_") + 43
    client = client_of(key)
    await is_known(client)
    await client.push(queue, [1])
    pop = await client.pop(queue)
    assert [message["producerSub"] for message in pop.messages] == ["billing"]
    await client.complete(pop)
    forbidden(await client.send("DELETE", f"/api/v1/resources/queues/{queue}"))
    for role, may_push, may_look in (("read-only", False, True), ("write-only", True, False)):
        other = client_of(create(guarded, role, "--role", role)[0])
        await is_known(other)
        pushed = await other.post("/api/v1/push", {"items": [{"queue": queue, "payload": 1}]})
        assert (pushed.status == 201) is may_push
        assert ((await other.get("/api/v1/resources/queues")).status == 200) is may_look
    admin = client_of(create(guarded, "root", "--role", "admin")[0])
    await is_known(admin)
    await admin.delete(queue)


async def test_what_is_no_key_is_refused(
    guarded: ClusterProcess, client_of: Callable[[str], Client]
) -> None:
    key, _ = create(guarded, "somebody")
    await is_known(client_of(key))
    for wrong in ("qk_", "qk_" + "A" * 43, key[:-1], key + "A", key.lower()):
        answer = await client_of(wrong).get("/api/v1/status")
        assert (answer.status, answer.error) == (401, "Invalid API key"), wrong
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    # Without the scheme, as tokens may be sent too.
    async with Client(guarded.url) as client:
        bare = await client.send("GET", "/api/v1/status", headers={"Authorization": key})
        assert bare.status == 200
        assert (await client.get("/api/v1/status")).status == 401
        assert (await client.get("/readyz")).status == 200


async def test_a_revoked_key_is_refused_within_seconds(
    guarded: ClusterProcess, client_of: Callable[[str], Client]
) -> None:
    key, id_ = create(guarded, "leaver")
    client = client_of(key)
    await is_known(client)
    assert f"{id_}  leaver  read-write  all queues" in run(guarded, "list").stdout
    assert key not in run(guarded, "list").stdout
    revoked = run(guarded, "revoke", id_)
    assert (revoked.returncode, revoked.stdout) == (0, f"{id_} of leaver is revoked\n")
    began = time.monotonic()

    async def refused() -> bool:
        answers = await asyncio.gather(*(client.get("/api/v1/status") for _ in range(8)))
        return all(answer.status == 401 for answer in answers)

    await eventually(refused, deadline=5)
    assert time.monotonic() - began < 4
    assert id_ not in run(guarded, "list").stdout
    again = run(guarded, "revoke", id_)
    assert (again.returncode, again.stdout) == (5, "")
    assert "no key has the id" in again.stderr


async def test_a_key_ends_when_it_was_said_to(
    guarded: ClusterProcess, client_of: Callable[[str], Client]
) -> None:
    client = client_of(create(guarded, "guest", "--expires-in", "5s")[0])
    await is_known(client)

    async def has_ended() -> bool:
        answer = await client.get("/api/v1/status")
        return answer.status == 401 and answer.error == "API key has expired"

    await eventually(has_ended, deadline=10)
    assert "expired" in run(guarded, "list").stdout


def test_a_key_that_never_expires_is_warned_of_unless_it_is_meant(guarded: ClusterProcess) -> None:
    assert "never expires; give it --expires-in" in run(guarded, "create", "a").stderr
    for args in (("--expires-in", "never"), ("--expires-in", "90d")):
        assert "warning" not in run(guarded, "create", "a", *args).stderr


@pytest.mark.parametrize(
    "args",
    [
        ["create"],
        ["create", ""],
        ["create", "a\nb"],
        ["create", "a", "--role", "king"],
        ["create", "a", "--expires-in", "soon"],
        ["create", "a", "--push", ""],
        ["revoke"],
        [],
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(
    guarded: ClusterProcess, args: list[str]
) -> None:
    done = run(guarded, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_server_is_named(guarded: ClusterProcess) -> None:
    done = keys(guarded.env, "--data-dir", "/nowhere", "list")
    assert (done.returncode, done.stdout) == (3, "")
    assert "/nowhere" in done.stderr
    assert "Traceback" not in done.stderr


# -- queues --


@pytest.mark.parametrize("how", ["key", "token"])
async def test_a_credential_is_for_the_queues_that_match_its_patterns(
    guarded: ClusterProcess, client_of: Callable[[str], Client], how: str
) -> None:
    mine, other = unique("mine") + ".a.b", unique("other") + ".a.b"
    pattern = mine.split(".")[0] + ".*"
    if how == "key":
        uses = [text for use in ("push", "pop", "administer") for text in (f"--{use}", pattern)]
        client = client_of(create(guarded, "limited", "--role", "admin", *uses)[0])
    else:
        client = client_of(token([pattern]))
    admin = client_of(token())
    await is_known(client)
    await admin.push(other, ["x", "y"], ids=["1", "2"])
    theirs = await admin.pop(other, batch=1)
    left = await admin.pop(other, batch=1, group="g")
    partition, lease = theirs.messages[0]["partitionId"], theirs.messages[0]["leaseId"]
    acked = {"transactionId": "1", "partitionId": partition, "status": "completed"}

    async def try_all(queue: str, message: dict[str, Any]) -> list[Answer]:
        """Every route that names a queue; the answers in the order of the list."""
        name, id_ = segment(queue), message["partitionId"]
        address = f"/api/v1/messages/{id_}/{message['transactionId']}"
        ack = {
            "transactionId": message["transactionId"], "partitionId": id_, "status": "completed"
        }  # fmt: skip
        item = {"queue": queue, "payload": 1}
        seek = f"/api/v1/consumer-groups/g/queues/{name}"
        requests: list[tuple[str, str, Any]] = [
            ("POST", "/api/v1/push", {"items": [item]}),
            ("POST", "/api/v1/push", {"items": [{"queue": mine, "payload": 1}, item]}),
            ("POST", "/api/v1/configure", {"queue": queue, "options": {"leaseTime": 30}}),
            ("GET", f"/api/v1/pop/queue/{name}?consumerGroup=h", None),
            ("GET", f"/api/v1/pop/queue/{name}/partition/Default?consumerGroup=i", None),
            ("POST", "/api/v1/ack", ack),
            ("POST", "/api/v1/ack/batch", {"acknowledgments": [ack] * 20}),
            ("POST", "/api/v1/transaction", {"operations": [{"type": "push", "items": [item]}]}),
            ("POST", "/api/v1/transaction", {"operations": [{"type": "ack", **ack}]}),
            ("POST", f"/api/v1/lease/{message['leaseId']}/extend", {"seconds": 9}),
            ("GET", f"/api/v1/resources/queues/{name}", None),
            ("GET", f"/api/v1/resources/queues/{name}/depth", None),
            ("GET", f"/api/v1/status/queues/{name}", None),
            ("GET", f"/api/v1/status/queues/{name}/messages", None),
            ("GET", f"/api/v1/analytics/queue/{name}", None),
            ("GET", f"/api/v1/dlq?queue={name}", None),
            ("GET", f"/api/v1/messages?queue={name}", None),
            ("GET", address, None),
            ("POST", "/api/v1/dlq/redrive", {"queue": queue}),
            ("POST", "/api/v1/traces", {**ack, "data": 1}),
            ("GET", f"/api/v1/traces/{id_}/{message['transactionId']}", None),
            ("POST", f"{seek}/seek", {"toEnd": True}),
            ("POST", f"{seek}/partitions/Default/seek", {"toEnd": True}),
            ("DELETE", seek, None),
            ("POST", f"{address}/retry", None),
            ("POST", f"{address}/dlq", None),
            ("DELETE", address, None),
            ("DELETE", f"/api/v1/dlq?queue={name}", None),
            ("DELETE", f"/api/v1/queues/{name}/clear", None),
            ("DELETE", f"/api/v1/resources/queues/{name}", None),
        ]
        answers = []
        for method, path, body in requests:
            if body is None:
                answers.append(await client.send(method, path))
            else:
                answers.append(await client.post(path, body))
        return answers

    for answer in await try_all(other, theirs.messages[0]):
        if answer.status in (200, 404):
            # By an id alone: as if it did not exist (test_tenants.py).
            assert other not in answer.raw.decode(), answer
        else:
            forbidden(answer)
    # Nothing of it was done.
    assert left.messages[0]["transactionId"] == "1"
    assert (await admin.extend(lease))["success"] is True
    assert (await admin.post("/api/v1/ack", acked)).json[0]["success"] is True
    rest = await admin.pop(other)
    assert [message["transactionId"] for message in rest.messages] == ["2"]
    assert (await admin.pop(mine)).status == 204
    # With its own queue all of it is done.
    await client.push(mine, ["x", "y"], ids=["1", "2"])
    own = await client.pop(mine, batch=1)
    for answer in await try_all(mine, own.messages[0]):
        assert answer.status not in (401, 403), answer


async def test_a_dead_letter_is_shown_to_who_may_look_into_its_queue(
    guarded: ClusterProcess, client_of: Callable[[str], Client], queue: str
) -> None:
    admin = client_of(token())
    await admin.push(queue, [{"secret": 1}])
    popped = await admin.pop(queue)
    await admin.ack(popped.messages[0], "dlq")
    (letter,) = (await admin.get(f"/api/v1/dlq?queue={segment(queue)}")).json["messages"]
    path = f"/api/v1/dlq/{letter['id']}"
    assert (await client_of(token([queue])).get(path)).json == letter
    hidden = await client_of(token([f"{queue}-other"])).get(path)
    assert (hidden.status, hidden.error) == (404, "Dead letter not found")
    forbidden(await client_of(token([queue])).send("POST", f"{path}/replay"))


async def test_a_limited_credential_sees_nothing_of_all_queues(
    guarded: ClusterProcess, client_of: Callable[[str], Client], queue: str
) -> None:
    client = client_of(token([queue]))
    await client.push(queue, [1], ids=["mine"])
    for path in (
        "/api/v1/status", "/api/v1/status/queues", "/api/v1/resources/queues",
        "/api/v1/resources/overview", "/api/v1/resources/partitions", "/api/v1/dlq",
        "/api/v1/messages", "/api/v1/messages/mine", "/api/v1/messages/mine/related",
        "/api/v1/consumer-groups", "/api/v1/consumer-groups/g", "/api/v1/traces/names",
        "/api/v1/traces/by-name/x", "/api/v1/analytics/queues", "/api/v1/system/maintenance",
    ):  # fmt: skip
        forbidden(await client.get(path))
    forbidden(await client.send("DELETE", "/api/v1/consumer-groups/g"))
    assert (await client.post("/api/v1/dlq/redrive", {})).status == 400  # it has to name one
    head = await client.send("HEAD", f"/api/v1/resources/queues/{segment(queue)}")
    assert head.status == 200
    assert (await client.send("HEAD", "/api/v1/resources/queues/other")).status == 403


async def test_push_pop_and_administer_are_granted_apart(
    guarded: ClusterProcess, client_of: Callable[[str], Client], queue: str
) -> None:
    producer = client_of(create(guarded, "producer", "--push", queue)[0])
    consumer = client_of(create(guarded, "consumer", "--pop", f"{queue[:-3]}*")[0])
    for client in (producer, consumer):
        await is_known(client)
    await producer.push(queue, [1])
    for path in (f"/api/v1/pop/queue/{queue}", f"/api/v1/messages?queue={queue}"):
        forbidden(await producer.get(path))
    forbidden(await consumer.post("/api/v1/push", {"items": [{"queue": queue, "payload": 2}]}))
    forbidden(await consumer.post("/api/v1/configure", {"queue": queue}))
    assert (await consumer.get(f"/api/v1/messages?queue={queue}")).status == 200
    pop = await consumer.pop(queue)
    assert pop.data == [1]
    await consumer.complete(pop)


async def test_a_pop_by_labels_takes_from_allowed_queues_alone(
    guarded: ClusterProcess, client_of: Callable[[str], Client]
) -> None:
    namespace = unique("ns")
    mine, other = f"{namespace}.mine", f"{namespace}.other"
    client, admin = client_of(token([mine])), client_of(token())
    for queue in (mine, other):
        await admin.configure(queue, namespace=namespace)
    await admin.push(other, ["not yours"])
    target = f"/api/v1/pop?namespace={namespace}&consumerGroup=g&batch=10&wait=true&timeout="
    assert (await client.get(f"{target}300")).status == 204
    # A message for it wakes it, whoever else waits for the same labels.
    waits = asyncio.gather(*(client.get(f"{target}20000") for _ in range(2)))
    everything = asyncio.create_task(admin.get(f"{target.replace('=g', '=all')}20000"))
    await admin.push(mine, ["yours"])
    assert (await everything).status == 200
    await admin.push(mine, ["yours too"], partition="second")
    answers = await waits
    got = [m["data"] for a in answers if a.status == 200 for m in a.json["messages"]]
    assert sorted(got) == ["yours", "yours too"]
    left = await admin.get(f"{target}0".replace("wait=true", "wait=false"))
    assert [message["data"] for message in left.json["messages"]] == ["not yours"]


@pytest.mark.parametrize("claim", [None, [None], "orders", 7, [1], {"push": "x"}, [["a"]]])
async def test_a_claim_that_is_no_list_of_patterns_opens_nothing(
    client_of: Callable[[str], Client], claim: Any
) -> None:
    answer = await client_of(token(claim)).get("/api/v1/status")
    assert (answer.status, answer.error) == (401, "Invalid token claims")


async def test_no_pattern_is_no_queue(client_of: Callable[[str], Client], queue: str) -> None:
    client = client_of(token([]))
    forbidden(await client.post("/api/v1/push", {"items": [{"queue": queue, "payload": 1}]}))
