"""The gate as its users see it, whatever library runs their tasks; ``driver.py`` is what it is built on.

Exceptions are named here as trio and anyio both do: ``WouldBlock``, ``ClosedResourceError``, ``BrokenResourceError``,
``BusyResourceError`` are those of the gate's library; TooSlowError is trio's, where anyio has Python's TimeoutError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from trio.lowlevel import enable_ki_protection

from trio_mlxgate.core.admission import Admission
from trio_mlxgate.core.checks import check_bool, check_capacity, check_seconds
from trio_mlxgate.core.ticket import CLOSED
from trio_mlxgate.detached_slots import DetachedSlot
from trio_mlxgate.driver import Driver
from trio_mlxgate.instrumentation import details
from trio_mlxgate.instrumentation.logging import LoggingHook
from trio_mlxgate.portal import Portal
from trio_mlxgate.priority import DEFAULT_PRIORITY, Priority
from trio_mlxgate.progress import Progress
from trio_mlxgate.slots import AsyncSlot, Slot, SyncSlot

if TYPE_CHECKING:
    from collections.abc import Hashable

    from trio_mlxgate.core.statistics import GateStatistics
    from trio_mlxgate.instrumentation import Hook
    from trio_mlxgate.outer_deadline import OuterDeadline

DEFAULT_HOOKS: Final[tuple[Hook, ...]] = (LoggingHook(),)
"""What a gate is given that names no hooks."""


class BaseGate(Driver):
    """A capacity limiter with priorities: at most ``capacity`` bodies run, and the best waiter goes next.

    What :class:`trio_mlxgate.Gate` and :class:`trio_mlxgate.anyio.Gate` share, which is all but their exceptions and
    where they run. For annotations of code that takes either.

    Strict priority: a waiter is passed by every later one of a better (lower) priority, and by nobody
    else; within a priority the order is first come, first served. What runs is never interrupted by who
    waits. Make one gate for each endpoint and send every call to that endpoint through it.

    A gate may be made anywhere, at module level too: it binds to the run (of trio, or of an event loop) that first uses
    it, and when that has ended to the next, where it starts empty.
    """

    def __init__(
        self,
        capacity: int = 1,
        *,
        name: str = "mlx",
        aging: float | None = None,
        reserved: Mapping[int, int] | Mapping[Priority, int] | None = None,
        max_waiting: int | Mapping[int, int] | Mapping[Priority, int] | None = None,
        outer_deadline: OuterDeadline = "warn",
        starvation_warning: float = 300.0,
        strict: bool = False,
        hooks: Iterable[Hook] = DEFAULT_HOOKS,
    ) -> None:
        """Make a gate.

        Args:
          capacity: how many slots there are, an int >= 0; 0 lets nobody in until it is raised.
          name: what log lines and errors call this gate.
          aging: seconds, > 0 and finite; None is strict priority. Else who waits gains on those who come later: the
            order is that of ``arrival + aging * priority / 100``, so that a BACKGROUND waiter is passed only by
            FOREGROUND ones that came less than ``aging`` seconds after it. Of two equal ranks the earlier goes first.
          reserved: slots to keep free for better priorities, as ``{Priority.FOREGROUND: 1}``. For each key ``q``, the
            priorities worse than ``q`` are granted one more slot only while they hold fewer than ``max(1, capacity -
            sum of reserved[r] for r <= q)``; a waiter whom this holds back is passed over by whoever is eligible, for
            as long as it lasts. At capacity 1 it has no effect, and it protects nobody from better priorities.
          max_waiting: how many calls may wait, in all, or for each key of a mapping calls of that priority and worse
            ones; one more is refused at once with :class:`QueueFull`. Who need not wait is never refused.
          outer_deadline: what is done about a finite deadline of the caller around the wait: ``"warn"`` (an
            :class:`OuterDeadlineWarning`, once for each place in the code), ``"raise"`` (RuntimeError) or ``"allow"``.
            ``"raise"`` looks at every call, ``"warn"`` at the first 100 of a run, at the next 100 whenever a wait was
            cancelled, and at every 67th.
          starvation_warning: a waiter is reported when it has waited for so many seconds, while it waits.
          strict: whether the gate breaks when a task that owns a slot ends without giving it back: then all who wait,
            and all who come, get BrokenResourceError. Else that is reported, and the next waiter gets the slot.
          hooks: who is told of each step (see :mod:`trio_mlxgate.instrumentation`); default: logging.

        Raises:
          TypeError, ValueError: an argument isn't as described.
        """
        admission: Admission[Slot] = Admission(
            check_capacity(capacity),
            starvation_warning=check_seconds("starvation_warning", starvation_warning),
            aging=aging,
            reserved=reserved,
            max_waiting=max_waiting,
        )
        self._max_waiting: int | Mapping[Any, int] | None = max_waiting
        if isinstance(max_waiting, Mapping):
            self._max_waiting = dict(max_waiting)
        super().__init__(
            name,
            admission,
            starvation_warning=starvation_warning,
            outer_deadline=outer_deadline,
            strict=check_bool("strict", strict),
            hooks=hooks,
        )

    def __repr__(self) -> str:
        a = self._admission
        return f"<Gate {self.name!r}: {a.in_flight}/{a.capacity} in flight, {a.tasks_waiting} waiting>"

    # ---- asking ----

    def slot(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
    ) -> AsyncSlot:
        """A slot to be used once, with ``async with``: held while the body runs.

        Entering is always a checkpoint, leaving never is. If entering is cancelled nothing is held.
        Nothing can interrupt between the grant and the body: a cancellation that comes after the grant
        is seen at the body's first checkpoint.

        Args:
          priority: the lower goes first; :attr:`Priority.BACKGROUND` unless named.
          hold_timeout: how many seconds the body may take, from the grant on. When they are over the
            body is cancelled and leaving raises TooSlowError, of anyio TimeoutError. Waiting uses none of it.
          max_wait: how many seconds the call may stand in the queue. 0: only if it need not wait.
          supersede: any hashable key; this call takes the place of the waiter that has the same key, who gets
            :class:`Superseded`. Of the same priority: its very place in the queue (but ``max_wait`` and
            :attr:`Slot.waited` are this call's own); of another: this call queues last in its own class. Who was
            granted a slot is left alone, and a call that is refused or cancelled when it asks supersedes nobody.
          outer_deadline: as for the gate, for this call; None: as the gate says.

        Raises:
          TypeError, ValueError: at once, if an argument isn't as described.
          WaitTooLong: on entering, ``max_wait`` ended.
          QueueFull: on entering, the call must wait and ``max_waiting`` calls do already.
          Superseded: on entering, a newer call came with the same key while this one was waiting.
          RuntimeError: on entering, if this task already owns a slot of this gate, which would wait for
            itself, or if its own open responses hold all slots; if the slot was used before; or if the
            gate belongs to another run that is alive; or, with ``outer_deadline="raise"``, if there is one.
          ClosedResourceError: on entering, the gate was closed, before or meanwhile.
          BrokenResourceError: on entering, the gate is ``strict``, and a slot of it was lost.
          TooSlowError, TimeoutError: on leaving, ``hold_timeout`` ended.
        """
        return AsyncSlot(self, priority, hold_timeout, max_wait, supersede, outer_deadline)

    def slot_nowait(
        self, priority: int = DEFAULT_PRIORITY, *, hold_timeout: float = math.inf, supersede: Hashable | None = None
    ) -> SyncSlot:
        """A slot to be used once, with a plain ``with``: :meth:`slot` for those who will not wait.

        Neither entering nor leaving is a checkpoint. Entering raises WouldBlock if no slot is
        free, if somebody waits for one whom this call would pass, or if the slots that are free are reserved for
        better priorities.
        """
        return SyncSlot(self, priority, hold_timeout, 0.0, supersede, "allow")

    @enable_ki_protection
    async def acquire_detached(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
        tied: bool = False,
    ) -> DetachedSlot:
        """Wait for a slot that belongs to no task: whoever has it gives it back with ``release()``.

        For things that outlive a block, such as an open response. Always a checkpoint; if it is cancelled
        nothing is held. ``hold_timeout`` interrupts nobody here: it sets :attr:`Slot.deadline`, for the
        holder to keep, and a slot kept beyond it is reported.

        Args:
          priority, hold_timeout, max_wait, supersede, outer_deadline: as for :meth:`slot`.
          tied: only the asking task will give it back (or the one that last called ``adopt()``). If all slots
            of the gate are so tied to a task that asks for one more, in whichever way, it would wait for itself.

        Raises:
          WaitTooLong, QueueFull, Superseded: as for :meth:`slot`.
          TypeError, ValueError, RuntimeError: as for :meth:`slot`.
        """
        slot = DetachedSlot(self, priority, hold_timeout, max_wait, supersede, outer_deadline, tied)
        await slot._acquire()
        return slot

    @enable_ki_protection
    def acquire_detached_nowait(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        hold_timeout: float = math.inf,
        supersede: Hashable | None = None,
        tied: bool = False,
    ) -> DetachedSlot:
        """:meth:`acquire_detached` for those who will not wait; never a checkpoint, but asked for in a task.

        Raises:
          WouldBlock: as :meth:`slot_nowait`.
          TypeError, ValueError, RuntimeError: as for :meth:`slot`.
        """
        slot = DetachedSlot(self, priority, hold_timeout, 0.0, supersede, "allow", tied)
        slot._acquire_nowait()
        return slot

    if not TYPE_CHECKING:

        async def __aenter__(self):
            """Say how it is done. Never a checkpoint."""
            raise TypeError("a gate is entered slot by slot: 'async with gate.slot():'")

        async def __aexit__(self, *_):
            """Never called. Never a checkpoint."""

        def __getattr__(self, name):
            """Say how it is done, to who comes from another lock or limiter."""
            hint = ""
            if name in ("acquire", "release", "acquire_nowait", "locked"):
                hint = (
                    "; a gate is entered with 'async with gate.slot():', or where no block fits: "
                    "'slot = await gate.acquire_detached()' and 'slot.release()'"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def owned_slot(self) -> Slot | None:
        """The slot of this gate that the current task owns, or None. Must be called inside a run."""
        if not self._is_at_home():
            self._bind()  # says what is wrong
        return self._owners.get(self._runtime.current_task())

    # ---- other runs ----

    @enable_ki_protection
    def portal(self) -> Portal:
        """The door of this gate for the other event loops and trio runs of the program; in one run always the same.

        To be asked for in the run that is to own the gate, and handed to the others; see :class:`Portal`.

        Raises:
          RuntimeError: this is not called inside a run, or the gate belongs to another one that is alive.
        """
        self._bind()
        if self._portal is None:
            self._portal = Portal(self)
        return self._portal

    # ---- looking and steering ----

    def progress(self, slot: Slot) -> Progress:
        """Follow a call of this gate while it waits: ``async for outlook in gate.progress(slot)``.

        To be followed by another task than the one that waits, from before it asks, or at any time later. Each
        item is an :class:`Outlook`; the loop ends when the call waits no more. One walk through the queue serves all
        who watch, at most once in a scheduler pass; while nobody watches there is none.

        A slot that is never asked for is waited for until the watcher is cancelled: a task must not follow its own.

        Raises:
          TypeError, ValueError: ``slot`` is no slot, or not one of this gate's.
        """
        if not isinstance(slot, Slot):
            raise TypeError(f"progress() follows what slot() returned, not {slot!r}")
        if slot.gate is not self:
            raise ValueError(f"{slot!r} is not a slot of gate {self.name!r}")
        return Progress(slot)

    @property
    def capacity(self) -> int:
        """How many slots there are. Settable at any time from the gate's run, and when no run uses it.

        A raise lets waiters in at once, as many as fit; a fall lets the holders finish; 0 lets nobody in.
        Anything but an int >= 0 raises TypeError or ValueError and changes nothing.
        """
        return self._admission.capacity

    @capacity.setter
    @enable_ki_protection
    def capacity(self, capacity: int) -> None:
        check_capacity(capacity)
        if self._is_in_a_run():
            self._bind()
        else:
            self._check_run()
        before = self._admission.capacity
        granted = self._admission.set_capacity(capacity, self._clock())
        self._wake(granted)
        if capacity != before:
            self._tell_of_gate(details.CapacityChanged, before=before)
        self._tell_granted(granted)

    @property
    def aging(self) -> float | None:
        """As the gate was made; it can't be changed."""
        return self._admission.aging

    @property
    def reserved(self) -> Mapping[int, int]:
        """As the gate was made; it can't be changed."""
        return MappingProxyType(self._admission.reserved)

    @property
    def max_waiting(self) -> int | Mapping[int, int] | None:
        """As the gate was made; it can't be changed."""
        return self._max_waiting

    @enable_ki_protection
    def statistics(self) -> GateStatistics:
        """A snapshot, exact in every scheduler step; never waits. To be asked in the gate's run, or outside any."""
        if not self._is_at_home() and self._is_in_a_run() and self._run_is_over():
            self._bind()
        return self._admission.statistics(self._clock())

    # ---- coming to rest ----

    @enable_ki_protection
    async def aclose(self) -> None:
        """Let nobody in any more: who waits, and who comes, gets ClosedResourceError.

        Whoever holds a slot keeps it and finishes; :meth:`wait_idle` waits for that. Always a checkpoint; if it is
        cancelled the gate is closed all the same. The second time it does nothing else. It holds for this run:
        in the next one the gate is open.
        """
        self._bind()
        self._end(CLOSED)
        await self._runtime.checkpoint()

    @enable_ki_protection
    async def drain(self) -> None:
        """Refuse newcomers with ClosedResourceError, serve who waits, and return when the gate is idle.

        Always a checkpoint. If it is cancelled newcomers go on being refused, and who waits goes on waiting: then
        :meth:`aclose` sends them away. At capacity 0 nobody who waits is served, so that it waits until that is raised.

        Raises:
          RuntimeError: the current task holds a slot itself, for which it would wait.
        """
        self._bind()
        self._idleness.check()
        self._begin_to_drain()
        await self._idleness.wait()

    @enable_ki_protection
    async def wait_idle(self) -> None:
        """Wait until, at some moment, no slot is held and nobody waits; newcomers are let in meanwhile.

        Always a checkpoint.

        Raises:
          RuntimeError: the current task holds a slot itself, for which it would wait.
        """
        self._bind()
        self._idleness.check()
        await self._idleness.wait()
