"""Who sent a request, told by the JSON Web Token in its Authorization header.

The names and rules are those of wire-api 5.13. Signatures and claims are PyJWT's work; here is
which key a token may be checked with, where keys come from, and what a refusal says.

The key is chosen by the family of the algorithm, and only among the algorithms that the settings
allow, so a public key can never be taken for a shared secret. A token that held is remembered until
it expires, since clients send the same one with each request; a change of keys forgets them all.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import AsyncIterator, Mapping
from typing import Any

import jwt
import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.warnings import InsecureKeyLengthWarning

from queue_server.domain.access import Grants, Principal, Role
from queue_server.domain.errors import Unauthenticated, Unavailable
from queue_server.settings import Settings

logger = logging.getLogger(__name__)

PublicKey = RSAPublicKey | Ed25519PublicKey

_HMAC = ("HS256", "HS384", "HS512")
_RSA = ("RS256", "RS384", "RS512")
_EDDSA = ("EdDSA",)
# Every other name stands for itself.
_ALLOWED: Mapping[str, tuple[str, ...]] = {"auto": _HMAC + _RSA + _EDDSA, "RS256": _RSA}

_TOKENS_KEPT_MAX = 4096
_TOKEN_BYTES_MAX = 8192
_KEY_SET_BYTES_MAX = 1024 * 1024
# An unknown key id asks for the key set anew; a stranger may name as many as they like.
_REFETCH_INTERVAL_S = 5.0


class KeySetUnavailable(Exception):
    """The key set could not be fetched; the message says why."""


class KeySet:
    """The public keys that a JWKS address publishes, fetched at the start and now and then."""

    def __init__(self, url: str, *, interval_s: float, timeout_ms: int) -> None:
        self._url = url
        self._interval_s = interval_s
        self._timeout = ClientTimeout(total=timeout_ms / 1000)
        self._keys: list[tuple[str | None, PublicKey]] = []
        self._fetched_at = float("-inf")
        self._fetching = asyncio.Lock()
        self.generation = 0  # rises with each change of keys

    async def find(self, family: type[PublicKey], key_id: str | None) -> PublicKey:
        """The key with an id, or the first of its kind for a token that names none.

        Errors: `Unauthenticated` when there is none, `Unavailable` when no key set was ever had.
        """
        key = self._known(family, key_id)
        if key is None:
            await self._refetch()
            key = self._known(family, key_id)
        if key is not None:
            return key
        if not self._keys:
            raise Unavailable("the keys that tokens are checked with (JWT_JWKS_URL) are not here")
        raise Unauthenticated("Unknown key ID")

    async def keep_fresh(self) -> None:
        """Fetch the keys again and again; runs until cancelled."""
        while True:
            await self._refetch()
            await asyncio.sleep(self._interval_s)

    def _known(self, family: type[PublicKey], key_id: str | None) -> PublicKey | None:
        for id_, key in self._keys:
            if isinstance(key, family) and key_id in (None, id_):
                return key
        return None

    async def _refetch(self) -> None:
        async with self._fetching:
            if time.monotonic() - self._fetched_at < _REFETCH_INTERVAL_S:
                return
            self._fetched_at = time.monotonic()
            try:
                keys = await self._fetch()
            except KeySetUnavailable as exc:
                # The keys at hand stay good: an identity provider that is down stops nobody.
                logger.warning("cannot fetch the key set", extra={"reason": str(exc)})
                return
            if keys != self._keys:
                self._keys = keys
                self.generation += 1
                logger.info("key set fetched", extra={"keys": len(keys)})

    async def _fetch(self) -> list[tuple[str | None, PublicKey]]:
        """Errors: `KeySetUnavailable`."""
        try:
            async with (
                ClientSession(timeout=self._timeout) as session,
                session.get(self._url) as response,
            ):
                response.raise_for_status()
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > _KEY_SET_BYTES_MAX:
                        raise KeySetUnavailable(f"it is larger than {_KEY_SET_BYTES_MAX} bytes")
        except (ClientError, TimeoutError, OSError) as exc:
            raise KeySetUnavailable(f"{type(exc).__name__}: {exc}") from None
        return parse_key_set(bytes(body))


def parse_key_set(body: bytes) -> list[tuple[str | None, PublicKey]]:
    """The RSA and Ed25519 keys of a JWKS document with their ids; others are skipped.

    Source: RFC 7517. Errors: `KeySetUnavailable` when it is no such document or has no such key.
    """
    try:
        listed = msgspec.json.decode(body, type=dict[str, Any]).get("keys")
    except msgspec.MsgspecError as exc:
        raise KeySetUnavailable(f"it is not a JSON object: {exc}") from None
    keys: list[tuple[str | None, PublicKey]] = []
    for entry in listed if isinstance(listed, list) else []:
        # A key for encryption signs nothing.
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(entry).key
        except jwt.PyJWTError:
            continue
        if isinstance(key, PublicKey):
            id_ = entry.get("kid")
            keys.append((id_ if isinstance(id_, str) else None, key))
    if not keys:
        raise KeySetUnavailable("it has no RSA or Ed25519 key")
    return keys


def websocket_credential(request: web.Request) -> str | None:
    """The Authorization that a browser offers with a WebSocket, to which it cannot add a header.

    Source: it comes as a subprotocol, `bearer.<credential>`, beside the one that is accepted.
    """
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return None
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    for protocol in offered.split(","):
        kind, _, credential = protocol.strip().partition(".")
        if kind == "bearer" and credential:
            return f"Bearer {credential}"
    return None


class _Known(msgspec.Struct, frozen=True):
    """A token that held."""

    principal: Principal
    expires_at: float  # Unix time, the allowed skew included


class TokenVerifier:
    """Checks tokens as the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._algorithms = _ALLOWED.get(settings.jwt_algorithm, (settings.jwt_algorithm,))
        self._secret = settings.jwt_secret
        self._public_key = (
            load_pem_public_key(settings.jwt_public_key.encode())
            if settings.jwt_public_key
            else None
        )
        self._key_set = (
            KeySet(
                settings.jwt_jwks_url,
                interval_s=settings.jwt_jwks_refresh_interval_s,
                timeout_ms=settings.jwt_jwks_timeout_ms,
            )
            if settings.jwt_jwks_url and self._public_key is None
            else None
        )
        self._issuer = settings.jwt_issuer or None
        self._audience = settings.jwt_audience or None
        self._skew_s = settings.jwt_clock_skew_s
        self._role_claim = settings.jwt_roles_claim
        self._roles_claim = settings.jwt_roles_array_claim
        self._queues_claim = settings.jwt_queues_claim
        self._roles = {
            settings.jwt_role_admin: Role.ADMIN,
            settings.jwt_role_read_write: Role.READ_WRITE,
            settings.jwt_role_read_only: Role.READ_ONLY,
            settings.jwt_role_write_only: Role.WRITE_ONLY,
        }
        self._known: dict[str, _Known] = {}
        self._generation = 0

    async def running(self, _app: web.Application) -> AsyncIterator[None]:
        """Keep the key set fresh while the application runs: for `Application.cleanup_ctx`."""
        if self._key_set is None:
            yield
            return
        task = asyncio.create_task(self._key_set.keep_fresh(), name="key-set")
        yield
        task.cancel()
        await asyncio.wait([task])

    async def principal_of(self, authorization: str) -> Principal:
        """Who an Authorization header speaks for.

        Errors: `Unauthenticated` with the protocol's text; `Unavailable` when the keys are missing.
        """
        scheme, _, rest = authorization.strip().partition(" ")
        # The bare token, without a scheme, is accepted as well.
        token = rest.strip() if scheme.lower() == "bearer" else authorization.strip()
        if not token or len(token) > _TOKEN_BYTES_MAX:
            raise Unauthenticated
        if self._key_set is not None and self._generation != self._key_set.generation:
            self._known.clear()
            self._generation = self._key_set.generation
        known = self._known.get(token)
        if known is not None and time.time() < known.expires_at:
            return known.principal
        known = await self._verify(token)
        if len(self._known) >= _TOKENS_KEPT_MAX:
            del self._known[next(iter(self._known))]
        self._known[token] = known
        return known.principal

    async def _verify(self, token: str) -> _Known:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise Unauthenticated("Bad token header") from None
        algorithm = header.get("alg")
        if algorithm not in self._algorithms:
            raise Unauthenticated("Unsupported token algorithm")
        key = await self._key_for(algorithm, header.get("kid"))
        claims = self._claims(token, algorithm, key)
        expires_at = claims.get("exp")
        subject = claims.get("sub")
        return _Known(
            Principal(subject or None, self._roles_of(claims), self._grants_of(claims)),
            float("inf") if expires_at is None else float(expires_at) + self._skew_s,
        )

    async def _key_for(self, algorithm: str, key_id: str | None) -> PublicKey | str:
        if algorithm in _HMAC:
            if not self._secret:
                raise Unauthenticated("Unsupported token algorithm")
            return self._secret
        family = RSAPublicKey if algorithm in _RSA else Ed25519PublicKey
        if self._key_set is not None:
            return await self._key_set.find(family, key_id)
        if not isinstance(self._public_key, family):
            raise Unauthenticated("Unsupported token algorithm")
        return self._public_key

    def _claims(self, token: str, algorithm: str, key: PublicKey | str) -> dict[str, Any]:
        """The claims of a token that holds."""
        try:
            with warnings.catch_warnings():
                # A short secret is named once, at the start (settings.py).
                warnings.simplefilter("ignore", InsecureKeyLengthWarning)
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    issuer=self._issuer,
                    audience=self._audience,
                    leeway=self._skew_s,
                    options={
                        "verify_iat": False,  # below, for a text of its own
                        "verify_iss": self._issuer is not None,
                        "verify_aud": self._audience is not None,
                    },
                )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("Token has expired") from None
        except jwt.ImmatureSignatureError:
            raise Unauthenticated("Token not yet valid") from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated("Invalid token issuer") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated("Invalid token audience") from None
        except jwt.MissingRequiredClaimError as exc:
            what = {"iss": "issuer", "aud": "audience"}.get(exc.claim, exc.claim)
            raise Unauthenticated(f"Invalid token {what}") from None
        except (jwt.DecodeError, jwt.InvalidKeyError):
            raise Unauthenticated("Invalid token signature") from None
        except jwt.InvalidTokenError:
            raise Unauthenticated("Invalid token claims") from None
        issued_at = claims.get("iat", 0)
        if not isinstance(issued_at, int | float):
            raise Unauthenticated("Invalid token claims")
        if issued_at > time.time() + self._skew_s:
            raise Unauthenticated("Token issued in the future")
        return claims

    def _grants_of(self, claims: Mapping[str, Any]) -> Grants | None:
        patterns = claims.get(self._queues_claim)
        if patterns is None:
            return None
        if not (isinstance(patterns, list) and all(isinstance(one, str) for one in patterns)):
            # Whatever was meant by it, it was not every queue.
            raise Unauthenticated("Invalid token claims")
        return Grants(tuple(patterns), tuple(patterns), tuple(patterns))

    def _roles_of(self, claims: Mapping[str, Any]) -> frozenset[Role]:
        named = [claims.get(self._role_claim)]
        listed = claims.get(self._roles_claim)
        if isinstance(listed, list):
            named += listed
        return frozenset(
            self._roles[name] for name in named if isinstance(name, str) and name in self._roles
        )
