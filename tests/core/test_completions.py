"""Answers put together from the events of a stream, and from plain bodies."""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from trio_mlxgate.core.completions import (
    Completion,
    CompletionAssembly,
    Delta,
    ToolCall,
    ToolCallDelta,
    Usage,
    refusal_of,
)
from trio_mlxgate.core.event_stream import EventStreamParser, ServerEvent
from trio_mlxgate.errors import BackendRefused, MalformedAnswer, TruncatedAnswer

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "200"))


def chunk(delta: Any = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}


def assemble(*chunks: Any) -> tuple[CompletionAssembly, list[Delta]]:
    assembly = CompletionAssembly()
    deltas = [assembly.feed(ServerEvent(chunk if isinstance(chunk, str) else json.dumps(chunk))) for chunk in chunks]
    return assembly, [delta for delta in deltas if delta is not None]


PIECES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"content": st.text(st.characters(exclude_categories=["Cs"]), max_size=5)}),
        st.fixed_dictionaries({"reasoning": st.sampled_from(["hm ", "so"])}),
        st.fixed_dictionaries({"reasoning_content": st.sampled_from(["hm ", "so"])}),
        st.fixed_dictionaries({"refusal": st.just("no")}),
        st.just({"role": "assistant", "content": None}),
        st.fixed_dictionaries(
            {
                "tool_calls": st.lists(
                    st.fixed_dictionaries(
                        {
                            "index": st.integers(0, 2),
                            "function": st.fixed_dictionaries({"arguments": st.sampled_from(["{", '"a"', "}"])}),
                        }
                    ),
                    max_size=2,
                )
            }
        ),
    ),
    max_size=12,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(PIECES, st.lists(st.integers(0, 4000), max_size=8), st.sampled_from(["\n", "\r\n", "\r"]))
def test_the_whole_is_what_a_plain_reading_gives(pieces: list[dict[str, Any]], cuts: list[int], end: str) -> None:
    events = [*map(chunk, pieces), chunk(finish="stop"), {"choices": [], "usage": {"total_tokens": 7}}]
    text = "".join(f"data: {json.dumps(event, ensure_ascii=False)}{end}{end}" for event in events)
    raw = text.encode() + b"data: [DONE]"
    parser, assembly = EventStreamParser(), CompletionAssembly()
    bounds = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    deltas = []
    for start, stop in itertools.pairwise(bounds):
        deltas += [assembly.feed(event) for event in parser.feed(raw[start:stop])]
    deltas += [assembly.feed(event) for event in parser.finish()]

    arguments: dict[int, str] = {}
    for piece in pieces:
        for call in piece.get("tool_calls", ()):
            arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
    whole = assembly.completion()
    assert assembly.done
    assert whole == Completion(
        text="".join(piece.get("content") or "" for piece in pieces),
        reasoning="".join(piece.get("reasoning") or piece.get("reasoning_content") or "" for piece in pieces),
        refusal="".join(piece.get("refusal", "") for piece in pieces),
        tool_calls=tuple(ToolCall(id="", name="", arguments=arguments[index]) for index in sorted(arguments)),
        finish_reason="stop",
        usage=Usage(total_tokens=7),
        id="c1",
    )
    told = [delta for delta in deltas if delta is not None]
    assert "".join(delta.text for delta in told) == whole.text
    assert "".join(delta.reasoning for delta in told) == whole.reasoning


def test_calls_of_tools_are_put_together_by_index() -> None:
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}}
    second = {"index": 1, "id": "b", "type": "function", "function": {"name": "mail", "arguments": "{}"}}
    assembly, deltas = assemble(
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}, second]}),
        chunk({"tool_calls": [{"index": 0, "function": {"name": "weather", "arguments": '"Seoul"}'}}]}),
        chunk(finish="tool_calls"),
    )
    assert assembly.completion().tool_calls == (
        ToolCall(id="a", name="weather", arguments='{"city":"Seoul"}'),
        ToolCall(id="b", name="mail", arguments="{}"),
    )
    assert deltas[1].tool_calls[0] == ToolCallDelta(index=0, arguments='{"city":')


def test_calls_of_tools_without_an_index_begin_with_their_ids() -> None:
    def piece(name: str | None, arguments: Any) -> dict[str, Any]:
        return {"tool_calls": [{**({"id": name} if name else {}), "function": {"name": "f", "arguments": arguments}}]}

    assembly, _ = assemble(
        chunk(piece("a", "1")), chunk(piece(None, "2")), chunk(piece("b", {"x": 3})), chunk(finish="stop")
    )
    calls = assembly.completion().tool_calls
    assert [(call.id, call.arguments) for call in calls] == [("a", "12"), ("b", '{"x": 3}')]


def test_a_plain_answer_gives_all_at_once() -> None:
    logprobs = {"content": [{"token": "hi", "logprob": -0.5}]}
    message = {"content": "hi", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}} for _ in range(2)]}
    answer = {
        "id": "c2",
        "model": "theirs",
        "system_fingerprint": "0.32",
        "choices": [{"index": 0, "message": message, "finish_reason": "length", "logprobs": logprobs}],
        "usage": {"prompt_tokens": 1, "completion_tokens": True, "prompt_tokens_details": {"cached_tokens": 1}},
    }
    assembly = CompletionAssembly()
    delta = assembly.feed_plain(json.dumps(answer).encode())
    assert delta is not None
    assert delta.text == "hi"
    whole = assembly.completion(waited=1.0, seconds=2.0)
    assert whole.logprobs == ({"token": "hi", "logprob": -0.5},)
    assert whole.usage == Usage(prompt_tokens=1, cached_tokens=1)
    assert (whole.model, whole.system_fingerprint, whole.id) == ("theirs", "0.32", "c2")
    assert len(whole.tool_calls) == 2
    assert (whole.waited, whole.first_token, whole.seconds) == (1.0, None, 2.0)
    assert assembly.completion(model="ours").model == "ours"


def test_nothing_told_of_usage_is_none() -> None:
    assembly, _ = assemble(chunk({"content": "x"}, finish="stop"))
    assert assembly.completion().usage is None


@pytest.mark.parametrize("tail", [[], ["[DONE]"]])
def test_without_a_finish_reason_it_is_cut_whatever_mark_came(tail: list[str]) -> None:
    assembly, _ = assemble(chunk({"content": "half"}), *tail)
    with pytest.raises(TruncatedAnswer) as caught:
        assembly.completion()
    assert caught.value.text == "half"


def test_what_says_nothing_is_no_delta() -> None:
    _, deltas = assemble(
        chunk({"role": "assistant", "content": ""}),
        chunk(None),
        {"choices": []},
        {"choices": None},
        {"type": "ping"},
        {"choices": [{"index": 1, "delta": {"content": "another answer"}}]},
        chunk(finish="stop"),
    )
    assert deltas == [Delta(finish_reason="stop")]
    assert not deltas[0].is_token


@pytest.mark.parametrize(
    ("error", "message", "status"),
    [
        ({"error": "out of memory"}, "out of memory", 200),
        ({"error": {"message": "no slot", "code": 503}}, "no slot", 503),
        ({"error": {"type": "x", "code": "y"}}, '{"type": "x", "code": "y"}', 200),
    ],
)
def test_an_error_in_the_stream_is_the_servers(error: Any, message: str, status: int) -> None:
    with pytest.raises(BackendRefused, match="broke off") as caught:
        assemble(chunk({"content": "half"}), error)
    assert (caught.value.upstream_message, caught.value.upstream_status) == (message, status)


def test_an_event_of_the_type_error_is_one_too() -> None:
    with pytest.raises(BackendRefused, match="too long"):
        CompletionAssembly().feed(ServerEvent("too long", "error"))


@pytest.mark.parametrize(
    "data",
    [
        "{",
        "[1]",
        "null",
        "[" * 100_000,
        '{"choices": 1}',
        '{"choices": ["a"]}',
        '{"choices": [{"delta": "a"}]}',
        '{"choices": [{"delta": {"content": 1}}]}',
        '{"choices": [{"delta": {"tool_calls": 1}}]}',
        '{"choices": [{"delta": {"tool_calls": [1]}}]}',
        '{"choices": [{"delta": {"tool_calls": [{"function": 1}]}}]}',
        '{"choices": [{"delta": {}, "finish_reason": 1}]}',
    ],
)
def test_what_is_no_event_of_such_a_stream_is_malformed(data: str) -> None:
    with pytest.raises(MalformedAnswer) as caught:
        CompletionAssembly().feed(ServerEvent(data))
    assert len(str(caught.value)) < 200


def test_a_plain_answer_without_choices_is_malformed() -> None:
    with pytest.raises(MalformedAnswer, match="no choices"):
        CompletionAssembly().feed_plain(b'{"ok": true}')


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "no such model"}', "no such model"),
        (b'{"error": {"message": "no such model", "type": "x"}}', "no such model"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"object": "error", "message": "bad"}', "bad"),
        (b"<html>\n <h1>Bad   gateway</h1>\n</html>", "<html> <h1>Bad gateway</h1> </html>"),
        (b"Not Found", "Not Found"),
        (b"[1]", "[1]"),
        (b"", "Nothing There"),
        (b"\xff", "\ufffd"),
    ],
)
def test_what_servers_say_when_they_refuse(body: bytes, said: str) -> None:
    assert refusal_of(body, reason="Nothing There") == said


def test_what_they_say_is_cut_to_a_readable_length() -> None:
    assert len(refusal_of(b"x" * 10_000)) == 500
