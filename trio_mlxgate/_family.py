"""What the two families of HTTP client don't share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate._transport import GatedStream


@attrs.frozen(kw_only=True)
class Family:
    """What the two families of HTTP client don't share: their classes."""

    name: str
    """The module of the client."""

    request: type
    """The class of its requests."""

    transport: type
    """The class of its asynchronous transports."""

    queue_full: Callable[[str], Exception]
    """Makes the error for a full queue."""

    wait_too_long: Callable[[str], Exception]
    """Makes the error for a wait that was too long."""

    hold_timeout: Callable[[str], Exception]
    """Makes the error for an ended hold budget."""

    read_error: Callable[[str], Exception]
    """Makes the error for a body that was closed before its end."""

    byte_stream: type
    """The class of bodies that are in memory."""

    unreachable: tuple[type[Exception], ...]
    """What is raised when a server can't be reached, or goes away."""

    too_slow: tuple[type[Exception], ...]
    """What is raised when a server that was reached takes too long."""

    stream: Callable[..., GatedStream]
    """Makes the stream that a response of this family has."""
