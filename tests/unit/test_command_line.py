"""What is said about the command line is true: its help and its reference."""

from queue_server.cli.reference import commands, reference
from tests.cluster_process import ROOT


def test_every_help_has_an_example_of_its_command() -> None:
    paths = []
    for path, command in commands():
        paths.append(path)
        examples = (command.help or "").partition("Examples:")[2]
        assert path in examples, path
    assert len(paths) == len(set(paths)) > 20


def test_the_reference_is_that_of_these_commands() -> None:
    written = (ROOT / "docs" / "command-line.md").read_text()
    assert written == reference(), "write it anew: see the top of queue_server/cli/reference.py"
