"""What pages of others can do to a server that asks nobody for a credential: nothing."""

import aiohttp
import pytest

from tests.client import Answer, Client
from tests.cluster_process import ClusterProcess

HERE = "http://localhost:6632"
FOREIGN = "http://page.example"
ALLOWED = "https://dashboard.example"

FOREIGN_PAGES = [
    # An image or a form sends no Origin; over plain http to another address there is only Origin.
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},  # another port of this machine
    {"Sec-Fetch-Site": "cross-site", "Origin": FOREIGN},
    {"Origin": FOREIGN},
    {"Origin": "null"},
    {"Origin": "http://["},
]
OWN_PAGES = [
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    # A proxy may send us another Host than the browser sees.
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://queues.example"},
    {"Origin": HERE, "Host": "localhost:6632"},
]
REBOUND = {"Host": "page.example:6632"}


async def pop(client: Client, queue: str, headers: dict[str, str]) -> Answer:
    return await client.send("GET", f"/api/v1/pop/queue/{queue}?autoAck=true", headers=headers)


@pytest.mark.parametrize("headers", FOREIGN_PAGES)
async def test_a_foreign_page_takes_no_message(
    client: Client, queue: str, headers: dict[str, str]
) -> None:
    await client.push(queue, [1])
    refused = await pop(client, queue, headers)
    assert (refused.status, refused.json["code"]) == (403, "forbidden")
    assert "CORS_ALLOWED_ORIGINS" in refused.error
    assert refused.headers["Access-Control-Allow-Origin"] == "*"
    # Without the headers of a browser it is there still.
    assert len((await client.pop(queue)).messages) == 1


@pytest.mark.parametrize("headers", OWN_PAGES)
async def test_the_servers_own_pages_may(
    client: Client, queue: str, headers: dict[str, str]
) -> None:
    await client.push(queue, [1])
    assert (await pop(client, queue, headers)).status == 200


async def test_a_foreign_page_hears_nothing(server: ClusterProcess) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await session.ws_connect(server.url + "/ws/dashboard", origin=FOREIGN)
    assert refusal.value.status == 403


async def test_a_link_leads_to_the_pages_from_anywhere(client: Client) -> None:
    for path in ("/", "/dashboard/app.js", "/docs/api", "/openapi.json"):
        answer = await client.send("GET", path, headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status == 200, path
    preflight = await client.send("OPTIONS", "/api/v1/push", headers={"Origin": FOREIGN})
    assert preflight.status == 204


@pytest.mark.parametrize(
    "headers",
    [
        {"Accept-Language": "en"},  # a fetch over plain http
        {"Accept": "text/html,*/*;q=0.8"},
        {"Origin": "http://page.example:6632"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_a_name_that_was_made_to_lead_here_is_refused_to_browsers(
    client: Client, queue: str, headers: dict[str, str]
) -> None:
    await client.push(queue, [1])
    refused = await pop(client, queue, REBOUND | headers)
    assert (refused.status, refused.json["code"]) == (403, "forbidden")
    assert "'page.example:6632' is no name of it" in refused.error
    # A program may call the machine as it likes.
    assert (await pop(client, queue, REBOUND)).status == 200


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:6632", "[::1]:6632", "localhost", "LOCALHOST.:1", "queues.localhost:6632",
     "host.docker.internal:6632", "127.8.9.10:1", "[0:0::1]"],
)  # fmt: skip
async def test_names_that_can_only_be_local_are_served(client: Client, host: str) -> None:
    answer = await client.send("GET", "/metrics", headers={"Host": host, "Accept-Language": "en"})
    assert answer.status == 200


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0:6632", "[::]:6632", "[::ffff:127.0.0.1]:6632", "[::ffff:7f00:1]", "192.0.2.7", "0:1",
     "[fe80::1]:6632", "::1:6632", ":6632", "[", "127.0.0.1.example", "localhost.example"],
)  # fmt: skip
async def test_an_image_under_another_name_takes_no_message(
    client: Client, queue: str, host: str
) -> None:
    """To these addresses browsers do not say which page an image is in."""
    await client.push(queue, [1])
    image = {"Host": host, "Accept": "image/avif,image/webp,*/*;q=0.8", "Accept-Language": "en"}
    refused = await pop(client, queue, image)
    assert (refused.status, refused.json["code"]) == (403, "forbidden")
    assert "is no name of it" in refused.error
    assert (await pop(client, queue, {"Host": host})).status == 200


async def test_pages_of_the_origin_that_was_set_may(conninfo: str, queue: str) -> None:
    """It is also the name under which a proxy on this machine serves us."""
    env = {
        "DATABASE_URL": conninfo,
        "DB_POOL_SIZE": "8",
        "CORS_ALLOWED_ORIGINS": ALLOWED,
        "CORS_ALLOWED_METHODS": "GET, POST",
        "CORS_ALLOWED_HEADERS": "Content-Type, X-Trace",
        "CORS_MAX_AGE": "600",
        "DEFAULT_BATCH_SIZE": "2",
    }
    with ClusterProcess(env=env) as server:
        server.wait_ready()
        async with Client(server.url) as client, aiohttp.ClientSession() as session:
            for headers in (
                {"Origin": ALLOWED},
                {"Origin": ALLOWED, "Sec-Fetch-Site": "cross-site"},
                {"Host": "dashboard.example", "Sec-Fetch-Site": "same-origin"},
            ):
                await client.push(queue, [1])
                assert (await pop(client, queue, headers)).status == 200, headers
            for headers in FOREIGN_PAGES:
                assert (await pop(client, queue, headers)).status == 403, headers
            preflight = await client.send("OPTIONS", "/api/v1/push", headers={"Origin": ALLOWED})
            cors = {
                name.removeprefix("Access-Control-"): value
                for name, value in preflight.headers.items()
                if name.startswith("Access-Control-")
            }
            assert cors == {
                "Allow-Origin": ALLOWED,
                "Allow-Methods": "GET, POST",
                "Allow-Headers": "Content-Type, X-Trace",
                "Max-Age": "600",
            }
            await client.push(queue, [1, 2, 3])
            popped = await pop(client, queue, {"Origin": ALLOWED})
            assert len(popped.json["messages"]) == 2  # DEFAULT_BATCH_SIZE
            async with session.ws_connect(server.url + "/ws/dashboard", origin=ALLOWED):
                pass
