"""Calls to a role: whoever can answer does; what failed is repeated elsewhere while nothing was handed on."""

from __future__ import annotations

import inspect
import logging
import math
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.core.choosing import may_ask_again, may_ask_another, may_ask_the_cloud
from trio_mlxgate.errors import (
    AnswerTooSlow,
    BackendError,
    BackendTooSlow,
    BackendUnavailable,
    BackendUnreachable,
    ConnectTooSlow,
    GateRefused,
    TruncatedAnswer,
    UnknownModel,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from trio_mlxgate.backends.adapter import ModelAdapter
    from trio_mlxgate.backends.chat_stream import ChatStream
    from trio_mlxgate.backends.registry import BackendRegistry
    from trio_mlxgate.backends.watch import Watch
    from trio_mlxgate.core.choosing import OnUnavailable, Strategy
    from trio_mlxgate.core.completions import Completion, Delta
    from trio_mlxgate.outer_deadline import OuterDeadline

T = TypeVar("T")

_logger: Final = logging.getLogger("trio_mlxgate.backends")

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0


class ChatOptions(TypedDict, total=False):
    """What :meth:`ModelAdapter.chat` is told beside its messages, and how long it may wait. None is nothing."""

    priority: int | None
    hold_timeout: float | None
    model: str | None
    temperature: float | None
    max_tokens: int | None
    supersede: Hashable | None
    outer_deadline: OuterDeadline | None
    extra: Mapping[str, Any] | None


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in ChatOptions.__annotations__:
            limits = "; a limit of time is hold_timeout, from the grant of the slot on, or max_wait, for the queue"
            raise TypeError(
                f"there is no option {name!r}; there are {', '.join(ChatOptions.__annotations__)}"
                f"{limits if 'time' in name else ''}"
            )
    return {name: value for name, value in options.items() if value is not None}


@attrs.frozen(kw_only=True)
class CallPlan:
    """What one call asks, whom it may ask, and what it does where they can't be asked."""

    role: str
    """Whose backends are asked."""

    messages: Any
    """What they are asked."""

    options: Mapping[str, Any] = attrs.field(converter=_given)
    """Of :meth:`ModelAdapter.stream`; None is nothing."""

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
        return registry._rank(self.role, prefer=self.prefer, strategy=self.strategy)

    def check(self, registry: BackendRegistry) -> None:
        """Raise what a backend would say of bad arguments; of a model that it doesn't have, only if no other has it."""
        ranked, _ = self.rank(registry)
        unknown = None
        for name in ranked:
            try:
                self.stream_of(registry.backend(name), None)
            except UnknownModel as error:
                unknown = error
            else:
                return
        if unknown is not None:
            raise unknown

    def stream_of(self, backend: ModelAdapter, left: float | None) -> ChatStream:
        """The answer of this backend, not asked for yet; ``left`` of ``max_wait``."""
        return backend.stream(self.messages, max_wait=left, **self.options)


async def ask_around(registry: BackendRegistry, plan: CallPlan, ask: Callable[[ChatStream, Watch], Awaitable[T]]) -> T:
    """What ``ask`` makes of the stream of the first backend that can answer. Always a checkpoint.

    What ``ask`` raises must mean that nothing of an answer was handed on.
    """
    plan.rank(registry)  # for its errors, before anything
    await trio.lowlevel.checkpoint()
    if plan.on_unavailable == "wait":
        plan.check(registry)  # what is wrong need not wait
        return await _ask_and_wait(registry, plan, ask)
    until = None if plan.max_wait is None else trio.current_time() + plan.max_wait
    failed: dict[str, Exception] = {}
    while True:  # noqa: ASYNC913 - each turn asks one more, or ends
        ranked, there = plan.rank(registry)
        # Ranked anew each time: while one was asked, others may have gone down, or got busy.
        name = next((name for name in ranked if name in there and name not in failed), None)
        if plan.on_unavailable == "defer":
            for tried, error in failed.items():
                if isinstance(error, UnknownModel):
                    raise error
                raise _deferred(registry, plan, tried, error) from error
            name = ranked[0] if ranked[0] in there else None
        if name is None:
            raise _nobody(registry, plan, ranked, failed)
        if failed:
            last, error = [*failed.items()][-1]
            _logger.warning("role %r: backend %r gave no answer (%s); asking %r", plan.role, last, error, name)
        try:
            return await _ask_one(registry, plan, name, _left(until), ask)
        except (BackendError, GateRefused) as error:
            if not may_ask_another(error, yielded=False):
                raise
            failed[name] = error


async def _ask_and_wait(
    registry: BackendRegistry, plan: CallPlan, ask: Callable[[ChatStream, Watch], Awaitable[T]]
) -> T:
    """As :func:`ask_around`, for who wants the first in the order and waits while it is down. Always a checkpoint."""
    begun = trio.current_time()
    until = math.inf if plan.max_wait is None else begun + plan.max_wait
    pause = _FIRST_PAUSE
    last: Exception | None = None
    while True:
        ranked, there = plan.rank(registry)
        name = ranked[0]
        if name not in there and not registry._is_paused(name):
            with trio.move_on_at(until):
                await registry.wait_change()
                continue
            raise _waited(registry, plan, name, begun) from last
        try:
            return await _ask_one(registry, plan, name, None if plan.max_wait is None else _left(until), ask)
        except (BackendError, GateRefused) as error:
            if not may_ask_again(error):
                raise
            last = error
        # It may look well all the same: so that nobody asks it without a pause.
        soonest = trio.current_time() + max(pause, getattr(last, "retry_after", None) or 0.0)
        if soonest > until:
            await trio.sleep_until(until)
            raise _waited(registry, plan, name, begun) from last
        _logger.warning("role %r: backend %r gave no answer (%s); waiting for it", plan.role, name, last)
        await trio.sleep_until(soonest)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _ask_one(
    registry: BackendRegistry,
    plan: CallPlan,
    name: str,
    left: float | None,
    ask: Callable[[ChatStream, Watch], Awaitable[T]],
) -> T:
    """Ask this one. Always a checkpoint."""
    watch = registry._watch_of(name)
    try:
        stream = plan.stream_of(registry.backend(name), left)
        with watch.calling() as caller:
            caller.granted = lambda: stream.granted
            return await ask(stream, watch)
    except trio.ClosedResourceError as error:
        registry._watching()  # raises, if it was the registry that has closed its backends
        raise BackendUnavailable(f"{name}: {error}", backend=name) from error
    except BackendError as error:
        registry._watching()
        note_failure(watch, error)
        raise


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - trio.current_time())


def note_failure(watch: Watch, error: Exception) -> None:
    """Let the watch know of a failed call if that tells something of the server's health."""
    if isinstance(error, BackendTooSlow) and not isinstance(error, AnswerTooSlow | ConnectTooSlow):
        watch.call_got_no_token(str(error))
    elif isinstance(error, BackendUnreachable | TruncatedAnswer | ConnectTooSlow):
        watch.call_failed(str(error), refused=isinstance(error, BackendUnreachable) and error.refused)


# ---- what is raised ----


def _told(name: str, error: Exception | None) -> str:
    said = "down, or paused" if error is None else str(error) or repr(error)
    return said if said.startswith(f"{name}: ") else f"{name}: {said}"


def _waited(registry: BackendRegistry, plan: CallPlan, name: str, begun: float) -> BackendUnavailable:
    error = registry._unavailable(plan.role, [name])
    error.args = (f"{error}; waited for {trio.current_time() - begun:g} s (max_wait)",)
    return error


def _deferred(registry: BackendRegistry, plan: CallPlan, name: str, error: Exception) -> BackendUnavailable:
    return BackendUnavailable(
        f"role {plan.role!r} is deferred: {_told(name, error)}",
        backend=name,
        retry_after=_hope(registry, name, error),
    )


def _hope(registry: BackendRegistry, name: str, error: Exception | None) -> float:
    """When it is worth trying this one again."""
    known = getattr(error, "retry_after", None)
    return registry._watch_of(name).seconds_to_next_check() if known is None else float(known)


def _nobody(
    registry: BackendRegistry, plan: CallPlan, ranked: Sequence[str], failed: dict[str, Exception]
) -> Exception:
    """What is raised when nobody is left to be asked."""
    if plan.on_unavailable == "defer":
        return registry._unavailable(plan.role, ranked[:1])
    if not failed:
        return registry._unavailable(plan.role, ranked)
    last = [*failed.values()][-1]
    if len(ranked) == 1 or all(isinstance(error, UnknownModel) for error in failed.values()):
        return last
    told = "; ".join(_told(name, failed.get(name)) for name in ranked)
    error = BackendUnavailable(
        f"no backend of role {plan.role!r} gave an answer ({told})",
        retry_after=min(_hope(registry, name, failed.get(name)) for name in ranked),
    )
    error.__cause__ = last
    return error


# ---- whole answers ----


def check_fallback(fallback: object) -> None:
    """Raise TypeError unless it is a function, or None. Whether it is async only its call shows."""
    if fallback is not None and not callable(fallback):
        raise TypeError(f"fallback must be an async function that takes the error, or None, not {fallback!r}")


async def call_role(
    registry: BackendRegistry, plan: CallPlan, fallback: Callable[[Exception], Awaitable[T]] | None
) -> Completion | T:
    """One answer of whoever can give it. Always a checkpoint."""
    check_fallback(fallback)

    async def ask(stream: ChatStream, _: Watch) -> Completion:
        async with stream:
            async for _delta in stream:
                pass
        return stream.completion

    try:
        return await ask_around(registry, plan, ask)
    except (BackendError, GateRefused) as error:
        if fallback is None or not may_ask_the_cloud(error):
            raise
        failed = error
    # Outside of the except clause: what it raises is no accident of handling the first error. Nothing is held here.
    _logger.warning("role %r: nobody gave an answer (%s); asking the fallback", plan.role, failed)
    try:
        asked: object = fallback(failed)
        if not inspect.isawaitable(asked):
            raise TypeError(f"fallback must be an async function, and {fallback!r} returned {asked!r}")
        answer: T = await asked
    finally:
        del failed  # it holds this frame, which would hold it
    return answer


# ---- streams ----


class RoleStream:
    """A streamed answer of whoever of a role can give it; see :meth:`BackendRegistry.stream`."""

    def __init__(self, registry: BackendRegistry, plan: CallPlan) -> None:
        self._registry = registry
        self._plan = plan
        self._stream: ChatStream | None = None
        self._watch: Watch | None = None
        self._first: Delta | None = None
        self._entered = False

    @property
    def backend(self) -> str:
        """The name of the backend that answers. Raises RuntimeError before entering."""
        self._open_stream()
        assert self._watch is not None
        return self._watch.backend.name

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

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Wait for the first delta of whoever gives one. Always a checkpoint; if it is cancelled nothing is held.

        Raises:
          BackendError, GateRefused: nobody gave one.
          trio.ClosedResourceError: the registry was left.
        """
        if self._entered:
            raise RuntimeError("a stream is used once: ask registry.stream(...) for another one")
        self._entered = True
        self._stream = await ask_around(self._registry, self._plan, self._ask)
        return self

    @enable_ki_protection
    async def _ask(self, stream: ChatStream, watch: Watch) -> ChatStream:
        """Open a stream, and read its first delta: until then another backend can take over. Always a checkpoint."""
        async with _Opening(stream) as opening:
            self._first = await anext(stream, None)
            self._watch = watch
            opening.keep = True
        return stream

    @enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection, and give the slot back; as :meth:`ChatStream.__aexit__`. Always a checkpoint."""
        await self._open_stream().__aexit__(kind, error, traceback)  # noqa: ASYNC102 - it shields itself

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """The next delta; as :meth:`ChatStream.__anext__`. Always a checkpoint."""
        stream = self._open_stream()
        if self._first is not None:
            first, self._first = self._first, None
            await trio.lowlevel.checkpoint()
            return first
        try:
            return await anext(stream)
        except BackendError as error:
            if self._watch is not None and self._registry._is_watching(self._watch):
                note_failure(self._watch, error)
            raise


class _Opening:
    """Closes a stream at the end of the block unless it is to be kept."""

    def __init__(self, stream: ChatStream) -> None:
        self._stream = stream
        self.keep = False

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """As the stream's. Always a checkpoint."""
        await self._stream.__aenter__()
        return self

    @enable_ki_protection
    async def __aexit__(  # noqa: ASYNC910 - as it says
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """A checkpoint if the stream is closed."""
        if not self.keep:
            await self._stream.__aexit__(kind, error, traceback)  # noqa: ASYNC102 - it shields itself
