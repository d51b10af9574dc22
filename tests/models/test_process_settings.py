"""The settings of a model's server, what is said of bad ones, and the ports."""

from __future__ import annotations

import math
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_mlxgate.core.backoff import RestartSettings
from trio_mlxgate.models import NoFreePort, PortPool, ProcessConfig
from trio_mlxgate.models.settings import filled, needs


def config(**settings: Any) -> ProcessConfig:
    return ProcessConfig(**{"name": "qwen", "command": "serve --port ${PORT}", **settings})


@pytest.mark.parametrize(
    ("bad", "error", "told"),
    [
        (
            {"start_timeout": "ten"},
            TypeError,
            "models.qwen.start_timeout: expected seconds > 0, got 'ten'",
        ),
        ({"start_timeout": 0}, ValueError, "models.qwen.start_timeout: expected seconds > 0, got 0"),
        ({"start_timeout": math.nan}, ValueError, "models.qwen.start_timeout: expected seconds > 0"),
        ({"check_timeout": math.inf}, ValueError, "models.qwen.check_timeout: expected seconds > 0, got inf"),
        ({"health_interval": -1}, ValueError, "models.qwen.health_interval: expected seconds > 0"),
        ({"silence_limit": True}, TypeError, "models.qwen.silence_limit: expected seconds > 0"),
        ({"stop_grace": math.inf}, ValueError, "models.qwen.stop_grace: expected seconds >= 0, got inf"),
        ({"stop_grace": None}, TypeError, "models.qwen.stop_grace: expected seconds >= 0, got None"),
        ({"name": ""}, ValueError, "models: expected names of models that are not empty"),
        ({"warm_up": "yes"}, TypeError, "models.qwen.warm_up: expected True, False, or the body of a request"),
        ({"warm_up": {"max_tokens": math.nan}}, ValueError, "models.qwen.warm_up: expected True, False, or the body"),
        ({"warm_up": {1, 2}}, TypeError, "models.qwen.warm_up: expected True, False, or the body of a request"),
        ({"cwd": "a\0b"}, ValueError, "models.qwen.cwd: expected a string without a null character"),
        ({"cwd": "\ud800"}, ValueError, "models.qwen.cwd: expected text that the system can encode"),
        (
            {"command": ["echo", "\ud800", "${PORT}"]},
            ValueError,
            "models.qwen.command[1]: expected text that the system",
        ),
        ({"env": {"A": "\ud800"}}, ValueError, "models.qwen.env.A: expected text that the system can encode"),
        ({"name": 3}, TypeError, "models: expected names of models that are strings, got 3"),
        ({"name": "qwen/3.5", "command": ""}, ValueError, "models.'qwen/3.5'.command: expected a command"),
        ({"command": ""}, ValueError, "models.qwen.command: expected a command"),
        ({"command": []}, ValueError, "models.qwen.command: expected a command"),
        ({"command": b"serve"}, TypeError, "models.qwen.command: expected a command"),
        ({"command": "serve 'it ${PORT}"}, ValueError, "models.qwen.command: expected a command, a string or a list"),
        ({"command": ["serve", 8080]}, TypeError, "models.qwen.command[1]: expected a string, got 8080"),
        ({"command": ["serve", "a\0b"]}, ValueError, "models.qwen.command[1]: expected a string without a null"),
        ({"command": "serve --port 8080"}, ValueError, "models.qwen.command: expected ${PORT} in it (or in env), or a"),
        (
            {"command": "serve ${PROT}"},
            ValueError,
            "models.qwen.command[1]: expected ${PORT} alone, got ${PROT}; $${PROT}",
        ),
        ({"command": "serve ${PORT} ${PID}"}, ValueError, "models.qwen.command[2]: expected ${PORT} alone, got ${PID}"),
        (
            {"cmd_stop": "kill ${POD}"},
            ValueError,
            "models.qwen.cmd_stop[1]: expected ${PORT} and ${PID} alone, got ${POD}",
        ),
        ({"cmd_stop": 9}, TypeError, "models.qwen.cmd_stop: expected a command"),
        ({"env": ["A"]}, TypeError, "models.qwen.env: expected a mapping"),
        ({"env": {"A=B": "c"}}, ValueError, "models.qwen.env: expected names of variables without '='"),
        ({"env": {"A": 1}}, TypeError, "models.qwen.env.A: expected a string, got a int"),
        ({"env": {"A": "${X}"}}, ValueError, "models.qwen.env.A: expected ${PORT} alone, got ${X}"),
        ({"cwd": 3}, TypeError, "models.qwen.cwd: expected a path, got 3"),
        ({"base_url": "127.0.0.1:${PORT}"}, ValueError, "models.qwen.base_url: expected a URL such as"),
        ({"base_url": "https://127.0.0.1:1"}, ValueError, "models.qwen.base_url: expected a URL such as"),
        ({"base_url": "http://a:b@127.0.0.1:1"}, ValueError, "models.qwen.base_url: expected a URL such as"),
        ({"base_url": "http://127.0.0.1:99999"}, ValueError, "models.qwen.base_url: expected a URL such as"),
        ({"base_url": 80}, TypeError, "models.qwen.base_url: expected a URL such as"),
        (
            {"check": "health"},
            ValueError,
            "models.qwen.check: expected a path such as '/health', a URL of http, or None",
        ),
        ({"check": "/a b"}, ValueError, "models.qwen.check: expected a path such as"),
        ({"check": 3}, TypeError, "models.qwen.check: expected a path such as"),
        ({"restarts": 3}, TypeError, "models.qwen.restarts: expected RestartSettings, got 3"),
        ({"output_lines": 0}, ValueError, "models.qwen.output_lines: expected an int from 1 to 1000000, got 0"),
        ({"output_lines": 1.5}, TypeError, "models.qwen.output_lines: expected an int from 1"),
    ],
)
def test_what_is_said_of_bad_settings(bad: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match="^" + re.escape(told)):
        config(**bad)


def test_secrets_are_not_shown() -> None:
    assert "hunter2" not in repr(config(env={"KEY": "hunter2"}))
    with pytest.raises(ValueError, match=r"env\.KEY") as caught:
        config(env={"KEY": "hunter2\0"})
    assert "hunter2" not in str(caught.value)


def test_a_command_is_split_as_a_shell_would_and_nothing_is_expanded() -> None:
    said = "serve --model 'my model' \\\n  --port ${PORT}\n  --note \"$HOME; rm *\" | cat"
    words = ("serve", "--model", "my model", "--port", "${PORT}", "--note", "$HOME; rm *", "|", "cat")
    assert config(command=said).words == words
    assert config(command=list(words)).words == words
    assert config().stop_words == ()


def test_the_urls() -> None:
    both = config(base_url="http://127.0.0.1:${PORT}/v1/", check="/models?all=1")
    assert both.url(5801) == "http://127.0.0.1:5801/v1"
    assert both.check_url(5801) == "http://127.0.0.1:5801/v1/models?all=1"
    assert config(check="http://localhost:${PORT}/up").check_url(5801) == "http://localhost:5801/up"
    assert config(check=None).check_url(5801) is None
    assert config().needs_port
    assert not config(command="serve", base_url="http://127.0.0.1:8080").needs_port
    assert config(command="serve", env={"PORT": "${PORT}"}).needs_port
    config(restarts=RestartSettings(most=1), cwd=Path("/"), stop_grace=0, start_timeout=math.inf, check_timeout=1)


def test_placeholders() -> None:
    assert filled("a ${PORT} $${PORT} ${PORT}", {"PORT": 1}) == "a 1 ${PORT} 1"
    assert needs("${PORT}", "PORT")
    assert not needs("$${PORT} $PORT {PORT}", "PORT")


@given(st.text(alphabet="a$ {}PORT", max_size=30))
def test_what_is_filled_in_is_not_read_again(text: str) -> None:
    try:
        result = filled(text, {"PORT": "${PORT}"})
    except KeyError:
        return  # a name that nobody knows, which the settings refuse
    assert result == re.sub(r"\$\$(\{\w+\})", r"$\1", text)


# ---- ports ----


def test_ports_are_lent_to_one_and_the_oldest_goes_first() -> None:
    pool = PortPool(5770, 5772)
    first, second, third = pool.take(), pool.take(), pool.take()
    assert {first, second, third} <= {5770, 5771, 5772}
    with pytest.raises(NoFreePort, match="no port from 5770 to 5772 is free"):
        pool.take()
    pool.give_back(second)
    pool.give_back(first)
    assert pool.take() == second
    pool.give_back(second)
    pool.give_back(third)
    with pytest.raises(ValueError, match="was not lent"):
        pool.give_back(first)
    with pytest.raises(ValueError, match="was not lent"):
        pool.give_back(80)


def test_two_pools_never_lend_the_same_port() -> None:
    one, other = PortPool(5760, 5761), PortPool(5760, 5761)
    ports = {one.take(), other.take()}
    assert ports == {5760, 5761}
    for pool in (one, other):
        with pytest.raises(NoFreePort):
            pool.take()
    for pool in (one, other):
        for port in ports:
            with suppress(ValueError):
                pool.give_back(port)
        assert pool.free == 2


@pytest.mark.integration
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_passed_over(address: str) -> None:
    with socket.create_server((address, 0)) as taken:
        port = taken.getsockname()[1]
        pool = PortPool(port, port)
        with pytest.raises(NoFreePort), pool.lent():
            pass
        assert pool.free == 1
    with pool.lent() as lent:
        assert lent == port
        assert pool.free == 0
    assert pool.free == 1


@pytest.mark.parametrize(
    ("bad", "error"), [((0, 5), ValueError), ((5, 4), ValueError), ((1, 65536), ValueError), (("1", 5), TypeError)]
)
def test_bad_pools(bad: tuple[Any, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"first|last"):
        PortPool(*bad)


def test_where_the_first_request_goes() -> None:
    assert config().first_request is None
    assert config(warm_up=False).first_request is None
    assert config(warm_up={"prompt": "x"}).first_request == b'{"prompt": "x"}'
    assert config(warm_up=True).warm_up_url(5800) == "http://127.0.0.1:5800/v1/chat/completions"
    own = config(warm_up=True, base_url="http://127.0.0.1:${PORT}/v1/", check="/models")
    assert own.warm_up_url(5800) == "http://127.0.0.1:5800/v1/chat/completions"
