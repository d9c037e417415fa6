"""How a setting is declared: one field of a dataclass, whose metadata is its `Option`."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class SettingsError(Exception):
    """A setting cannot be used; the message is one line and names it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """Where a setting comes from, and what `--help` says about it."""

    env: tuple[str, ...]  # read in this order, the first that is set wins
    text: str
    default: Any
    parse: Callable[[str], Any]  # raises ValueError with what the value must be
    example: str
    flag: str  # such as `--port`; empty: environment only
    default_text: str  # for defaults that are computed at the start
    secret: bool  # shown nowhere, not even in an error


def setting(
    env: str | tuple[str, ...],
    text: str,
    default: T,
    parse: Callable[[str], T],
    example: str,
    *,
    flag: str = "",
    default_text: str = "",
    secret: bool = False,
) -> T:
    """Declare a field of `Settings`; the arguments are those of `Option`."""
    names = (env,) if isinstance(env, str) else env
    option = Option(names, text, default, parse, example, flag, default_text, secret)
    # typeshed declares the result of `field` as the type of its default, which fields need.
    return dataclasses.field(default=default, metadata={Option: option})
