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
from queue_server.domain.names import implicit_labels

# The highest priority that a credential for some queues may give one of them. Priorities order the
# queues of a label, which need not all be the credential's; the ones above are the operator's.
LIMITED_PRIORITY_MAX = 100


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
        return any(_compiled(pattern).match(queue) for pattern in self._patterns(use))

    def knows(self, queue: str) -> bool:
        """Return whether anything is granted on a queue; names of others must not be revealed."""
        return self.allow(Use.PUSH, queue) or self.allow(Use.LOOK, queue)

    def require(self, use: Use, queue: str) -> None:
        """Refuse a use that is not granted.

        Errors: `Forbidden`, which names the queue: pass one that the request named, or that is
        known to the credential.
        """
        if not self.allow(use, queue):
            raise Forbidden(f"This credential may not {use.value} queue {queue!r}")

    # -- labels: consumers pop by them, whatever queues have them --

    def labels_of_new(self, queue: str) -> tuple[str, str]:
        """Return namespace and task of a queue that is created by a use of this credential.

        Shape: those that the name implies; a label that the credential's patterns do not name is
        left empty, if the credential can push to the queue.
        """
        namespace, task = implicit_labels(queue)
        if not self.allow(Use.PUSH, queue):
            return namespace, task
        return (
            namespace if self._names_namespace(Use.PUSH, namespace) else "",
            task if self._names_task(Use.PUSH, task) else "",
        )

    def require_labels(self, namespace: str, task: str) -> None:
        """Check labels that the credential gives to a queue it administers; empty ones are none.

        Errors: `Forbidden`.
        """
        for what, label, is_named in (
            ("namespace", namespace, self._names_namespace(Use.ADMINISTER, namespace)),
            ("task", task, self._names_task(Use.ADMINISTER, task)),
        ):
            if label and not is_named:
                raise Forbidden(
                    f"This credential may not put a queue into {what} {label[:100]!r}: none of its"
                    f" patterns names this {what}"
                )

    def require_priority(self, priority: int) -> None:
        """Errors: `Forbidden`."""
        if priority > LIMITED_PRIORITY_MAX:
            raise Forbidden(
                f"This credential may not give a queue a priority above {LIMITED_PRIORITY_MAX}"
            )

    def _names_namespace(self, use: Use, namespace: str) -> bool:
        """Return whether a pattern spells a namespace out, or matches every name in it."""
        start = f"{namespace}."
        return any(
            _literal_start(pattern).startswith(start)
            or (_literal_start(pattern) == pattern == namespace)
            or (pattern.endswith("*") and _compiled(pattern).match(start))
            for pattern in self._patterns(use)
        )

    def _names_task(self, use: Use, task: str) -> bool:
        """Return whether a pattern spells a task out, or matches every name."""
        for pattern in self._patterns(use):
            literal = _literal_start(pattern)
            # What stands behind the last dot goes on in the names, unless the pattern is the name.
            parts = literal.split(".") if literal == pattern else literal.split(".")[:-1]
            if parts[1:2] == [task] or set(pattern) == {"*"}:
                return True
        return False

    def _patterns(self, use: Use) -> tuple[str, ...]:
        match use:
            case Use.PUSH:
                return self.push
            case Use.POP:
                return self.pop
            case Use.ADMINISTER:
                return self.administer
            case Use.LOOK:
                return self.pop + self.administer


def _literal_start(pattern: str) -> str:
    """Return the beginning that all names have which match the pattern."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0]


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
