"""What the failures of a transport are called here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import httpx
import trio

from trio_mlxgate.backends._reasons import no_reply_of
from trio_mlxgate.backends._wire import is_garbage
from trio_mlxgate.errors import (
    AnswerTooSlow,
    BackendError,
    BackendRefused,
    BackendTooSlow,
    BackendUnreachable,
    ConnectTooSlow,
    FirstTokenTooSlow,
    MalformedAnswer,
    TokenGapTooLong,
    TruncatedAnswer,
)
from trio_mlxgate.httpx import HoldTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.backends._wire import WireCall
    from trio_mlxgate.backends.limits import ChatLimits


@attrs.define(kw_only=True, eq=False, repr=False)
class Failures:
    """The words for what may become of one request."""

    backend: str
    """The name of the adapter."""

    limits: ChatLimits

    hide: Callable[[str], str]
    """Takes what is secret out of a text."""

    wire: WireCall
    """What happened to the request."""

    hold_timeout: float = math.inf
    """Seconds that it may take in all."""

    def too_silent(self, silence: float, *, begun: bool, text: str) -> BackendTooSlow:
        """The server gave no sign for so many seconds, after a token or before the first."""
        if trio.current_time() >= self.wire.granted_at + self.hold_timeout:
            return self._answer_too_slow(text)  # both at once: the limit of the whole goes before that of a part
        if begun:
            return TokenGapTooLong(f"the server was silent for {silence:g} s (limits.gap) after a token", text=text)
        return FirstTokenTooSlow(f"the server was silent for {silence:g} s (limits.first_token) before its first token")

    def told(self, error: Exception, *, silence: float, begun: bool, text: str) -> BackendError:
        """What an error of the transport means: with the silence that was allowed, and what had come."""
        said = str(error) or type(error).__name__
        if isinstance(error, HoldTimeout):
            return self._answer_too_slow(text)
        if isinstance(error, httpx.ConnectTimeout):
            return ConnectTooSlow(f"no connection within {self.limits.connect:g} s (limits.connect)")
        if isinstance(error, httpx.TimeoutException):
            return self.too_silent(silence, begun=begun, text=text)
        if self.wire.answered:
            return TruncatedAnswer(f"the connection broke in the middle of the answer: {said}", text=text)
        if is_garbage(error):
            return MalformedAnswer(f"what came is no HTTP: {said}")
        if isinstance(error, httpx.ConnectError):
            reason = no_reply_of(error, 0.0)
            unreachable = BackendUnreachable(reason.text)
            unreachable.refused = reason.why == "refused"
            return unreachable
        times = f" (sent {1 + self.wire.repeats} times)" if self.wire.repeats else ""
        return BackendUnreachable(f"the connection broke before an answer came{times}: {said}")

    def named(self, error: BackendError) -> BackendError:
        """The error with the name of the backend, and without its secrets."""
        error.backend = self.backend
        error.args = (f"{self.backend}: {self.hide(str(error))}",)
        if isinstance(error, BackendRefused):
            error.upstream_message = self.hide(error.upstream_message)
        return error

    def _answer_too_slow(self, text: str) -> AnswerTooSlow:
        return AnswerTooSlow(f"the answer did not end within hold_timeout, {self.hold_timeout:g} s", text=text)
