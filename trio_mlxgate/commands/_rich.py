"""What the commands use of rich: the one module that needs it."""

from __future__ import annotations

try:
    from rich.box import SIMPLE as SIMPLE
    from rich.console import Console as Console
    from rich.live import Live as Live
    from rich.table import Table as Table
    from rich.text import Text as Text
except ImportError as missing:
    raise ImportError(
        "the table needs the package rich: pip install 'trio-mlxgate[cli]' (from a clone: '.[cli]')"
    ) from missing
