"""Who may do what: the levels of access a route can need, and the roles that grant them.

Source: wire-api 5.13. Levels are not a ladder: a role that may only produce cannot read, and one
that may only read cannot produce, so a role is the set of levels it opens.
"""

from __future__ import annotations

import enum

import msgspec


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


class Principal(msgspec.Struct, frozen=True):
    """Who sent a request, as far as a credential vouches for it."""

    subject: str | None  # becomes the producerSub of what it pushes
    roles: frozenset[Role]

    def may(self, access: Access) -> bool:
        return access is Access.PUBLIC or any(access in role.value for role in self.roles)
