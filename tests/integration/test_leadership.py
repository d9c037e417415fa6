"""One worker of the whole cluster leads a service, whatever happens to the others."""

import asyncio
import datetime
from collections.abc import Mapping

import pytest

from queue_server.domain.errors import StorageUnavailable
from queue_server.services import election
from queue_server.services.election import Election
from queue_server.services.periodic import Periodic
from queue_server.storage import leadership
from queue_server.storage.transactions import Transactions

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


async def ask(transactions: Transactions, holder: str, after_s: float, *services: str) -> set[str]:
    """Ask for 15 seconds, *after_s* seconds after the beginning of the test's time."""
    now = NOW + datetime.timedelta(seconds=after_s)
    return await leadership.campaign(transactions, services or ["a"], holder, 15, now=now)


async def test_the_first_to_ask_leads_and_the_others_do_not(transactions: Transactions) -> None:
    assert await ask(transactions, "one", 0) == {"a"}
    assert await ask(transactions, "two", 1) == set()
    assert await ask(transactions, "one", 2) == {"a"}


async def test_of_many_who_ask_at_once_one_leads(transactions: Transactions) -> None:
    answers = await asyncio.gather(
        *(ask(transactions, str(i), 0, "b", "a", "c") for i in range(20))
    )
    assert sorted(service for answer in answers for service in answer) == ["a", "b", "c"]


async def test_an_expired_lease_is_taken_over_once(transactions: Transactions) -> None:
    await ask(transactions, "one", 0)
    assert await ask(transactions, "two", 14.9) == set()
    answers = await asyncio.gather(*(ask(transactions, str(i), 15) for i in range(10)))
    assert sum(map(len, answers)) == 1
    assert await ask(transactions, "one", 16) == set()


async def test_a_renewed_lease_is_not_taken_over(transactions: Transactions) -> None:
    await ask(transactions, "one", 0)
    await ask(transactions, "one", 10)
    assert await ask(transactions, "two", 20) == set()


async def test_a_late_holder_keeps_what_nobody_took(transactions: Transactions) -> None:
    await ask(transactions, "one", 0)
    assert await ask(transactions, "one", 60) == {"a"}


async def test_services_are_held_apart(transactions: Transactions) -> None:
    await ask(transactions, "one", 0, "a")
    assert await ask(transactions, "two", 1, "a", "b") == {"b"}
    assert await ask(transactions, "one", 2, "a", "b") == {"a"}


async def test_what_is_given_up_is_free_at_once(transactions: Transactions) -> None:
    await ask(transactions, "one", 0, "a", "b")
    assert await leadership.resign(transactions, "two") == 0
    assert await leadership.resign(transactions, "one") == 2
    assert await ask(transactions, "two", 1, "a", "b") == {"a", "b"}


async def test_who_cannot_win_writes_nothing(transactions: Transactions) -> None:
    await ask(transactions, "one", 0)
    rows = await transactions.call("SELECT xmin::text, xmax::text FROM queen.leaderships", {})
    await ask(transactions, "two", 1)
    assert rows == await transactions.call(
        "SELECT xmin::text, xmax::text FROM queen.leaderships", {}
    )


async def test_a_stopped_worker_hands_over(transactions: Transactions) -> None:
    first, second = Election(transactions, ["a"]), Election(transactions, ["a"])
    await first.campaign()
    await second.campaign()
    assert (first.leads("a"), second.leads("a")) == (True, False)
    await first.stop()
    await second.campaign()
    assert (first.leads("a"), second.leads("a")) == (False, True)


async def test_a_leader_that_cannot_renew_stops_leading_by_its_own_clock(
    transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(election, "LEASE_S", 1)
    leader = Election(transactions, ["a"])
    await leader.campaign()

    async def unavailable(*_: object, **__: object) -> set[str]:
        raise StorageUnavailable

    monkeypatch.setattr(leadership, "campaign", unavailable)
    with pytest.raises(StorageUnavailable):
        await leader.campaign()
    assert leader.leads("a")
    await asyncio.sleep(1)
    assert not leader.leads("a")


class Counting:
    """A service that tells each pass, and fails as often as it is told to."""

    name = "counting"

    def __init__(self, failures: int = 0) -> None:
        self.passes: asyncio.Queue[int] = asyncio.Queue()
        self._failures = failures

    async def run_once(self) -> Mapping[str, int]:
        self.passes.put_nowait(1)
        if self._failures:
            self._failures -= 1
            raise RuntimeError("provoked")
        return {}


async def test_a_service_runs_again_after_it_failed(caplog: pytest.LogCaptureFixture) -> None:
    service = Counting(failures=2)
    periodic = Periodic(service, 0.01)
    periodic.start()
    async with asyncio.timeout(5):
        for _ in range(4):
            await service.passes.get()
    await periodic.stop()
    assert caplog.text.count("counting failed") == 2
    assert caplog.text.count("RuntimeError: provoked") == 2


async def test_a_service_rests_while_somebody_else_leads() -> None:
    service, leads = Counting(), False
    periodic = Periodic(service, 0.01, lambda: leads)
    periodic.start()
    await asyncio.sleep(0.1)
    assert service.passes.empty()
    leads = True
    async with asyncio.timeout(5):
        await service.passes.get()
    await periodic.stop()
