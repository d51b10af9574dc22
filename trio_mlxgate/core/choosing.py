"""Which of several servers to ask, and whether to ask another one after a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from trio_mlxgate.core.load import LoadLevel
from trio_mlxgate.core.readings import Health
from trio_mlxgate.errors import (
    AnswerTooSlow,
    BackendError,
    BackendRefused,
    GateRefused,
    Superseded,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Strategy: TypeAlias = Literal["first", "least_busy"]
"""In the order of preference, whoever is not down; or who is least busy, and of equals the preferred."""

OnUnavailable: TypeAlias = Literal["next", "wait", "defer"]
"""When the one that is to be asked can't be: ask the next one, wait for it, or raise at once."""

_RANKS: Final = {
    LoadLevel.IDLE: 0,
    LoadLevel.NORMAL: 1,
    LoadLevel.BUSY: 2,
    LoadLevel.VERY_BUSY: 3,
    # Of whom nothing is known: whoever is known to work goes before, however busy.
    LoadLevel.UNKNOWN: 4,
    LoadLevel.DOWN: 5,
}

TOO_MANY_REQUESTS: Final = 429
SERVER_ERRORS: Final = 500


@attrs.frozen(kw_only=True)
class Candidate:
    """A server that could be asked."""

    name: str
    """Its name."""

    health: Health
    """Whether it is well, as far as is known."""

    level: LoadLevel = LoadLevel.UNKNOWN
    """How busy it is."""

    queue: int = 0
    """How many requests of ours are under way or wait at its gate."""


def order(candidates: Sequence[Candidate], prefer: Sequence[str], strategy: Strategy) -> tuple[str, ...]:
    """The names of all candidates, in the order in which they are to be asked.

    With "first" a server that is down keeps its place, since it is the one that is wanted; with "least_busy" it comes
    last. The preferred ones come first as they are listed in ``prefer``, then the others as they are given.
    """
    wish = {name: place for place, name in enumerate(dict.fromkeys(prefer))}
    places = {candidate.name: place for place, candidate in enumerate(candidates)}

    def preference(candidate: Candidate) -> tuple[int, int]:
        return wish.get(candidate.name, len(wish)), places[candidate.name]

    def key(candidate: Candidate) -> tuple[int, ...]:
        if strategy == "first":
            return preference(candidate)
        rank = _RANKS[LoadLevel.DOWN if candidate.health is Health.DOWN else candidate.level]
        return rank, candidate.queue, *preference(candidate)

    return tuple(candidate.name for candidate in sorted(candidates, key=key))


def available(candidates: Iterable[Candidate]) -> frozenset[str]:
    """Who may be asked: all that are not known to be down. Of whom nothing is known yet, a call is what tells."""
    return frozenset(candidate.name for candidate in candidates if candidate.health is not Health.DOWN)


def may_ask_another(error: Exception, *, yielded: bool) -> bool:
    """Whether a call that failed with ``error`` is to be repeated at another server.

    Never once something of an answer was handed on. Not if the request itself is at fault (the server refused it with
    a status of 4xx): another server would say the same. Not if its own time is over, which another would exceed as
    well. Not if a newer call has replaced it.
    """
    if yielded or isinstance(error, Superseded | AnswerTooSlow):
        return False
    if isinstance(error, BackendRefused):
        return error.upstream_status == TOO_MANY_REQUESTS or error.upstream_status >= SERVER_ERRORS
    return isinstance(error, BackendError | GateRefused)
