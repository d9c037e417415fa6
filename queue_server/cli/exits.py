"""How a command ends: exit codes, and the one error that carries them."""

from __future__ import annotations

import enum
from typing import Any


class Exit(enum.IntEnum):
    """The exit codes; scripts rely on them, so a number never changes its meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    FORBIDDEN = 4
    NOT_FOUND = 5
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "done",
    Exit.FAILED: (
        "a check failed, the server refused the request (also part of it, such as one of many"
        " acknowledgements), or the question was not answered with yes"
    ),
    Exit.USAGE: "the command line, a file or a setting cannot be understood; nothing was done",
    Exit.UNREACHABLE: (
        "the server or the database cannot be reached, did not answer in time, or cannot serve now"
        " (429, 503); whether a request was carried out may be unknown"
    ),
    Exit.FORBIDDEN: "the server wants another token or API key (401, 403)",
    Exit.NOT_FOUND: "what was named does not exist (404)",
    Exit.INTERRUPTED: "Ctrl-C",
}


class CliError(Exception):
    """A command cannot do what it was asked for; the message says why, *fix* what to do.

    Each is one line. `notes` are further lines on what was done, and `next_step` is how to go on
    once *fix* is done.
    """

    def __init__(
        self,
        message: str,
        fix: str = "",
        *,
        exit_code: Exit = Exit.FAILED,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.exit_code = exit_code
        self.status = status  # of the HTTP answer
        self.code = code  # the server's word for the error
        self.request_id = request_id
        self.notes: list[str] = []
        self.next_step = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "error": "; ".join([self.message, *self.notes]),
            "fix": "; ".join(filter(None, (self.fix, self.next_step))) or None,
            "exit": int(self.exit_code),
            "status": self.status,
            "code": self.code,
            "requestId": self.request_id,
        }


def usage_error(message: str, fix: str = "") -> CliError:
    return CliError(message, fix, exit_code=Exit.USAGE)
