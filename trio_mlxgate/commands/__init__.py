"""The command line: one module a command, each with ``add_parser(subparsers)`` that sets ``run`` on what it parses.

A command's ``run`` takes the parsed arguments and returns the exit status: 0 done, 1 the job itself
failed, 2 it could not be started as asked (argparse's own status for bad arguments).
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn

from trio_mlxgate.commands import backends, echo_server, herd

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is what ``--help`` is for."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


_COMMANDS = (herd, backends, echo_server)


def run(argv: Sequence[str]) -> int:
    """Parse ``argv`` (without the program's name), run the command, return its exit status."""
    parser = _Parser(prog="trio-mlxgate", description="The gate in front of a local LLM server.")
    parser.add_argument("--version", action="version", version=f"trio-mlxgate {version('trio-mlxgate')}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status
