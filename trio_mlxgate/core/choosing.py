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
    MalformedAnswer,
    Superseded,
    UnknownModel,
    WaitTooLong,
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

_LATER: Final = frozenset({408, 429})
"""Statuses of a request that is well, and came at the wrong time."""


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
    """How many requests of ours are under way there, at its gate or on their way to it."""

    paused: bool = False
    """Whether its gate lets nobody in: its capacity is 0."""


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
        out = candidate.health is Health.DOWN or candidate.paused
        rank = _RANKS[LoadLevel.DOWN if out else candidate.level]
        return rank, candidate.queue, *preference(candidate)

    return tuple(candidate.name for candidate in sorted(candidates, key=key))


def available(candidates: Iterable[Candidate]) -> frozenset[str]:
    """Who may be asked: all that are not known to be down, and whose gates let somebody in.

    Of whom nothing is known yet, a call is what tells.
    """
    return frozenset(
        candidate.name for candidate in candidates if candidate.health is not Health.DOWN and not candidate.paused
    )


def may_ask_another(error: Exception, *, yielded: bool) -> bool:
    """Whether a call that failed with ``error`` is to be repeated at another server.

    Never once something of an answer was handed on. Not if the request itself is at fault (the server refused it with
    a status of 4xx, but for those of haste and lateness): another server would say the same. Not if its own time is
    over, which another would exceed as well. Not if a newer call has replaced it.
    """
    if yielded or isinstance(error, Superseded | AnswerTooSlow):
        return False
    if isinstance(error, BackendRefused):
        return not 400 <= error.upstream_status < 500 or error.upstream_status in _LATER
    return isinstance(error, BackendError | GateRefused)


def may_ask_the_cloud(error: Exception) -> bool:
    """Whether a call that nobody here has answered may go to another service: not one that names a wrong model."""
    return may_ask_another(error, yielded=False) and not isinstance(error, UnknownModel)


def may_ask_again(error: Exception) -> bool:
    """Whether the same server may answer the same call later: it can't be reached now, or says that it has no time."""
    if isinstance(error, WaitTooLong | UnknownModel | MalformedAnswer):
        return False  # all its time was spent on waiting, or it would fail in the same way again
    return may_ask_another(error, yielded=False)
