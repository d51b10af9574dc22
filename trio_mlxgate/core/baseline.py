"""The usual latency of a server: what it takes when nobody is in its way."""

from __future__ import annotations

from bisect import insort
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trio_mlxgate.core.levels import LoadSettings

HOUR: Final = 3600.0
WITNESSES: Final = 3
"""So many answers of one hour must have been as quick: less could be chance, such as an answer out of a cache."""


class Baseline:
    """The third quickest answer of each hour, and of the latest 24 hours the least.

    Load only ever adds to a latency. So its floor is what the server takes alone, and the floor is found however long
    the load lasts, if there was one quiet minute and a half in the window; a mean or a median follows the load. That
    is the base delay of LEDBAT (RFC 6817, section 4.2, "BASE_HISTORY": a list of minima, one for each interval) and the
    windowed minimum by which BBR estimates a path's propagation delay (Cardwell et al., ACM Queue 14/5, 2016), with an
    order statistic in place of the minimum, which one odd answer would spoil for a day.

    - What is slow moves nothing: not one cold start, and no overload that is shorter than the window.
    - What is quick is learnt at once: the third quicker answer moves the baseline.
    - Only hours with readings count: a machine that slept over the weekend is known on Monday.
    - The initial value stands beside the first hours: a start amid an overload is no baseline.

    It holds 27 numbers.
    """

    __slots__ = ("_began", "_hours", "_quickest", "_settings")

    def __init__(self, settings: LoadSettings) -> None:
        self._settings = settings
        self._hours: deque[float] = deque(maxlen=settings.baseline_hours)
        self._began = -inf
        # The quickest of the hour that runs, in order.
        self._quickest: list[float] = []

    def learn(self, latency: float, now: float) -> None:
        """One more answer, which took ``latency`` seconds."""
        if now >= self._began + HOUR and len(self._quickest) == WITNESSES:
            self._hours.append(self._quickest[-1])
            self._quickest = []
        if not self._quickest:
            self._began = now
        insort(self._quickest, latency)
        del self._quickest[WITNESSES:]

    @property
    def word(self) -> str:
        """What to call it: it is assumed until readings say better."""
        return "usual" if self._learnt() and min(self._learnt()) <= self.seconds else "assumed"

    @property
    def seconds(self) -> float:
        """What is usual now."""
        known = self._learnt()
        if len(self._hours) < self._settings.initial_hours:
            known.append(self._settings.initial_baseline)
        return max(self._settings.least_baseline, min(known))

    def _learnt(self) -> list[float]:
        """What each hour says, the one that runs too if it has witnesses enough."""
        return [*self._hours, *(self._quickest[-1:] if len(self._quickest) == WITNESSES else ())]
