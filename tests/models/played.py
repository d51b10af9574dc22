"""Played models that see to it that those are there together that may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_mlxgate.models import ModelConfig, ModelRouter, RestartSettings, RouterConfig
from trio_mlxgate.testing import PlayedModels

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class Servers(PlayedModels):
    """Those that ``permit`` lets be there together, which is one if it isn't given."""

    def __init__(
        self, permit: Callable[[Collection[str]], bool] = lambda there: len(there) < 2, **times: float
    ) -> None:
        super().__init__(**{"clearing": 0.25, **times})
        self.permit = permit
        self.stops: Callable[[str], object] = str  # is called when one is told to go

    def comes(self, name: str) -> None:
        assert name not in self.running, f"{name} is there twice"
        super().comes(name)
        assert self.permit(self.running), f"{sorted(self.running)} may not be there together"

    def goes(self, name: str) -> None:
        self.stops(name)


def model(name: str, **settings: Any) -> ModelConfig:
    return ModelConfig(
        **{
            "name": name,
            "command": "serve ${PORT}",
            "restarts": RestartSettings(first=0.5, most=2, window=100.0),
            **settings,
        }
    )


def router(servers: Servers, *models: ModelConfig | str, **settings: Any) -> ModelRouter:
    configs = [each if isinstance(each, ModelConfig) else model(each) for each in models or ("a", "b")]
    return ModelRouter(RouterConfig(models=configs, **settings), process=servers)
