"""`queue-server`, and `python -m queue_server`: settings in, supervisor runs."""

import os
import sys
from collections.abc import Sequence

from queue_server.cluster import keys
from queue_server.cluster.supervisor import Supervisor
from queue_server.observability.logging import configure_logging
from queue_server.settings import SettingsError, load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop, or a command; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["keys"]:
        return keys.main(argv[1:], os.environ)
    try:
        settings = load_settings(argv, os.environ, terminal=sys.stderr.isatty())
    except SettingsError as exc:
        print(f"queue-server: {exc}", file=sys.stderr)
        return 2
    configure_logging(settings.log_level, settings.log_format)
    return Supervisor(settings).run()


if __name__ == "__main__":
    sys.exit(main())
