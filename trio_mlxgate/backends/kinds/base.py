"""What all kinds of server have in common: questions and answers, without a socket, a clock or a task."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from trio_mlxgate.core.readings import Health, Reading


@attrs.frozen(kw_only=True)
class Reply:
    """An answer to a GET, whatever its status."""

    status: int
    """Of HTTP."""

    headers: Mapping[str, str] = attrs.field(factory=dict)
    """With names in lower case."""

    body: bytes = b""
    """All of it, or its beginning where it is too long to be what is asked for."""

    http_version: str = "HTTP/1.1"
    """As the server speaks it."""

    seconds: float = 0.0
    """That it took, from asking on."""

    def json(self) -> Any:
        """The body as JSON.

        Raises:
          ValueError: it is none.
        """
        return json.loads(self.body)


@attrs.frozen(kw_only=True)
class NoReply:
    """That no answer came to a GET."""

    why: Literal["refused", "timeout", "broken"]
    """Nothing listens there, or the name leads nowhere; no answer in time; or what came was no HTTP, or broke off."""

    text: str = ""
    """What was seen, for people."""

    seconds: float = 0.0
    """That it took."""


Looking: TypeAlias = Generator[str, Reply | NoReply, Reading]
"""A look at a server: yields the paths to GET, is sent what came, and returns what that tells."""


KnownFrom: TypeAlias = Literal["measured", "source", "documentation"]
"""From running such a server, from reading its source, or from its documentation alone, which means untested."""


class ServerKind:
    """A kind of server. Has no state: one object serves all servers of its kind."""

    name: ClassVar[str]
    """As it is written in configurations."""

    title: ClassVar[str]
    """For people."""

    keeps_connections: ClassVar[bool] = True
    """Whether a connection serves more than one request."""

    reads_load: ClassVar[bool] = False
    """Whether its load can be read."""

    capacity: ClassVar[int | None] = None
    """The most requests at once that it bears; None: that depends on how it was started."""

    known_from: ClassVar[KnownFrom]
    """Where what we know of its answers comes from."""

    hint: ClassVar[str] = ""
    """What a person who runs such a server should know of it."""

    def look(self) -> Looking:
        """Ask whether it is well and how busy it is. Yields paths; never raises for whatever it is sent."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def unanswered(path: str, silence: NoReply) -> Reading:
    """What it tells that ``path`` gave no answer, where that was the question whether the server is well."""
    if silence.why == "refused":
        return Reading(health=Health.DOWN, refused=True, reason=silence.text or "nothing listens there")
    return Reading(health=Health.UNKNOWN, reason=silence_of(path, silence))


def silence_of(path: str, silence: NoReply) -> str:
    """That there was no answer, for people."""
    said = {"refused": "was refused", "timeout": "gave no answer in time", "broken": "got no answer that is HTTP"}
    return f"GET {path} {said[silence.why]}" + (f": {silence.text}" if silence.text else "")


def unexpected(path: str, reply: Reply) -> Reading:
    """What an answer tells that has another status than a server of the kind gives when it is well."""
    return Reading(health=Health.UNKNOWN, reason=refusal_of(path, reply), latency=reply.seconds)


def refusal_of(path: str, reply: Reply) -> str:
    """The status of an answer, and what to do about it, for people."""
    said = f"GET {path} gave HTTP {reply.status}"
    if reply.status in (401, 403):
        return f"{said}: it wants a key, or another one; give it in the headers"
    if 300 <= reply.status < 400:
        return f"{said}: it redirects, which is not followed; give the URL that it leads to"
    if reply.status == 404:
        return f"{said}: is it a server of another kind, or is there more in front of its paths?"
    if reply.status in (502, 503, 504):
        return f"{said}: it can't serve now, or what stands behind it can't be reached"
    return said
