"""``python -m trio_mlxgate`` and the ``trio-mlxgate`` script: hand over to the commands."""

from __future__ import annotations

import sys

from trio_mlxgate.commands import run


def main() -> None:
    """Run the command line with ``sys.argv`` and exit with its status."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
