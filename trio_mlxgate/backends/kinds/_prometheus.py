"""Prometheus' text format, as far as counts in it go: https://prometheus.io/docs/instrumenting/exposition_formats/"""

from __future__ import annotations

import math
import re
from typing import Final

import attrs

from trio_mlxgate.backends.kinds._parsing import Unusable, count

# A name, labels in braces, a value; then perhaps a time. Within quotes a backslash hides the next letter.
_LINE: Final = re.compile(r'\s*([A-Za-z_:][A-Za-z0-9_:]*)\s*(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?\s*(\S+)')
_LABEL: Final = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_ESCAPE: Final = re.compile(r"\\(.)")


@attrs.frozen
class Sample:
    """One line: a series of a metric, and its value now."""

    name: str
    labels: dict[str, str]
    value: float


def samples(body: bytes, *wanted: str) -> list[Sample]:
    """The series of the wanted metrics. A line that is none of them, or malformed, is passed over."""
    found = []
    for line in body.decode("utf-8", "replace").splitlines():
        # Most lines are of other metrics; this is quicker than to take them apart.
        if not line.lstrip().startswith(wanted):
            continue
        match = _LINE.match(line)
        if match is None or match[1] not in wanted:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        labels = {name: _ESCAPE.sub(_unescaped, text) for name, text in _LABEL.findall(match[2] or "")}
        found.append(Sample(match[1], labels, value))
    return found


def total(series: list[Sample], name: str) -> int:
    """The sum over all series of a metric that counts.

    Raises:
      Unusable: there is none, or one of them is no count.
    """
    values = [sample.value for sample in series if sample.name == name]
    if not values:
        raise Unusable(f"GET /metrics has no {name}")
    for value in values:
        if not math.isfinite(value) or value != int(value):
            raise Unusable(f"{name} should count, not be {value!r}")
    return count(name, sum(map(int, values)))


def label(series: list[Sample], name: str) -> tuple[str, ...]:
    """The values that a label has in these series, each once."""
    return tuple(dict.fromkeys(sample.labels[name] for sample in series if name in sample.labels))


def _unescaped(match: re.Match[str]) -> str:
    return {"n": "\n"}.get(match[1], match[1])
