"""What a configuration file makes: adapters that share gates, and a registry."""

from __future__ import annotations

import pytest
import trio

from trio_mlxgate.config import ConfigError, parse_config

FILE = """
[backends.macmini]
url = "http://macmini:8080/v1"
model = "qwen"
capacity = 2
hold_timeout = 120
api_key_env = "MACMINI_KEY"
limits = { gap = 3 }

[backends.digests]
url = "http://macmini:8080"
system_prompt = "Be short."

[backends.macbook]
url = "http://macbook:8080/v1"

[roles]
reasoner = ["macbook", "macmini"]
"""
KEY = {"MACMINI_KEY": "secret-key"}


async def test_adapters_of_one_server_share_its_gate_with_the_capacity_of_the_file() -> None:
    made = parse_config(FILE).adapters(environ=KEY)
    assert list(made) == ["macmini", "digests", "macbook"]
    macmini, digests, macbook = made.values()
    assert macmini.endpoint_gate is digests.endpoint_gate
    assert macmini.endpoint_gate is not macbook.endpoint_gate
    assert (macmini.endpoint_gate.capacity, macbook.endpoint_gate.capacity) == (2, 1)
    assert (macmini.model, macmini.hold_timeout, macmini.limits.gap) == ("qwen", 120, 3)
    assert macmini.headers["authorization"] == "Bearer secret-key"
    assert "secret" not in repr(macmini)
    assert digests.system_prompt == "Be short."
    await trio.lowlevel.checkpoint()


def test_the_registry_has_the_roles_of_the_file() -> None:
    registry = parse_config(FILE).registry(environ=KEY, jitter=0)
    assert {role: [backend.name for backend in backends] for role, backends in registry.roles.items()} == {
        "reasoner": ["macbook", "macmini"]
    }
    alone = parse_config(FILE.partition("[roles]")[0]).registry(environ=KEY)
    assert list(alone.roles) == ["macmini", "digests", "macbook"]


def test_gates_can_be_shared_with_the_rest_of_a_program() -> None:
    config = parse_config(FILE)
    gates = config.gates()
    made = config.adapters(gates, environ=KEY)
    assert made["macmini"].gate is gates
    assert gates["http://macmini:8080"].capacity == 2


def test_what_the_adapter_alone_refuses_is_told_with_its_place() -> None:
    text = '[backends.macmini]\nurl = "http://macmini:8080"\nheaders = { Connection = "close" }\n'
    with pytest.raises(ConfigError, match=r"my\.toml: backends\.macmini: the header 'Connection' is the adapter's"):
        parse_config(text, "my.toml").adapters()
    with pytest.raises(ConfigError, match="has no MACMINI_KEY"):
        parse_config(FILE).registry(environ={})
