"""The backends on a terminal: one table, live or once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Self

from trio_mlxgate.commands._rich import SIMPLE, Console, Live, Table, Text
from trio_mlxgate.core.load import LoadLevel
from trio_mlxgate.core.readings import Health

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from trio_mlxgate.commands._looks import Row

_WIDTH: Final = 160
"""Where there is no terminal whose width could be known."""


class BackendsView:
    """Shows rows; a context manager around the time in which they change."""

    def __init__(self) -> None:
        self._console = Console()
        if not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console = Console(width=_WIDTH)
        self._live = Live(console=self._console, auto_refresh=False)

    @property
    def is_terminal(self) -> bool:
        """Whether what is shown can be drawn over."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._live.__exit__(exc_type, exc, tb)

    def update(self, rows: Sequence[Row]) -> None:
        """Draw the table over what was there."""
        self._live.update(table(rows), refresh=True)

    def show(self, rows: Sequence[Row]) -> None:
        """Print the table."""
        self._console.print(table(rows))


def table(rows: Sequence[Row]) -> Table:
    """All rows as a table. Nothing in them is taken for markup."""
    shown = Table(box=SIMPLE, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for title in ("backend", "kind", "health", "level"):
        shown.add_column(title, overflow="fold")
    shown.add_column("why", overflow="fold", ratio=1)
    shown.add_column("model", overflow="fold")
    for title in ("active", "waiting", "slots"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        status = None if row.reading is None else row.reading.status
        counts = (None, None, None) if status is None else (status.active_jobs, status.waiting, status.slots)
        place = row.target.url if row.target.name == row.target.url else f"{row.target.name}\n{row.target.url}"
        shown.add_row(
            Text(place),
            Text("-" if row.kind is None else row.kind.name),
            Text("..." if row.reading is None else row.health.value, _HEALTH[row.health]),
            Text(row.level.label, _LEVELS[row.level]),
            Text(row.why),
            Text("\n".join(row.models) or "-"),
            *(Text("-" if count is None else str(count)) for count in counts),
        )
    return shown


_HEALTH: Final = {Health.UP: "green", Health.DOWN: "bold red", Health.UNKNOWN: "yellow"}
_LEVELS: Final = {
    LoadLevel.IDLE: "green",
    LoadLevel.NORMAL: "green",
    LoadLevel.BUSY: "yellow",
    LoadLevel.VERY_BUSY: "red",
    LoadLevel.DOWN: "bold red",
    LoadLevel.UNKNOWN: "dim",
}
