"""The gate for httpx2, which openai's SDK uses: give ``httpx2.AsyncClient(transport=...)`` a :class:`GateTransport`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from trio_mlxgate import _transport, errors
from trio_mlxgate._family import Family
from trio_mlxgate._gated_stream import GatedStream
from trio_mlxgate.priority import URGENCY_PRIORITIES

try:
    import httpx2
except ImportError as missing:
    raise ImportError(
        "trio_mlxgate.httpx2 needs the package httpx2: pip install 'trio-mlxgate[httpx2]' (from a clone: '.[httpx2]')"
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_mlxgate._fallback import Fallback
    from trio_mlxgate.base_gate import BaseGate
    from trio_mlxgate.core.checks import WhenAbandoned
    from trio_mlxgate.endpoint_gates import BaseEndpointGates
    from trio_mlxgate.portal import Portal


class QueueFull(errors.QueueFull, httpx2.ConnectError):
    """The queue is full: ours, and a ``ConnectError`` for those who only know httpx2."""


class WaitTooLong(errors.WaitTooLong, httpx2.PoolTimeout):
    """``max_wait`` ended in the queue: ours, and a ``PoolTimeout`` for those who only know httpx2."""


class HoldTimeout(trio.TooSlowError, TimeoutError, httpx2.ReadTimeout):
    """``hold_timeout`` ended: as on trio, as on asyncio, and a ``ReadTimeout`` for those who only know httpx2."""


class _Stream(GatedStream, httpx2.AsyncByteStream):
    """A gated response body of this family."""


class GateTransport(_transport.GateTransportBase[httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport):
    """The gate as a transport of httpx2; how it behaves is told at :class:`trio_mlxgate._transport.GateTransportBase`.

    ::

        client = httpx2.AsyncClient(transport=GateTransport())

    Args:
      gate: the gate, or the gates among which a request's URL chooses; None is the gate of the run in which a
        request is made.
      transport: what sends the requests; None is a new ``httpx2.AsyncHTTPTransport()``. Certificates, limits and
        proxies belong there: a client that is given a transport ignores its own ``verify=``, ``limits=``, ``proxy=``.
      priorities: the priority that each urgency of the ``Priority`` header names.
      close_timeout: seconds that closing a response may take; it can't be cancelled.
      fallback: another server, for when this one gives no answer.
      abandoned: what becomes of a request whose caller leaves before the answer is there. ``"release"``: its connection
        is closed and its slot given back. ``"drain"``: it keeps both until its answer is there, for servers that would
        go on with it anyway. An event stream is closed either way.
      drain_limit: for how many seconds at most after its caller has left.
    """

    _family = Family(
        name="httpx2",
        request=httpx2.Request,
        transport=httpx2.AsyncBaseTransport,
        queue_full=QueueFull,
        wait_too_long=WaitTooLong,
        hold_timeout=HoldTimeout,
        read_error=httpx2.ReadError,
        read_timeout=httpx2.ReadTimeout,
        protocol_error=httpx2.RemoteProtocolError,
        byte_stream=httpx2.ByteStream,
        http_transport=httpx2.AsyncHTTPTransport,
        unreachable=(httpx2.NetworkError, httpx2.ConnectTimeout, httpx2.RemoteProtocolError, httpx2.ProxyError),
        too_slow=(httpx2.ReadTimeout, httpx2.WriteTimeout),
        stream=_Stream,
    )

    def __init__(
        self,
        gate: BaseGate | Portal | BaseEndpointGates[Any] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        *,
        priorities: Mapping[int, int] = URGENCY_PRIORITIES,
        close_timeout: float = _transport.CLOSE_TIMEOUT,
        fallback: Fallback | None = None,
        abandoned: WhenAbandoned = "release",
        drain_limit: float = _transport.DRAIN_LIMIT,
    ) -> None:
        inner = httpx2.AsyncHTTPTransport() if transport is None else transport
        super().__init__(
            gate,
            inner,
            priorities=priorities,
            close_timeout=close_timeout,
            fallback=fallback,
            abandoned=abandoned,
            drain_limit=drain_limit,
        )
