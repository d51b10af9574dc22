"""The body of a request for a chat completion, from what a caller and an adapter say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias

Messages: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A conversation as OpenAI's API has it, or the text of one message of the user."""

_SYSTEM_ROLES: Final = ("system", "developer")

_ARGUMENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "messages": "the first argument",
        "model": "the argument model=",
        "temperature": "the argument temperature=",
        "max_tokens": "the argument max_tokens=",
        "stream": "chat() for the whole answer, or stream() for its pieces; the server is always asked for a stream",
        "stream_options": "nothing: the usage is always asked for",
    }
)
"""What ``extra`` can't say, and how it is said."""


def chat_body(
    messages: Messages,
    *,
    system_prompt: str | None = None,
    model: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[bytes, bool]:
    """The body, and whether it asks for a stream.

    It does, unless ``extra`` asks for what servers only give in plain answers (``logprobs``, ``top_logprobs``).
    ``system_prompt`` stands in front, unless the messages begin with a system message of their own, which counts then.

    Raises:
      TypeError, ValueError: an argument isn't as described; the message says what to change.
    """
    conversation = check_messages(messages)
    if system_prompt is not None and conversation[0]["role"] not in _SYSTEM_ROLES:
        conversation = [{"role": "system", "content": system_prompt}, *conversation]
    more = _check_extra(extra)
    body: dict[str, Any] = {} if model is None else {"model": model}
    body["messages"] = conversation
    if temperature is not None:
        body["temperature"] = check_temperature(temperature)
    # The newer name of the same: two limits in one request would be a riddle for the server.
    if max_tokens is not None and "max_completion_tokens" not in more:
        body["max_tokens"] = check_max_tokens(max_tokens)
    body.update(more)
    plain = bool(more.get("logprobs")) or more.get("top_logprobs") is not None
    body["stream"] = not plain
    if not plain:
        # Never without include_usage: mlx_lm.server breaks off at the end of the stream if it is missing.
        body["stream_options"] = {"include_usage": True}
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(), not plain
    except UnicodeEncodeError:
        raise ValueError("the request has half of a surrogate pair in a text, which no UTF-8 can hold") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise type(error)(f"the request can't be written as JSON: {error}") from None


def check_messages(messages: object) -> list[dict[str, Any]]:
    """The messages as a list; a text is one message of the user.

    Raises:
      TypeError, ValueError: they are no such thing.
    """
    if isinstance(messages, str):
        if not messages:
            raise ValueError("messages is an empty text: there is nothing to answer")
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, bytes | bytearray):
        raise TypeError(
            "messages must be a text, or a list of messages such as {'role': 'user', 'content': 'hello'}, "
            f"not {type(messages).__name__}"
        )
    if not messages:
        raise ValueError("messages is empty: there is nothing to answer")
    checked = []
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(
                f"messages[{position}] must be a mapping such as {{'role': 'user', 'content': 'hello'}}, "
                f"not {type(message).__name__}"
            )
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise ValueError(f"messages[{position}] needs a 'role', such as 'user', not {role!r}")
        checked.append(dict(message))
    return checked


def check_temperature(temperature: object) -> float:
    """Return ``temperature`` if it is a finite number >= 0.

    Raises:
      TypeError, ValueError: it isn't.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"temperature must be a number >= 0 (None: as the server has it), not {temperature!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a finite number >= 0, not {temperature!r}")
    return temperature


def check_max_tokens(max_tokens: object) -> int:
    """Return ``max_tokens`` if it is an int >= 1.

    Raises:
      TypeError, ValueError: it isn't.
    """
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int):
        raise TypeError(f"max_tokens must be an int >= 1 (None: as the server has it), not {max_tokens!r}")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be >= 1 (None: as the server has it), not {max_tokens}")
    return max_tokens


def _check_extra(extra: object) -> dict[str, Any]:
    if not isinstance(extra, Mapping):
        raise TypeError(f"extra must be a mapping of further fields of the request, not {type(extra).__name__}")
    for name in extra:
        if not isinstance(name, str):
            raise TypeError(f"the names in extra must be strings, not {name!r}")
        if name in _ARGUMENTS:
            raise ValueError(f"extra can't have {name!r}: use {_ARGUMENTS[name]}")
    n = extra.get("n")
    if n is not None and (isinstance(n, bool) or n != 1):
        raise ValueError(f"extra can't have n={n!r}: an answer is one; ask as often as you want answers")
    return dict(extra)
