"""What must go so that a model may come: the plan, and what makes one."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import attrs

from trio_mlxgate.errors import GateRefused

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

NEVER_USED: Final[Mapping[str, float]] = MappingProxyType({})
"""When models were last used, of which none was."""


@attrs.frozen(kw_only=True)
class Plan:
    """Which running models have to go for one that is asked for, and why just these.

    Whoever acts on a plan writes it to its log: :meth:`describe` is the line.
    """

    target: str
    """The model that is asked for."""

    evict: tuple[str, ...]
    """The running models that must be stopped before it may start, sorted; never the target itself."""

    target_set: tuple[str, ...]
    """The models that may run together from then on, sorted: what is kept, the target, and what still has room."""

    set_name: str
    """Which set, or group, permits them; "" if none does."""

    expression: str
    """The text of that set; "" if there is none."""

    cost: float
    """What the evictions cost in all; an int wherever it is a whole number."""

    def describe(self) -> str:
        """The plan in one line, for the log."""
        going = f"evict {', '.join(self.evict)}" if self.evict else "evict nothing"
        told = f" ({self.expression})" if self.expression else ""
        place = f"set {self.set_name}{told}" if self.set_name else "no set"
        return f"for {self.target}: {going} at cost {self.cost:g}; {place}; may run: {', '.join(self.target_set)}"


class PlanRefused(GateRefused):
    """A pinned model would have to go for the one that is asked for. Nothing was stopped.

    Trying again has a chance once somebody has unloaded the pinned model by hand; ``retry_after`` is None.
    """

    code: ClassVar[str] = "plan_refused"

    target: str
    """The model that was asked for."""

    reason: str
    """Why not, in a sentence."""

    pinned: tuple[str, ...]
    """The pinned models that are in its way."""

    def __init__(self, reason: str = "", *, target: str = "", pinned: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.target = target
        self.pinned = pinned


class Planner(Protocol):
    """Decides which running models must go for another one. It keeps no state: equal questions have equal answers."""

    def evictions(
        self,
        target: str,
        running: Sequence[str],
        busy: Collection[str] = (),
        last_used: Mapping[str, float] = NEVER_USED,
    ) -> Plan:
        """What has to be stopped before ``target`` may run.

        Args:
          target: the model that is asked for.
          running: the models that take place now, in any order, whatever they do: starting and stopping ones too.
          busy: those of them that have requests in flight.
          last_used: when each was last used, in seconds of any clock; who isn't in it was never used.

        Raises:
          PlanRefused: a pinned model would have to go.
          UnknownModel: the planner doesn't know ``target``.
        """
        ...


def refuse_if_pinned(target: str, evict: Iterable[str], pinned: Collection[str]) -> None:
    """Raise if one of those that are to go is pinned.

    Raises:
      PlanRefused: so it is.
    """
    held = tuple(name for name in evict if name in pinned)
    if held:
        names = ", ".join(map(repr, held))
        raise PlanRefused(
            f"{target!r} can't run beside {names}, which {'is' if len(held) == 1 else 'are'} pinned: "
            f"permit them together, unpin, or unload by hand",
            target=target,
            pinned=held,
        )


def check_name(what: str, name: object) -> str:
    """Return ``name`` if it is a string that isn't empty.

    Raises:
      TypeError: it is no string; the message calls it ``what``.
      ValueError: it is empty.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string, not {name!r}")
    if not name:
        raise ValueError(f"{what} is empty")
    return name


def check_names(what: str, names: object) -> tuple[str, ...]:
    """Return ``names`` as a tuple if it is an iterable of names, each there once.

    Raises:
      TypeError: it isn't; the message calls it ``what``.
      ValueError: a name is empty, or is there twice.
    """
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise TypeError(f"{what} must be names of models, as ('a', 'b'), not {names!r}")
    seen: dict[str, None] = {}
    for name in names:
        if check_name(f"a name in {what}", name) in seen:
            raise ValueError(f"{what}: {name!r} is named twice; leave one out")
        seen[name] = None
    return tuple(seen)
