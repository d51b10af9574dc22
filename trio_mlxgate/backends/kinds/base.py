"""What all kinds of server have in common: questions and answers, without a socket, a clock or a task."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from trio_mlxgate.core.readings import Reading


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

    hint: ClassVar[str] = ""
    """What a person who runs such a server should know of it, such as the capacity that it bears."""

    def look(self) -> Looking:
        """Ask whether it is well and how busy it is. Yields paths; never raises for whatever it is sent."""
        raise NotImplementedError
