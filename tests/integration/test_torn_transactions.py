"""A transaction whose connection breaks, at each of its round trips to PostgreSQL in turn.

Two acks in two partitions and two pushes. Whatever breaks, the database holds all of it or nothing,
and the caller is told which: an answer of success is true, and what was carried out is never
refused, reported as a repeat or done twice.
"""

import asyncio
import contextlib
import enum
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import psycopg
import pytest

from queue_server.broker.ack import Ack, Acker
from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.transaction import TransactionRefused, TransactionResult, Transactor
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import StorageUnavailable
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import transactions as transactions_module
from queue_server.storage.pool import open_pool
from queue_server.storage.transactions import Transactions
from tests.fix_proxy import Proxy
from tests.server_directory import server_directory

# More than a transaction has; the loops below end by themselves.
ROUND_TRIPS_MAX = 100


class Fault(enum.Enum):
    CUT_BEFORE = "the request never arrives"
    CUT_AFTER = "it is carried out and the answer is lost"
    CUT_UNREAD = "it is sent and nobody waits for the answer"
    TERMINATED_BEFORE = "the backend is terminated before it arrives"
    TERMINATED_AFTER = "the backend is terminated when it has answered"
    OUTAGE_BEFORE = "from then on no connection works"
    OUTAGE_AFTER = "it is carried out, the answer is lost and no connection works from then on"


TERMINATING = (Fault.TERMINATED_BEFORE, Fault.TERMINATED_AFTER)


class TearingProxy(Proxy):
    """Counts what clients send, from `arm` on, and strikes at one of those requests.

    libpq sends what belongs to one round trip in one piece, so that a piece is a round trip: BEGIN,
    a PREPARE, an execution or COMMIT.
    """

    def __init__(self, target: str, folder: str) -> None:
        super().__init__(target, folder)
        self._left: int | None = None
        self._fault = Fault.CUT_BEFORE
        self._down_for_good = False
        self.struck: bytes | None = None  # the request that was struck
        self.terminated = 0  # backends

    def arm(self, number: int, fault: Fault) -> None:
        """Strike at the request *number*, counted from 0, of all connections together."""
        self._left, self._fault, self.struck = number, fault, None

    def restore(self) -> None:
        self._left, self._down_for_good = None, False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._down_for_good:
            writer.transport.abort()
            return
        up_reader, up_writer = await self.open_target()
        pair = {writer, up_writer}
        self._writers |= pair
        greeting = bytearray()
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        holding = asyncio.Event()

        async def down() -> None:
            with contextlib.suppress(ConnectionError):
                while data := await up_reader.read(1 << 16):
                    if len(greeting) < 4096:
                        greeting.extend(data)
                    if holding.is_set():
                        answers.put_nowait(data)
                        continue
                    writer.write(data)
                    await writer.drain()
            if not holding.is_set():
                writer.close()

        task = asyncio.create_task(down())
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    if self._strikes(data):
                        holding.set()
                        await self._strike(data, writer, up_writer, answers, greeting)
                        if not writer.transport.is_closing():
                            holding.clear()
                        continue
                    up_writer.write(data)
                    await up_writer.drain()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            for one in pair:
                one.close()
            self._writers -= pair

    def _strikes(self, data: bytes) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        if self._left >= 0:
            return False
        self._left, self.struck = None, data
        return True

    async def _strike(
        self,
        data: bytes,
        writer: asyncio.StreamWriter,
        up_writer: asyncio.StreamWriter,
        answers: asyncio.Queue[bytes],
        greeting: bytearray,
    ) -> None:
        fault = self._fault
        if fault is Fault.TERMINATED_BEFORE:
            await self._terminate(greeting)
            # What PostgreSQL said of it waits there before the client has anything to hear.
            while not answers.empty():
                writer.write(answers.get_nowait())
            await writer.drain()
            writer.close()
            return
        if fault not in (Fault.CUT_BEFORE, Fault.OUTAGE_BEFORE):
            up_writer.write(data)
            await up_writer.drain()
        if fault in (Fault.CUT_AFTER, Fault.OUTAGE_AFTER, Fault.TERMINATED_AFTER):
            answer = await answers.get()
            if fault is Fault.TERMINATED_AFTER:
                await self._terminate(greeting)
                writer.write(answer)
                while not answers.empty():
                    writer.write(answers.get_nowait())
                await writer.drain()
                writer.close()
                return
        if fault in (Fault.OUTAGE_BEFORE, Fault.OUTAGE_AFTER):
            self._down_for_good = True
            self.cut()
        up_writer.transport.abort()
        writer.transport.abort()

    async def _terminate(self, greeting: bytearray) -> None:
        """Terminate the backend that introduced itself with *greeting*, and see it gone."""
        place = greeting.index(b"K\x00\x00\x00\x0c")  # BackendKeyData
        pid = int.from_bytes(greeting[place + 5 : place + 9])
        async with await psycopg.AsyncConnection.connect(self._target, autocommit=True) as other:
            cursor = await other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            self.terminated += await cursor.fetchone() == (True,)
        await asyncio.sleep(0)


@pytest.fixture
async def tearing(conninfo: str, direct_conninfo: str, fault: Fault) -> AsyncIterator[TearingProxy]:
    # PgBouncer greets with a pid that is no backend's.
    target = direct_conninfo if fault in TERMINATING else conninfo
    with server_directory() as folder:
        folder.mkdir(exist_ok=True)
        proxy = TearingProxy(target, str(folder))
        await proxy.start()
        try:
            yield proxy
        finally:
            await proxy.stop()


@dataclass
class Broker:
    transactions: Transactions
    pusher: Pusher
    popper: Popper
    transactor: Transactor
    reasons: Counter[str]


@asynccontextmanager
async def broker(conninfo: str, *, connection_timeout_ms: int = 3000) -> AsyncIterator[Broker]:
    """One worker's, with two connections that are open already."""
    reasons: Counter[str] = Counter()
    async with open_pool(
        conninfo,
        size=2,
        connection_timeout_ms=connection_timeout_ms,
        statement_timeout_ms=10_000,
        lock_timeout_ms=5000,
    ) as pool:
        await pool.wait()
        transactions = Transactions(pool, on_retry=lambda reason: reasons.update([reason]))
        directory, rooms, row = Directory(transactions), Rooms(), Counters(1).worker(0)
        keyring, pace = Keyring(), Pace()
        pusher = Pusher(transactions, directory, rooms, row, keyring)
        popper = Popper(transactions, directory, rooms, row, keyring, pace)
        acker = Acker(transactions, directory, rooms, row, keyring, pace)
        yield Broker(transactions, pusher, popper, Transactor(transactions, pusher, acker), reasons)


@dataclass
class Case:
    """A transaction to be carried out: its queues, and what it names."""

    source: str
    targets: list[str]
    acks: list[Ack]
    items: list[NewMessage]


async def prepare(direct: Broker) -> Case:
    """Two messages in two partitions, leased; two queues that hold a message each already."""
    name = uuid.uuid4().hex
    source, targets = f"source-{name}", [f"one-{name}", f"two-{name}"]
    acks: list[Ack] = []
    for partition in ("a", "b"):
        id_ = f"{partition}-{name}"
        await direct.pusher.push([new(source, partition, id_)], 10)
        delivery = (
            await direct.popper.pop(
                PopRequest(QueueName(source), QUEUE_MODE, ALL, lease_seconds=300)
            )
        ).delivery
        assert delivery is not None
        (claim,) = delivery.claims
        acks.append(Ack(id_, str(claim.partition_id), lease_id=str(delivery.lease_id)))
    for target in targets:
        await direct.pusher.push([new(target, "p", f"before-{name}")], 10)
    items = [new(target, "p", f"{target}-new") for target in targets]
    return Case(source, targets, acks, items)


def new(queue: str, partition: str, transaction_id: str) -> NewMessage:
    return NewMessage(
        queue=queue,
        payload=msgspec.Raw(b"1"),
        partition=partition,
        transaction_id=transaction_id,
    )


async def happened(conninfo: str, direct: Broker, case: Case) -> dict[str, str] | None:
    """The message ids of what was pushed when all of it happened, None when nothing did."""
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute(
            "SELECT committed_offset, lease_id IS NULL FROM queen.cursors"
            " WHERE partition_id = ANY (%s) ORDER BY partition_id",
            ([int(ack.partition_id) for ack in case.acks],),
        )
        cursors = await cursor.fetchall()
    assert len(cursors) == 2
    stored: dict[str, str] = {}
    counts = []
    for target in case.targets:
        delivery = (
            await direct.popper.pop(
                PopRequest(QueueName(target), QUEUE_MODE, ALL, message_limit=100)
            )
        ).delivery
        assert delivery is not None
        text = b"".join([chunk async for chunk in direct.popper.chunks(delivery, lambda *_: b"")])
        messages = json.loads(b"[" + text + b"]")
        assert messages[0]["transactionId"].startswith("before-")
        counts.append(len(messages) - 1)
        stored |= {message["transactionId"]: message["id"] for message in messages[1:]}
    if cursors == [(0, False)] * 2:
        assert counts == [0, 0], "pushed without the acks"
        return None
    assert cursors == [(1, True)] * 2, "one ack without the other"
    assert counts == [1, 1], "acked without the pushes, or pushed twice"
    assert set(stored) == {item.transaction_id for item in case.items}
    return stored


def check_answer(result: TransactionResult, stored: dict[str, str] | None, case: Case) -> None:
    """The answer of success tells what is stored."""
    assert stored is not None, "answered with success, and nothing happened"
    assert [pushed.status for pushed in result.pushed] == ["queued", "queued"]
    assert [pushed.offset for pushed in result.pushed] == [1, 1]
    assert [pushed.message_id for pushed in result.pushed] == [
        stored[str(item.transaction_id)] for item in case.items
    ]
    for outcome in result.acked:
        assert outcome.result.success
        assert outcome.result.error is None
        assert outcome.result.lease_released
        assert not outcome.result.noop


def numbers() -> Iterator[int]:
    yield from range(ROUND_TRIPS_MAX)
    pytest.fail("the transaction never got to its end")


def proxied(conninfo: str, proxy: TearingProxy) -> str:
    return proxy.leads_to(conninfo)


SINGLE = [fault for fault in Fault if not fault.name.startswith("OUTAGE")]


@pytest.mark.parametrize("fault", SINGLE, ids=lambda fault: fault.name.lower())
async def test_one_fault_at_any_round_trip_is_cured(
    conninfo: str, tearing: TearingProxy, fault: Fault
) -> None:
    """It is carried out once, and its answer is that of a transaction which met no fault."""
    struck: list[bytes] = []
    async with broker(conninfo) as direct:
        for number in numbers():
            case = await prepare(direct)
            async with broker(proxied(conninfo, tearing)) as torn:
                tearing.arm(number, fault)
                result = await torn.transactor.execute(case.items, case.acks, [])
                tearing.restore()
            check_answer(result, await happened(conninfo, direct, case), case)
            if tearing.struck is None:
                assert not torn.reasons
                break
            struck.append(tearing.struck)
            if fault is not Fault.TERMINATED_AFTER:
                assert torn.reasons == {"connection_lost": 1}, (number, tearing.struck)
            # The terminated connection may be one that is not needed again.
    check_covered(struck)
    assert tearing.terminated == (len(struck) if fault in TERMINATING else 0)


def check_covered(struck: list[bytes]) -> None:
    """The strikes fell on every part of the transaction, from BEGIN to COMMIT."""
    assert b"BEGIN" in b"".join(struck)
    assert b"COMMIT\x00" in struck[-1]
    begin = max(place for place, data in enumerate(struck) if b"BEGIN" in data)
    # At least the acks' and the pushes' statements lie between.
    assert len(struck) - begin >= 5, struck


@pytest.mark.parametrize(
    "fault", [Fault.OUTAGE_BEFORE, Fault.OUTAGE_AFTER], ids=lambda fault: fault.name.lower()
)
async def test_an_outage_from_any_round_trip_on_leaves_all_or_nothing(
    conninfo: str, tearing: TearingProxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told that the outcome is unknown, not that it was refused."""
    # All attempts are in vain: there is no use in pausing between them.
    monkeypatch.setattr(transactions_module, "BACKOFF_BASE_S", 0.0001)
    monkeypatch.setattr(transactions_module, "OUTAGE_PATIENCE_S", 0.1)
    struck: list[bytes] = []
    async with broker(conninfo) as direct:
        for number in numbers():
            case = await prepare(direct)
            async with broker(proxied(conninfo, tearing), connection_timeout_ms=20) as torn:
                tearing.arm(number, fault)
                try:
                    result = await torn.transactor.execute(case.items, case.acks, [])
                except StorageUnavailable:
                    assert tearing.struck is not None
                    result = None
                tearing.restore()
            stored = await happened(conninfo, direct, case)
            if result is not None:
                check_answer(result, stored, case)
                assert tearing.struck is None
                break
            assert tearing.struck is not None
            struck.append(tearing.struck)
            committed = b"COMMIT\x00" in tearing.struck and fault is Fault.OUTAGE_AFTER
            assert (stored is not None) is committed, (number, tearing.struck)
            if committed:
                # Sent again, it is refused: the lease is used up and the ids are stored.
                with pytest.raises(TransactionRefused):
                    await direct.transactor.execute(case.items, case.acks, [])
    check_covered(struck)


class LateCommit(Proxy):
    """Keeps a COMMIT back while its sender believes the connection lost.

    After *delay_s* it arrives after all, or the backend sees the connection close.
    """

    def __init__(self, target: str, folder: str, *, arrives: bool, delay_s: float = 0.03) -> None:
        super().__init__(target, folder)
        self._arrives = arrives
        self._delay_s = delay_s
        self.armed = False
        self.struck = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await self.open_target()
        self._writers |= {writer, up_writer}

        async def down() -> None:
            with contextlib.suppress(ConnectionError):
                while data := await up_reader.read(1 << 16):
                    writer.write(data)
                    await writer.drain()

        task = asyncio.create_task(down())
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    if self.armed and b"COMMIT\x00" in data:
                        self.armed, self.struck = False, True
                        writer.transport.abort()
                        await asyncio.sleep(self._delay_s)
                        if self._arrives:
                            up_writer.write(data)
                            await up_writer.drain()
                            await asyncio.sleep(0.1)
                        break
                    up_writer.write(data)
                    await up_writer.drain()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            for one in (writer, up_writer):
                one.close()
            self._writers -= {writer, up_writer}


@pytest.mark.parametrize("arrives", [True, False], ids=["arrives late", "never arrives"])
async def test_a_commit_that_is_not_decided_yet_is_waited_for(conninfo: str, arrives: bool) -> None:
    """Its backend still runs when it is asked for: it is neither done again nor given up."""
    with server_directory() as folder:
        folder.mkdir(exist_ok=True)
        proxy = LateCommit(conninfo, str(folder), arrives=arrives)
        await proxy.start()
        try:
            async with broker(conninfo) as direct:
                case = await prepare(direct)
                async with broker(proxy.leads_to(conninfo)) as torn:
                    proxy.armed = True
                    result = await torn.transactor.execute(case.items, case.acks, [])
                    assert proxy.struck
                    assert set(torn.reasons) == {"connection_lost"}
                check_answer(result, await happened(conninfo, direct, case), case)
        finally:
            await proxy.stop()
