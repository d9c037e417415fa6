"""Spans for OpenTelemetry: one for each push, pop, acknowledgement and transaction.

Only with the setting TRACING. OpenTelemetry's packages are imported where a worker begins, behind
the fork, as its exporter has a thread; without the setting nothing of them is loaded. Where spans
go, how they are sampled and so on is said by OpenTelemetry's own variables
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER ...).

A message keeps the trace context of the push that brought it, as `traceparent` (source: W3C Trace
Context), and pops hand it on. A consumer's spans can link to it; those of the server's pops do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# As it stands in a message on its way out: behind everything else. A payload that holds the same
# can at most link a span to a foreign one.
_TRACEPARENT = re.compile(rb'"traceparent":"(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})"\}')
# More links than OpenTelemetry keeps for a span, unless told otherwise, are not looked for.
_LINKS_MAX = 128

# What is left to send at the end has so long; the spans are not worth a slow stop.
_FLUSH_TIMEOUT_S = 2.0


class RequestSpan:
    """The span of one request."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._linked: set[bytes] = set()

    @property
    def traceparent(self) -> str | None:
        """The span as others may refer to it; None when there is nothing to refer to."""
        context = self._span.get_span_context()
        if not context.is_valid:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def describe(
        self, *, queue: str | None = None, group: str | None = None, message_count: int
    ) -> None:
        """Say what the request is about; *queue* None: several, or not known."""
        self._span.set_attribute("messaging.batch.message_count", message_count)
        if queue is not None:
            self._span.set_attribute("messaging.destination.name", queue)
        if group is not None:
            self._span.set_attribute("messaging.consumer.group.name", group)

    def link_messages(self, text: bytes) -> None:
        """Link to the pushes of messages that go out as *text*."""
        from opentelemetry.trace import SpanContext, TraceFlags

        if len(self._linked) >= _LINKS_MAX or not self._span.is_recording():
            return
        for traceparent in dict.fromkeys(_TRACEPARENT.findall(text)):
            if traceparent not in self._linked and len(self._linked) < _LINKS_MAX:
                self._linked.add(traceparent)
                _, trace_id, span_id, flags = traceparent.split(b"-")
                context = SpanContext(
                    int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16))
                )
                self._span.add_link(context)

    def end(self, status: int | None) -> None:
        """*status* None: the client left before its answer."""
        from opentelemetry.trace import StatusCode

        if status is None:
            self._span.set_attribute("error.type", "client_left")
        else:
            self._span.set_attribute("http.response.status_code", status)
            if status >= 500:
                self._span.set_attribute("error.type", str(status))
                self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Makes the spans of a worker and sends them away."""

    def __init__(self, worker: int, version: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.version": version, "worker.slot": worker})
        if "OTEL_SERVICE_NAME" not in os.environ and "service.name=" not in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            resource = resource.merge(Resource({SERVICE_NAME: "queue-server"}))
        # Ended by `stop`, not whenever the interpreter ends.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("queue_server", version)
        self._kind = SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()

    def start(self, name: str, headers: Mapping[str, str]) -> RequestSpan:
        """Begin a span, a child of the one that the request's headers name."""
        given = {key: headers[key] for key in ("traceparent", "tracestate") if headers.get(key)}
        span = self._tracer.start_span(
            name,
            self._propagator.extract(given),
            kind=self._kind,
            attributes={"messaging.system": "queue_server", "messaging.operation.name": name},
        )
        return RequestSpan(span)

    async def stop(self) -> None:
        """Send what is left, as far as that is quick."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()

        def shut_down() -> None:
            with contextlib.suppress(Exception):
                self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop did not wait that long
                loop.call_soon_threadsafe(stopped.set)

        # A thread of its own: the interpreter waits for those of a pool, and a collector that does
        # not answer would hold up the exit.
        threading.Thread(target=shut_down, name="last-spans", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                await stopped.wait()
