"""Answers of OpenAI's chat completions: the pieces of a stream, and the whole that they are put together to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from trio_mlxgate.errors import BackendRefused, MalformedAnswer, TruncatedAnswer

if TYPE_CHECKING:
    from trio_mlxgate.core.event_stream import ServerEvent

DONE: Final = "[DONE]"
"""What servers write at the end of a stream. It proves nothing: some forget it, some write it after a cut answer."""

_LONGEST_MESSAGE: Final = 500


@attrs.frozen(kw_only=True)
class ToolCallDelta:
    """A piece of the call of a tool."""

    index: int
    """Which call it belongs to, from 0 on."""

    id: str = ""
    """The name of the call; it comes with its first piece."""

    name: str = ""
    """Of the tool."""

    arguments: str = ""
    """The next piece of the arguments, which are JSON once they are whole."""


@attrs.frozen(kw_only=True)
class Delta:
    """What one step of a stream adds to the answer."""

    text: str = ""
    """The next piece of the answer."""

    reasoning: str = ""
    """The next piece of what the model thinks before it answers, of servers that keep the two apart."""

    refusal: str = ""
    """The next piece of why the model won't answer."""

    tool_calls: tuple[ToolCallDelta, ...] = ()
    """Pieces of calls of tools."""

    finish_reason: str | None = None
    """Why the answer ends here; None: it goes on."""

    @property
    def is_token(self) -> bool:
        """Whether the model has said something: not so with a mere end."""
        return bool(self.text or self.reasoning or self.refusal or self.tool_calls)


@attrs.frozen(kw_only=True)
class ToolCall:
    """A tool that the model wants to have called."""

    id: str
    """By which the tool's answer names it; empty: the server gave none."""

    name: str
    """Of the tool."""

    arguments: str
    """As the model wrote them: meant to be JSON, to be checked before use."""


@attrs.frozen(kw_only=True)
class Usage:
    """How many tokens the server counted; None where it doesn't tell."""

    prompt_tokens: int | None = None
    """Of the question."""

    completion_tokens: int | None = None
    """Of the answer."""

    total_tokens: int | None = None
    """Of both."""

    cached_tokens: int | None = None
    """Of the question, those that it need not compute again."""


@attrs.frozen(kw_only=True)
class Completion:
    """A whole answer."""

    text: str
    """What the model says."""

    finish_reason: str
    """Why it ends: ``"stop"``, ``"length"``, ``"tool_calls"``, or whatever the server says."""

    model: str | None = None
    """The model, as the adapter spells it; where it names none, as the server does."""

    usage: Usage | None = None
    """None: the server told nothing."""

    tool_calls: tuple[ToolCall, ...] = ()
    """The tools to be called."""

    reasoning: str = ""
    """What the model thought, where the server keeps it apart."""

    refusal: str = ""
    """Why the model won't answer."""

    logprobs: tuple[Mapping[str, Any], ...] | None = None
    """For each token what the server says of it, if it was asked to; None: it says nothing."""

    backend: str = ""
    """The name of the backend that gave it."""

    id: str | None = None
    """The server's name of the answer."""

    system_fingerprint: str | None = None
    """Which build of which server made it, as far as it says."""

    waited: float = 0.0
    """Seconds in the queue of the gate."""

    first_token: float | None = None
    """Seconds from the grant of the slot until the first token was read; None: there was none, or it can't be seen
    since the answer came in one piece."""

    seconds: float = 0.0
    """Seconds from the grant of the slot to the end."""


@attrs.define
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


class CompletionAssembly:
    """Puts an answer together, from the events of a stream or from a plain body."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._logprobs: list[Mapping[str, Any]] | None = None
        self._usage: Usage | None = None
        self._id: str | None = None
        self._fingerprint: str | None = None
        self._model: str | None = None
        self.finish_reason: str | None = None
        """Why the answer ended; None: it hasn't."""
        self.done = False
        """Whether the mark of the end was seen."""

    @property
    def text(self) -> str:
        """What the model has said so far."""
        return "".join(self._texts)

    def feed(self, event: ServerEvent) -> Delta | None:
        """Take the next event of a stream. Returns what it adds; None: nothing.

        Raises:
          BackendRefused: it is an error, which the server has no other way to tell once the stream has begun.
          MalformedAnswer: it is no event of such a stream.
        """
        data = event.data.strip()
        if data == DONE:
            self.done = True
            return None
        if event.name == "error":
            raise _refused(_message_of(data), 200)
        chunk = _object(data, "an event of the stream")
        choice = self._take_envelope(chunk)
        if choice is None:
            return None
        return self._take_choice(choice, choice.get("delta"))

    def feed_plain(self, body: bytes | str) -> Delta | None:
        """Take a plain body, which is the whole answer. Returns what it says; None: nothing.

        Raises:
          BackendRefused, MalformedAnswer: as :meth:`feed`.
        """
        answer = _object(body, "the answer")
        choice = self._take_envelope(answer)
        if choice is None:
            raise MalformedAnswer(f"the answer has no choices: {_shown(body)}")
        self.done = True
        return self._take_choice(choice, choice.get("message"))

    def completion(
        self,
        *,
        backend: str = "",
        model: str | None = None,
        waited: float = 0.0,
        first_token: float | None = None,
        seconds: float = 0.0,
    ) -> Completion:
        """The whole.

        Raises:
          TruncatedAnswer: no ``finish_reason`` has come, and so it isn't whole.
        """
        if self.finish_reason is None:
            marked = f", although {DONE} came" if self.done else ""
            raise TruncatedAnswer(
                f"the answer ended without a finish_reason{marked}: a part is missing", text=self.text
            )
        return Completion(
            text=self.text,
            finish_reason=self.finish_reason,
            model=model if model is not None else self._model,
            usage=self._usage,
            tool_calls=tuple(
                ToolCall(id=call.id, name=call.name, arguments=call.arguments)
                for _, call in sorted(self._calls.items())
            ),
            reasoning="".join(self._reasoning),
            refusal="".join(self._refusal),
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            backend=backend,
            id=self._id,
            system_fingerprint=self._fingerprint,
            waited=waited,
            first_token=first_token,
            seconds=seconds,
        )

    def _take_envelope(self, answer: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What stands around the choices. Returns the first choice; None: there is none."""
        if answer.get("error"):
            raise _refused(_message_in(answer), _status_in(answer, 200))
        self._id = self._id or _text(answer, "id") or None
        self._fingerprint = self._fingerprint or _text(answer, "system_fingerprint") or None
        self._model = self._model or _text(answer, "model") or None
        usage = answer.get("usage")
        if isinstance(usage, Mapping):
            self._usage = _usage(usage)
        choices = answer.get("choices")
        if not choices:
            return None
        if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
            raise MalformedAnswer(f"the choices are no list of objects: {_shown(choices)}")
        # One was asked for.
        return next((choice for choice in choices if not choice.get("index")), None)

    def _take_choice(self, choice: Mapping[str, Any], said: object) -> Delta | None:
        message = {} if said is None else said
        if not isinstance(message, Mapping):
            raise MalformedAnswer(f"what the model says is no object: {_shown(message)}")
        delta = Delta(
            text=_text(message, "content"),
            # Two spellings of one thing; some servers send both.
            reasoning=_text(message, "reasoning_content") or _text(message, "reasoning"),
            refusal=_text(message, "refusal"),
            tool_calls=self._take_calls(message.get("tool_calls")),
            finish_reason=_text(choice, "finish_reason") or None,
        )
        self._texts += [delta.text] if delta.text else []
        self._reasoning += [delta.reasoning] if delta.reasoning else []
        self._refusal += [delta.refusal] if delta.refusal else []
        self.finish_reason = self.finish_reason or delta.finish_reason
        logprobs = choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if isinstance(content, list):
            self._logprobs = [*(self._logprobs or []), *content]
        return delta if delta.is_token or delta.finish_reason else None

    def _take_calls(self, pieces: object) -> tuple[ToolCallDelta, ...]:
        if not pieces:
            return ()
        if not isinstance(pieces, list):
            raise MalformedAnswer(f"the calls of tools are no list: {_shown(pieces)}")
        return tuple(map(self._take_call, pieces))

    def _take_call(self, piece: object) -> ToolCallDelta:
        function = piece.get("function") or {} if isinstance(piece, Mapping) else None
        if not isinstance(piece, Mapping) or not isinstance(function, Mapping):
            raise MalformedAnswer(f"the call of a tool is no object: {_shown(piece)}")
        arguments = function.get("arguments")
        delta = ToolCallDelta(
            index=self._index_of_call(piece),
            id=_text(piece, "id"),
            name=_text(function, "name"),
            # Some servers send the object itself, in one piece.
            arguments=json.dumps(arguments) if isinstance(arguments, Mapping) else _text(function, "arguments"),
        )
        call = self._calls.setdefault(delta.index, _Call())
        call.id = call.id or delta.id
        # Some servers repeat the name with each piece.
        call.name += "" if delta.name == call.name else delta.name
        call.arguments += delta.arguments
        return delta

    def _index_of_call(self, piece: Mapping[str, Any]) -> int:
        index = piece.get("index")
        if isinstance(index, int) and not isinstance(index, bool):
            return index
        # A server that doesn't number them, and a plain answer: a name of its own begins the next.
        last = max(self._calls, default=-1)
        named = piece.get("id")
        begins = last < 0 or (bool(named) and named != self._calls[last].id) or not (named or self._calls[last].id)
        return last + 1 if begins else last


def refusal_of(body: bytes, *, reason: str = "") -> str:
    """What the body of an answer with an error says, as one line of a readable length.

    mlx_lm.server sends ``{"error": "text"}``, OpenAI ``{"error": {"message": "text"}}``, others a page of HTML or
    nothing. ``reason`` is what is said if the body says nothing.
    """
    return _message_of(body.decode(errors="replace")) or reason or "no reason given"


def _refused(message: str, status: int) -> BackendRefused:
    said = message or "no reason given"
    return BackendRefused(f"the server broke off with an error: {said}", upstream_status=status, upstream_message=said)


def _message_of(text: str) -> str:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return _one_line(text)
    return _message_in(answer) if isinstance(answer, Mapping) else _one_line(text)


def _message_in(answer: Mapping[str, Any]) -> str:
    error = answer.get("error") or answer.get("detail") or answer.get("message") or answer
    if isinstance(error, Mapping) and isinstance(error.get("message"), str):
        error = error["message"]
    return _one_line(error if isinstance(error, str) else json.dumps(error, ensure_ascii=False))


def _status_in(answer: Mapping[str, Any], status: int) -> int:
    """The status that the error itself names, as llama.cpp does; else the one that HTTP has."""
    error = answer.get("error")
    code = error.get("code") if isinstance(error, Mapping) else None
    return code if isinstance(code, int) and 400 <= code <= 599 else status


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 3] + "..."


def _object(text: bytes | str, what: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedAnswer(f"{what} is no JSON: {_shown(text)}") from None
    if not isinstance(found, Mapping):
        raise MalformedAnswer(f"{what} is no JSON object: {_shown(text)}")
    return found


def _text(of: Mapping[str, Any], name: str) -> str:
    text = of.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise MalformedAnswer(f"{name!r} of the answer is no string: {_shown(text)}")
    return text


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details")
    return Usage(
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        total_tokens=_count(usage, "total_tokens"),
        cached_tokens=_count(details, "cached_tokens") if isinstance(details, Mapping) else None,
    )


def _count(of: Mapping[str, Any], name: str) -> int | None:
    count = of.get(name)
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def _shown(found: object) -> str:
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else line[:77] + "...")
