"""Edits of the package's text, of which mutants are made."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from pathlib import Path


@attrs.frozen
class Edit:
    """In ``file``, the one place that ``pattern`` matches becomes ``replacement``, both as :mod:`re` has them."""

    file: str
    pattern: str
    replacement: str

    def apply(self, package: Path) -> None:
        """Do it. Raises LookupError if there isn't exactly one such place: then the code has moved on."""
        path = package / self.file
        text, count = re.subn(self.pattern, self.replacement, path.read_text(), flags=re.MULTILINE)
        if count != 1:
            raise LookupError(f"{self.file}: {count} places match {self.pattern!r}; adapt the mutant")
        path.write_text(text)


def in_method(name: str, before: str) -> str:
    """A pattern for ``before`` (a pattern itself) in the method ``name``, after anything else of that method."""
    # The tempered dot stops at the next method, so that a pattern can't run into another one.
    return rf"(^    (?:async )?def {name}\((?:(?!^    (?:async )?def )[\s\S])*?)({before})"
