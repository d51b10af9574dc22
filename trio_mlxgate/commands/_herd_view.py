"""The herd on a terminal: live progress while it runs, a table when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from trio_mlxgate.commands._rich import SIMPLE, Console, Live, Table, Text
from trio_mlxgate.commands._stampede import HalfResult, median

if TYPE_CHECKING:
    from types import TracebackType

    from trio_mlxgate.commands._stampede import HerdResult


_MOST_MARKS = 30
"""Up to so many requests have a mark each, which fits a narrow terminal."""


class HerdView:
    """Shows a herd; a context manager around the time in which it runs."""

    def __init__(self) -> None:
        # Progress goes beside the result, so that the result can be piped.
        self._console = Console()
        self._progress = Console(stderr=True)
        self._live = Live(console=self._progress, refresh_per_second=10, transient=True)
        self._said = ""

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._live.__exit__(exc_type, exc, tb)

    def report(self, what: str, half: HalfResult | None) -> None:
        """Show what is being done now. Where nothing can be drawn over, each step is one line."""
        if not self._progress.is_terminal:
            if what != self._said:
                self._progress.print(f"{what} ...", markup=False, soft_wrap=True)
                self._said = what
            return
        line = Text(what)
        if half is not None:
            counts = {
                "answered": ("●", "green", half.count("answered")),
                "timed out": ("●", "red", half.count("timed_out")),
                "failed": ("●", "magenta", half.count("failed")),
            }
            marks = [*counts.values(), ("·", "dim", half.count(None))]
            if len(half.requests) <= _MOST_MARKS:
                for mark, style, count in marks:
                    line.append(f" {mark * count}" if count else "", style)
            line.append(" " + ", ".join(f"{count} {word}" for word, (_, _, count) in counts.items() if count))
        self._live.update(line)

    def show(self, result: HerdResult, where: str) -> None:
        """The table."""
        requests = result.direct.requests
        foreground = sum(request.foreground for request in requests)
        self._console.print(
            f"{len(requests)} requests at once to {where}, {foreground} of them with a person waiting.\n"
            f"One request alone took {result.alone:.2f} s. Each may take {result.timeout:.2f} s as a whole: "
            "from sending when sent straight, from the grant of its slot through the gate. "
            "What a request took is counted likewise.\n",
            markup=False,
        )
        table = Table(box=SIMPLE, padding=(0, 1), collapse_padding=True, pad_edge=False)
        for title in ("", "class"):
            table.add_column(title, no_wrap=True)
        for title in ("answered", "timed out", "failed", "wait p50/max", "took p50/max"):
            table.add_column(title, justify="right", no_wrap=True)
        for half, title in ((result.direct, "straight"), (result.gated, "gated")):
            people = [person for person in (True, False) if any(r.foreground is person for r in half.requests)]
            for person in people:
                table.add_row(title if person is people[0] else "", *_row(half, person))
            table.add_section()
        self._console.print(table)
        kept = "kept" if result.gated.order_kept else "[bold red]not kept[/]"
        self._console.print(
            f"Straight: {result.direct.count('answered')} of {len(requests)} answered "
            f"in {result.direct.seconds:.1f} s; through the gate: {result.gated.count('answered')} of {len(requests)} "
            f"in {result.gated.seconds:.1f} s, order {kept} (no background grant while a foreground one waited)."
        )
        for half in (result.direct, result.gated):
            if half.first_error:
                self._console.print(f"the first failure, {half.half}: {half.first_error}", markup=False)


def _row(half: HalfResult, person: bool) -> list[str]:
    answered = half.of("answered", person)
    waits = [request.waited for request in answered] if half.half == "gated" else []
    services = [request.served for request in answered]
    return [
        "foreground" if person else "background",
        *(str(half.count(outcome, person)) for outcome in ("answered", "timed_out", "failed")),
        _seconds(waits),
        _seconds(services),
    ]


def _seconds(values: list[float]) -> str:
    return f"{median(values):.2f}/{max(values):.2f} s" if values else "-"
