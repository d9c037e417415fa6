"""psycopg's errors in, what they mean for us out."""

from __future__ import annotations

import psycopg
import psycopg_pool

from queue_server.domain.errors import LimitReached, StorageTimeout, StorageUnavailable

# The transaction was rolled back through no fault of its own; the whole of it may run again.
# 40001 serialization failure, 40P01 deadlock, 55P03 lock not available, and 25P02: a statement in
# a transaction that had failed already, which hides one of the others.
_RETRIABLE = frozenset({"40001", "40P01", "55P03", "25P02"})


# Raised by our own functions (storage/sql/functions/limits.sql), with the message for the client.
_LIMIT_REACHED = "QS001"


class CommitPending(Exception):
    """Whether an earlier attempt was committed is not decided yet."""


class CommitUnknown(Exception):
    """Whether an earlier attempt was committed cannot be found out."""


class Silence(psycopg.OperationalError):
    """The database did not answer for so long that the connection was given up."""


# The server is going down, starting, or read-only: another connection may find another server.
# 57P05, 25P03 and 25P04: it ended the session, which was idle or in a transaction for too long.
_LOST = frozenset({"57P01", "57P02", "57P03", "25006", "57P05", "25P03", "25P04"})

CONNECTION_LOST = "connection_lost"


def retry_reason(exc: BaseException) -> str | None:
    """Why the transaction that raised *exc* should run again on a clean connection.

    Shape: an SQLSTATE, CONNECTION_LOST, or None when it should not run again.
    """
    if isinstance(exc, CommitPending):
        return CONNECTION_LOST
    if not isinstance(exc, psycopg.Error):
        return None
    state = exc.sqlstate
    if state in _RETRIABLE:
        return state
    if state in _LOST or (state is not None and state.startswith("08")):
        return CONNECTION_LOST
    # libpq's own errors (a socket that closed under a query) carry no SQLSTATE.
    if state is None and isinstance(exc, psycopg.OperationalError):
        return CONNECTION_LOST
    return None


def translate(exc: Exception) -> Exception:
    """The domain's error for a psycopg error that retrying did not cure; others as they are."""
    if isinstance(exc, (psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed)):
        return StorageUnavailable()
    if isinstance(exc, psycopg.errors.QueryCanceled):
        return StorageTimeout()
    if isinstance(exc, CommitUnknown) or retry_reason(exc) is not None:
        # Whether the last attempt was committed is not known.
        return StorageUnavailable(
            "the database did not complete the request; it may or may not have been carried out"
        )
    if isinstance(exc, psycopg.Error) and exc.sqlstate == _LIMIT_REACHED:
        return LimitReached(exc.diag.message_primary)
    if is_out_of_resources(exc):
        assert isinstance(exc, psycopg.Error)
        return StorageUnavailable(f"the database is out of resources: {exc.sqlstate}")
    return exc


def is_out_of_resources(exc: BaseException) -> bool:
    """Whether the database ran out of disk, memory or connections."""
    return isinstance(exc, psycopg.Error) and (exc.sqlstate or "").startswith("53")
