"""Which level each route needs (wire-api 5.13), and which role has it."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from queue_server.domain.access import Access, Grants, Principal, Role, Use
from queue_server.domain.errors import Forbidden
from queue_server.http.middleware import authenticate
from queue_server.http.route import Named
from queue_server.http.routes import routes

Q, P, G, M = "{queue}", "{partition}", "{group}", "{partition_id}/{transaction_id}"


@pytest.mark.parametrize(
    ("method", "path", "access"),
    [
        ("GET", "/api/v1/status", Access.READ),
        ("GET", f"/api/v1/messages/{M}", Access.READ),
        ("GET", "/api/v1/pop", Access.WRITE),
        ("GET", f"/api/v1/pop/queue/{Q}", Access.WRITE),
        ("GET", f"/api/v1/pop/queue/{Q}/partition/{P}", Access.WRITE),
        ("POST", "/api/v1/push", Access.PRODUCE),
        ("POST", "/api/v1/ack", Access.WRITE),
        ("POST", "/api/v1/ack/batch", Access.WRITE),
        ("POST", "/api/v1/transaction", Access.WRITE),
        ("POST", "/api/v1/lease/{lease_id}/extend", Access.WRITE),
        ("POST", "/api/v1/configure", Access.WRITE),
        ("POST", "/api/v1/traces", Access.WRITE),
        ("POST", f"/api/v1/consumer-groups/{G}/subscription", Access.WRITE),
        ("POST", f"/api/v1/consumer-groups/{G}/queues/{Q}/seek", Access.WRITE),
        ("DELETE", f"/api/v1/messages/{M}", Access.WRITE),
        ("POST", f"/api/v1/messages/{M}/retry", Access.WRITE),
        ("POST", "/api/v1/dlq/{id}/replay", Access.WRITE),
        ("GET", "/api/v1/system/maintenance", Access.ADMIN),
        ("POST", "/api/v1/stats/refresh", Access.ADMIN),
        ("DELETE", f"/api/v1/resources/queues/{Q}", Access.ADMIN),
        ("DELETE", f"/api/v1/consumer-groups/{G}", Access.ADMIN),
        ("DELETE", f"/api/v1/consumer-groups/{G}/queues/{Q}", Access.ADMIN),
        ("DELETE", "/api/v1/dlq", Access.ADMIN),
        ("DELETE", f"/api/v1/queues/{Q}/clear", Access.ADMIN),
    ],
)
def test_the_level_of_a_route(method: str, path: str, access: Access) -> None:
    (line,) = [line for line in routes() if (line.method, line.canonical_path) == (method, path)]
    assert line.access is access


def test_what_names_its_queue_in_the_path_is_asked_about_that_queue() -> None:
    """A route with a queue in its path is open to credentials for some queues, by that queue."""
    for route in routes():
        if "{queue}" in route.path:
            assert route.scope is not None, route.path
            assert route.scope[1] is Named.PATH, route.path
        elif route.scope is not None:
            assert route.scope[1] is not Named.PATH, route.path


def test_what_changes_something_is_closed_to_readers() -> None:
    for route in routes():
        if route.method != "GET":
            assert route.access not in (Access.PUBLIC, Access.READ), route.path
        if route.path.startswith(("/api/v1/system/", "/internal/")):
            assert route.access is Access.ADMIN, route.path


@pytest.mark.parametrize(
    ("pattern", "queue", "matches"),
    [
        ("orders", "orders", True),
        ("orders", "orders2", False),
        ("orders", "Orders", False),
        ("orders.*", "orders.eu.new", True),
        ("orders.*", "orders", False),
        ("*", "anything / at all", True),
        ("*", "two\nlines", True),
        ("order?", "orders", True),
        ("order[sz]", "orderz", True),
        ("", "", True),
        ("a.b", "axb", False),
        ("orders", "orders\n", False),
    ],
)
def test_a_pattern_is_compared_with_the_whole_name(pattern: str, queue: str, matches: bool) -> None:
    for use, grants in (
        (Use.PUSH, Grants((pattern,), (), ())),
        (Use.POP, Grants((), (pattern,), ())),
        (Use.ADMINISTER, Grants((), (), (pattern,))),
        (Use.LOOK, Grants((), (pattern,), ())),
        (Use.LOOK, Grants((), (), (pattern,))),
    ):
        assert grants.allow(use, queue) is matches
    assert not Grants((pattern,), (), ()).allow(Use.LOOK, queue)
    assert not Grants((pattern,), (pattern,), ()).allow(Use.ADMINISTER, queue)


def test_a_role_opens_its_levels_and_no_other() -> None:
    levels = (Access.READ, Access.PRODUCE, Access.WRITE, Access.ADMIN)
    opened = {
        role: [Principal(None, frozenset({role})).may(level) for level in levels] for role in Role
    }
    assert opened == {
        Role.READ_ONLY: [True, False, False, False],
        Role.WRITE_ONLY: [False, True, False, False],
        Role.READ_WRITE: [True, True, True, False],
        Role.ADMIN: [True, True, True, True],
    }
    nobody = Principal("somebody", frozenset())
    assert [nobody.may(level) for level in levels] == [False] * 4
    assert nobody.may(Access.PUBLIC)
    both = Principal(None, frozenset({Role.READ_ONLY, Role.WRITE_ONLY}))
    assert [both.may(level) for level in levels] == [True, True, False, False]


@pytest.mark.parametrize(
    ("pattern", "queue", "labels"),
    [
        ("mine.*", "mine.new", ("mine", "")),
        ("mine*", "mine-evil.new", ("mine-evil", "")),
        ("mine*", "mine", ("mine", "")),
        ("billing.x*", "billing.x1", ("billing", "")),
        ("orders.new", "orders.new", ("orders", "new")),
        ("orders.new.*", "orders.new.1", ("orders", "new")),
        ("orders.n*", "orders.new.1", ("orders", "")),
        ("orders", "orders", ("orders", "")),
        ("*", "orders.new", ("orders", "new")),
        ("*.mine", "orders.mine", ("", "")),
        ("*mine", "mine", ("", "")),
        ("?illing.x", "billing.x", ("", "")),
        ("[ab]*", "a.b", ("a", "")),
        ("a[*", "a[b.c", ("a[b", "")),
        ("other", "orders.new", ("orders", "new")),  # it cannot push there
    ],
)  # fmt: skip
def test_labels_of_a_new_queue_are_those_that_a_pattern_names(
    pattern: str, queue: str, labels: tuple[str, str]
) -> None:
    assert Grants((pattern,), (), ()).labels_of_new(queue) == labels


def test_a_namespace_that_holds_a_wildcard_is_no_pattern() -> None:
    with pytest.raises(Forbidden):
        Grants((), (), ("b*.x",)).require_labels("b*", "")


class AdminsAlone:
    async def principal_of(self, authorization: str) -> Principal:
        return Principal("root", frozenset({Role.ADMIN}), None)


async def test_a_route_that_no_line_speaks_of_is_closed_to_all() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/forgotten", handler)
    request = make_mocked_request("GET", "/forgotten", headers={"Authorization": "x"}, app=app)
    request._match_info = await app.router.resolve(request)
    with pytest.raises(Forbidden):
        await authenticate(AdminsAlone(), {}, ())(request, handler)
