"""The gates of this run, by endpoint: for adapters that are given none."""

from __future__ import annotations

from typing import Final

import trio

from trio_mlxgate.endpoint_gates import EndpointGates

_gates: Final = trio.lowlevel.RunVar[EndpointGates]("trio_mlxgate.backends.gates")


def current_endpoint_gates() -> EndpointGates:
    """The gates of this trio run, one for each endpoint; made when they are first asked for, with default settings.

    Two adapters of one server, each given no gate, so stand in one queue. Every run starts with new ones. To give a
    server another capacity, call ``current_endpoint_gates().add(url, EndpointSettings(capacity=2))`` before it is first
    used, or give the adapters gates of your own.

    Raises:
      RuntimeError: this is not called inside of a trio run.
    """
    if not trio.lowlevel.in_trio_run():
        raise RuntimeError(
            "the gates of a run are asked for inside trio.run(); outside there are none: give the adapter a gate"
        )
    try:
        return _gates.get()
    except LookupError:
        gates = EndpointGates()
        _gates.set(gates)
        return gates
