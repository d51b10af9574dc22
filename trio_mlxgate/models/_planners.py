"""A planner of the user's, whose mistakes become refusals."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from trio_mlxgate.core.planning import NEVER_USED, Plan
from trio_mlxgate.errors import PlanRefused

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from trio_mlxgate.core.planning import Planner

_logger: Final = logging.getLogger("trio_mlxgate.models")


class CarefulPlanner:
    """Asks another one. What that raises, and an answer that is no plan, goes to the log, and the request is refused.

    It is asked in the middle of a decision, which has to come to its end whatever the planner does.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    def evictions(
        self,
        target: str,
        running: Sequence[str],
        busy: Collection[str] = (),
        last_used: Mapping[str, float] = NEVER_USED,
    ) -> Plan:
        """What the other one says, if it may be so.

        Raises:
          PlanRefused: the other one says so, or has made a mistake.
        """
        try:
            plan: object = self._planner.evictions(target, running, busy, last_used)
        except PlanRefused:
            raise
        except Exception as error:
            _logger.exception("the planner failed, asked for %r beside %r", target, running)
            raise PlanRefused(f"the planner failed, asked for {target!r}: {error!r}", target=target) from error
        problem = what_is_wrong(plan, target, running)
        if problem:
            _logger.error("the planner, asked for %r beside %r, %s", target, running, problem)
            raise PlanRefused(f"the planner, asked for {target!r}, {problem}", target=target)
        assert isinstance(plan, Plan)
        return plan


def what_is_wrong(plan: object, target: str, running: Collection[str]) -> str:
    """What is wrong with an answer, as the end of a sentence; "" if nothing is."""
    if not isinstance(plan, Plan):
        return f"returned {plan!r}, which is no Plan"
    strange = sorted(name for name in plan.evict if name not in running or name == target)
    return f"wants {strange} to go, which don't run or are what is asked for" if strange else ""
