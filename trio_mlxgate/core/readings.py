"""What is known of a server at one moment: the words that probes, load and choosing share."""

from __future__ import annotations

import enum

import attrs


class Health(enum.Enum):
    """Whether a server is well, as one look at it says."""

    UP = "up"
    """It answers as a server does that is well."""

    DOWN = "down"
    """Nothing listens there, or it says itself that it can't serve."""

    UNKNOWN = "unknown"
    """It gave no answer, or one that says nothing: see the reason."""


@attrs.frozen(kw_only=True)
class Status:
    """How busy a server says that it is."""

    active_jobs: int
    """Requests that it runs or that wait in it, ours among them."""

    waiting: int | None = None
    """How many of them wait; None: it doesn't say."""

    total_requests: int | None = None
    """Requests since its start; None: it doesn't say."""

    slots: int | None = None
    """How many it runs side by side; None: it doesn't say."""


@attrs.frozen(kw_only=True)
class Reading:
    """What one look at a server told."""

    health: Health
    """Whether it is well."""

    reason: str = ""
    """Why it is not UP, or what is odd though it is; for people."""

    refused: bool = False
    """Nothing listens there: it need not be asked again to be believed. Only with DOWN."""

    latency: float | None = None
    """Seconds that the server took for its health answer; None: there was none."""

    status: Status | None = None
    """How busy it says that it is; None: it doesn't, or what it said can't be used (see the reason)."""

    models: tuple[str, ...] = ()
    """What it has loaded, as far as it says."""


@attrs.frozen(kw_only=True)
class OwnWork:
    """What we ourselves have under way at an endpoint, as its gate counts it."""

    in_flight: int = 0
    """Requests that hold a slot: the server has them."""

    waiting: int = 0
    """Requests in the queue of the gate: the server knows nothing of them."""
