"""The command line: one module a command, each with ``add_parser(subparsers)`` that sets ``run`` on what it parses.

A command's ``run`` takes the parsed arguments and returns the exit status: 0 done, 1 the job itself
failed, 2 it could not be started as asked (argparse's own status for bad arguments).
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import TYPE_CHECKING

from trio_mlxgate.commands import echo_server

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS = (echo_server,)


def run(argv: Sequence[str]) -> int:
    """Parse ``argv`` (without the program's name), run the command, return its exit status."""
    parser = argparse.ArgumentParser(prog="trio-mlxgate", description="The gate in front of a local LLM server.")
    parser.add_argument("--version", action="version", version=f"trio-mlxgate {version('trio-mlxgate')}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status
