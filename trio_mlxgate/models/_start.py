"""What came of a model's start, for all who wait for it or ask later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.models.errors import ModelError, ModelFailed


@attrs.frozen(kw_only=True)
class Failure:
    """Why a model is not to be had."""

    kind: type[ModelFailed]
    reason: str
    exit_status: int | None
    at: float
    """When it may be tried again."""


@attrs.define(eq=False)
class Start:
    """A start, for all who wait for it."""

    settled: trio.Event = attrs.field(factory=trio.Event)
    error: Callable[[], ModelError] | None = None
    """Makes the error for one of them; None: it is ready."""

    def settle(self, error: Callable[[], ModelError] | None = None) -> None:
        """It is ready, or this is its error. What was told first counts."""
        if not self.settled.is_set():
            self.error = error
            self.settled.set()

    async def wait(self) -> None:
        """Wait for it, and raise what came of it. Always a checkpoint."""
        await self.settled.wait()
        if self.error is not None:
            raise self.error()
