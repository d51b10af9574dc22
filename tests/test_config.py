"""The configuration file: what it gives, and that each mistake is told with its path."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import hypothesis
import hypothesis.strategies as st
import pytest

from trio_mlxgate.config import BackendConfig, ConfigError, LimitsConfig, load_config, parse_config
from trio_mlxgate.endpoint_gates import EndpointGates

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = """
[backends.macbook]
url = "http://macbook.local:8080/v1"

[backends.macmini]
url = "http://macmini.local:8080/v1"
kind = "mlx-lm"
model = "mlx-community/Qwen3-8B-4bit"
aliases = ["qwen3", "gpt-4o"]
system_prompt = "Answer in one word."
temperature = 0
max_tokens = 512
headers = { X-Team = "assistants" }
api_key_env = "MACMINI_KEY"
hold_timeout = 120
capacity = 2
limits = { connect = 2.5, first_token = 90, gap = inf }

[roles]
classifier = ["macbook", "macmini"]
reasoner = ["macmini"]
"""
SECRET = "s3cr3t-key"


def test_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "mlxgate.toml"
    file.write_text(WHOLE)
    config = load_config(file)
    assert list(config.backends) == ["macbook", "macmini"]
    assert config.backends["macbook"] == BackendConfig(name="macbook", url="http://macbook.local:8080/v1")
    assert config.backends["macmini"] == BackendConfig(
        name="macmini",
        url="http://macmini.local:8080/v1",
        kind="mlx-lm",
        model="mlx-community/Qwen3-8B-4bit",
        aliases=frozenset({"qwen3", "gpt-4o"}),
        system_prompt="Answer in one word.",
        temperature=0,
        max_tokens=512,
        headers={"X-Team": "assistants"},
        api_key_env="MACMINI_KEY",
        hold_timeout=120,
        capacity=2,
        limits=LimitsConfig(connect=2.5, first_token=90, gap=math.inf),
    )
    assert config.roles == {"classifier": ("macbook", "macmini"), "reasoner": ("macmini",)}


def test_what_an_adapter_is_given() -> None:
    config = parse_config(WHOLE)
    assert config.backends["macbook"].adapter_arguments({}) == {
        "name": "macbook",
        "base_url": "http://macbook.local:8080/v1",
    }
    assert config.backends["macmini"].adapter_arguments({"MACMINI_KEY": SECRET}) == {
        "name": "macmini",
        "base_url": "http://macmini.local:8080/v1",
        "kind": "mlx-lm",
        "model": "mlx-community/Qwen3-8B-4bit",
        "aliases": {"qwen3", "gpt-4o"},
        "system_prompt": "Answer in one word.",
        "temperature": 0,
        "max_tokens": 512,
        "headers": {"X-Team": "assistants", "Authorization": f"Bearer {SECRET}"},
        "hold_timeout": 120,
        "limits": {"connect": 2.5, "first_token": 90, "gap": math.inf},
    }


def test_what_the_gates_are_given() -> None:
    capacities = parse_config(WHOLE).capacities()
    assert capacities == {"http://macmini.local:8080": 2}
    EndpointGates({url: {"capacity": capacity} for url, capacity in capacities.items()})


def test_the_key_is_nowhere_but_in_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACMINI_KEY", SECRET)
    config = parse_config(WHOLE.replace("assistants", "hidden-too"))
    assert SECRET not in repr(config)
    assert "hidden-too" not in repr(config)
    assert config.backends["macmini"].request_headers()["Authorization"] == f"Bearer {SECRET}"
    for environ, told in [
        ({}, "the environment has no MACMINI_KEY; set it"),
        ({"MACMINI_KEY": ""}, "has no MACMINI_KEY"),
        ({"MACMINI_KEY": f"{SECRET}\n"}, "characters that no HTTP header may have"),
        ({"MACMINI_KEY": f"{SECRET}é"}, "characters that no HTTP header may have"),
    ]:
        with pytest.raises(ConfigError, match=told) as caught:
            config.backends["macmini"].request_headers(environ)
        assert str(caught.value).startswith("configuration: backends.macmini.api_key_env: ")
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("hold_timeout = 'ten'", "backends.a.hold_timeout: expected seconds > 0 (inf: no limit), got 'ten'"),
        ("hold_timeout = 0", "backends.a.hold_timeout: expected seconds > 0 (inf: no limit), got 0"),
        ("hold_timeout = nan", "backends.a.hold_timeout: expected seconds > 0 (inf: no limit), got nan"),
        ("hold_timeout = true", "backends.a.hold_timeout: expected seconds > 0 (inf: no limit), got True"),
        (
            "hold_timout = 3",
            (
                "backends.a.hold_timout: there is no such key (do you mean hold_timeout?); there are url, kind, model, "
                "aliases, system_prompt, temperature, max_tokens, headers, api_key_env, hold_timeout, capacity, limits"
            ),
        ),
        ('kind = "mlx_lm"', "got 'mlx_lm' (do you mean mlx-lm?)"),
        ("kind = 3", "backends.a.kind: expected one of status, mlx-lm, "),
        ("kind = ['mlx-lm']", "backends.a.kind: expected one of status, mlx-lm, "),
        ('model = ""', "backends.a.model: expected a string that isn't empty, got ''"),
        ("model = 3", "backends.a.model: expected a string that isn't empty, got 3"),
        ('model = "m"\naliases = "b"', "backends.a.aliases: expected a list of names, got 'b'"),
        ('model = "m"\naliases = ["b", 3]', "backends.a.aliases[1]: expected a string that isn't empty, got 3"),
        ('aliases = ["b"]', "backends.a.aliases: they are other names of the model; give that in model"),
        ("temperature = -1", "backends.a.temperature: expected a number >= 0, got -1"),
        ("max_tokens = 0", "backends.a.max_tokens: expected an int >= 1, got 0"),
        ("max_tokens = 1.5", "backends.a.max_tokens: expected an int >= 1, got 1.5"),
        ("capacity = true", "backends.a.capacity: expected an int >= 1, got True"),
        ("capacity = -1", "backends.a.capacity: expected an int >= 1, got -1"),
        (
            'kind = "llama-cpp-python"\ncapacity = 2',
            "backends.a.capacity: expected at most 1, which is what llama-cpp-python bears, got 2",
        ),
        ("limits = 3", "backends.a.limits: expected a table [backends.a.limits], got 3"),
        ("limits.gap = -1", "backends.a.limits.gap: expected seconds > 0 (inf: no limit), got -1"),
        ("limits.gaps = 1", "backends.a.limits.gaps: there is no such key (do you mean gap?)"),
        ('headers = "Bearer s3cr3t"', "backends.a.headers: expected a table such as"),
        ('headers = ["s3cr3t"]', "backends.a.headers: expected a table such as"),
        ('headers = { X = "s3cr3t " }', "backends.a.headers.X: expected a string of printable ASCII characters"),
        (
            'headers = { "a b" = "s3cr3t" }',
            "backends.a.headers.'a b': expected the name of a header, of letters, digits and dashes",
        ),
        ('headers = { X = "s3cr3t\\n" }', "backends.a.headers.X: expected a string of printable ASCII characters"),
        ("headers = { X = 3 }", "backends.a.headers.X: expected a string of printable ASCII characters"),
        ('api_key_env = "s3cr3t-key"', "backends.a.api_key_env: expected the name of a variable of the environment"),
        (
            'api_key_env = "KEY"\nheaders = { authorization = "s3cr3t" }',
            "backends.a.api_key_env: headers have an Authorization already",
        ),
    ],
)
def test_each_mistake_is_told_with_its_path(line: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f'[backends.a]\nurl = "http://a/v1"\n{line}\n', "mlxgate.toml")
    assert str(caught.value).startswith("mlxgate.toml: backends.a.")
    assert told in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "x: backends: expected at least one table [backends.NAME]"),
        ("backends = 3", "x: backends: expected a table [backends], got 3"),
        ("[backends]\na = 3", "x: backends.a: expected a table [backends.a], got 3"),
        ("[backend.a]", "x: backend: there is no such key (do you mean backends?); there are backends, roles"),
        ("[backends.a]", "x: backends.a.url: it is missing; give one such as"),
        ("[backends.a]\nurl = 3", 'x: backends.a.url: expected a base URL such as "http://127.0.0.1:8080/v1", got 3'),
        ("[backends.a]\nurl = 'a:8080'", "x: backends.a.url: expected a base URL"),
        ("[backends.a]\nurl = 'ftp://a'", "x: backends.a.url: expected a base URL"),
        ("[backends.a]\nurl = 'ws://a'", "got one of ws"),
        (
            "[backends.a]\nurl = 'http://me:s3cr3t@a'",
            "without a user or a password; there are headers, and api_key_env",
        ),
        ("[backends.a]\nurl = 'http://a/v1?key=s3cr3t'", "without query, fragment or spaces"),
        ("[backends.a]\nurl = 'http://xn--a'", "x: backends.a.url: expected a base URL"),
        (f"[backends.a]\nurl = 'http://{'a' * 64}'", "more than 63 characters"),
        ("[backends.'']\nurl = 'http://a'", "x: backends.'': the name of a backend can't be empty"),
        ("[backends.\"a\\u0007\"]\nurl = 'http://a'", "can't be empty or unprintable"),
        ("[backends.a]\nurl = 'http://a'\n[roles]\nr = 'a'", "x: roles.r: expected a list of backends such as"),
        ("[backends.a]\nurl = 'http://a'\n[roles]\nr = []", "x: roles.r: expected a list of backends such as"),
        (
            "[backends.macmini]\nurl = 'http://a'\n[roles]\nr = ['macmini', 'macmni']",
            "x: roles.r[1]: expected the name of a backend (macmini), got 'macmni' (do you mean macmini?)",
        ),
        (
            "[backends.a]\nurl = 'http://a'\n[roles]\nr = [3]",
            "x: roles.r[0]: expected the name of a backend (a), got 3",
        ),
        ("[backends.a]\nurl = 'http://a'\n[roles]\nr = ['a', 'a']", "x: roles.r[1]: 'a' is named twice"),
        ("[backends.a]\nurl = 'http://a'\n[roles]\nx = {}", "x: roles.x: expected a list of backends such as"),
        (
            (
                "[backends.a]\nurl = 'http://localhost:1'\ncapacity = 1\n"
                "[backends.b]\nurl = 'http://127.0.0.1:1/v1'\ncapacity = 2"
            ),
            "x: backends.b.capacity: expected 1, as of a, which is on the same server and shares its gate, got 2",
        ),
        ("[backends.a", "x: no TOML: "),
        ("a = " + "9" * 5000, "x: no TOML: "),
        ("a = " + "[" * 5000, "x: no TOML: "),
    ],
)
def test_mistakes_of_the_whole(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x")
    assert told in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"# \xff")
    for name, told in [
        ("missing", "can't be read: No such file"),
        ("", "can't be read: Is a directory"),
        ("latin", "it isn't text in UTF-8"),
        ("a\0b", "can't be read"),
    ]:
        with pytest.raises(ConfigError, match=told) as caught:
            load_config(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path))


values: Any = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text("ab/:'0-\n", max_size=8).map(repr).map(str),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@hypothesis.given(
    st.dictionaries(
        st.sampled_from(
            ["url", "kind", "model", "aliases", "temperature", "max_tokens", "hold_timeout", "capacity", "headers", "x"]
        ),
        values,
        max_size=4,
    )
)
@hypothesis.settings(deadline=None)
def test_whatever_stands_there_only_config_errors_come(table: dict[str, Any]) -> None:
    lines = []
    for key, value in table.items():
        text = "true" if value is True else "false" if value is False else str(value).replace("\\n", "")
        lines.append(f"{key} = {text.replace('True', 'true').replace('False', 'false')}")
    with suppress(ConfigError):
        config = parse_config("[backends.a]\n" + "\n".join(lines))
        assert config.backends["a"].adapter_arguments({})["name"] == "a"
