"""A deadline that the caller has put around the wait: it is told, once for each place in the code that does so."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from trio_mlxgate.call_sites import call_site

if TYPE_CHECKING:
    from trio_mlxgate.runtime import Runtime

OuterDeadline: TypeAlias = Literal["warn", "raise", "allow"]
"""What a gate does about a finite deadline around the wait: an :class:`OuterDeadlineWarning`, an error, or nothing."""

LOOKS_AT_FIRST: Final = 100
"""So many calls are looked at from the start of a run, and again whenever a wait was cancelled, as a deadline does."""

LOOKS_AT_EVERY: Final = 67
"""Later every such call is: to ask trio for the deadline costs a third of a call that need not wait. A prime, so that
calls that come in a rhythm are all met with at some time."""


_ADVICE: Final = (
    ": waiting uses up the time that is meant for the work. Put the time limit inside: hold_timeout=SECONDS counts "
    "from the grant of the slot, max_wait=SECONDS limits the queue alone (around a client: 'with use_options(...):'). "
    "If one deadline for both is what you mean, say outer_deadline='allow'"
)
_ADVICE_ON_LEASES: Final = (
    ": the wait, and the load of the model, use up the time that is meant for the work. Put the time limit inside: "
    "hold_timeout=SECONDS counts from the grant, max_wait=SECONDS limits the wait alone. If one deadline for all of it "
    "is what you mean, say outer_deadline='allow'"
)


class OuterDeadlineWarning(RuntimeWarning):
    """A deadline of the caller runs while the call waits for its slot, and so the wait uses up the time of the work."""


def check_outer_deadline(policy: object) -> OuterDeadline:
    """Return ``policy`` if it is one.

    Raises:
      ValueError: it isn't ``"warn"``, ``"raise"`` or ``"allow"``.
    """
    if policy not in ("warn", "raise", "allow"):
        raise ValueError(f"outer_deadline must be 'warn', 'raise' or 'allow', not {policy!r}")
    return policy


class OuterDeadlines:
    """What one gate knows of the deadlines around its waits.

    Args:
      gate_name: the gate's name.
      policy: what to do about one.
      lease: what is waited for, if it is no slot of a gate.

    Raises:
      ValueError: ``policy`` isn't one.
    """

    def __init__(self, gate_name: str, policy: OuterDeadline, lease: str = "") -> None:
        self._waits_for = lease or f"its slot of gate {gate_name!r}"
        self._advice = _ADVICE_ON_LEASES if lease else _ADVICE
        self._policy: OuterDeadline = check_outer_deadline(policy)
        self._reported: set[tuple[str, int]] = set()
        self._close_looks = 0
        self.due: float = 0
        """To be counted down by one at each call; at 0 or less that call is to be looked at."""
        self.look_more_closely()

    def look_more_closely(self) -> None:
        """Begin again with looking at every call: the run is new, or a wait was cancelled, as a deadline does."""
        self._close_looks = LOOKS_AT_FIRST
        self.due = math.inf if self._policy == "allow" else 0

    def has_cancelled(self, policy: OuterDeadline | None, runtime: Runtime) -> None:
        """Report a deadline that :meth:`look` couldn't see: it has cancelled the wait of the current task.

        It is a warning with ``"raise"``, too: nobody would get the error.
        """
        if (policy or self._policy) != "allow":
            what = "a timeout of the caller has cancelled this call while it waited for"
            self._warn(call_site(runtime), f"{what} {self._waits_for}")

    def look(self, policy: OuterDeadline | None, runtime: Runtime) -> None:
        """Report a finite deadline around the current call, if there is one; None: as the gate's policy says.

        Raises:
          RuntimeError: there is one, and the policy is ``"raise"``.
        """
        if policy is None:
            policy = self._policy
            if policy == "warn":
                self._close_looks -= 1
                if self._close_looks < 0:
                    self.due = LOOKS_AT_EVERY
        if policy == "allow":
            return
        deadline = runtime.effective_deadline()
        # -inf: cancelled already, and there will be no wait.
        if math.isinf(deadline):
            return
        site = call_site(runtime)
        what = (
            f"a deadline of the caller, which ends in {deadline - runtime.clock():.3g} s, runs while this call waits "
            f"for {self._waits_for}"
        )
        if policy == "raise":
            file, line = site
            raise RuntimeError(f"{file}:{line}: {what}{self._advice}")
        self._warn(site, what)

    def _warn(self, site: tuple[str, int], what: str) -> None:
        if site not in self._reported:
            warnings.warn_explicit(what + self._advice, OuterDeadlineWarning, *site)
            # Not before: who makes errors of warnings is told each time.
            self._reported.add(site)
