"""Start the server from a checkout: `python cluster.py --help`."""

import sys

from queue_server.installation import check_installation

if __name__ == "__main__":
    check_installation()
    # Only now: it needs the Python and the packages that were looked for.
    from queue_server.__main__ import cluster

    sys.exit(cluster())
