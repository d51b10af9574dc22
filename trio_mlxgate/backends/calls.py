"""Calls to a role: whoever can answer does; what failed is repeated elsewhere while nothing was handed on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import trio

from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.core.choosing import may_ask_another
from trio_mlxgate.errors import (
    AnswerTooSlow,
    BackendError,
    BackendTooSlow,
    BackendUnavailable,
    BackendUnreachable,
    ConnectTooSlow,
    GateRefused,
    TruncatedAnswer,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType
    from typing import Self

    from trio_mlxgate.backends.adapter import ModelAdapter
    from trio_mlxgate.backends.chat_stream import ChatStream
    from trio_mlxgate.backends.registry import BackendRegistry
    from trio_mlxgate.core.choosing import OnUnavailable, Strategy
    from trio_mlxgate.core.completions import Completion, Delta

T = TypeVar("T")

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0


@attrs.frozen(kw_only=True)
class CallPlan:
    """Whom one call may ask, and what it does where they can't be asked."""

    role: str
    """Whose backends are asked."""

    prefer: Sequence[str] = ()
    """Who goes before the others."""

    strategy: Strategy = "first"
    """In which order."""

    on_unavailable: OnUnavailable = "next"
    """What is done where the one that is to be asked can't be."""

    max_wait: float | None = None
    """Seconds for all waiting, for a backend to come up and in queues; None: as the requests' own options say."""

    def __attrs_post_init__(self) -> None:
        if self.on_unavailable not in ("next", "wait", "defer"):
            raise ValueError(f"on_unavailable must be 'next', 'wait' or 'defer', not {self.on_unavailable!r}")
        if self.max_wait is not None:
            check_seconds("max_wait", self.max_wait)

    def rank(self, registry: BackendRegistry) -> tuple[tuple[str, ...], frozenset[str]]:
        """As the registry ranks, now."""
        return registry.rank(self.role, prefer=self.prefer, strategy=self.strategy)


async def ask_around(
    registry: BackendRegistry, plan: CallPlan, ask: Callable[[ModelAdapter, float | None], Awaitable[T]]
) -> T:
    """What ``ask`` makes of the first backend that can answer. Always a checkpoint.

    ``ask`` is given the backend and how many seconds are left of ``max_wait``, if there is one; what it raises must
    mean that nothing of an answer was handed on.
    """
    plan.rank(registry)  # for its errors, before anything
    await trio.lowlevel.checkpoint()
    if plan.on_unavailable == "wait":
        return await _ask_and_wait(registry, plan, ask)
    until = None if plan.max_wait is None else trio.current_time() + plan.max_wait
    failed: dict[str, Exception] = {}
    while True:  # noqa: ASYNC913 - each turn asks one more, or ends
        ranked, there = plan.rank(registry)
        # Ranked anew each time: while one was asked, others may have gone down, or got busy.
        left = [name for name in ranked if name not in failed]
        name = next((name for name in left if name in there), None)
        if plan.on_unavailable == "defer":
            if failed:
                (error,) = failed.values()
                raise _deferred(registry, plan, ranked[0], error) from error
            name = ranked[0] if ranked[0] in there else None
        if name is None:
            raise _nobody(registry, plan, ranked, failed)
        try:
            return await ask(registry.backend(name), _left(until))
        except (BackendError, GateRefused) as error:
            note_failure(registry, name, error)
            if not may_ask_another(error, yielded=False):
                raise
            failed[name] = error


async def _ask_and_wait(
    registry: BackendRegistry, plan: CallPlan, ask: Callable[[ModelAdapter, float | None], Awaitable[T]]
) -> T:
    """As :func:`ask_around`, for who wants the first in the order and waits while it is down. Always a checkpoint."""
    until = None if plan.max_wait is None else trio.current_time() + plan.max_wait
    pause = _FIRST_PAUSE
    while True:
        ranked, there = plan.rank(registry)
        if ranked[0] not in there:
            with trio.move_on_at(math.inf if until is None else until):
                await registry.wait_change()
                continue
            raise registry.unavailable(plan.role, ranked[:1])
        try:
            return await ask(registry.backend(ranked[0]), _left(until))
        except (BackendUnreachable, ConnectTooSlow) as error:
            note_failure(registry, ranked[0], error)
            if until is not None and trio.current_time() + pause >= until:
                raise
        # It may look well all the same: so that nobody asks it without a pause.
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - trio.current_time())


def note_failure(registry: BackendRegistry, name: str, error: Exception) -> None:
    """Let the watch know of a failed call if that tells something of the server's health."""
    if isinstance(error, BackendUnreachable | TruncatedAnswer) or (
        isinstance(error, BackendTooSlow) and not isinstance(error, AnswerTooSlow)
    ):
        registry.call_failed(name, str(error), refused=False)


def _deferred(registry: BackendRegistry, plan: CallPlan, name: str, error: Exception) -> BackendUnavailable:
    retry_after = getattr(error, "retry_after", None)
    return BackendUnavailable(
        f"backend {name!r} of role {plan.role!r} can't be asked now: {error}",
        backend=name,
        retry_after=registry.unavailable(plan.role, [name]).retry_after if retry_after is None else retry_after,
    )


def _nobody(
    registry: BackendRegistry, plan: CallPlan, ranked: Sequence[str], failed: dict[str, Exception]
) -> Exception:
    """What is raised when nobody is left to be asked."""
    if plan.on_unavailable == "defer":
        return registry.unavailable(plan.role, ranked[:1])
    if not failed:
        return registry.unavailable(plan.role, ranked)
    if len(ranked) == 1:
        return failed[ranked[0]]
    told = "; ".join(f"{name}: {failed.get(name, 'down')}" for name in ranked)
    hopes = [getattr(error, "retry_after", None) for error in failed.values()]
    hopes.append(registry.unavailable(plan.role, ranked).retry_after)
    error = BackendUnavailable(
        f"no backend of role {plan.role!r} gave an answer ({told})",
        retry_after=min(hope for hope in hopes if hope is not None),
    )
    error.__cause__ = [*failed.values()][-1]
    return error


async def call_role(
    registry: BackendRegistry,
    plan: CallPlan,
    messages: Any,
    options: dict[str, Any],
    fallback: Callable[[Exception], Awaitable[T]] | None,
) -> Completion | T:
    """One answer of whoever can give it. Always a checkpoint."""

    async def ask(backend: ModelAdapter, left: float | None) -> Completion:
        return await backend.chat(messages, max_wait=left, **options)

    try:
        return await ask_around(registry, plan, ask)
    except (BackendError, GateRefused) as error:
        if fallback is None or not may_ask_another(error, yielded=False):
            raise
        failed = error
    try:
        # Outside of the except clause: what it raises is no accident of handling the first error. Nothing is held here.
        return await fallback(failed)
    finally:
        del failed  # it holds this frame, which would hold it


class RoleStream:
    """A streamed answer of whoever of a role can give it; see :meth:`BackendRegistry.stream`."""

    def __init__(self, registry: BackendRegistry, plan: CallPlan, messages: Any, options: dict[str, Any]) -> None:
        self._registry = registry
        self._plan = plan
        self._messages = messages
        self._options = options
        self._stream: ChatStream | None = None
        self._name = ""
        self._first: Delta | None = None
        self._entered = False

    @property
    def backend(self) -> str:
        """The name of the backend that answers. Raises RuntimeError before entering."""
        self._open_stream()
        return self._name

    @property
    def completion(self) -> Completion:
        """The whole answer, when it is there; as :attr:`ChatStream.completion`."""
        return self._open_stream().completion

    @property
    def text(self) -> str:
        """What has come so far; as :attr:`ChatStream.text`."""
        return self._open_stream().text

    @property
    def waited(self) -> float:
        """Seconds in the queue of the backend that answers."""
        return self._open_stream().waited

    def _open_stream(self) -> ChatStream:
        if self._stream is None:
            raise RuntimeError("nothing is streamed yet: 'async with registry.stream(...) as stream:'")
        return self._stream

    async def __aenter__(self) -> Self:
        """Wait for the first delta of whoever gives one. Always a checkpoint; if it is cancelled nothing is held.

        Raises:
          BackendError, GateRefused: nobody gave one.
        """
        if self._entered:
            raise RuntimeError("a stream is used once: ask registry.stream(...) for another one")
        self._entered = True
        self._stream = await ask_around(self._registry, self._plan, self._ask)
        return self

    async def _ask(self, backend: ModelAdapter, left: float | None) -> ChatStream:
        """Open a stream, and read its first delta: until then another backend can take over. Always a checkpoint."""
        async with _Opening(backend.stream(self._messages, max_wait=left, **self._options)) as opening:
            self._first = await anext(opening.stream, None)
            self._name = backend.name
            opening.keep = True
        return opening.stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection, and give the slot back; as :meth:`ChatStream.__aexit__`."""
        await self._open_stream().__aexit__(kind, error, traceback)  # noqa: ASYNC102 - it shields itself

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """The next delta; as :meth:`ChatStream.__anext__`. A checkpoint, but for the first."""
        stream = self._open_stream()
        if self._first is not None:
            first, self._first = self._first, None
            await trio.lowlevel.checkpoint()
            return first
        try:
            return await anext(stream)
        except BackendError as error:
            note_failure(self._registry, self._name, error)
            raise


class _Opening:
    """Closes a stream at the end of the block unless it is to be kept."""

    def __init__(self, stream: ChatStream) -> None:
        self.stream = stream
        self.keep = False

    async def __aenter__(self) -> Self:
        await self.stream.__aenter__()
        return self

    async def __aexit__(  # noqa: ASYNC910 - as it says
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """A checkpoint if the stream is closed."""
        if not self.keep:
            await self.stream.__aexit__(kind, error, traceback)  # noqa: ASYNC102 - it shields itself
