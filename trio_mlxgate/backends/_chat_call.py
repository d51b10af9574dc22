"""One request of an adapter: what is sent, on which terms, and whom it tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from trio_mlxgate.backends._line import Line
    from trio_mlxgate.backends.limits import ChatLimits
    from trio_mlxgate.options import RequestOptions


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ChatCall:
    """What a :class:`ChatStream` needs to know."""

    backend: str
    """The name of the adapter."""

    url: str
    headers: httpx.Headers
    body: bytes

    streamed: bool
    """Whether the body asks for a stream."""

    model: str | None
    limits: ChatLimits

    options: RequestOptions
    """What the caller asks of the gate."""

    hold_timeout: float
    """The adapter's, if neither the caller nor the block around says another."""

    line: Callable[[], Line]
    """Gives what the adapter has in the run in which the request is sent."""

    on_token: Callable[[float], object]
    """Told of the time of each sign that the model works."""

    hide: Callable[[str], str]
    """Takes what is secret out of a text."""
