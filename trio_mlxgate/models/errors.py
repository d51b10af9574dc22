"""What is raised of models that are started and stopped.

::

    BackendError
     └── ModelError                a model could not be had; it is named, and the last lines of its output are told
          ├── ModelUnloaded        it was stopped while one waited for it or used it, or nobody runs it (HTTP 503)
          ├── EvictionFailed       a model that had to go for it did not stop (HTTP 503)
          ├── ModelNotStopped      it was killed, and its process is still there (HTTP 503)
          └── ModelFailed          its server did not come up, or crashed too often (HTTP 503)
               ├── ModelStartFailed     it could not be started, or ended before it was ready
               │    └── ModelStartTooSlow    it was not ready in time; also a trio.TooSlowError (HTTP 504)
               └── ModelCrashed         it crashed, and is not started again by itself
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import trio

from trio_mlxgate.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence


class ModelError(BackendError):
    """A model could not be had. ``backend`` is its name."""

    status: ClassVar[int] = 503
    code: ClassVar[str] = "model_error"

    output: tuple[str, ...]
    """The last lines that its server wrote, oldest first."""

    reason: str
    """The message without them."""

    def __init__(
        self, message: str = "", *, model: str = "", retry_after: float | None = None, output: Sequence[str] = ()
    ) -> None:
        self.reason = message
        self.output = tuple(output)
        said = "".join(f"\n  {line}" for line in self.output)
        super().__init__(
            f"{message}; the last that it wrote:{said}" if said else message, backend=model, retry_after=retry_after
        )

    @property
    def model(self) -> str:
        """The model's name."""
        return self.backend

    def again(self, retry_after: float | None = None) -> ModelError:
        """The same error for another one who asks, whose time to wait is ``retry_after`` unless that is None."""
        return type(self)(
            self.reason,
            model=self.model,
            retry_after=self.retry_after if retry_after is None else retry_after,
            output=self.output,
        )


class ModelUnloaded(ModelError):
    """The model was stopped while one waited for it, or used it, or nobody runs it any more."""

    code: ClassVar[str] = "model_unloaded"


class EvictionFailed(ModelError):
    """A model that had to go for this one did not stop, however often it was told to. It still has its memory."""

    code: ClassVar[str] = "eviction_failed"


class ModelNotStopped(ModelError):
    """The model's server was killed, and its process, or another of its group, is still there: it hangs in the system.

    So its memory may still be taken. :meth:`ModelProcess.stop` tries again.
    """

    code: ClassVar[str] = "model_not_stopped"


class ModelFailed(ModelError):
    """The model's server did not come up, or crashed too often.

    ``retry_after`` is when it may be tried again: until then it isn't started, whoever asks.
    """

    code: ClassVar[str] = "model_failed"

    exit_status: int | None
    """The exit status of its process, negative for a signal; None if it had to be ended, or never began."""

    def __init__(
        self,
        message: str = "",
        *,
        model: str = "",
        retry_after: float | None = None,
        output: Sequence[str] = (),
        exit_status: int | None = None,
    ) -> None:
        super().__init__(message, model=model, retry_after=retry_after, output=output)
        self.exit_status = exit_status

    def again(self, retry_after: float | None = None) -> ModelFailed:
        """The same error for another one who asks."""
        error = super().again(retry_after)
        assert isinstance(error, ModelFailed)
        error.exit_status = self.exit_status
        return error


class ModelStartFailed(ModelFailed):
    """The model's server could not be started, or ended before it was ready."""

    code: ClassVar[str] = "model_start_failed"


class ModelStartTooSlow(ModelStartFailed, trio.TooSlowError, TimeoutError):
    """The model's server was not ready within its ``start_timeout``, and has been stopped."""

    status: ClassVar[int] = 504
    code: ClassVar[str] = "model_start_too_slow"


class ModelCrashed(ModelFailed):
    """The model's server ended by itself after it had been ready, and is not started again by itself."""

    code: ClassVar[str] = "model_crashed"
