"""API keys: a credential that this server issues itself, beside tokens of somebody else.

A key is 256 random bits, so its SHA-256 cannot be turned back by trying, and nothing slower is
needed to store it. It is looked up by that hash; how long that takes tells about the hash, which
tells nothing about the key, so there is nothing to compare in constant time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from queue_server.domain.access import Principal
from queue_server.domain.errors import Unauthenticated, Unavailable
from queue_server.http.authentication import TokenVerifier
from queue_server.storage import api_keys
from queue_server.storage.api_keys import KEY_PREFIX, ApiKey
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

# A key that was made or revoked is noticed after so long.
_REFRESH_S = 2.0


class Verifier(Protocol):
    """Tells who an Authorization header speaks for."""

    async def principal_of(self, authorization: str) -> Principal: ...


class ApiKeys:
    """All keys of the database, read anew when a request comes and they are older than 2 s.

    All, because they are few; so a stranger who tries keys costs the database nothing.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._keys: dict[bytes, ApiKey] | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def principal_of(self, key: str) -> Principal:
        """Errors: `Unauthenticated`; `Unavailable` when the keys were never read."""
        if time.monotonic() - self._read_at > _REFRESH_S:
            await self._refresh()
        found = (self._keys or {}).get(api_keys.hash_of(key))
        if found is None:
            raise Unauthenticated("Invalid API key")
        if found.expires_at is not None and found.expires_at.timestamp() <= time.time():
            raise Unauthenticated("API key has expired")
        return found.principal

    async def _refresh(self) -> None:
        async with self._reading:
            if time.monotonic() - self._read_at <= _REFRESH_S:
                return  # somebody else did it meanwhile
            try:
                self._keys = {key.hash: key for key in await api_keys.read(self._transactions)}
            except Unavailable as exc:
                if self._keys is None:
                    raise
                # Without a database no request gets far; the keys at hand stay good.
                logger.warning("the API keys cannot be read", extra={"error": exc.message})
            self._read_at = time.monotonic()


class Credentials:
    """Tokens, API keys, or both: a key is told by its beginning."""

    def __init__(self, tokens: TokenVerifier | None, keys: ApiKeys | None) -> None:
        self._tokens = tokens
        self._keys = keys

    async def principal_of(self, authorization: str) -> Principal:
        """Errors: `Unauthenticated`, `Unavailable`."""
        if not authorization.isascii():
            # Neither kind has such characters. A byte that is no UTF-8 comes as half a surrogate
            # pair, which can be neither encoded nor, with luck, written to a log.
            raise Unauthenticated("Invalid API key" if self._tokens is None else "Bad token header")
        if self._keys is not None:
            scheme, _, rest = authorization.strip().partition(" ")
            credential = rest.strip() if scheme.lower() == "bearer" else authorization.strip()
            if credential.startswith(KEY_PREFIX):
                return await self._keys.principal_of(credential)
        if self._tokens is None:
            raise Unauthenticated("Invalid API key")
        return await self._tokens.principal_of(authorization)
