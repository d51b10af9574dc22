"""What the echo server says and understands, without a socket, a clock or a task: settings, requests, answers.

An echo, not a model: the answer is the words of the question, as many as were asked for. One word is
one token. `trio_mlxgate.echo_server` drives what is here.
"""

from __future__ import annotations

import enum
import json
import math
from typing import Any, Final, Literal, NoReturn
from urllib.parse import urlsplit

import attrs

ECHO_MODEL: Final = "trio-mlxgate-echo (an echo, not a model)"
"""What every answer says in its field ``model``."""

OnDisconnect = Literal["finish", "stop"]
"""What becomes of a job whose client has gone: it runs to its last token, or it ends at once."""

_LABEL_LENGTH = 40
# What a client sends is kept and multiplied, so it is cut: there are 1000 labels in the order, and a word
# may come 100,000 times in an answer.
_USER_LENGTH = 200
_WORD_LENGTH = 100


def _number(minimum: float, unit: str) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{attribute.name} must be a number of {unit}, not {value!r}")
        if not math.isfinite(value) or value < minimum:
            raise ValueError(f"{attribute.name} is {value!r}: give a finite number of {unit}, {minimum:g} or more")

    return check


def _whole(minimum: int, maximum: int) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{attribute.name} must be an int, not {value!r}")
        if not minimum <= value <= maximum:
            raise ValueError(f"{attribute.name} is {value}: give an int from {minimum} to {maximum}")

    return check


def _on_disconnect(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in ("finish", "stop"):
        raise ValueError(f"{attribute.name} is {value!r}: give 'finish' or 'stop'")


def _host(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a str, not {value!r}")
    if not value:
        raise ValueError(f"{attribute.name} is empty: give an address to listen on, such as 127.0.0.1")


@attrs.frozen(kw_only=True)
class EchoSettings:
    """How one echo server behaves. A value of a wrong type raises `TypeError`, a bad one `ValueError`."""

    service_time: float = attrs.field(default=0.35, validator=_number(0, "seconds"))
    """Seconds of a whole inference of ``tokens`` tokens; one token takes ``service_time / tokens``."""
    tokens: int = attrs.field(default=8, validator=_whole(1, 100_000))
    """Tokens of an answer, unless the request's own maximum is lower."""
    plain_on_disconnect: OnDisconnect = attrs.field(default="finish", validator=_on_disconnect)
    """What becomes of a plain (not streamed) request whose client has gone, waiting or running."""
    stream_on_disconnect: OnDisconnect = attrs.field(default="stop", validator=_on_disconnect)
    """The same for a streamed request."""
    host: str = attrs.field(default="127.0.0.1", validator=_host)
    """The address to listen on."""
    port: int = attrs.field(default=0, validator=_whole(0, 65535))
    """The port to listen on; 0 lets the system choose a free one."""
    backlog: int = attrs.field(default=128, validator=_whole(1, 65535))
    """Connections that the system keeps for the server before it accepts them."""
    max_body: int = attrs.field(default=1 << 20, validator=_whole(1, 1 << 30))
    """Bytes of the largest request body; a larger one is refused with 413."""


# --- what a request asks for -------------------------------------------------------------------------------


class RequestRefused(Exception):
    """The request is answered with an error; the server and all other requests go on."""

    def __init__(self, status: int, code: str, message: str, *, allow: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.allow = allow

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


class Endpoint(enum.Enum):
    """What the server answers; the value is the path."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    MODELS = "/v1/models"
    HEALTH = "/health"
    STATUS = "/status"

    @property
    def is_inference(self) -> bool:
        """True if a request to it takes its turn at the one generator."""
        return self in (Endpoint.CHAT, Endpoint.COMPLETIONS)

    @property
    def methods(self) -> tuple[str, ...]:
        """The HTTP methods that it takes."""
        return ("POST",) if self.is_inference else ("GET", "HEAD")


def route(method: str, target: str) -> Endpoint:
    """The endpoint of a request line. Raises `RequestRefused`: 404, 405, or 400 if the target is no URL."""
    try:
        path = urlsplit(target).path
    except ValueError:
        raise RequestRefused(400, "malformed_http", f"the request's target {target!r} is not a URL") from None
    try:
        endpoint = Endpoint(path)
    except ValueError:
        known = ", ".join(endpoint.value for endpoint in Endpoint)
        raise RequestRefused(404, "not_found", f"there is no {path!r} here; this server knows {known}") from None
    if method not in endpoint.methods:
        allow = ", ".join(endpoint.methods)
        raise RequestRefused(405, "method_not_allowed", f"{path} takes {allow}, not {method}", allow=allow)
    return endpoint


@attrs.frozen(kw_only=True)
class InferenceRequest:
    """What a valid body asks for."""

    chat: bool
    stream: bool
    include_usage: bool
    words: tuple[str, ...]
    """The words to echo, each of at most 100 characters: never empty."""
    prompt_tokens: int
    max_tokens: int | None
    label: str
    """How /status names the job: the request's ``user`` (200 characters of it), else the first 40 characters
    of its last message."""

    def tokens(self, settings: EchoSettings) -> int:
        """How many tokens the answer has."""
        return settings.tokens if self.max_tokens is None else min(settings.tokens, self.max_tokens)


def _refuse(message: str) -> NoReturn:
    raise RequestRefused(400, "invalid_value", message)


def _optional(body: dict[str, Any], name: str, kind: type, said: str) -> Any:
    """The field ``name``, or None if it is absent or null."""
    value = body.get(name)
    if value is not None and type(value) is not kind:
        # type(), not isinstance: JSON's true is no number.
        _refuse(f"{name!r} must be {said}, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "something that is nested too deeply"
    return text if len(text) <= 60 else text[:57] + "..."


def _text_of(content: object, where: str) -> str:
    """The text of a message's content: a string, null, or OpenAI's list of parts (the text ones count)."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        _refuse(f"{where} must be a string or a list of parts, not {_shown(content)}")
    texts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            _refuse(f"each part of {where} must be an object with a 'type', not {_shown(part)}")
        if part["type"] == "text":
            if not isinstance(part.get("text"), str):
                _refuse(f"a text part of {where} needs a string 'text', not {_shown(part)}")
            texts.append(part["text"])
    return " ".join(texts)


def _chat_texts(body: dict[str, Any]) -> tuple[list[str], str]:
    """The texts of all messages, and the one to echo: that of the last user message, else of the last."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        _refuse("'messages' must be a list with at least one message")
    texts = []
    to_echo = None
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            _refuse(f"messages[{position}] must be an object with a string 'role', not {_shown(message)}")
        texts.append(_text_of(message.get("content"), f"messages[{position}].content"))
        if message["role"] == "user":
            to_echo = texts[-1]
    return texts, texts[-1] if to_echo is None else to_echo


def _prompt_texts(body: dict[str, Any]) -> tuple[list[str], str]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        _refuse(f"'prompt' must be a string, or a list with one string, not {_shown(prompt)}")
    return [prompt], prompt


def parse_inference(raw: bytes, endpoint: Endpoint) -> InferenceRequest:
    """Read the body of a request. Raises `RequestRefused` (400) and says what is wrong with it.

    Fields that mean nothing to an echo (temperature, seed, tools, ...) are left unread.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        _refuse(f"the body must be a JSON object, not {_shown(body)}")
    _optional(body, "model", str, "a string")
    user = _optional(body, "user", str, "a string")
    stream = _optional(body, "stream", bool, "true or false")
    stream_options = _optional(body, "stream_options", dict, "an object") or {}
    include_usage = _optional(stream_options, "include_usage", bool, "true or false")
    limits = {
        name: _optional(body, name, int, "a whole number")
        for name in ("max_completion_tokens", "max_tokens")
        if body.get(name) is not None
    }
    for name, limit in limits.items():
        if limit < 1:
            _refuse(f"{name!r} must be 1 or more, not {limit}")
    chat = endpoint is Endpoint.CHAT
    texts, to_echo = _chat_texts(body) if chat else _prompt_texts(body)
    return InferenceRequest(
        chat=chat,
        stream=bool(stream),
        include_usage=bool(include_usage),
        words=tuple(word[:_WORD_LENGTH] for word in to_echo.split()) or ("(empty)",),
        prompt_tokens=sum(len(text.split()) for text in texts),
        # The older name counts only where the newer one is not given.
        max_tokens=next(iter(limits.values()), None),
        label=user[:_USER_LENGTH] if user else texts[-1][:_LABEL_LENGTH],
    )


# --- what it is answered -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Answer:
    """All that is sent for one inference, in OpenAI's shapes."""

    settings: EchoSettings
    request: InferenceRequest
    number: int
    """The job's number: it makes the answer's id."""
    created: int
    """Seconds since 1970."""

    @property
    def tokens(self) -> int:
        """How many tokens the whole answer has."""
        return self.request.tokens(self.settings)

    @property
    def finish_reason(self) -> str:
        """``"length"`` if the request's own maximum cut the answer, else ``"stop"``."""
        return "length" if self.tokens < self.settings.tokens else "stop"

    def token(self, index: int) -> str:
        """The text of one token; joined, they are the answer."""
        words = self.request.words
        word = words[index % len(words)]
        return word if index == 0 else " " + word

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.token(index) for index in range(self.tokens))

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, of the answer, and of both."""
        prompt = self.request.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
        }

    def plain(self) -> dict[str, Any]:
        """The body of a plain answer."""
        choice: dict[str, Any]
        if self.request.chat:
            message = {"role": "assistant", "content": self.text, "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        else:
            choice = {"index": 0, "text": self.text, "logprobs": None, "finish_reason": self.finish_reason}
        return self._envelope([choice]) | {"usage": self.usage}

    def token_event(self, index: int) -> bytes:
        """The server-sent event of one token."""
        delta = {"content": self.token(index)}
        if index == 0:
            delta = {"role": "assistant"} | delta
        return self._event(delta if self.request.chat else self.token(index), None)

    def last_events(self) -> bytes:
        """What follows the last token: the finish reason, the usage if it was asked for, and the end mark."""
        events = self._event({} if self.request.chat else "", self.finish_reason)
        if self.request.include_usage:
            events += _sse(self._envelope([]) | {"usage": self.usage})
        return events + b"data: [DONE]\n\n"

    def _event(self, piece: dict[str, str] | str, finish_reason: str | None) -> bytes:
        name = "delta" if self.request.chat else "text"
        choice = {"index": 0, name: piece, "logprobs": None, "finish_reason": finish_reason}
        return _sse(self._envelope([choice]))

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        if self.request.chat:
            prefix, kind = "chatcmpl", "chat.completion.chunk" if self.request.stream else "chat.completion"
        else:
            prefix, kind = "cmpl", "text_completion"
        return {
            "id": f"{prefix}-echo-{self.number}",
            "object": kind,
            "created": self.created,
            "model": ECHO_MODEL,
            "choices": choices,
        }


def _sse(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def models(created: int) -> dict[str, Any]:
    """The body of /v1/models."""
    model = {"id": ECHO_MODEL, "object": "model", "created": created, "owned_by": "trio-mlxgate"}
    return {"object": "list", "data": [model]}
