"""The command line: `queue-server`.

It stands above everything else. What it does to a running server it does over HTTP (`client.py`),
as any client would; `serve` starts one, and `migrate`, `doctor` and `keys` look at the database.

    app.py        the commands put together; exit codes
    session.py    what every command has: the options --url, --token, --json ..., a client, output
    output.py     tables, JSON, questions, errors
    client.py     HTTP on the standard library
    commands/     a module for each group of commands
    reference.py  writes docs/command-line.md from all this

The server itself never imports this package: typer and rich would be carried by every worker.
"""
