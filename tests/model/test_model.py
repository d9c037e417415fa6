"""Random sequences of requests against the real server and a model of the protocol, which agree.

Hypothesis chooses the requests (tests/model/model.py judges the answers), and which of the two
workers gets each: what one worker remembers must not be wrong because of what the other did. A
sequence that fails is made as short as it can be and printed as a program.

The short form below runs with the suite and is the same every time. A longer one:

    MODEL_EXAMPLES=2000 MODEL_STEPS=80 .venv/bin/python -m pytest -s tests/model

prints the seed it chose, with which MODEL_SEED=<seed> replays it, and how many requests agreed.
"""

import http.client
import itertools
import json
import os
import random
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import hypothesis
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.cluster_process import ClusterProcess
from tests.model.model import (
    BEGINNING,
    NEVER,
    QUEUE_MODE,
    Ack,
    DeadLetter,
    Item,
    Model,
    Refused,
    Result,
)

# ── the server, one connection for each worker ──────────────────────────────────────────────────


class Server:
    """Requests to a chosen worker, and time that passes when it is told to."""

    def __init__(self, cluster: ClusterProcess, conninfo: str) -> None:
        self.host, _, port = cluster.url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.database = psycopg.connect(conninfo, autocommit=True)
        self.count = 0
        self.workers = [self._connect(pid) for pid in cluster.worker_pids()]

    def close(self) -> None:
        self.database.close()
        for connection in self.workers:
            connection.close()

    def _connect(self, pid: int) -> http.client.HTTPConnection:
        """A connection that this worker has: the kernel shares them out, so try until it does."""
        others = []
        try:
            for _ in range(200):
                connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
                others.append(connection)
                connection.request("GET", "/health")
                connection.getresponse().read()
                if _inode(connection.sock, self.port) in _socket_inodes(pid):
                    return others.pop()
        finally:
            for other in others:
                other.close()
        raise AssertionError(f"no connection reaches worker {pid}")

    def request(self, worker: int, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        self.count += 1
        connection = self.workers[worker % len(self.workers)]
        raw = None if body is None else json.dumps(body).encode()
        connection.request(method, target, raw, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        assert response.status < 500, (method, target, body, text)
        return response.status, json.loads(text) if text else None

    def clock(self) -> str:
        row = self.database.execute("SELECT clock_timestamp()").fetchone()
        assert row
        return str(row[0].isoformat())

    def expire(self, lease: str) -> None:
        """Let the time of a lease run out.

        The clock of the database alone decides about leases, and all it does with one is to compare
        `lease_expires_at` with itself. So a lease that ended a second ago is the same whether the
        clock went forward past its end or its end was put back behind the clock.
        """
        self.database.execute(
            "UPDATE queen.cursors SET lease_expires_at = clock_timestamp() - interval '1 second'"
            " WHERE lease_id = %s",
            (lease,),
        )


def _inode(client: socket.socket, server_port: int) -> str:
    """The kernel's number for the server's end of a connection."""
    ends = f":{server_port:04X}", f":{client.getsockname()[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]):
            return fields[9]
    raise AssertionError("the connection is not in /proc/net/tcp")


def _socket_inodes(pid: int) -> set[str]:
    descriptors = Path(f"/proc/{pid}/fd").iterdir()
    links = [str(path.readlink()) for path in descriptors if path.is_symlink()]
    return {link[8:-1] for link in links if link.startswith("socket:[")}


# ── what hypothesis may choose from ─────────────────────────────────────────────────────────────

workers = st.integers(0, 1)
# Most requests meet in one place: there things become interesting.
queue_numbers = st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1])
partitions = st.sampled_from(["Default", "Default", "Default", "a", "b"])
groups = st.sampled_from(["g", "g", "g", "h", QUEUE_MODE])
statuses = st.sampled_from(["completed", "completed", "failed", "retry", "dlq"])
starts = st.sampled_from(["", "all", "new", "mark", "never"])


def _transaction_id(number: int) -> str:
    """Any text, or a UUIDv7: they are looked up in different ways."""
    if number % 2:
        return f"order {number}"
    return str(uuid.UUID(int=(0x0190_0000_0000_7000_8000 + (number << 66)) << 48 | number))


transaction_ids = st.builds(_transaction_id, st.integers(0, 60))
pushes = st.lists(st.tuples(queue_numbers, partitions, transaction_ids), min_size=1, max_size=8)

_numbers = itertools.count(1)


class Delivery:
    """What a pop brought, for whom."""

    def __init__(self, group: str, messages: Sequence[dict[str, Any]]) -> None:
        self.group = group
        self.lease: str = messages[0]["leaseId"]
        self.places = [(m["partitionId"], m["transactionId"]) for m in messages]

    def __repr__(self) -> str:
        return f"<{self.group} {self.lease} {self.places}>"


class Machine(RuleBasedStateMachine):
    server: ClassVar[Server]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        number = next(_numbers)
        self.queues = [f"model-{number}-{letter}" for letter in "xy"]
        self.deliveries: list[Delivery] = []
        self.marks: list[tuple[float, str]] = []  # a time of the model, and of the database
        self.payloads = itertools.count()

    def post(self, worker: int, path: str, body: Any) -> Any:
        status, answer = self.server.request(worker, "POST", path, body)
        assert status in (200, 201), (path, body, answer)
        return answer

    @initialize(worker=workers, retry_limit=st.integers(0, 2))
    def configure(self, worker: int, retry_limit: int) -> None:
        """The other queue is made by whatever comes first."""
        queue = self.queues[0]
        self.post(
            worker, "/api/v1/configure", {"queue": queue, "options": {"retryLimit": retry_limit}}
        )
        self.model.configure(queue, retry_limit)

    # -- messages in and out --

    @rule(worker=workers, chosen=pushes)
    def push(self, worker: int, chosen: list[tuple[int, str, str]]) -> None:
        self._store(worker, chosen)

    def _store(self, worker: int, chosen: list[tuple[int, str, str]]) -> None:
        items = self._items(chosen)
        entries = self.post(worker, "/api/v1/push", {"items": [_push(item) for item in items]})
        stored = self.model.push(items, entries)
        assert [entry["status"] for entry in entries] == [
            "queued" if one else "duplicate" for one in stored
        ]
        for index, (item, entry) in enumerate(zip(items, entries, strict=True)):
            assert entry["index"] == index
            assert entry["transaction_id"] == item.transaction_id
            assert entry["queueName"] == item.queue

    def _items(self, chosen: list[tuple[int, str, str]]) -> list[Item]:
        return [
            Item(self.queues[queue], partition, transaction_id, next(self.payloads))
            for queue, partition, transaction_id in chosen
        ]

    @rule(
        worker=workers,
        number=queue_numbers,
        group=groups,
        partition=st.one_of(st.none(), st.none(), partitions),
        batch=st.sampled_from([1, 2, 3, 5, 100]),
        partition_limit=st.sampled_from([None, 2, 5]),
        auto_ack=st.sampled_from([False, False, False, True]),
        lease_seconds=st.sampled_from([None, 600]),
        start=starts,
    )
    def pop_in_any_way(
        self,
        worker: int,
        number: int,
        group: str,
        partition: str | None,
        batch: int,
        partition_limit: int | None,
        auto_ack: bool,
        lease_seconds: int | None,
        start: str,
    ) -> None:
        self._pop(
            worker, number, group, partition, batch, partition_limit, auto_ack, lease_seconds, start
        )

    @rule(
        worker=workers,
        number=queue_numbers,
        group=groups,
        batch=st.sampled_from([1, 3, 5, 100]),
        partition_limit=st.sampled_from([None, 5]),
    )
    def pop(
        self, worker: int, number: int, group: str, batch: int, partition_limit: int | None
    ) -> None:
        """What consumers do most, so it is done more often."""
        self._pop(worker, number, group, None, batch, partition_limit)

    @rule(
        pops=st.lists(
            st.tuples(workers, st.one_of(st.none(), partitions), starts), min_size=2, max_size=4
        ),
        pushed=st.one_of(st.just([]), pushes),
    )
    def arrive(
        self,
        pops: list[tuple[int, str | None, str]],
        pushed: list[tuple[int, str, str]],
    ) -> None:
        """A group that was not there: its first pops, which may disagree, say where it starts."""
        group = f"late {next(self.payloads)}"
        for position, (worker, partition, start) in enumerate(pops):
            if pushed and position == len(pops) - 1:
                self._store(worker, pushed)
            self._pop(worker, 0, group, partition, 2, 5, start=start)

    def _pop(
        self,
        worker: int,
        number: int,
        group: str,
        partition: str | None,
        batch: int,
        partition_limit: int | None,
        auto_ack: bool = False,
        lease_seconds: int | None = None,
        start: str = "",
    ) -> Delivery | None:
        queue = self.queues[number]
        query: dict[str, Any] = {"batch": batch}
        if group != QUEUE_MODE:
            query["consumerGroup"] = group
        if partition_limit is not None:
            query["partitions"] = partition_limit
        if auto_ack:
            query["autoAck"] = "true"
        if lease_seconds is not None:
            query["leaseSeconds"] = lease_seconds
        time = BEGINNING
        if start == "mark" and self.marks:
            time, query["subscriptionFrom"] = self.marks[-1]
        elif start == "never":
            time, query["subscriptionFrom"] = NEVER, "2999-01-01T00:00:00Z"
        elif start in ("all", "new"):
            query["subscriptionMode"] = start
            time = self.model.now if start == "new" else BEGINNING
        target = f"/api/v1/pop/queue/{quote(queue)}"
        if partition is not None:
            target += f"/partition/{quote(partition)}"
        target += f"?{urlencode(query, quote_via=quote)}"
        status, answer = self.server.request(worker, "GET", target)
        messages = answer["messages"] if answer else []
        assert status == (200 if messages else 204)
        self.model.pop(
            queue, group, partition, batch, partition_limit or 1, auto_ack, time, messages
        )
        if not messages:
            return None
        self.deliveries.append(Delivery(group, messages))
        return self.deliveries[-1]

    # -- acknowledgements and leases --

    def _acks(self, data: st.DataObject) -> list[Ack]:
        """An acknowledgement of a delivery: of a part of it in order, or of anything at all."""
        delivery = self._delivery(data)
        other = data.draw(st.sampled_from(self.deliveries[:-9:-1]), "other delivery")
        leases = [delivery.lease] * 4
        leases += ["", str(uuid.UUID(int=7)), other.lease]
        lease = data.draw(st.sampled_from(leases), "lease")
        # Seldom a group that got it not: it may know the queue, and never have met the partition.
        group = data.draw(st.sampled_from([delivery.group] * 6 + ["h", QUEUE_MODE]), "group")
        if data.draw(st.booleans(), "in order"):
            count = data.draw(st.integers(1, len(delivery.places)), "count")
            chosen = [(place, "completed") for place in delivery.places[:count]]
            if data.draw(st.booleans(), "last one nacked"):
                chosen[-1] = (chosen[-1][0], data.draw(statuses))
        else:
            partition_id = delivery.places[0][0]
            places = st.one_of(
                st.sampled_from(delivery.places),
                st.sampled_from(delivery.places),
                st.tuples(st.just(partition_id), transaction_ids),
            )
            chosen = data.draw(
                st.lists(st.tuples(places, statuses), min_size=1, max_size=5), "items"
            )
        error = data.draw(st.sampled_from([None, "broken"]), "error")
        acks = [
            Ack(transaction_id, partition_id, group, status, lease, error)
            for (partition_id, transaction_id), status in chosen
        ]
        return [ack for ack in acks if not self.model.is_passed(ack)]

    def _delivery(self, data: st.DataObject) -> Delivery:
        """One of the newest, more often one that is still out."""
        shown = self.deliveries[:-9:-1]
        live = [one for one in shown if one.lease and self.model.leased(one.lease)]
        any_of_them: int = data.draw(st.integers(0, 3), "any")
        known = shown if any_of_them == 3 or not live else live
        delivery: Delivery = data.draw(st.sampled_from(known), "delivery")
        return delivery

    @precondition(lambda self: self.deliveries)
    @rule(worker=workers, data=st.data())
    def ack(self, worker: int, data: st.DataObject) -> None:
        acks = self._acks(data)
        if acks:
            self._ack(worker, acks)

    def _ack(self, worker: int, acks: Sequence[Ack]) -> None:
        group = acks[0].group
        expected = self.model.ack(acks)
        if len(acks) == 1:
            answer = self.post(worker, "/api/v1/ack", _ack(acks[0]) | {"consumerGroup": group})
        else:
            body = {"consumerGroup": group, "acknowledgments": [_ack(one) for one in acks]}
            answer = self.post(worker, "/api/v1/ack/batch", body)
        _check_results(acks, answer, expected)

    @rule(
        group=groups,
        batch=st.sampled_from([3, 5, 100]),
        partition_limit=st.sampled_from([None, None, 5]),
        rounds=st.lists(
            st.tuples(
                workers,
                st.integers(1, 4),
                st.sampled_from(["completed", "failed", "failed", "retry", "dlq", "expire"]),
                st.sampled_from(["one call", "singly", "the last alone", "every other"]),
            ),
            min_size=1,
            max_size=5,
        ),
    )
    def consume(
        self,
        group: str,
        batch: int,
        partition_limit: int | None,
        rounds: list[tuple[int, int, str, str]],
    ) -> None:
        """What a consumer does all day: take messages, handle some, fail at one, go on.

        Counts and places that outlive a delivery show only in such a row of them.
        """
        lease, left = "", []
        for worker, count, ending, how in rounds:
            delivery = self._pop(worker, 0, group, None, batch, partition_limit)
            if delivery is not None:
                lease, left = delivery.lease, list(delivery.places)
            if not left:
                continue
            status = "completed" if ending == "expire" else ending
            acks = [
                Ack(transaction_id, partition_id, group, "completed", lease, "broken")
                for partition_id, transaction_id in left[:count]
            ]
            del left[:count]
            acks[-1] = replace(acks[-1], status=status)
            if how == "one call":
                self._ack(worker, acks)
            elif how == "every other":
                self._ack(worker, [replace(ack, status=status) for ack in acks[::2]])
            else:
                for ack in acks if how == "singly" else acks[-1:]:
                    self._ack(worker, [ack])
            if ending == "expire":
                self._expire(lease)

    @precondition(lambda self: self.deliveries)
    @rule(worker=workers, data=st.data(), seconds=st.sampled_from([None, 300]))
    def extend(self, worker: int, data: st.DataObject, seconds: int | None) -> None:
        lease = self._lease(data)
        path = f"/api/v1/lease/{lease or uuid.UUID(int=7)}/extend"
        answer = self.post(worker, path, None if seconds is None else {"seconds": seconds})
        renewed = len(self.model.leased(lease)) if lease else 0
        assert answer["renewed"] == renewed
        assert answer["success"] is (renewed > 0)
        assert bool(answer["newExpiresAt"]) is (renewed > 0)

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def let_a_lease_expire(self, data: st.DataObject) -> None:
        lease = self._lease(data)
        if lease:
            self._expire(lease)

    def _expire(self, lease: str) -> None:
        self.server.expire(lease)
        self.model.expire(lease)

    def _lease(self, data: st.DataObject) -> str:
        return self._delivery(data).lease

    # -- transactions --

    @precondition(lambda self: self.deliveries)
    @rule(
        worker=workers, chosen=st.one_of(st.just([]), pushes), data=st.data(),
        required=st.sampled_from(["", "own", "two"]),
    )  # fmt: skip
    def transact(
        self, worker: int, chosen: list[tuple[int, str, str]], data: st.DataObject, required: str
    ) -> None:
        items = self._items(chosen)
        acks = self._acks(data)
        if not acks:
            return
        lent = acks[0].lease or self.deliveries[-1].lease or str(uuid.UUID(int=7))
        leases = {"": [], "own": [lent], "two": [lent, str(uuid.UUID(int=8))]}[required]
        operations: list[dict[str, Any]] = [
            _ack(ack) | {"type": "ack", "consumerGroup": ack.group} for ack in acks
        ]
        if items:
            place = data.draw(st.integers(0, len(operations)), "place of the push")
            operations.insert(place, {"type": "push", "items": [_push(item) for item in items]})
        if len(leases) == 1:
            acks = [
                Ack(a.transaction_id, a.partition_id, a.group, a.status, a.lease or lent, a.error)
                for a in acks
            ]
        body = {"operations": operations, "requiredLeases": leases}
        try:
            after, expected = self.model.transact(items, acks)
        except Refused as refused:
            if not all(self.model.has(item.queue, item.partition) for item in items):
                return  # names are made before the transaction: whether these are is not defined
            answer = self.post(worker, "/api/v1/transaction", body)
            assert answer["success"] is False, answer
            assert answer["reason"] == str(refused), answer
            assert "rolled back" in answer["error"], answer
            assert answer["results"] == [], answer
            return
        answer = self.post(worker, "/api/v1/transaction", body)
        assert answer["success"] is True, (answer, expected)
        results = answer["results"]
        assert [result["index"] for result in results] == list(range(len(items) + len(acks)))
        _check_results(acks, [r for r in results if r["type"] == "ack"], expected, index=False)
        entries = [
            {
                "message_id": r["messageId"],
                "partition_id": r["partitionId"],
                "offset": r["offset"],
                "duplicate": r.get("duplicate", False),
            }
            for r in results
            if r["type"] == "push"
        ]
        stored = after.push(items, entries) if items else []
        assert [not entry["duplicate"] for entry in entries] == stored
        self.model = after

    # -- administration --

    @rule()
    def mark(self) -> None:
        """Remember this moment; groups start at it, and are sought to it."""
        self.marks.append((self.model.now, self.server.clock()))

    @rule(
        worker=workers,
        number=queue_numbers,
        group=groups,
        partition=st.one_of(st.none(), partitions),
        what=st.sampled_from(
            ["end", "beginning", "mark", "beginning", "mark", "group", "metadata", "queue"]
        ),
    )
    def administer(
        self, worker: int, number: int, group: str, partition: str | None, what: str
    ) -> None:
        """One rule for what is done seldom and undoes much."""
        if what == "queue":
            self.delete_queue(worker, number)
        elif what in ("group", "metadata"):
            self.delete_group(worker, number, group, what == "metadata")
        else:
            self.seek(worker, number, group, partition, what)

    def seek(self, worker: int, number: int, group: str, partition: str | None, to: str) -> None:
        queue = self.queues[number]
        body: dict[str, Any] = {"toEnd": True}
        time = self.model.now
        if to == "beginning":
            time, body = BEGINNING, {"timestamp": "2000-01-01T00:00:00Z"}
        elif to == "mark" and self.marks:
            time, body = self.marks[-1][0], {"timestamp": self.marks[-1][1]}
        target = f"/api/v1/consumer-groups/{group}/queues/{quote(queue)}"
        if partition is not None:
            target += f"/partitions/{quote(partition)}"
        status, answer = self.server.request(worker, "POST", f"{target}/seek", body)
        if not self.model.has(queue, partition):
            assert status == 404, answer
            assert answer["success"] is False
            return
        count = self.model.seek(queue, group, partition, time)
        assert status == 200, answer
        assert answer["success"] is True
        assert partition is not None or answer["partitionsUpdated"] == count

    def delete_group(self, worker: int, number: int, group: str, metadata: bool) -> None:
        target = f"/api/v1/consumer-groups/{group}/queues/{quote(self.queues[number])}"
        status, answer = self.server.request(
            worker, "DELETE", f"{target}?deleteMetadata={str(metadata).lower()}"
        )
        assert (status, answer["success"]) == (200, True)
        self.model.delete_group(self.queues[number], group, delete_metadata=metadata)

    @rule(
        worker=workers,
        number=queue_numbers,
        partition=partitions,
        all_partitions=st.booleans(),
        transaction_id=transaction_ids,
        data=st.data(),
        what=st.sampled_from(["delete"] * 4 + ["give up"] * 4 + ["clear", "purge"]),
    )
    def remove(
        self,
        worker: int,
        number: int,
        partition: str,
        all_partitions: bool,
        transaction_id: str,
        data: st.DataObject,
        what: str,
    ) -> None:
        """Take messages out: any, or more often some that are there or out for delivery."""
        queue = self.queues[number]
        if what == "clear":
            name = None if all_partitions else partition
            target = f"/api/v1/queues/{quote(queue)}/clear"
            target += "" if name is None else f"?partition={quote(name)}"
            status, answer = self.server.request(worker, "DELETE", target)
            if self.model.has(queue, name):
                assert (status, answer["count"]) == (200, self.model.clear(queue, name)), answer
            elif name is not None or queue not in self.model.queues:
                assert status == 404, answer
            return
        if what == "purge":
            target = f"/api/v1/dlq?queue={quote(queue)}"
            status, answer = self.server.request(worker, "DELETE", target)
            if queue in self.model.queues:
                assert (status, answer["deleted"]) == (200, self.model.purge(queue)), answer
            return
        if not self.model.has(queue, partition):
            return
        source = self.model.queues[queue].partitions[partition]
        left = source.left(0)
        any_of_all: int = data.draw(st.integers(0, 3), "any")
        if left and any_of_all < 3:
            there = [source.messages[offset].transaction_id for offset in left]
            transaction_id = data.draw(st.sampled_from(there), "id")
        if not source.id:
            return
        path = f"/api/v1/messages/{source.id}/{quote(transaction_id)}"
        if what == "delete":
            status, answer = self.server.request(worker, "DELETE", path)
            existed = self.model.remove(queue, partition, transaction_id)
            assert status == (200 if existed else 404), answer
            return
        status, answer = self.server.request(worker, "POST", f"{path}/dlq")
        if source.offset_of(transaction_id) is None:
            assert status == 404, answer
        else:
            assert status in (200, 400), answer
            groups = answer["consumerGroups"] if status == 200 else None
            self.model.give_up(queue, partition, transaction_id, groups)

    def delete_queue(self, worker: int, number: int) -> None:
        self._check_dead_letters(worker)
        queue = self.queues[number]
        status, answer = self.server.request(
            worker, "DELETE", f"/api/v1/resources/queues/{quote(queue)}"
        )
        existed = self.model.delete_queue(queue)
        assert status == 200
        assert (answer["deleted"], answer["existed"]) == (existed, existed), answer

    def _check_dead_letters(self, worker: int) -> None:
        for queue in self.queues:
            _, answer = self.server.request(
                worker, "GET", f"/api/v1/dlq?queue={quote(queue)}&limit=1000"
            )
            expected = self.model.queues[queue].dead_letters if queue in self.model.queues else []
            got = [
                DeadLetter(
                    m["consumerGroup"], m["partition"], m["transactionId"], m["errorMessage"],
                    m["retryCount"],
                )
                for m in reversed(answer["messages"])  # newest first
            ]  # fmt: skip
            assert answer["total"] == len(got)
            for letter in expected:
                alike = [one for one in got if replace(one, retries=letter.retries) == letter]
                exact = [one for one in alike if letter.retries in (None, one.retries)]
                assert exact, (letter, alike, got)
                got.remove(exact[0])
            assert not got

    def teardown(self) -> None:
        self._check_dead_letters(0)
        for queue in self.queues:
            self.server.request(1, "DELETE", f"/api/v1/resources/queues/{quote(queue)}")


def _push(item: Item) -> dict[str, Any]:
    return {
        "queue": item.queue,
        "partition": item.partition,
        "transactionId": item.transaction_id,
        "payload": item.payload,
    }


def _ack(ack: Ack) -> dict[str, Any]:
    item: dict[str, Any] = {
        "transactionId": ack.transaction_id,
        "partitionId": ack.partition_id,
        "status": ack.status,
        "error": ack.error,
    }
    if ack.lease:
        item["leaseId"] = ack.lease
    return item


def _check_results(
    acks: Sequence[Ack],
    answer: Sequence[dict[str, Any]],
    expected: Sequence[Result],
    *,
    index: bool = True,
) -> None:
    assert len(answer) == len(expected) == len(acks)
    for number, (ack, got, result) in enumerate(zip(acks, answer, expected, strict=True)):
        context = (number, ack, got, result)
        assert not index or got["index"] == number, context
        assert got["transactionId"] == ack.transaction_id, context
        assert got["success"] is (not result.refusal), context
        if result.refusal:
            assert result.refusal in got["error"].lower(), context
        else:
            assert got["error"] is None, context
        assert got.get("noop", False) is result.noop, context
        assert got["dlq"] is result.dlq, context
        assert got["leaseReleased"] is result.released, context


# ── the test ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def model_server(conninfo: str, direct_conninfo: str) -> Iterator[Server]:
    """Two workers on a database that the test can reach too."""
    with ClusterProcess(env={"DATABASE_URL": conninfo}) as cluster:
        cluster.wait_ready()
        server = Server(cluster, direct_conninfo)
        try:
            yield server
        finally:
            server.close()


def test_the_server_agrees_with_the_model(model_server: Server) -> None:
    Machine.server = model_server
    examples = os.environ.get("MODEL_EXAMPLES")
    machine: type[Machine] = Machine
    if examples:
        seed = int(os.environ.get("MODEL_SEED", random.randrange(2**32)))
        print(f"MODEL_SEED={seed}")
        machine = hypothesis.seed(seed)(Machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(examples or 150),
            stateful_step_count=int(os.environ.get("MODEL_STEPS", "40")),
            derandomize=not examples,
            deadline=None,
            database=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    if examples:
        print(f"{model_server.count} requests agreed")
