"""The error that each refusal of the swap scheduler becomes."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

import trio

from trio_mlxgate.core.swap_effects import EVICTION_FAILED, LOAD_FAILED, MODEL_UNLOADED, PLAN_REFUSED, UNKNOWN_MODEL
from trio_mlxgate.core.ticket import CLOSED, QUEUE_FULL, SUPERSEDED, WAIT_TOO_LONG, WOULD_BLOCK
from trio_mlxgate.errors import PlanRefused, QueueFull, Superseded, UnknownModel, WaitTooLong
from trio_mlxgate.models.errors import EvictionFailed, ModelError, ModelFailed, ModelUnloaded

if TYPE_CHECKING:
    from collections.abc import Collection

    from trio_mlxgate.core.swap_effects import Refuse

SHUT: Final = "the router has ended, and leases nothing any more"


def unknown_model(name: str, known: Collection[str]) -> UnknownModel:
    """The error for a model that isn't there."""
    near = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownModel(f"there is no model {name!r}{meant} (there are: {', '.join(sorted(known))})", backend=name)


def refusal(refused: Refuse, *, waited: float, failure: ModelError | None, known: Collection[str]) -> Exception:
    """The error for a request that was refused, which says what to do.

    Args:
      refused: what the scheduler says.
      waited: for how many seconds it waited.
      failure: why the last load of its model failed, if it did.
      known: the names of all models.
    """
    request, detail, retry_after = refused.request, refused.detail, refused.retry_after
    name = request.model
    again = "" if retry_after is None else f"; try again in {retry_after:.3g} s"
    reason = refused.reason
    if reason == UNKNOWN_MODEL:
        return unknown_model(name, known)
    if reason == MODEL_UNLOADED:
        return ModelUnloaded(f"model {name!r} was unloaded while this waited for it", model=name)
    if reason == LOAD_FAILED:
        if failure is not None:
            return failure.again(retry_after)
        return ModelFailed(f"model {name!r}: {detail}", model=name, retry_after=retry_after)
    if reason == EVICTION_FAILED:
        return EvictionFailed(f"no place for model {name!r}: {detail}", model=name)
    if reason == PLAN_REFUSED:
        return PlanRefused(detail, target=name)
    if reason == QUEUE_FULL:
        told = f"as many are with model {name!r} as its limit and max_waiting allow{again}"
        return QueueFull(told, retry_after=retry_after)
    if reason == SUPERSEDED:
        return Superseded(
            f"a newer request for model {name!r} with supersede={request.supersede!r} came while this one waited"
        )
    if reason == WOULD_BLOCK:
        return trio.WouldBlock()
    if reason == WAIT_TOO_LONG:
        if request.max_wait:
            return WaitTooLong(f"model {name!r} was not to be had within max_wait: waited {waited:.3g} s")
        return WaitTooLong(f"model {name!r} is not to be had at once, and max_wait=0 leaves no time to wait")
    assert reason == CLOSED, f"every reason has an error: {reason}"
    return trio.ClosedResourceError(SHUT)
