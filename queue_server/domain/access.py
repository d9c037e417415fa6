"""Who may do what: the levels of access a route can need, and the roles that grant them.

Source: wire-api 5.13. Levels are not a ladder: a role that may only produce cannot read, and one
that may only read cannot produce, so a role is the set of levels it opens.
"""

from __future__ import annotations

import enum
import fnmatch
import functools
import re

import msgspec

from queue_server.domain.errors import Forbidden


class Access(enum.Enum):
    """What a route needs."""

    PUBLIC = "public"  # nobody is asked
    READ = "read-only"
    PRODUCE = "write-only"
    WRITE = "read-write"
    ADMIN = "admin"


class Role(enum.Enum):
    """What a principal may have; the names that tokens use for them are settings."""

    READ_ONLY = frozenset({Access.READ})
    WRITE_ONLY = frozenset({Access.PRODUCE})
    READ_WRITE = frozenset({Access.READ, Access.PRODUCE, Access.WRITE})
    ADMIN = frozenset({Access.READ, Access.PRODUCE, Access.WRITE, Access.ADMIN})


class Use(enum.Enum):
    """What is done to a queue."""

    PUSH = "push to"
    POP = "pop from"  # and acknowledge, extend, trace
    LOOK = "look into"  # who may pop or administer may
    ADMINISTER = "administer"


class Grants(msgspec.Struct, frozen=True):
    """The queues that a credential is for, by patterns of their names.

    In a pattern `*` stands for any characters, `?` for one, `[ab]` for one of these.
    """

    push: tuple[str, ...]
    pop: tuple[str, ...]
    administer: tuple[str, ...]

    def allow(self, use: Use, queue: str) -> bool:
        match use:
            case Use.PUSH:
                patterns = self.push
            case Use.POP:
                patterns = self.pop
            case Use.ADMINISTER:
                patterns = self.administer
            case Use.LOOK:
                patterns = self.pop + self.administer
        return any(_compiled(pattern).match(queue) for pattern in patterns)

    def require(self, use: Use, queue: str) -> None:
        """Errors: `Forbidden`."""
        if not self.allow(use, queue):
            raise Forbidden(f"This credential may not {use.value} queue {queue!r}")


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


class Principal(msgspec.Struct, frozen=True):
    """Who sent a request, as far as a credential vouches for it."""

    subject: str | None  # becomes the producerSub of what it pushes
    roles: frozenset[Role]
    grants: Grants | None = None  # None: every queue

    def may(self, access: Access) -> bool:
        return access is Access.PUBLIC or any(access in role.value for role in self.roles)
