"""Everything that can go wrong for a reason we know.

    QueueServerError
     +- BadRequest              the request cannot be carried out as it stands (400)
     |   +- NameTooLong         (413)
     |   +- BodyTooLarge        (413)
     |   |   +- TooManyItems    more than one request may hold (413)
     |   +- BodyTimeout         the rest of the body did not come (408)
     |   +- BadParameter        a parameter of the query cannot be read (400)
     |   +- BadPop              a pop that asks for what does not go together (400)
     |   +- QueueFull           the queue has a maxSize (409)
     |   +- LimitReached        of queues, groups or partitions there may be no more (409)
     |   +- QueueExists         the queue was to be created, and exists (409)
     +- Unauthenticated         no credential, or one that does not hold (401)
     +- Forbidden               the credential does not open this (403)
     +- NotFound                the thing named does not exist (404)
     +- Unavailable             nothing is wrong with the request, try again (503)
         +- Draining            this server is stopping
         +- StorageUnavailable  the database does not answer
         +- StorageTimeout      the database did not answer in time; the outcome is unknown
         +- Overloaded          too much is waiting already (429)

A class's docstring is its default message. `code` is stable and goes to the client; the HTTP status
is chosen in http/failures.py.
"""

from __future__ import annotations


class QueueServerError(Exception):
    """Something went wrong."""

    code = "internal"
    # Seconds after which a retry may help; None when it will not.
    retry_after_s: int | None = None

    def __init__(self, message: str | None = None) -> None:
        self.message = message or self.__doc__ or ""
        super().__init__(self.message)


class BadRequest(QueueServerError):
    """The request is not valid."""

    code = "bad_request"


class NameTooLong(BadRequest):
    """The name is too long."""

    code = "name_too_long"


class BodyTooLarge(BadRequest):
    """Request body too large"""

    code = "body_too_large"


class TooManyItems(BodyTooLarge):
    """The request holds too many items; send several"""

    code = "too_many_items"


class BodyTimeout(BadRequest):
    """The rest of the request body did not come in time"""

    code = "body_timeout"


class BadParameter(BadRequest):
    """A parameter of the query cannot be read."""

    def __init__(self, name: str, value: str, accepted: str) -> None:
        super().__init__(f"{name} must be {accepted}, not {value[:100]!r}")


class BadPop(BadRequest):
    """The pop's parameters do not go together."""


class QueueFull(BadRequest):
    """The queue is full."""

    code = "queue_full"


class QueueExists(BadRequest):
    """The queue exists already."""

    code = "queue_exists"


class LimitReached(BadRequest):
    """There are as many of these as there may be."""

    code = "limit_reached"


class Unauthenticated(QueueServerError):
    """Authentication required"""

    code = "unauthenticated"


class Forbidden(QueueServerError):
    """Insufficient permissions"""

    code = "forbidden"


class NotFound(QueueServerError):
    """Not found"""

    code = "not_found"


class Unavailable(QueueServerError):
    """The server cannot do this just now; try again."""

    code = "retry"
    retry_after_s = 1


class Draining(Unavailable):
    """The server is stopping; try again."""


class StorageUnavailable(Unavailable):
    """The database is not available; try again."""


class StorageTimeout(Unavailable):
    """The database did not answer in time; the request may or may not have been carried out."""

    code = "timeout"


class Overloaded(Unavailable):
    """Too many requests are waiting; try again."""

    code = "overloaded"
