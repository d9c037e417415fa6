"""Request bodies of the routes for operators: wire-api 3.12 and section 5."""

from __future__ import annotations

import uuid
from typing import Annotated

import msgspec

from queue_server.http.wire import BodyReader

REDRIVE_IDS_MAX = 1000


class SubscriptionBody(msgspec.Struct, rename="camel"):
    subscription_timestamp: str


class SeekBody(msgspec.Struct, rename="camel"):
    to_end: bool = False
    timestamp: str | None = None


class RedriveBody(msgspec.Struct, rename="camel"):
    queue: str
    consumer_group: str | None = None
    partition: str | None = None
    from_: str | None = msgspec.field(default=None, name="from")
    to: str | None = None
    error: str | None = None
    error_contains: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    # These alone, of those that the other fields let through.
    ids: Annotated[list[uuid.UUID], msgspec.Meta(max_length=REDRIVE_IDS_MAX)] | None = None
    dry_run: bool = False  # says what would be done, and does nothing


class ReplayBody(msgspec.Struct):
    queue: str | None = None
    partition: str | None = None


class NotifyBody(msgspec.Struct):
    queue: str
    partition: str | None = None


class SwitchBody(msgspec.Struct):
    enabled: bool


class TraceBody(msgspec.Struct, rename="camel"):
    transaction_id: str
    partition_id: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    consumer_group: str | None = None
    trace_names: list[str] | str | None = None
    event_type: str | None = None


subscription_reader = BodyReader(
    SubscriptionBody, {"subscriptionTimestamp": "Missing subscriptionTimestamp in request body"}
)
seek_reader = BodyReader(SeekBody, {})
redrive_reader = BodyReader(RedriveBody, {})
replay_reader = BodyReader(ReplayBody, {})
trace_reader = BodyReader(TraceBody, {})
notify_reader = BodyReader(NotifyBody, {})
switch_reader = BodyReader(SwitchBody, {"enabled": "enabled (boolean) is required"})
