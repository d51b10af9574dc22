"""Models in groups: within one they take turns, and one group may put out the others."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import attrs

from trio_mlxgate.core.checks import check_bool
from trio_mlxgate.core.planning import NEVER_USED, Plan, check_name, check_names, refuse_if_pinned
from trio_mlxgate.errors import UnknownModel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

DEFAULT_GROUP: Final = "(default)"
"""The group of all models that are in no other one."""


def _members(names: Iterable[str]) -> tuple[str, ...]:
    return check_names("members", names)


def _is_bool(_: object, field: attrs.Attribute[bool], value: object) -> None:
    check_bool(field.name, value)


@attrs.frozen(kw_only=True)
class Group:
    """Some models, and what it means for others when one of them is asked for."""

    members: tuple[str, ...] = attrs.field(default=(), converter=_members)
    """The models of the group."""

    swap: bool = attrs.field(default=True, validator=_is_bool)
    """Whether one at a time runs: a member that is asked for puts out the other ones."""

    exclusive: bool = attrs.field(default=True, validator=_is_bool)
    """Whether a member that is asked for puts out the models of all other groups, persistent ones excepted."""

    persistent: bool = attrs.field(default=False, validator=_is_bool)
    """Whether other groups leave the members alone, exclusive ones too. Among themselves they may still take turns."""


_NO_GROUPS: Final[Mapping[str, Group]] = MappingProxyType({})


class Groups:
    """A planner after llama-swap's groups.

    A model that is asked for puts out, of those that run, the other members of its group if that has ``swap``, and the
    members of all groups that aren't persistent if its group is ``exclusive``. That a group is exclusive says nothing
    of its own members when others come: a model of a group that isn't puts out no other group.

    That the model is running already makes no difference: where two groups disagree about who may stay, each request
    has its own group's way. Use :class:`Matrix` if that isn't what you want.

    All models in no group make up the group :data:`DEFAULT_GROUP`, which swaps and is exclusive. Give it in ``groups``
    to say otherwise; they join its members. There are no costs to weigh: a plan's cost is how many go.
    """

    def __init__(
        self, groups: Mapping[str, Group] = _NO_GROUPS, *, models: Iterable[str], pinned: Iterable[str] = ()
    ) -> None:
        """Put each model into its group.

        Args:
          groups: the groups by name.
          models: all models there are.
          pinned: models that are never stopped for another one.

        Raises:
          TypeError: an argument is of another kind.
          ValueError: a model is unknown, there twice, or in two groups.
        """
        names = check_names("models", models)
        if not isinstance(groups, Mapping):
            raise TypeError(f"groups must map names to Group(...), not {groups!r}")
        self._group_of: dict[str, str] = {}
        for name, group in groups.items():
            check_name("the name of a group", name)
            if not isinstance(group, Group):
                raise TypeError(f"group {name!r} must be a Group(...), not {group!r}")
            for member in group.members:
                if member not in names:
                    raise ValueError(f"group {name!r}: there is no model {member!r}")
                if member in self._group_of:
                    raise ValueError(
                        f"{member!r} is in the groups {self._group_of[member]!r} and {name!r}: leave it out of one"
                    )
                self._group_of[member] = name
        for name in names:
            self._group_of.setdefault(name, DEFAULT_GROUP)
        self._groups = {DEFAULT_GROUP: Group(), **groups}
        self._pinned = frozenset(check_names("pinned", pinned))
        for name in self._pinned:
            if name not in names:
                raise ValueError(f"pinned: there is no model {name!r}")

    @property
    def pinned(self) -> frozenset[str]:
        """The models that are never stopped for another one."""
        return self._pinned

    def evictions(
        self,
        target: str,
        running: Sequence[str],
        busy: Collection[str] = (),  # noqa: ARG002 - as planners have it
        last_used: Mapping[str, float] = NEVER_USED,  # noqa: ARG002
    ) -> Plan:
        """What has to be stopped before ``target`` may be used; see :meth:`Planner.evictions`.

        Who is busy and who was used last makes no difference. A running model that is in no group counts as one of the
        default group.

        Raises:
          PlanRefused: a pinned model would have to go.
          UnknownModel: ``target`` isn't one of the models.
        """
        name = self._group_of.get(target)
        if name is None:
            known = ", ".join(sorted(self._group_of))
            raise UnknownModel(f"there is no model {target!r} (there are: {known})")
        group = self._groups[name]
        there = set(running)
        evict = tuple(sorted(other for other in there - {target} if self._puts_out(group, name, other)))
        refuse_if_pinned(target, evict, self._pinned)
        return Plan(
            target=target,
            evict=evict,
            target_set=tuple(sorted((there - set(evict)) | {target})),
            set_name=name,
            expression=", ".join(word for word in ("swap", "exclusive", "persistent") if getattr(group, word)),
            cost=len(evict),
        )

    def _puts_out(self, group: Group, name: str, other: str) -> bool:
        others = self._group_of.get(other, DEFAULT_GROUP)
        if others == name:
            return group.swap
        return group.exclusive and not self._groups[others].persistent
