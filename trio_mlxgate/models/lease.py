"""A loaded model in use: what the router leases, as a context manager."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Final, Self

import attrs
import outcome
import trio
from trio.lowlevel import Abort, enable_ki_protection

from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.core.ticket import GRANTED, WAITING, TicketState
from trio_mlxgate.models._lost import is_lost_connection
from trio_mlxgate.models._served import Asker, LeaseStage as LeaseStage
from trio_mlxgate.models.settings import shown
from trio_mlxgate.outer_deadline import check_outer_deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType
    from typing import NoReturn

    from trio_mlxgate.models._driver import SwapDriver
    from trio_mlxgate.models._served import Life
    from trio_mlxgate.outer_deadline import OuterDeadline

NEWS_WITHIN: Final = 1.0
"""Seconds that a lease whose body lost a connection waits for the news that the server has ended: the end of a
connection is seen before the end of the process."""


@attrs.frozen(kw_only=True)
class LeaseProgress:
    """A step of a lease on its way, as ``on_progress`` gets it."""

    model: str
    """The model's name."""

    stage: LeaseStage
    """Where it is."""

    position: int | None = None
    """QUEUED: its place among all who are queued, of all models, from 1; None in other stages."""

    evicting: tuple[str, ...] = ()
    """EVICTING: the models that go for it. Empty: others are on their way out already that it doesn't fit beside."""

    estimated_wait: float | None = None
    """In how many seconds from now it is expected to be granted, from measured loads, stops and requests; None: one of
    those has never been measured. READY: 0."""


class Lease(Asker):
    """A model for the time of a block, loaded, and with a slot in its gate. Made by a router's methods; used once."""

    __slots__ = ("_driver", "_life", "_on_progress", "_outer_deadline", "_owner", "_refused", "_scope", "_waiter")

    def __init__(
        self,
        driver: SwapDriver,
        model: str,
        priority: int | None,
        *,
        hold_timeout: float,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
        on_progress: Callable[[LeaseProgress], object] | None = None,
    ) -> None:
        # Callers without a type checker may give anything.
        name: object = model
        if not isinstance(name, str):
            raise TypeError(f"model must be the name of a model, a string, not {shown(model)}")
        check_seconds("hold_timeout", hold_timeout)
        check_seconds("max_wait", max_wait)
        if outer_deadline is not None:
            check_outer_deadline(outer_deadline)
        watcher: object = on_progress
        if watcher is not None and (not callable(watcher) or inspect.iscoroutinefunction(watcher)):
            raise TypeError(f"on_progress must be a plain function of one LeaseProgress, not {on_progress!r}")
        super().__init__(
            model,
            priority,
            hold_timeout=hold_timeout,
            max_wait=max_wait,
            supersede=supersede,
            watched=on_progress is not None,
        )
        self._driver = driver
        self._outer_deadline: OuterDeadline | None = outer_deadline
        self._on_progress = on_progress
        self._owner: trio.lowlevel.Task | None = None
        self._waiter: trio.lowlevel.Task | None = None
        self._refused: Exception | None = None
        self._scope: trio.CancelScope | None = None
        self._life: Life | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of model {self.model!r}, priority {self.priority}, {self.state.value}>"

    # ---- for who holds it ----

    @property
    def base_url(self) -> str:
        """Where the model's server answers: ``http://127.0.0.1:5800``, as its configuration says.

        Raises:
          RuntimeError: the lease is not held.
          ModelCrashed, ModelUnloaded: the server has ended; another one may answer there by now.
        """
        life = self._life
        if self.state is not GRANTED or life is None:
            raise RuntimeError(f"{self!r} is not held, so it has no server")
        if life.error is not None:
            raise life.error()
        return life.base_url

    @property
    def deadline(self) -> float:
        """The time on trio's clock at which ``hold_timeout`` ends; inf without one. Settable while it is held."""
        return self.hold_deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        given: object = deadline
        if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) <= math.inf:
            raise ValueError(
                f"a deadline must be a time on trio's clock, such as trio.current_time() + 30, not {deadline!r}"
            )
        if self._scope is None:
            raise RuntimeError(f"{self!r} is not held, so it has no deadline")
        self.hold_deadline = self._scope.deadline = deadline

    # ---- for the driver ----

    def tell(self, stage: LeaseStage, position: int | None, evicting: tuple[str, ...], wait: float | None) -> None:
        """Tell who watches it. An error of theirs goes to the log."""
        if self._on_progress is not None:
            progress = LeaseProgress(
                model=self.model, stage=stage, position=position, evicting=evicting, estimated_wait=wait
            )
            self._driver.call(self._on_progress, progress, "on_progress")

    def granted(self, life: Life) -> None:
        """It is in flight from now on, served by this process."""
        self._life = life
        self.tell(LeaseStage.READY, None, (), 0.0)
        self._wake()

    def refused(self, error: Exception) -> None:
        """It is out of the queue, for this reason."""
        self._refused = error
        self._wake()

    def _wake(self) -> None:
        task, self._waiter = self._waiter, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    # ---- how it comes and goes ----

    def _begin(self) -> trio.lowlevel.Task:
        """Say which task asks; raise RuntimeError if it may not."""
        if self.state is not TicketState.NEW:
            raise RuntimeError(f"{self!r} can be used only once; ask the router for another")
        return self._driver.asked_by_this_task(self)

    def _hold(self, task: trio.lowlevel.Task) -> None:
        self._driver.owned(self, task)
        self._owner = task
        self._scope = trio.CancelScope(deadline=self.hold_deadline)
        self._scope.__enter__()

    def _close_scope(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        scope = self._scope
        assert scope is not None
        try:
            # May raise: a generator that was abandoned inside the block is closed from another task.
            suppress = scope.__exit__(kind, error, traceback)
        except BaseException:
            scope.deadline = math.inf  # nobody is there any more whom it could interrupt
            raise
        if scope.cancelled_caught:
            raise trio.TooSlowError(
                f"lease of model {self.model!r} was held for longer than its hold_timeout of {self.hold_timeout:g} s"
            )
        return suppress

    def _blame(self, error: BaseException) -> None:
        """The body has lost its connection: raise what became of the server, if that has ended."""
        life = self._life
        if life is not None and life.error is not None:
            raise life.error() from error

    def _give_back(self) -> None:
        if self._owner is not None:
            self._driver.no_longer_owned(self, self._owner)
            self._owner = None
        # Its task may have ended before, as that of a generator that was abandoned: then it was given back.
        if self.state is GRANTED:
            self._driver.ended(self)


class AsyncLease(Lease):
    """What :meth:`ModelRouter.lease` returns: ``async with`` it once; entering gives the lease itself."""

    __slots__ = ()

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Wait until the model is ready and has a slot. Always a checkpoint, but if it raises what a mistake of the
        program or the end of the router brings about: RuntimeError, ClosedResourceError.

        Cancelled, it leaves the queue in that step, and whatever was done for it alone may be given up.
        """
        task = self._begin()
        driver = self._driver
        driver.look_at_deadline(self, self._outer_deadline)
        self.state = TicketState.ASKING
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self.state = TicketState.CANCELLED
            raise
        try:
            driver.asks(self)
            if self.state is WAITING:
                self._waiter = task
                await trio.lowlevel.wait_task_rescheduled(self._abort)
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
            if self._refused is not None:
                raise self._refused
        except BaseException:
            if self.state is WAITING or self.state is GRANTED:  # SystemExit and its kind, of who watches
                self._waiter = None
                driver.cancelled(self)
            raise
        finally:
            self._refused = None  # it would keep its traceback, and that this frame
        self._hold(task)
        return self

    def _abort(self, _: object) -> Abort:
        """The wait is cancelled: leave the queue, and settle, in this step."""
        self._waiter = None
        # trio can't bear an error here: of a function of the user's that ends the program.
        left = outcome.capture(self._driver.cancelled, self)
        if isinstance(left, outcome.Error):
            self._driver.hand_over(left.error)
        return Abort.SUCCEEDED

    @enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Give the lease back. Never a checkpoint, unless the body lost its connection: then it waits, shielded, for
        up to a second, for the news that the server has ended.

        Raises:
          TooSlowError: ``hold_timeout`` ended the body.
          ModelCrashed, ModelUnloaded: the body lost its connection since the model's server has ended.
        """
        try:
            suppress = self._close_scope(kind, error, traceback)
            life = self._life
            assert life is not None
            if isinstance(error, Exception) and is_lost_connection(error):
                if life.error is None:
                    with trio.move_on_after(NEWS_WITHIN, shield=True):
                        await life.ended.wait()
                self._blame(error)
            return suppress  # noqa: ASYNC910 - see above
        finally:
            self._give_back()

    # The three ways to forget "async with"; for type checkers they are as missing as they look.
    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            """Say how it is done."""
            raise TypeError("a lease of ModelRouter.lease() is entered with 'async with', not with 'with'")

        def __exit__(self, *_: object) -> None:
            """Never called."""

        def __await__(self) -> NoReturn:
            """Say how it is done."""
            raise TypeError("a lease of ModelRouter.lease() is entered with 'async with', not with 'await'")


class SyncLease(Lease):
    """What :meth:`ModelRouter.lease_nowait` returns: ``with`` it once; entering gives the lease itself."""

    __slots__ = ()

    @enable_ki_protection
    def __enter__(self) -> Self:
        """Take the lease if it can be had at once.

        Raises:
          WouldBlock: the model isn't ready, or has no slot, or somebody goes first.
        """
        task = self._begin()
        try:
            self._driver.asks(self, nowait=True)
            if self._refused is not None:
                raise self._refused
        except BaseException:
            if self.state is GRANTED:  # as in AsyncLease
                self._driver.cancelled(self)
            raise
        finally:
            self._refused = None
        self._hold(task)
        return self

    @enable_ki_protection
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Give the lease back. Raises as that of :class:`AsyncLease`, as far as it is known at once."""
        try:
            suppress = self._close_scope(kind, error, traceback)
            if isinstance(error, Exception) and is_lost_connection(error):
                self._blame(error)
            return suppress
        finally:
            self._give_back()

    if not TYPE_CHECKING:

        async def __aenter__(self) -> NoReturn:
            """Say how it is done. Never a checkpoint."""
            raise TypeError("a lease of ModelRouter.lease_nowait() is entered with a plain 'with'")

        async def __aexit__(self, *_: object) -> None:
            """Never called. Never a checkpoint."""
