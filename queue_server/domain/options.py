"""The options of a queue, their defaults and bounds.

Source: wire-api 3.4.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from queue_server.domain.errors import BadRequest

# What `ttl` and `retryDelay` echo when nobody set them. Unset, they enforce nothing.
TTL_ECHO_S = 3600
RETRY_DELAY_ECHO_MS = 1000

_INT_MAX = 2**31 - 1


class QueueOptions(msgspec.Struct, frozen=True):
    """The options as stored, in the order of the columns; None = not set by anybody."""

    lease_time: int = 300  # seconds
    retry_limit: int = 3
    retry_delay: int | None = None  # milliseconds
    priority: int = 0
    max_size: int = 0  # messages, 0 = unlimited
    ttl: int | None = None  # seconds
    dead_letter_queue: bool = False
    dlq_after_max_retries: bool = False
    delayed_processing: int = 0  # seconds
    window_buffer: int = 0  # seconds
    retention_seconds: int = 0
    completed_retention_seconds: int = 0
    retention_enabled: bool = False
    encryption_enabled: bool = False
    max_wait_time_seconds: int = 0
    dedup_window_seconds: int | None = None
    retry_backoff: bool = False  # double retry_delay with each charged retry
    delivery_limit: int = 0  # claims without an acknowledgement, 0 = unlimited


class OptionChanges(msgspec.Struct, frozen=True, rename="camel"):
    """The options that a `configure` names: absent = leave, null = back to the default."""

    lease_time: int | UnsetType | None = UNSET
    retry_limit: int | UnsetType | None = UNSET
    retry_delay: int | UnsetType | None = UNSET
    priority: int | UnsetType | None = UNSET
    max_size: int | UnsetType | None = UNSET
    ttl: int | UnsetType | None = UNSET
    dead_letter_queue: bool | UnsetType | None = UNSET
    dlq_after_max_retries: bool | UnsetType | None = UNSET
    delayed_processing: int | UnsetType | None = UNSET
    window_buffer: int | UnsetType | None = UNSET
    retention_seconds: int | UnsetType | None = UNSET
    completed_retention_seconds: int | UnsetType | None = UNSET
    retention_enabled: bool | UnsetType | None = UNSET
    encryption_enabled: bool | UnsetType | None = UNSET
    max_wait_time_seconds: int | UnsetType | None = UNSET
    dedup_window_seconds: int | UnsetType | None = UNSET
    retry_backoff: bool | UnsetType | None = UNSET
    delivery_limit: int | UnsetType | None = UNSET

    def check(self) -> None:
        """Errors: `BadRequest` that names an option which is negative or too large."""
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is UNSET or value is None or isinstance(value, bool):
                continue
            # A priority may be negative; a deduplication window below 0 counts as 0.
            low = -_INT_MAX if field.name in {"priority", "dedup_window_seconds"} else 0
            if not low <= value <= _INT_MAX:
                raise BadRequest(
                    f"{field.encode_name} must be between {low} and {_INT_MAX}, not {value}"
                )

    def apply_to(self, options: QueueOptions) -> QueueOptions:
        """*options* with these changes."""
        defaults = QueueOptions()
        changes: dict[str, Any] = {}
        for name in QueueOptions.__struct_fields__:
            value = getattr(self, name)
            if value is UNSET:
                continue
            if value is None:
                value = getattr(defaults, name)
            elif name == "dedup_window_seconds":
                value = max(value, 0)
            changes[name] = value
        return msgspec.structs.replace(options, **changes)
