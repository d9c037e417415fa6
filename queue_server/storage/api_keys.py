"""API keys as they are stored: hashed, each with what it opens."""

from __future__ import annotations

import datetime
import hashlib
import secrets
from typing import Any

import msgspec

from queue_server.domain.access import Grants, Principal, Role
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Transactions

# Scanners for leaked secrets look for such a beginning, and a token never has it.
KEY_PREFIX = "qk_"

ROLES = {
    "admin": Role.ADMIN,
    "read-write": Role.READ_WRITE,
    "read-only": Role.READ_ONLY,
    "write-only": Role.WRITE_ONLY,
}


class ApiKey(msgspec.Struct, frozen=True):
    """A key without the key itself."""

    id: str
    name: str
    hash: bytes
    role: str
    grants: Grants | None
    created_at: datetime.datetime
    expires_at: datetime.datetime | None

    @property
    def principal(self) -> Principal:
        return Principal(self.name, frozenset({ROLES[self.role]}), self.grants)


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def read(transactions: Transactions) -> list[ApiKey]:
    """All keys, the oldest first."""
    return [as_key(row) for row in await transactions.call(STATEMENTS["api_keys"], {})]


def as_key(row: tuple[Any, ...]) -> ApiKey:
    id_, name, hash_, role, push, pop, administer, created_at, expires_at = row
    grants = None
    if push is not None:
        grants = Grants(tuple(push), tuple(pop), tuple(administer))
    return ApiKey(id_, name, bytes(hash_), role, grants, created_at, expires_at)
