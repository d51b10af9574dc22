"""The laws of the gate as a battery: :func:`check_gate` puts any implementation of the gate's face through them."""

from __future__ import annotations

import inspect
import math
import random
from typing import TYPE_CHECKING, Final

from trio_mlxgate.testing.backends import check_backend
from trio_mlxgate.testing.checking import only
from trio_mlxgate.testing.checks_of_cancelling import NATIVE_CHECKS
from trio_mlxgate.testing.checks_of_ends import END_CHECKS
from trio_mlxgate.testing.checks_of_options import OPTION_CHECKS as _OPTION_CHECKS
from trio_mlxgate.testing.checks_of_order import (
    a_bad_capacity_changes_nothing,
    a_fall_drains,
    a_raise_grants_as_many_as_fit,
    capacity_0_pauses,
    nobody_barges,
    the_better_priority_goes_first_and_equals_in_order,
)
from trio_mlxgate.testing.checks_of_slots import (
    a_cancel_after_the_grant_loses_nothing,
    a_slot_is_used_once,
    asking_twice_is_an_error_at_once,
    entering_is_a_checkpoint_and_leaving_is_none,
    max_wait_covers_the_queue_alone,
    one_run_at_a_time,
    the_bodys_exception_passes_bare,
    the_hold_budget_starts_at_the_grant,
    who_cancels_leaves_nothing_behind,
    who_is_cancelled_when_it_asks_never_enters,
)
from trio_mlxgate.testing.events import (
    Arrive,
    Cancel,
    Close,
    Drain,
    End,
    Event,
    LawBroken,
    Options,
    SetCapacity,
    Settle,
    Sleep,
    Tick,
)
from trio_mlxgate.testing.harness import harness
from trio_mlxgate.testing.play import play

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from trio_mlxgate.dialects import Dialect
    from trio_mlxgate.testing.backends import Backend
    from trio_mlxgate.testing.checking import Check, GateFactory
    from trio_mlxgate.testing.harness import Harness

CHECKS: Final[tuple[Check, ...]] = (
    entering_is_a_checkpoint_and_leaving_is_none,
    asking_twice_is_an_error_at_once,
    a_slot_is_used_once,
    a_raise_grants_as_many_as_fit,
    a_fall_drains,
    capacity_0_pauses,
    a_bad_capacity_changes_nothing,
    the_better_priority_goes_first_and_equals_in_order,
    nobody_barges,
    who_is_cancelled_when_it_asks_never_enters,
    a_cancel_after_the_grant_loses_nothing,
    the_bodys_exception_passes_bare,
    the_hold_budget_starts_at_the_grant,
    max_wait_covers_the_queue_alone,
    one_run_at_a_time,
    who_cancels_leaves_nothing_behind,
)
"""The single checks of :func:`check_gate`; each takes the factory and the harness, and its docstring names its law."""

OPTION_CHECKS: Final = _OPTION_CHECKS | END_CHECKS
"""The single checks of each option."""

OPTIONS: Final = frozenset(OPTION_CHECKS)
"""The options of the gate that :func:`check_gate` knows: ``aging``, ``reserved``, ``max_waiting``, ``supersede``,
``outer_deadline``, ``strict`` (which is: slots of tasks that have ended are taken back), ``positions`` and ``progress``
for what waiting calls are told, ``ends`` for ``aclose()``, ``drain()`` and ``wait_idle()``, and ``limiter``."""


def check_gate(
    factory: GateFactory,
    *,
    options: Collection[str] = (),
    rounds: int = 300,
    seed: int = 0,
    backend: Backend = "trio",
    dialect: Dialect | None = None,
) -> None:
    """Put an implementation of the gate through the laws. Not to be called inside a run; it starts its own.

    First come the checks of :data:`CHECKS`, one law each; then ``rounds`` random sequences of events, in which
    calls arrive, end, fail and are cancelled and the capacity changes, at every point of the scheduler's work. The
    sequences are played with random combinations of the options.

    Args:
      factory: makes a gate of a given capacity; called anew for each check and each sequence.
      options: the names of the options that the implementation has, of :data:`OPTIONS`. Those that belong to a gate are
        given to ``factory``, those that belong to a call to ``slot()``, as keyword arguments.
      rounds: how many random sequences are played.
      seed: where the sequences start from. (trio shuffles its tasks by itself, so that there even one seed is never
        quite the same run twice.)
      backend: what it all runs on, of :data:`BACKENDS`. Under asyncio there are more checks, of ``Task.cancel()`` and
        the limits of time that asyncio has itself, and the sequences cancel by ``Task.cancel()`` too.
      dialect: the exceptions that the gate has to raise; None: trio's own on trio, else those of anyio and Python
        (``TimeoutError``).

    Raises:
      ValueError, RuntimeError, ImportError: there is no such option or backend, here and now.
      LawBroken: the message names the law and, if a random sequence broke it, that sequence, shortened.
    """
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise ValueError(f"there is no option {unknown[0]!r}; there are {', '.join(sorted(OPTIONS))}")
    check_backend(backend)
    on = harness(backend, dialect)
    native = NATIVE_CHECKS if on.is_asyncio else ()
    for check in (*CHECKS, *(check for option in sorted(options) for check in OPTION_CHECKS[option]), *native):
        _put_through(check, factory, on)
    source = random.Random(seed)
    for number in range(rounds):
        capacity = source.randrange(4)
        chosen = random_options(source, options)
        known = {name: name in options for name in ("supersede", "ends", "strict")}
        events = random_events(source, **known)
        error = _failure(factory, capacity, events, chosen, on)
        if error is not None:
            events, error = _shrink(factory, capacity, events, chosen, on, error)
            listing = "".join(f"    {event!r},\n" for event in events)
            raise LawBroken(
                f"{_said(error)}\n(round {number} of seed {seed}) "
                f"play(factory, {capacity}, [\n{listing}], {chosen!r}, {on!r})"
            ) from error


def random_options(source: random.Random, options: Collection[str]) -> Options:
    """A random combination of those of the ``options`` that a gate is made with."""
    aging = source.choice((None, 0.5, 3.0, 1000.0))
    reserved = source.choice((None, {0: 1}, {-3: 1, 50: 1}, {50: 2}))
    max_waiting = source.choice((None, 0, 2, {100: 1}, {0: 3, 50: 1}))
    return Options(
        aging=aging if "aging" in options else None,
        reserved=reserved if "reserved" in options else None,
        max_waiting=max_waiting if "max_waiting" in options else None,
        positions="positions" in options,
        strict="strict" in options and source.random() < 0.5,
    )


def random_events(
    source: random.Random, *, supersede: bool = False, ends: bool = False, strict: bool = False
) -> list[Event]:
    """A random sequence of up to some 100 events for :func:`trio_mlxgate.testing.play.play`."""
    limits = (math.inf, math.inf, math.inf, 0.0, 0.5, 2.0)
    priorities = (0, 0, 100, 100, 50, -3)

    def index() -> int:
        return source.randrange(30)

    def key() -> str | None:
        return source.choice((None, None, "a", "b")) if supersede else None

    makers: tuple[Callable[[], Event], ...] = (
        lambda: Arrive(source.choice(priorities), source.choice(limits), source.choice(limits), supersede=key()),
        lambda: Arrive(source.choice(priorities), supersede=key()),
        lambda: Arrive(source.choice(priorities), nowait=True, hold_timeout=source.choice(limits), supersede=key()),
        lambda: End(index(), source.random() < 0.5),
        lambda: Cancel(index(), source.random() < 0.5),
        lambda: SetCapacity(source.randrange(5)),
        Tick,
        Tick,
        Settle,
        lambda: Sleep(source.choice((0.25, 0.5, 1.0, 400.0))),
    )
    events: list[Event] = []
    for _ in range(source.randint(1, 60)):
        if source.random() < 0.1:
            # A waiter that is cancelled just when it is granted a slot: too rare to be left to single events.
            ticks = [Tick()] * source.choice((1, 1, 0, 2, 3))
            events += [
                Arrive(0),
                Settle(),
                Arrive(0),
                Settle(),
                End(index()),
                *ticks,
                Cancel(source.randrange(6), source.random() < 0.5),
            ]
        else:
            events.append(source.choice(makers)())
        if strict and source.random() < 0.03:
            events += [Arrive(source.choice(priorities), forgets=True), *[Tick()] * source.randrange(3), End(index())]
    if ends and events and source.random() < 0.4:
        # Late, for not much happens afterwards.
        where = source.randrange(len(events) // 2, len(events))
        events[where:where] = [source.choice((Close(), Drain()))]
        if source.random() < 0.3:
            events.append(Close())
    return events


def _failure(
    factory: GateFactory, capacity: int, events: list[Event], options: Options, on: Harness
) -> Exception | None:
    try:
        play(factory, capacity, events, options, on)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the gate's, and is told with its events
        return error
    return None


def _shrink(
    factory: GateFactory, capacity: int, events: list[Event], options: Options, on: Harness, error: Exception
) -> tuple[list[Event], Exception]:
    """Leave out events while it still fails: first large pieces, then single ones."""
    size = len(events) // 2
    while size:
        start = 0
        while start < len(events):
            shorter = events[:start] + events[start + size :]
            # trio shuffles the tasks of a pass, so that a failure may need more than one attempt to show again.
            found = next(filter(None, (_failure(factory, capacity, shorter, options, on) for _ in range(4))), None)
            if found is None:
                start += size
            else:
                events, error = shorter, found
        size //= 2
    return events, error


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, LawBroken) else f"a call failed by itself: {error!r}"


def _put_through(check: Check, factory: GateFactory, on: Harness) -> None:
    law = (inspect.getdoc(check) or "").splitlines()[0]
    try:
        check(factory, on)
    except Exception as error:
        found = only(error)
        raise LawBroken(f"{law} [{check.__name__}]: {found if str(found) else repr(found)}") from error
