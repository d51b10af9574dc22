"""The life of a model's server, as a table: what may follow on what. All else is a mistake, and raises."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class ModelState(enum.Enum):
    """Where a model's server is in its life."""

    STOPPED = "stopped"
    """It has no process, and nobody wants one."""

    STARTING = "starting"
    """It is to become ready. It has a process, or waits a moment until it gets the next one."""

    READY = "ready"
    """Its process answers."""

    STOPPING = "stopping"
    """Its process is told to go, and may still be there."""

    FAILED = "failed"
    """It did not come up, or crashed too often. It has no process that serves, and gets none until it is asked for."""

    SHUT_DOWN = "shut down"
    """It has no process, unless one hangs in the system, and never gets one again."""

    @property
    def may_hold_memory(self) -> bool:
        """Whether there may be a process now, with all that it has loaded."""
        return self in _HOLDS


class ModelEvent(enum.Enum):
    """What may happen to a model's server."""

    START = "start"
    """Somebody wants it."""

    ANSWER = "answer"
    """Its check was answered as it should be."""

    CRASH = "crash"
    """Its process ended by itself, or had to be ended, and there will be another one."""

    GIVE_UP = "give up"
    """Its process ended by itself, or had to be ended, and there will be no other one unless somebody asks."""

    STOP = "stop"
    """Somebody wants it to go; of one that has failed: that this be forgotten."""

    EXIT = "exit"
    """The process that was told to go has gone."""

    SHUT_DOWN = "shut down"
    """The end. It comes only when no process is left."""


_HOLDS: Final = frozenset({ModelState.STARTING, ModelState.READY, ModelState.STOPPING})


TRANSITIONS: Final[Mapping[tuple[ModelState, ModelEvent], ModelState]] = MappingProxyType(
    {
        (ModelState.STOPPED, ModelEvent.START): ModelState.STARTING,
        (ModelState.STOPPED, ModelEvent.SHUT_DOWN): ModelState.SHUT_DOWN,
        (ModelState.STARTING, ModelEvent.ANSWER): ModelState.READY,
        (ModelState.STARTING, ModelEvent.CRASH): ModelState.STARTING,
        (ModelState.STARTING, ModelEvent.GIVE_UP): ModelState.FAILED,
        (ModelState.STARTING, ModelEvent.STOP): ModelState.STOPPING,
        (ModelState.READY, ModelEvent.CRASH): ModelState.STARTING,
        (ModelState.READY, ModelEvent.GIVE_UP): ModelState.FAILED,
        (ModelState.READY, ModelEvent.STOP): ModelState.STOPPING,
        (ModelState.STOPPING, ModelEvent.EXIT): ModelState.STOPPED,
        (ModelState.FAILED, ModelEvent.START): ModelState.STARTING,
        (ModelState.FAILED, ModelEvent.STOP): ModelState.STOPPED,
        (ModelState.FAILED, ModelEvent.SHUT_DOWN): ModelState.SHUT_DOWN,
    }
)
"""What follows. What isn't here can't happen: a process that is there must go before it is shut down, for one."""


class IllegalTransition(RuntimeError):
    """An event that can't happen in this state: a mistake of the program."""

    def __init__(self, state: ModelState, event: ModelEvent) -> None:
        possible = ", ".join(repr(known.value) for at, known in TRANSITIONS if at is state) or "nothing"
        super().__init__(f"{event.value!r} can't happen to a server that is {state.value}; what can: {possible}")
        self.state = state
        """Where it was, and is."""
        self.event = event
        """What can't happen there."""


def after(state: ModelState, event: ModelEvent) -> ModelState:
    """The state that follows.

    Raises:
      IllegalTransition: none does.
    """
    following = TRANSITIONS.get((state, event))
    if following is None:
        raise IllegalTransition(state, event)
    return following


@attrs.frozen(kw_only=True)
class StateChange:
    """A step in the life of a model's server."""

    model: str
    """Its name."""

    before: ModelState
    """Where it was."""

    event: ModelEvent
    """What happened."""

    after: ModelState
    """Where it is now; the same as before when a start is tried again."""

    at: float
    """When, by the clock of whoever drives it."""

    reason: str = ""
    """Why, for people; empty where the event says it all."""

    exit_status: int | None = None
    """Of a process that ended by itself: its exit status, negative for a signal; None: it is not known."""


class Lifecycle:
    """The state of one model's server."""

    __slots__ = ("_model", "_state")

    def __init__(self, model: str) -> None:
        self._model = model
        self._state = ModelState.STOPPED

    @property
    def state(self) -> ModelState:
        """Where it is."""
        return self._state

    def apply(self, event: ModelEvent, now: float, reason: str = "", *, exit_status: int | None = None) -> StateChange:
        """Take a step.

        Raises:
          IllegalTransition: the event can't happen here; nothing has changed.
        """
        before = self._state
        self._state = after(before, event)
        return StateChange(
            model=self._model,
            before=before,
            event=event,
            after=self._state,
            at=now,
            reason=reason,
            exit_status=exit_status,
        )


def diagram() -> str:
    """The table as text, one arrow a line: the body of a state diagram of Mermaid, too."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    width = max(len(state.value) for state in ModelState)
    yield f"{'[*]':{width}} --> {ModelState.STOPPED.value}"
    for (state, event), following in TRANSITIONS.items():
        yield f"{state.value:{width}} --> {following.value:{width}} : {event.value}"
    yield f"{ModelState.SHUT_DOWN.value:{width}} --> [*]"
