"""Spans of pushes, pops and acknowledgements, as a collector receives them from both workers."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.client import Client, eventually, unique
from tests.cluster_process import ROOT, ClusterProcess


class Collector:
    """A loopback receiver of OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.workers: set[int] = set()
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            for attribute in resource.resource.attributes:
                if attribute.key == "worker.slot":
                    self.workers.add(attribute.value.int_value)
                if attribute.key == "service.name":
                    self.services.add(attribute.value.string_value)
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


def traced(collector: Collector, conninfo: str, delay_ms: int = 100) -> ClusterProcess:
    return ClusterProcess(
        ["--tracing", "true"],
        env={
            "DATABASE_URL": conninfo,
            "DB_POOL_SIZE": "8",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": str(delay_ms),
        },
    )


def attributes(span: Span) -> dict[str, Any]:
    return {
        a.key: a.value.int_value if a.value.HasField("int_value") else a.value.string_value
        for a in span.attributes
    }


def parent(number: int) -> tuple[str, str, str]:
    """The trace and span id of a made-up client, and what it sends."""
    trace_id, span_id = f"{number + 1:032x}", f"{number + 7:016x}"
    return trace_id, span_id, f"00-{trace_id}-{span_id}-01"


async def push_traced(
    client: Client,
    queue: str,
    number: int,
    payloads: list[Any],
    *,
    traceparent: str | None = None,
) -> None:
    body = json.dumps({"items": [{"queue": queue, "payload": p} for p in payloads]}).encode()
    header = parent(number)[2] if traceparent is None else traceparent
    answer = await client.send("POST", "/api/v1/push", body=body, headers={"traceparent": header})
    assert answer.status == 201, answer


async def test_a_consumer_s_span_links_to_its_producers(
    collector: Collector, conninfo: str
) -> None:
    queue = unique("traced")
    payload = {"traceparent": "mine", "nested": [{"a": 1}]}
    with traced(collector, conninfo) as cluster:
        await asyncio.to_thread(cluster.wait_ready)
        async with Client(cluster.url, fresh=True) as client:
            # Together, so that requests share transactions, and messages share segments.
            await asyncio.gather(*(push_traced(client, queue, n, [payload, n]) for n in range(40)))
            await client.push(queue, ["without a parent"])
            consumer = parent(1000)
            answer = await client.send(
                "GET",
                f"/api/v1/pop/queue/{queue}?batch=1000&consumerGroup=g",
                headers={"traceparent": consumer[2]},
            )
            messages = answer.json["messages"]
            await client.ack_batch([(m, "completed") for m in messages], group="g")
            await client.ack_batch([(messages[0], "completed")], group="g", fenced=False)
            one = await client.post("/api/v1/push", {"items": "wrong"})
            assert one.status == 400

        async def all_there() -> bool:
            return len(collector.spans) >= 45

        await eventually(all_there)
        assert cluster.stop() == 0
    assert collector.services == {"queue-server"}
    assert {span.kind for span in collector.spans} == {Span.SPAN_KIND_SERVER}

    pushes = {span.span_id.hex(): span for span in collector.named("push")}
    assert len(pushes) == 42
    by_trace = {span.trace_id.hex(): span for span in pushes.values()}
    for number in range(40):
        trace_id, span_id, _ = parent(number)
        span = by_trace[trace_id]
        assert span.parent_span_id.hex() == span_id
        assert attributes(span)["messaging.destination.name"] == queue
        assert attributes(span)["messaging.batch.message_count"] == 2
        assert attributes(span)["http.response.status_code"] == 201
    refused = [s for s in pushes.values() if attributes(s)["http.response.status_code"] == 400]
    assert len(refused) == 1

    # Each message says which push brought it, and is otherwise what was pushed.
    assert len(messages) == 81
    for message in messages:
        version, trace_id, span_id, flags = message["traceparent"].split("-")
        assert version == "00"
        assert int(flags, 16) & 1  # sampled
        assert pushes[span_id].trace_id.hex() == trace_id
        if isinstance(message["data"], int):
            assert trace_id == parent(message["data"])[0]
        elif isinstance(message["data"], dict):
            assert message["data"] == payload
        assert message["traceId"] is None

    (pop,) = collector.named("pop")
    assert (pop.trace_id.hex(), pop.parent_span_id.hex()) == consumer[:2]
    links = [(link.trace_id.hex(), link.span_id.hex()) for link in pop.links]
    stored = [span for span in pushes.values() if span not in refused]
    assert sorted(links) == sorted((s.trace_id.hex(), s.span_id.hex()) for s in stored)
    assert attributes(pop)["messaging.consumer.group.name"] == "g"
    assert attributes(pop)["messaging.batch.message_count"] == 81
    counts = [attributes(span)["messaging.batch.message_count"] for span in collector.named("ack")]
    assert sorted(counts) == [1, 81]


async def test_a_transaction_s_messages_are_traced_as_well(
    collector: Collector, conninfo: str
) -> None:
    queue = unique("traced-transaction")
    with traced(collector, conninfo) as cluster:
        await asyncio.to_thread(cluster.wait_ready)
        async with Client(cluster.url, fresh=True) as client:
            operations = [{"type": "push", "items": [{"queue": queue, "payload": 1}]}]
            answer = await client.post("/api/v1/transaction", {"operations": operations})
            assert answer.json["success"], answer
            (message,) = (await client.pop(queue)).messages
        assert cluster.stop() == 0
    (span,) = collector.named("transaction")
    assert message["traceparent"].startswith(f"00-{span.trace_id.hex()}-{span.span_id.hex()}-0")


async def test_spans_of_both_workers_are_sent_at_the_end(
    collector: Collector, conninfo: str
) -> None:
    queue = unique("last-spans")
    with traced(collector, conninfo, delay_ms=600_000) as cluster:
        await asyncio.to_thread(cluster.wait_ready)
        async with Client(cluster.url, fresh=True) as client:
            for number in range(30):
                await client.push(queue, [number])
        assert collector.spans == []
        assert cluster.stop() == 0
    assert len(collector.named("push")) == 30
    assert collector.workers == {0, 1}


async def test_a_collector_that_is_gone_holds_nothing_up(
    collector: Collector, conninfo: str
) -> None:
    queue = unique("no-collector")
    with traced(collector, conninfo) as cluster:
        await asyncio.to_thread(cluster.wait_ready)
        collector.stop()
        async with Client(cluster.url, fresh=True) as client:
            for number in range(20):
                await client.push(queue, [number])
            assert len((await client.pop(queue)).messages) == 20
        assert cluster.stop() == 0


async def test_what_was_traced_is_handed_on_without_tracing(
    collector: Collector, conninfo: str
) -> None:
    queue = unique("traced-then-not")
    with traced(collector, conninfo) as cluster:
        await asyncio.to_thread(cluster.wait_ready)
        async with Client(cluster.url) as client:
            await client.push(queue, ["traced"])
        assert cluster.stop() == 0
    with ClusterProcess(env={"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8"}) as cluster:
        await asyncio.to_thread(cluster.wait_ready)
        async with Client(cluster.url) as client:
            await push_traced(client, queue, 5, ["not traced"])
            messages = (await client.pop(queue)).messages
        assert cluster.stop() == 0
    (span,) = collector.spans
    start = f"00-{span.trace_id.hex()}-{span.span_id.hex()}-0"
    assert messages[0]["traceparent"].startswith(start)
    assert messages[1]["traceparent"] == parent(5)[2]


async def test_without_tracing_messages_keep_what_their_producers_sent(
    client: Client, queue: str
) -> None:
    """So that producers and consumers that trace themselves can link."""
    # Together, so that requests with and without share segments.
    await asyncio.gather(
        *(push_traced(client, queue, n, [n, n]) for n in range(10)),
        *(client.push(queue, [-1]) for _ in range(10)),
    )
    operations = [{"type": "push", "items": [{"queue": queue, "payload": 10}]}]
    answer = await client.send(
        "POST",
        "/api/v1/transaction",
        body=json.dumps({"operations": operations}).encode(),
        headers={"traceparent": parent(10)[2]},
    )
    assert answer.json["success"], answer
    for wrong in (
        "", "00", "x" * 55, parent(11)[2].upper(), parent(11)[2] + "-00", "01" + parent(11)[2][2:],
        f"00-{0:032x}-{1:016x}-01", f"00-{1:032x}-{0:016x}-01", parent(11)[2][:-1] + '"',
    ):  # fmt: skip
        await push_traced(client, queue, 11, [-1], traceparent=wrong)
    messages = (await client.pop(queue)).messages
    assert len(messages) == 40
    for message in messages:
        number = message["data"]
        if number < 0:
            assert "traceparent" not in message
        else:
            assert message["traceparent"] == parent(number)[2]


def test_without_the_setting_nothing_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys, queue_server.cluster.worker;"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
