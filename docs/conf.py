"""Sphinx reads the pages of this folder as `make docs` tells it; the result needs no network."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The reference pages are made from the code itself, see reference.py.
sys.path[:0] = [str(HERE.parent), str(HERE)]

from queue_server import __version__  # noqa: E402

project = "queue-server"
version = release = __version__
html_title = f"queue-server {__version__}"

extensions = ["myst_parser", "reference"]
html_theme = "furo"
# A page is told by its headings; the source in Markdown is in the repository.
html_copy_source = False
html_show_sphinx = html_show_copyright = False

# Headings down to this level can be linked to, by the same names as in a repository's view.
myst_heading_anchors = 4
