"""Request bodies of the routes for operators: wire-api 3.12 and section 5."""

from __future__ import annotations

import msgspec

from queue_server.http.wire import BodyReader


class SubscriptionBody(msgspec.Struct, rename="camel"):
    subscription_timestamp: str


class SeekBody(msgspec.Struct, rename="camel"):
    to_end: bool = False
    timestamp: str | None = None


subscription_reader = BodyReader(
    SubscriptionBody, {"subscriptionTimestamp": "Missing subscriptionTimestamp in request body"}
)
seek_reader = BodyReader(SeekBody, {})
