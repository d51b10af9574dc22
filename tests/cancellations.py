"""Cancels calls to gates at random moments and looks for what got lost: ``python -m tests.cancellations``.

Rounds of some hundred calls each go through the real driver, on trio's virtual clock, to gates with random options:
every other one is new, the rest are the same few from the first round to the last. Calls are cancelled before they ask,
while they ask or wait, just when they are granted a slot and before they know it, and in the body; by their scope,
together with all others of the round, or by a deadline. Only what was really cancelled is counted: where the task saw
trio.Cancelled.

After each round every slot must be there and to be had, the gate's statistics must add up to what the calls themselves
saw, and nothing may be left in the gate. Memory (blocks of the allocator, objects of the collector, resident size) is
measured along the way, and must not grow after a warm-up. Exit status 1, and what was lost, if it is not so.
"""

from __future__ import annotations

import argparse
import collections
import gc
import logging
import math
import random
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import outcome
import trio
from trio.testing import MockClock

from trio_mlxgate import Gate, GateRefused, OuterDeadlineWarning, QueueFull, Superseded, WaitTooLong
from trio_mlxgate.core.ticket import TicketState
from trio_mlxgate.detached_slots import DetachedSlot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trio_mlxgate import Slot
    from trio_mlxgate.instrumentation import Details

PRIORITIES: Final = (-5, 0, 50, 100, 100, 100)
KEPT_GATES: Final = 6
CALLS_IN_A_ROUND: Final = 200
A_ROUND_TAKES_TOO_LONG: Final = 1e6
"""Virtual seconds after which a round hangs."""
REPORT_EVERY: Final = 100_000
MEASURES: Final = 10
"""How often memory is measured, over the whole run."""
WARM_UP_MEASURES: Final = 2
"""How many of them are let pass before memory has to stay what it is."""
ALLOWED: Final = 2_000
"""By how many blocks, and objects, two measures may differ."""
CANCELLATIONS_PER_BLOCK: Final = 1_000
"""After how many cancellations one more is allowed: far fewer than a leak at each cancellation of one kind would be."""
ALLOWED_BYTES: Final = 16 * 2**20
"""By how much the resident size may grow, which the platform's allocator moves in steps."""

BEFORE_ASKING: Final = "before asking"
ASKING: Final = "asking"
WAITING: Final = "waiting"
UNSEEN: Final = "asking or waiting for acquire_detached"
JUST_GRANTED: Final = "just granted"
IN_THE_BODY: Final = "in the body"
WATCHING: Final = "watching the progress of another call"


class Lost(Exception):
    """Something is not there any more, or still there: a slot, a call, memory."""


class Silent:
    """A hook that wants to hear everything and does nothing with it."""

    def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
        """Whatever it is."""
        return lambda: True

    def __call__(self, details: Details) -> None:
        """Do nothing."""


@attrs.define
class Fates:
    """What the calls to one gate saw themselves."""

    asked: int = 0
    admitted: int = 0
    cancelled: int = 0
    refused: collections.Counter[str] = attrs.field(factory=collections.Counter)
    mistakes: int = 0
    """Calls that got an error of a program, which the gate counts nowhere."""


@attrs.define(eq=False)
class Call:
    """One call, whatever becomes of it."""

    scope: trio.CancelScope
    slot: Slot | None = None
    """The slot that it asks for now, where that is to be seen from outside."""
    asking: bool = False
    """It has asked, and was not yet granted anything."""
    hit_at_grant: bool = False
    """It was cancelled between the grant of its slot and its body."""

    @property
    def just_granted(self) -> bool:
        """It was granted its slot, and its task has not run since."""
        return self.asking and self.slot is not None and self.slot.state is TicketState.GRANTED

    def cancel(self) -> None:
        """Cancel it, and note whether that is just when it was granted its slot."""
        if not self.scope.cancel_called:
            self.hit_at_grant = self.just_granted
            self.scope.cancel()


def random_options(draw: random.Random) -> dict[str, Any]:
    """Options of a gate."""
    hooks: tuple[dict[str, Any], ...] = ({}, {"hooks": ()}, {"hooks": (Silent(),)})
    return {
        "aging": draw.choice((None, None, 1.0, 10.0)),
        "reserved": draw.choice((None, None, {0: 1}, {-5: 1, 0: 1, 50: 1}, {0: 3})),
        "max_waiting": draw.choice((None, None, 5, 20, {0: 20, 100: 8})),
        "outer_deadline": draw.choice(("allow", "allow", "warn", "raise")),
        "starvation_warning": draw.choice((2.0, math.inf)),
        **draw.choice(hooks),
    }


class Traffic:
    """One gate, and the rounds that it goes through."""

    def __init__(self, draw: random.Random, cancelled: collections.Counter[str]) -> None:
        self.draw = draw
        self.options = random_options(draw)
        self.gate = Gate(draw.randrange(1, 5), name="random", **self.options)
        self.fates = Fates()
        self.cancelled = cancelled
        # What can be cancelled. A dict for its order: that of a set would depend on addresses.
        self.calls: dict[Call, None] = {}

    async def round(self) -> None:
        """Some hundred calls, and the look at what they left. Always a checkpoint.

        Raises:
          Lost: something was lost.
        """
        # The guard outlives an error of the round, which cancels all: who can't be cancelled would hang then too.
        over = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.guard, over, nursery.cancel_scope)
            try:
                await self.traffic()
            finally:
                over.cancel()
        self.check_rest()
        await self.check_slots()

    async def guard(self, over: trio.CancelScope, everybody: trio.CancelScope) -> None:
        """End the round, and say so, if it hangs. Always a checkpoint.

        Raises:
          Lost: it did.
        """
        hung = None
        with over:
            await trio.sleep(A_ROUND_TAKES_TOO_LONG)
            slots = [call.slot for call in self.calls if call.slot is not None]
            hung = Lost(f"calls wait for ever: {slots}, {self.gate!r}")
            everybody.cancel()
            while True:  # since who is woken, or cancelled, lets others in, who may not be woken either
                self.wake_the_forgotten()
                await trio.sleep(1)
        if hung is not None:
            raise hung

    def wake_the_forgotten(self) -> None:
        """End the tasks that nobody would ever wake, nor cancel: the gate doesn't know that they sleep."""
        slots = {call.slot for call in self.calls if call.slot is not None} | set(self.gate._admission._held)
        for slot in slots:
            # The state alone doesn't tell it: a task may sleep elsewhere with a slot that it was granted.
            waiter = slot.waiter
            if waiter is None or waiter._abort_func != slot._abort:
                continue
            if slot.state is not TicketState.WAITING:
                trio.lowlevel.reschedule(waiter, outcome.Error(Lost(f"never woken: {slot!r}")))

    async def traffic(self) -> None:
        """The calls of a round. Always a checkpoint."""
        draw = self.draw
        harshness = draw.choice((1, 2, 4))
        async with trio.open_nursery() as nursery:
            for _ in range(CALLS_IN_A_ROUND):
                nursery.start_soon(self.call)
                if draw.random() < 0.05:
                    nursery.start_soon(self.watch)
                if draw.random() < 0.4:
                    await self.pause()
                if draw.random() < 0.03:
                    self.gate.capacity = draw.randrange(5)
                self.cancel_some(harshness)
            for _ in range(draw.randrange(30)):
                await self.pause()
                self.cancel_some(harshness)
            self.gate.capacity = draw.randrange(1, 5)
            if draw.random() < 0.5:
                nursery.cancel_scope.cancel()

    async def pause(self) -> None:
        """One scheduler pass, or a while. Always a checkpoint."""
        if self.draw.random() < 0.8:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(self.draw.choice((0.5, 1, 1, 10)))

    def cancel_some(self, most: int) -> None:
        """Cancel up to so many of the calls that are under way."""
        if self.calls:
            calls = list(self.calls)
            for _ in range(self.draw.randrange(most + 1)):
                self.draw.choice(calls).cancel()

    def cancel_who_was_let_in(self) -> None:
        """Cancel, in this same step, some of those whose slots are granted and whose tasks don't know it yet."""
        for call in list(self.calls):
            if call.just_granted and self.draw.random() < 0.3:
                call.cancel()

    async def call(self) -> None:
        """One call of a random kind, under a scope of its own. Always a checkpoint."""
        draw = self.draw
        # Whole seconds, as of max_wait and hold_timeout: so that much ends in the same moment.
        deadline = trio.current_time() // 1 + draw.randrange(1, 20) if draw.random() < 0.1 else math.inf
        call = Call(trio.CancelScope(deadline=deadline))
        self.calls[call] = None
        kind = draw.choice((self.owned, self.owned, self.owned, self.detached, self.detached, self.lent, self.nowait))
        with call.scope:
            try:
                if draw.random() < 0.3:
                    await trio.lowlevel.checkpoint()
                await kind(call)
            except trio.Cancelled as error:
                self.note(call, error)
                raise
            except Exception as error:  # noqa: BLE001 - what is not expected is raised again
                self.note(call, error)
            finally:
                del self.calls[call]
        self.cancel_who_was_let_in()
        await trio.lowlevel.checkpoint()

    def note(self, call: Call, error: BaseException) -> None:
        """Count what a call saw. Raises ``error`` if that is none that a call may see here."""
        fates = self.fates
        if isinstance(error, trio.Cancelled):
            if not call.asking:
                never = call.slot is None
                place = BEFORE_ASKING if never else JUST_GRANTED if call.hit_at_grant else IN_THE_BODY
            else:
                fates.cancelled += 1
                place = UNSEEN if call.slot is None else WAITING if call.slot.seq else ASKING
            self.cancelled[place] += 1
        elif isinstance(error, GateRefused | trio.WouldBlock):
            if not call.asking:
                raise error
            names: Mapping[type[Exception], str] = {
                QueueFull: "queue_full",
                Superseded: "superseded",
                WaitTooLong: "wait_too_long",
                trio.WouldBlock: "would_block",
            }
            fates.refused[names[type(error)]] += 1
        elif isinstance(error, OuterDeadlineWarning):
            # An error by the filter of warnings: where the call stood in the queue already it counts as cancelled.
            if call.slot is not None and call.slot.state is TicketState.CANCELLED:
                fates.cancelled += 1
            else:
                fates.mistakes += 1
        elif isinstance(error, RuntimeError) and str(error).startswith(("all slots of gate", __file__)):
            fates.mistakes += 1
        elif not isinstance(error, trio.TooSlowError) or call.asking:
            raise error

    def asks(self, call: Call, slot: Slot | None) -> None:
        """From here on what happens is the fate of a call to the gate."""
        call.slot, call.asking = slot, True
        self.fates.asked += 1

    def enters(self, call: Call, slot: Slot) -> None:
        """The call was granted its slot."""
        call.slot, call.asking = slot, False
        self.fates.admitted += 1

    async def body(self, slot: Slot) -> None:  # noqa: ASYNC910 - some bodies are none
        """What is done with a slot: nothing, some passes of the scheduler, or a while. A checkpoint at times."""
        draw = self.draw
        if slot.deadline < math.inf and draw.random() < 0.2:
            slot.deadline = trio.current_time() + draw.randrange(5)
        for _ in range(draw.choice((0, 1, 1, 2, 5))):
            await trio.lowlevel.checkpoint()
        if draw.random() < 0.3:
            await trio.sleep(draw.choice((1, 1, 2, 5)))

    def call_options(self) -> dict[str, Any]:
        """What all ways to ask take."""
        draw = self.draw
        return {
            "priority": draw.choice(PRIORITIES),
            "hold_timeout": draw.choice((math.inf, math.inf, 1, 3)),
            "supersede": draw.choice((None, None, None, "a", "b")),
        }

    def max_wait(self) -> float:
        """For how long a call may wait."""
        return self.draw.choice((math.inf, math.inf, math.inf, 0, 1, 5))

    async def owned(self, call: Call) -> None:
        """The slot of a task. Always a checkpoint."""
        slot = self.gate.slot(**self.call_options(), max_wait=self.max_wait())
        self.asks(call, slot)
        async with slot:
            self.enters(call, slot)
            await self.body(slot)

    async def nowait(self, call: Call) -> None:  # noqa: ASYNC910 - as it says
        """A slot or nothing. A checkpoint at times."""
        slot = self.gate.slot_nowait(**self.call_options())
        self.asks(call, slot)
        with slot:
            self.enters(call, slot)
            await self.body(slot)

    async def detached(self, call: Call) -> None:
        """A slot of an object, and sometimes another one. Always a checkpoint."""
        slot = await self.acquire(call, max_wait=self.max_wait())
        try:
            await self.body(slot)
            if self.draw.random() < 0.2:
                # With a limit, since two that each hold one would else wait for each other.
                (await self.acquire(call, max_wait=5)).release()
        finally:
            slot.release()

    async def acquire(self, call: Call, *, max_wait: float) -> DetachedSlot:
        """What acquire_detached returns, by way of it or as it makes it. Always a checkpoint."""
        options, tied = self.call_options(), self.draw.random() < 0.5
        # A warning has to be told by the slot, which acquire_detached shows only when it is granted.
        if self.draw.random() < 0.5 and call.scope.deadline == math.inf:
            self.asks(call, None)
            slot = await self.gate.acquire_detached(**options, max_wait=max_wait, tied=tied)
        else:
            slot = DetachedSlot(self.gate, **options, max_wait=max_wait, outer_deadline=None, tied=tied)
            self.asks(call, slot)
            await slot._acquire()
        self.enters(call, slot)
        return slot

    async def lent(self, call: Call) -> None:
        """The slot of a task, with a loan that ends before the block or after it. Always a checkpoint."""
        slot = self.gate.slot(**self.call_options(), max_wait=self.max_wait())
        self.asks(call, slot)
        loan = None
        try:
            async with slot:
                self.enters(call, slot)
                loan = slot.lend("a test", hold_timeout=self.draw.choice((math.inf, 2)))
                await self.body(slot)
                if self.draw.random() < 0.5:
                    loan.release()
                    loan = None
        finally:
            if loan is not None:
                loan.release()

    async def watch(self) -> None:
        """Follow some call for a while, under a scope of its own. Always a checkpoint."""
        watch = Call(trio.CancelScope())
        followed = [call.slot for call in self.calls if call.slot is not None]
        if followed:
            self.calls[watch] = None
            with watch.scope:
                try:
                    async for _ in self.gate.progress(self.draw.choice(followed)):
                        if self.draw.random() < 0.2:
                            break
                except trio.Cancelled:
                    self.cancelled[WATCHING] += 1
                    raise
                finally:
                    del self.calls[watch]
        await trio.lowlevel.checkpoint()

    def check_rest(self) -> None:
        """Nobody is there any more, and nothing.

        Raises:
          Lost: something is not so.
        """
        seen = self.gate.statistics()
        if seen.in_flight or seen.tasks_waiting:
            raise Lost(f"slots are lost: no call is left, and the gate says {self.gate!r}")
        fates = self.fates
        mine = (fates.admitted, fates.cancelled, dict(fates.refused))
        its = (seen.admitted, seen.cancelled, dict(seen.rejected_by_reason))
        if mine != its:
            raise Lost(f"fates (admitted, cancelled, refused): the calls saw {mine}, the gate counted {its}")
        told = fates.admitted + fates.cancelled + fates.refused.total() + fates.mistakes
        if told != fates.asked:
            raise Lost(f"{fates.asked} calls asked, and {told} have a fate")
        left = leftovers(self.gate)
        if left:
            raise Lost(f"left in the gate, although no call is: {left}")

    async def check_slots(self) -> None:
        """As many slots can be had as the capacity says, and no more. Always a checkpoint.

        Raises:
          Lost: it is not so.
        """
        gate = self.gate
        slots = []
        try:
            for _ in range(gate.capacity):
                # The best priority, for which nothing is reserved.
                slots.append(await gate.acquire_detached(min(PRIORITIES), max_wait=0))  # noqa: PERF401 - to be counted
        except WaitTooLong:
            raise Lost(f"of {gate.capacity} slots only {len(slots)} can be had: {gate!r}") from None
        try:
            await gate.acquire_detached(min(PRIORITIES), max_wait=0)
        except WaitTooLong:
            pass
        else:
            raise Lost(f"{len(slots) + 1} slots can be had: {gate!r}")
        for slot in slots:
            slot.release()
        self.fates.asked += len(slots) + 1
        self.fates.admitted += len(slots)
        self.fates.refused["wait_too_long"] += 1


def leftovers(gate: Gate) -> dict[str, Any]:
    """What is in the gate's collections, by their names: nothing if no call is there."""
    admission: Any = gate._admission
    places: dict[str, Any] = {
        "queue": list(admission._line),
        "classes": admission._line._classes,
        "held": admission._held,
        "keys": admission._keys,
        "unreported": admission._unreported,
        "starving": admission._starving,
        "alarms": admission._alarms._entries or admission._alarms._index,
        "owners": gate._owners,
        "tied": gate._tied,
        "watchers": gate._board._watching,
    }
    heaps = [admission._line._priorities] if admission.aging is None else admission._line._heads
    places["heads"] = [heap._entries or heap._index for heap in heaps if heap._entries or heap._index]
    if admission._headroom is not None:
        places["headroom"] = [held for held in admission._headroom._held if held]
    return {name: content for name, content in places.items() if content}


@attrs.frozen
class Memory:
    """What the process uses while no call is under way."""

    cancellations: int
    blocks: int
    objects: int
    resident: int
    """In bytes; where the system doesn't tell, the most there ever was."""

    @classmethod
    def now(cls, cancellations: int) -> Memory:
        """Measure it."""
        gc.collect()
        try:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        except OSError:
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return cls(cancellations, sys.getallocatedblocks(), len(gc.get_objects()), resident)

    def check(self, first: Memory) -> None:
        """Compare with an earlier measure.

        Raises:
          Lost: memory has grown.
        """
        allowed = ALLOWED + (self.cancellations - first.cancellations) // CANCELLATIONS_PER_BLOCK
        for name, more, most in (
            ("blocks", self.blocks - first.blocks, allowed),
            ("objects", self.objects - first.objects, allowed),
            ("bytes of resident size", self.resident - first.resident, ALLOWED_BYTES),
        ):
            if more > most:
                since = self.cancellations - first.cancellations
                raise Lost(f"memory: {more} {name} more, after {since} cancellations; {most} would be allowed")


async def cancel_at_random(  # noqa: ASYNC910 - none if there is nothing to do
    number: int, seed: int, cancelled: collections.Counter[str], report: Callable[[str], None]
) -> None:
    """Go on until so many cancellations have happened, and count them by their places. A checkpoint if ``number`` > 0.

    Raises:
      Lost: something was lost; in ExceptionGroups, as nurseries have it.
    """
    draw = random.Random(seed)
    kept = [Traffic(draw, cancelled) for _ in range(KEPT_GATES)]
    measured: list[Memory] = []
    reported = 0
    begun = time.monotonic()
    rounds = 0
    while (done := cancelled.total()) < number:
        traffic = kept[rounds // 2 % KEPT_GATES] if rounds % 2 else Traffic(draw, cancelled)
        rounds += 1
        try:
            await traffic.round()
        except BaseException:
            report(f"round {rounds}, seed {seed}, after {done} cancellations: Gate({traffic.options})")
            raise
        if cancelled.total() * MEASURES // number > len(measured):
            await trio.sleep(A_ROUND_TAKES_TOO_LONG)  # for what the gates keep until their next alarm
            del traffic
            measured.append(now := Memory.now(cancelled.total()))
            report(f"memory: {now.blocks} blocks, {now.objects} objects, {now.resident / 2**20:.1f} MiB resident")
            if len(measured) > WARM_UP_MEASURES:
                now.check(measured[WARM_UP_MEASURES - 1])
        while cancelled.total() // REPORT_EVERY > reported:
            reported += 1
            report(f"{cancelled.total()} cancellations, {rounds} rounds, {time.monotonic() - begun:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    """Run it; the exit status."""
    what = (__doc__ or "").partition(":")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.cancellations", description=what)
    parser.add_argument("--cancellations", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of what is done; trio's order of tasks has none")
    options = parser.parse_args(arguments)
    begun = time.monotonic()

    def report(line: str) -> None:
        print(line, flush=True)

    cancelled: collections.Counter[str] = collections.Counter()
    lost: list[Exception] = []
    # Long waits are no news here; a hook that fails would be.
    logger = logging.getLogger("trio_mlxgate")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("error", OuterDeadlineWarning)
        logger.setLevel(logging.ERROR)
        try:
            trio.run(
                cancel_at_random,
                options.cancellations,
                options.seed,
                cancelled,
                report,
                clock=MockClock(autojump_threshold=0),
            )
        except* Exception as group:  # noqa: BLE001 - all of it is told
            lost = leaves(group)
        finally:
            logger.setLevel(level)
    if lost:
        for error in lost:
            if isinstance(error, Lost):
                report(f"LOST: {error}")
            else:
                report(f"LOST, since something failed:\n{''.join(traceback.format_exception(error))}")
        return 1
    for place, number in cancelled.most_common():
        report(f"{number:>9} {place}")
    report(f"{cancelled.total():>9} in all, {time.monotonic() - begun:.0f} s: nothing was lost")
    return 0


def leaves(group: ExceptionGroup[Exception]) -> list[Exception]:
    """The errors in a group, however deep."""
    found: list[Exception] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, ExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
