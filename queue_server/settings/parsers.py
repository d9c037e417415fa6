"""Parsers of settings: each takes the text an operator wrote and returns the value.

Errors: `ValueError` with what the value must be, in words that follow the setting's name. They
never repeat the value, which may be a secret.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

S = TypeVar("S", bound=str)

_HOW_TO_REACH = (
    "choose another directory, or let this user enter those above it (chmod o+x, or chown)"
)


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() would also take "1_000" and digits of other scripts.
        if not (text.isascii() and text.lstrip("-").isdigit() and low <= int(text) <= high):
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def zero_or_whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            return 0 if text == "0" else whole(low, high)(text)
        except ValueError as exc:
            raise ValueError(f"{exc}, or 0") from None

    return parse


# Seven days bound every duration: a value above is a mistaken unit.
milliseconds = whole(1, 7 * 24 * 3600 * 1000)


def one_of(*choices: S, aliases: Mapping[str, S] | None = None) -> Callable[[str], S]:
    """Accept the *choices* in any case; an empty one is accepted but not advertised."""
    values = {choice.lower(): choice for choice in choices} | dict(aliases or {})

    def parse(text: str) -> S:
        if text.lower() not in values:
            raise ValueError("must be one of " + ", ".join(choice for choice in choices if choice))
        return values[text.lower()]

    return parse


def boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("must be true or false")


def hex_key(text: str) -> str:
    """Accept a key of 32 bytes."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32 or len(text) != 64:
        raise ValueError("must be 64 hexadecimal digits")
    return text


def hex_keys(text: str) -> str:
    for key in text.split(","):
        hex_key(key.strip())
    return text


def public_key_pem(text: str) -> str:
    """Accept PEM text; in an environment file a line break is often written as \\n."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    pem = text.replace("\\n", "\n")
    try:
        load_pem_public_key(pem.encode())
    except ValueError:
        raise ValueError("must be the PEM text of an RSA or Ed25519 public key") from None
    return pem


def http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address such as https://login.example/keys.json")
    return text


def paths(text: str) -> tuple[str, ...]:
    """Accept paths of routes."""
    found = tuple(path.strip() for path in text.split(",") if path.strip())
    if not all(path.startswith("/") for path in found):
        raise ValueError("must be paths that begin with /, separated by commas")
    return found


def header_value(text: str) -> str:
    # It is sent with every answer; a line break in it would start another header.
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must be printable ASCII on one line")
    return text


def directory(text: str) -> Path:
    try:
        path = Path(text).expanduser()
        if path.exists() and not path.is_dir():
            raise ValueError("must be a directory, or absent so that it can be made")
        return path.absolute()
    except OSError as exc:
        raise ValueError(f"cannot be reached: {exc.strerror}; {_HOW_TO_REACH}") from None
    except RuntimeError:  # of `expanduser`
        raise ValueError("begins with the home of a user that does not exist") from None


def postgresql_url(text: str) -> str:
    """Accept a URL or a string of parameters, whatever libpq takes."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        ports = str(conninfo_to_dict(text).get("port") or "5432").split(",")
        for port in filter(None, ports):  # libpq checks them when it connects, not before
            whole(1, 65535)(port)
    except (psycopg.Error, ValueError) as exc:
        unknown = _unknown_parameter(text, str(exc))
        if unknown is not None:
            raise ValueError(
                f"has the parameter {unknown!r}, which PostgreSQL connections do not have"
            ) from None
        # The parser's own message may quote a piece of the password.
        raise ValueError("must look like postgresql://user:password@host:5432/database") from None
    return text


def _unknown_parameter(text: str, error: str) -> str | None:
    """Return the parameter named in libpq's *error*; None where it may be a piece of a password.

    libpq takes such a piece for a parameter after a slash or a space that is not escaped.
    """
    found = re.match(
        r'invalid (?:URI query parameter|connection option):? "([A-Za-z_]{1,63})"', error
    )
    if found is None:
        return None
    if "://" in text:
        is_behind_host = "@" not in text.partition("?")[2]
    else:
        is_behind_host = "password" not in text.partition(f"{found[1]}=")[0]
    return found[1] if is_behind_host else None
