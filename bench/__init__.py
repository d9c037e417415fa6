"""Measures the server from outside, over HTTP, with a load generator as light as we could make it.

README.md tells what is measured and how to read it.
"""

from queue_server.installation import check_installation

check_installation()
