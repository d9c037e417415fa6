"""One module for each group of commands; `app.py` puts them together."""
