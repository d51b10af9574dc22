"""How long a server may take with each part of an answer."""

from __future__ import annotations

from typing import Any

import attrs

from trio_mlxgate.core.checks import check_seconds


def _seconds(_: object, field: attrs.Attribute[Any], value: object) -> None:
    name = f"limits.{field.name}"
    if check_seconds(name, value) == 0:
        raise ValueError(f"{name} must be > 0 seconds (math.inf: no limit): with 0 nothing would ever come in time")


@attrs.frozen(kw_only=True)
class ChatLimits:
    """For how many seconds a server may be silent. Whatever it sends, a ``: keepalive`` too, begins the silence anew.

    No silence is counted while the request waits for its slot, nor while the program does something else than read: a
    slow reader is not a silent server. The whole has a limit of its own, ``hold_timeout``.

    Raises:
      TypeError, ValueError: a limit is no number > 0; ``math.inf`` is no limit.
    """

    connect: float = attrs.field(default=2.0, validator=_seconds)
    """For a connection: else :class:`trio_mlxgate.ConnectTooSlow`. Also how long connections that break before an
    answer are made again."""

    first_token: float = attrs.field(default=60.0, validator=_seconds)
    """Before the first token, from when the request goes out: else :class:`trio_mlxgate.FirstTokenTooSlow`. A server
    may read a long prompt for minutes; mlx_lm.server gives a sign of life after each 2048 tokens of it."""

    gap: float = attrs.field(default=15.0, validator=_seconds)
    """After a token: else :class:`trio_mlxgate.TokenGapTooLong`."""
