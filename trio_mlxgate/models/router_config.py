"""Which models there are, how each is run, and which of them may be there together."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs

from trio_mlxgate.core.groups import Group, Groups
from trio_mlxgate.core.matrix import Matrix, Ties
from trio_mlxgate.core.swap_options import ModelOptions, SwapOptions
from trio_mlxgate.errors import PlanRefused, UnknownModel
from trio_mlxgate.models._planners import CarefulPlanner, what_is_wrong
from trio_mlxgate.models.settings import (
    ProcessConfig,
    check_seconds,
    check_whole,
    needs,
    shown,
    wrong_type,
    wrong_value,
)
from trio_mlxgate.outer_deadline import OuterDeadline  # noqa: TC001 - attrs looks at it
from trio_mlxgate.priority import MAX_PRIORITY

if TYPE_CHECKING:
    from trio_mlxgate.core.planning import Planner

_HIGHEST_PORT: Final = 65535


@attrs.frozen(kw_only=True)
class ModelConfig(ProcessConfig):
    """One model: how its server is run, and how many requests it serves at once. Two settings are needed::

        ModelConfig(name="qwen", command="mlx_lm.server --model qwen3-8b --port ${PORT}")

    Raises:
      TypeError, ValueError: at once, for a bad setting: "models.qwen.ttl: expected seconds >= 0, got 'ten'".
    """

    limit: int = attrs.field(default=0)
    """How many requests it serves at once; 0 is 10. Give what its server does well: a server of MLX 1 or a few."""

    max_waiting: int | None = attrs.field(default=None)
    """How many more may wait for it than it serves at once; None: as many as come. One more gets QueueFull."""

    priority: int | None = attrs.field(default=None)
    """The priority of its requests that name none; None: BACKGROUND."""

    ttl: float = attrs.field(default=math.inf)
    """Seconds without a request after which it is unloaded; inf and 0: never."""

    def __attrs_post_init__(self) -> None:
        ProcessConfig.__attrs_post_init__(self)
        check_whole(self.place("limit"), self.limit)
        if self.max_waiting is not None:
            check_whole(self.place("max_waiting"), self.max_waiting)
        if self.priority is not None:
            check_whole(self.place("priority"), self.priority, least=-MAX_PRIORITY, most=MAX_PRIORITY)
        check_seconds(self.place("ttl"), self.ttl)

    @property
    def options(self) -> ModelOptions:
        """What the scheduler must know of it."""
        return ModelOptions(limit=self.limit, max_waiting=self.max_waiting, priority=self.priority, ttl=self.ttl)


def _models(models: Any) -> tuple[ModelConfig, ...]:
    if isinstance(models, ModelConfig | Mapping | str) or not hasattr(models, "__iter__"):
        wrong_type("models", "a list of ModelConfig", models)
    return tuple(models)


def _kept(mapping: Any) -> Any:
    """A copy that nobody changes; what is no mapping is refused later, with its place."""
    return MappingProxyType(dict(mapping)) if isinstance(mapping, Mapping) else mapping


def _listed(names: Any) -> Any:
    return tuple(names) if isinstance(names, list | set | frozenset) else names


@attrs.frozen(kw_only=True)
class RouterConfig:
    """All models, and which may be there together.

    Without ``sets``, ``groups`` and ``planner``, one model is there at a time. Only one of the three may be given.

    Raises:
      TypeError, ValueError: at once, for a bad setting; the message says where it stands.
      SetExpressionError: a set can't be read, or is too large; it is a ValueError.
    """

    models: tuple[ModelConfig, ...] = attrs.field(converter=_models)
    """The models; each has a name of its own."""

    sets: Mapping[str, str] | None = attrs.field(default=None, converter=_kept)
    """Which models may be there together, as expressions: ``{"pair": "qwen & (whisper | embed)"}``. See
    :class:`~trio_mlxgate.core.matrix.Matrix`. A model in no set is there alone."""

    vars: Mapping[str, str] = attrs.field(factory=dict, converter=_kept)
    """With ``sets``: short names of models, for expressions."""

    evict_costs: Mapping[str, float] = attrs.field(factory=dict, converter=_kept)
    """With ``sets``: what it costs to stop a model for another one; 1 for those that aren't in it."""

    ties: Ties = attrs.field(default="usage")
    """With ``sets``: of plans that cost the same, whether usage decides or the order of definition."""

    groups: Mapping[str, Group] | None = attrs.field(default=None, converter=_kept)
    """Which models take turns, as groups; see :class:`~trio_mlxgate.core.groups.Groups`."""

    planner: Planner | None = attrs.field(default=None)
    """What decides which models have to go for another one, if neither sets nor groups are to."""

    pinned: Collection[str] = attrs.field(default=(), converter=_listed)
    """Models that are never stopped for another one. A ``planner`` has its own way to say so."""

    swap: SwapOptions = attrs.field(factory=SwapOptions)
    """How models take turns: how long one waits at most while others are served, how long a model stays."""

    ports: tuple[int, int] | None = attrs.field(default=None)
    """The first and the last port that servers get; None: from the pool of the trio run, 5800 to 5999."""

    outer_deadline: OuterDeadline = attrs.field(default="warn")
    """What to do about a finite deadline of the caller around the wait for a lease, as of a gate."""

    effective_planner: Planner = attrs.field(init=False, repr=False, eq=False)
    """What decides which models have to go for another one: made of the sets or the groups, or ``planner``."""

    def __attrs_post_init__(self) -> None:
        names: set[str] = set()
        for number, model in enumerate(self.models):
            if not isinstance(model, ModelConfig):
                wrong_type(f"models[{number}]", "a ModelConfig", model)
            if model.name in names:
                wrong_value(f"models[{number}].name", "a name that no other model has", model.name)
            names.add(model.name)
        if not names:
            raise ValueError("models: expected at least one ModelConfig, got none")
        if not isinstance(self.swap, SwapOptions):
            wrong_type("swap", "SwapOptions", self.swap)
        if self.outer_deadline not in ("warn", "raise", "allow"):
            wrong_value("outer_deadline", "'warn', 'raise' or 'allow'", self.outer_deadline)
        if self.ties not in ("usage", "definition"):
            wrong_value("ties", "'usage' or 'definition'", self.ties)
        self._check_ports()
        object.__setattr__(self, "effective_planner", self._planner())
        self._check_addresses()

    def _check_addresses(self) -> None:
        """Two servers that may be there together can't listen at one address."""
        fixed: dict[str, ModelConfig] = {}
        for model in self.models:
            if needs(model.base_url, "PORT"):
                continue
            other = fixed.setdefault(model.base_url.rstrip("/"), model)
            if other is not model and self._may_be_together(other.name, model.name):
                raise ValueError(
                    f"{model.place('base_url')}: expected one of its own, got {shown(model.base_url)}, which is that "
                    f"of {other.name!r} too, and the two may be there together"
                )

    def _may_be_together(self, one: str, other: str) -> bool:
        try:
            return one not in self.effective_planner.evictions(other, (one,)).evict
        except PlanRefused:
            return False

    def _check_ports(self) -> None:
        if self.ports is None:
            return
        ports: object = self.ports
        if not isinstance(ports, tuple | list) or len(ports) != 2:
            wrong_type("ports", "the first and the last port", self.ports)
        first, last = (
            check_whole(f"ports[{number}]", port, least=1, most=_HIGHEST_PORT) for number, port in enumerate(ports)
        )
        if last < first:
            wrong_value("ports", "a first port that is not above the last one", self.ports)

    def _planner(self) -> Planner:
        names = [model.name for model in self.models]
        given = [field for field in ("sets", "groups", "planner") if getattr(self, field) is not None]
        if len(given) > 1:
            raise ValueError(f"{', '.join(given)}: expected one of them, got {len(given)}")
        if self.sets is None:
            for field in ("vars", "evict_costs"):
                if getattr(self, field):
                    raise ValueError(f"{field}: expected nothing, since there are no sets; drop it, or give sets")
            if self.planner is not None:
                return self._checked_planner(names)
            return Groups({} if self.groups is None else self.groups, models=names, pinned=self.pinned)
        return Matrix(
            self.sets,
            models=names,
            vars=self.vars,
            evict_costs=self.evict_costs,
            pinned=self.pinned,
            ties=self.ties,
        )

    def _checked_planner(self, names: list[str]) -> Planner:
        planner = self.planner
        assert planner is not None
        if self.pinned:
            raise ValueError("pinned: expected nothing, since the planner decides that; drop it")
        if not callable(getattr(planner, "evictions", None)):
            wrong_type("planner", "a Planner, which has a method evictions", planner)
        for name in names:
            try:
                plan: object = planner.evictions(name, ())
            except UnknownModel as error:
                raise ValueError(f"planner: expected one that knows all models: {error}") from None
            problem = what_is_wrong(plan, name, ())
            if problem:
                raise ValueError(f"planner: expected a Plan for each model; asked for {name!r}, it {problem}")
        return CarefulPlanner(planner)
