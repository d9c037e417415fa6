"""Variables of the environment that are nearly a setting's name."""

import re
from collections.abc import Mapping

from queue_server.settings.model import options

_SHORT_NAME = 4


def misspelt_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that is nearly a setting's, which thus has no effect.

    Nearly: one letter more, less or other, two exchanged, or in another case.
    """
    known = {name for option in options().values() for name in option.env}
    found = []
    for given in sorted(environ):
        # Variables of libpq, such as PGHOST, lack only the underscore.
        if given in known or re.fullmatch(r"PG[A-Z]+", given):
            continue
        meant = [
            name
            for name in sorted(known)
            # HOST and PORT are near to too many words.
            if len(name) > _SHORT_NAME and _is_nearly(given.upper(), name)
        ]
        if meant:
            # A name from the environment may hold anything but `=`.
            found.append(f"{given!r} in the environment is not a setting; did you mean {meant[0]}?")
    return found


def _is_nearly(given: str, name: str) -> bool:
    """Whether the texts differ by one letter at most, or by two neighbours that are exchanged."""
    if abs(len(given) - len(name)) > 1:
        return False
    pairs = enumerate(zip(given, name, strict=False))
    start = next((at for at, (one, other) in pairs if one != other), min(len(given), len(name)))
    a, b = given[start:], name[start:]
    return a == b or a[1:] in (b, b[1:]) or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
