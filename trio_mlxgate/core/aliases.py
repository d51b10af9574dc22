"""Which endpoints are other names of others: chains that end, and no endpoint with two meanings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trio_mlxgate.core.endpoints import Endpoint


@attrs.frozen
class Aliases:
    """Each alias is an endpoint that stands for another one, which may be an alias in turn."""

    _targets: Mapping[Endpoint, Endpoint] = attrs.field(factory=dict)

    def target(self, alias: Endpoint) -> Endpoint | None:
        """What this endpoint was said to stand for; None: it is no alias."""
        return self._targets.get(alias)

    def resolve(self, endpoint: Endpoint) -> Endpoint:
        """The end of the chain that begins here: the endpoint itself, if it is no alias."""
        while (target := self._targets.get(endpoint)) is not None:
            endpoint = target
        return endpoint

    def with_more(self, pairs: Iterable[tuple[Endpoint, Endpoint]]) -> Aliases:
        """These aliases, and for each pair its first as an alias of its second.

        An endpoint that stands for itself says nothing new, and is left out.

        Raises:
          ValueError: an alias stands for two endpoints, or a chain of them leads back to where it began.
        """
        targets = dict(self._targets)
        more = Aliases(targets)
        for alias, target in pairs:
            known = targets.get(alias)
            if alias == target or known == target:
                continue
            if known is not None:
                raise ValueError(f"{alias} is an alias of {known}, and can't be one of {target} too: leave out one")
            if more.resolve(target) == alias:
                chain = " -> ".join(map(str, [alias, *more._chain(target)]))
                raise ValueError(f"these aliases go in a circle: {chain}; leave out one, so that it has an end")
            targets[alias] = target
        return more

    def _chain(self, endpoint: Endpoint) -> list[Endpoint]:
        found = [endpoint]
        while (target := self._targets.get(found[-1])) is not None:
            found.append(target)
        return found
