"""`queue-server`, `python -m queue_server` and `python cluster.py`.

The server is started without the rest of the command line: what a supervisor has imported, each of
its workers carries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from queue_server.installation import check_installation


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command of `queue-server` and return the exit code."""
    check_installation()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["serve"]:
        return serve(argv[1:], "queue-server serve")
    from queue_server.cli.app import run

    return run(argv)


def cluster(argv: Sequence[str] | None = None) -> int:
    """`cluster.py`: run the server, or a command that is named first; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        return main(argv)
    return serve(argv, "cluster.py")


def serve(argv: Sequence[str], program: str) -> int:
    """Run the server until it is told to stop; the exit code."""
    from queue_server.cluster.supervisor import Supervisor
    from queue_server.observability.logging import configure_logging
    from queue_server.settings import SettingsError, load_settings

    try:
        settings = load_settings(argv, os.environ, terminal=sys.stderr.isatty(), program=program)
    except SettingsError as exc:
        print(f"queue-server: {exc}", file=sys.stderr)
        return 2
    configure_logging(settings.log_level, settings.log_format)
    return Supervisor(settings).run()


if __name__ == "__main__":
    sys.exit(main())
