"""One look at a server's check endpoint, or one first request to its model: is the answer 200?"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import h11
import trio

_RECEIVE_SIZE: Final = 4096


async def look(url: str, limit: float, body: bytes | None = None) -> str:
    """GET ``url``, or POST it with a body of JSON. Returns "" if the status is 200, else what was wrong, for people.

    Always a checkpoint. Takes ``limit`` seconds at most, and raises nothing of what the server does. By hand and not
    with httpx: while a server starts there are many looks, and each is one connection that is closed after the first
    line of the answer; after a POST when all of the answer has come, since many servers stop working else.
    """
    where = urlsplit(url)
    assert where.hostname is not None
    port = where.port or 80
    target = (where.path or "/") + (f"?{where.query}" if where.query else "")
    problem = f"it gave no answer within {limit:g} s"
    with trio.move_on_after(limit):
        await trio.lowlevel.checkpoint()
        try:
            problem = await _exchange(where.hostname, port, where.netloc.rpartition("@")[2], target, body)
        except (OSError, trio.BrokenResourceError) as error:
            problem = _said(error)
        except h11.RemoteProtocolError as error:
            problem = f"its answer is no HTTP: {error}"
    return problem


async def listens(url: str, limit: float = 0.5) -> bool:
    """Whether somebody accepts connections there, within ``limit`` seconds. Always a checkpoint."""
    where = urlsplit(url)
    assert where.hostname is not None
    with trio.move_on_after(limit):
        await trio.lowlevel.checkpoint()
        try:
            stream = await trio.open_tcp_stream(where.hostname, where.port or 80)
        except OSError:
            return False
        stream.socket.close()
        return True
    return False


async def _exchange(host: str, port: int, name: str, target: str, body: bytes | None) -> str:
    """Send the request, and read what is wanted of the answer. Always a checkpoint."""
    client = h11.Connection(h11.CLIENT)
    headers = [("host", name), ("accept", "*/*"), ("user-agent", "trio-mlxgate"), ("connection", "close")]
    if body is not None:
        headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
    request = h11.Request(method="GET" if body is None else "POST", target=target, headers=headers)
    stream = await trio.open_tcp_stream(host, port)
    try:
        sent = client.send(request) or b""
        if body is not None:
            sent += client.send(h11.Data(data=body)) or b""
        await stream.send_all(sent + (client.send(h11.EndOfMessage()) or b""))
        while True:  # noqa: ASYNC913 - each turn that doesn't wait has an event, or ends it
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await stream.receive_some(_RECEIVE_SIZE))
            elif isinstance(event, h11.Response):
                if event.status_code != 200:
                    return f"the status of its answer is {event.status_code}"
                if body is None:
                    return ""
            elif isinstance(event, h11.EndOfMessage):
                return ""
            elif isinstance(event, h11.ConnectionClosed):
                return "it closed the connection without an answer"
    finally:
        # Closing a socket never waits.
        stream.socket.close()


def _said(error: BaseException) -> str:
    # open_tcp_stream tells that all its attempts failed; why each did is in its cause.
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    found = cause if isinstance(cause, OSError) else error
    if isinstance(found, ConnectionRefusedError):
        return "it doesn't listen"
    return str(found) or type(found).__name__
