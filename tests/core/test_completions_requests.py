"""The body of a request."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from trio_mlxgate.core.chat_requests import chat_body


def body(messages: Any, **more: Any) -> dict[str, Any]:
    content, streamed = chat_body(messages, **more)
    read: dict[str, Any] = json.loads(content)
    assert read["stream"] == streamed
    return read


def test_a_text_is_a_message_of_the_user_and_everything_is_streamed() -> None:
    assert body("안녕") == {
        "messages": [{"role": "user", "content": "안녕"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_system_prompt_stands_in_front_unless_there_is_one() -> None:
    asked = [{"role": "user", "content": "hi"}]
    assert body(asked, system_prompt="be kind")["messages"] == [{"role": "system", "content": "be kind"}, *asked]
    for role in ("system", "developer"):
        own = [{"role": role, "content": "be brief"}, *asked]
        assert body(own, system_prompt="be kind")["messages"] == own
    assert asked == [{"role": "user", "content": "hi"}]


def test_what_is_said_is_sent() -> None:
    sent = body("x", model="m", temperature=0.5, max_tokens=3, extra={"stop": ["a"], "n": 1})
    assert (sent["model"], sent["temperature"], sent["max_tokens"], sent["stop"]) == ("m", 0.5, 3, ["a"])


def test_the_newer_name_of_the_limit_goes_alone() -> None:
    sent = body("x", max_tokens=3, extra={"max_completion_tokens": 5})
    assert "max_tokens" not in sent
    assert sent["max_completion_tokens"] == 5


@pytest.mark.parametrize("extra", [{"logprobs": True}, {"top_logprobs": 0}, {"logprobs": True, "top_logprobs": 2}])
def test_what_only_plain_answers_have_is_asked_for_plainly(extra: dict[str, Any]) -> None:
    sent = body("x", extra=extra)
    assert sent["stream"] is False
    assert "stream_options" not in sent
    assert body("x", extra={"logprobs": False})["stream"] is True


@pytest.mark.parametrize(
    ("messages", "error", "said"),
    [
        ("", ValueError, "nothing to answer"),
        ([], ValueError, "nothing to answer"),
        (b"hi", TypeError, "must be a text"),
        ({"role": "user"}, TypeError, "must be a text, or a list"),
        (["hi"], TypeError, r"messages\[0\] must be a mapping"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], ValueError, r"messages\[1\] needs a 'role'"),
        ([{"role": 3}], ValueError, "needs a 'role'"),
        ("\ud800", ValueError, "surrogate"),
        ([{"role": "user", "content": object()}], TypeError, "JSON"),
        ([{"role": "user", "content": math.nan}], ValueError, "JSON"),
    ],
)
def test_messages_that_are_none(messages: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        chat_body(messages)


@pytest.mark.parametrize(
    ("extra", "error", "said"),
    [
        ({"stream": True}, ValueError, r"use chat\(\)"),
        ({"messages": []}, ValueError, "the first argument"),
        ({"model": "m"}, ValueError, "model="),
        ({"temperature": 1}, ValueError, "temperature="),
        ({"max_tokens": 1}, ValueError, "max_tokens="),
        ({"stream_options": {}}, ValueError, "always asked for"),
        ({"n": 2}, ValueError, "n=2"),
        ({"n": True}, ValueError, "n=True"),
        ({1: 2}, TypeError, "must be strings"),
        ([], TypeError, "must be a mapping"),
    ],
)
def test_what_extra_can_not_say(extra: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        chat_body("x", extra=extra)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"temperature": "hot"}, TypeError),
        ({"temperature": True}, TypeError),
        ({"temperature": -1}, ValueError),
        ({"temperature": math.inf}, ValueError),
        ({"max_tokens": 1.5}, TypeError),
        ({"max_tokens": True}, TypeError),
        ({"max_tokens": 0}, ValueError),
    ],
)
def test_numbers_that_are_none(more: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        chat_body("x", **more)
