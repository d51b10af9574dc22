"""uvloop's loop on a virtual clock; the one module that knows uvloop."""

from __future__ import annotations

try:
    import uvloop
except ImportError as missing:
    raise ImportError("the loop of uvloop needs it: pip install 'trio-mlxgate[uvloop]'") from missing

from trio_mlxgate.testing.virtual_time import VirtualTime


class VirtualUvloop(VirtualTime, uvloop.Loop):  # type: ignore[misc] # pyright: ignore[reportIncompatibleMethodOverride]
    """uvloop's loop on a virtual clock."""
