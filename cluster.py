"""Start the server from a checkout: `python cluster.py --help`."""

import sys

from queue_server.__main__ import cluster

if __name__ == "__main__":
    sys.exit(cluster())
