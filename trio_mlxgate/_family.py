"""What the two families of HTTP client don't share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate._gated_stream import GatedStream


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

    read_timeout: Callable[[str], Exception]
    """Makes the error for a server that gives no sign."""

    protocol_error: Callable[[str], Exception]
    """Makes the error for an answer that can't be used."""

    byte_stream: type
    """The class of bodies that are in memory."""

    http_transport: type
    """The class of the transport that the family brings for HTTP."""

    unreachable: tuple[type[Exception], ...]
    """What is raised when a server can't be reached, or goes away."""

    too_slow: tuple[type[Exception], ...]
    """What is raised when a server that was reached takes too long."""

    stream: Callable[..., GatedStream]
    """Makes the stream that a response of this family has."""

    def content_of(self, request: Any) -> bytes | None:
        """The body of a request if it is in memory; else None."""
        try:
            content: bytes = request.content
        except RuntimeError:
            # A request that follows a redirect has its body in memory, but doesn't know it.
            stream: Any = request.stream
            in_memory: bool = isinstance(stream, self.byte_stream)
            return b"".join(stream) if in_memory else None
        return content

    def copy_of(self, request: Any) -> Any:
        """The same request with headers and extensions of its own; a body that is not in memory is shared."""
        content = self.content_of(request)
        headers = request.headers.raw
        more = {"stream": request.stream}
        if content is not None:
            # A generator that was read into memory: its length is known now, and both at once are malformed.
            headers = [(name, value) for name, value in headers if name.lower() != b"transfer-encoding"]
            more = {"content": content}
        extensions = {
            name: dict(value) if isinstance(value, dict) else value for name, value in request.extensions.items()
        }
        return self.request(request.method, request.url, headers=headers, extensions=extensions, **more)

    @staticmethod
    def switches_protocol(request: Any, response: Any) -> bool:
        """Whether the connection is the caller's from here on, for another protocol: such a response has no body."""
        return bool(response.status_code == 101 or (request.method == "CONNECT" and response.is_success))

    def closes_anywhere(self, transport: Any) -> bool:
        """Whether to close a transport is all there is to leaving it, so that any task may do it, at any time.

        One with an ``__aexit__`` of its own may have a nursery or a cancel scope open, which belong to who entered it.
        """
        leaves: Any = self.transport
        return isinstance(transport, self.http_transport) or type(transport).__aexit__ is leaves.__aexit__
