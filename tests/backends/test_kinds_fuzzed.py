"""Whatever a server sends: every look and every detection ends, soon, with an answer."""

from __future__ import annotations

import json
import os
from typing import Any, Final

import attrs
import hypothesis
import hypothesis.strategies as st

from tests.backends.answers import SITES
from tests.backends.test_detecting import ASKED_OF_STRANGERS
from tests.backends.test_kinds import HARMLESS
from trio_mlxgate.backends.detecting import KINDS, Detected, detect
from trio_mlxgate.backends.kinds.base import NoReply, Reply
from trio_mlxgate.core.readings import Health, Reading

MOST_GETS: Final = 8
EXAMPLES: Final = int(os.environ.get("MLXGATE_EXAMPLES", "300"))

WORDS: Final = [
    *("status", "ok", "healthy", "unavailable", "active_jobs", "total_requests", "loaded_model", "loaded_models"),
    *(
        "summary",
        "in_flight",
        "server",
        "request_queue_depth",
        "total_slots",
        "model_path",
        "model_alias",
        "id",
        "error",
    ),
    *(
        "is_sleeping",
        "is_processing",
        "message",
        "Loading model",
        "info",
        "title",
        "🦙 llama.cpp Python API",
        "version",
    ),
    *("models", "name", "model", "data", "state", "loaded"),
]
words = st.sampled_from(WORDS) | st.text(max_size=5)
numbers = st.integers(-3, 9) | st.integers() | st.floats() | st.sampled_from([10**12, 10**13, -(10**30)])
json_values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
metric_lines = st.builds(
    "{}{} {}{}".format,
    st.sampled_from(
        [
            *("llamacpp:requests_processing", "llamacpp:requests_deferred", "vllm:num_requests_running", "# TYPE"),
            *("vllm:num_requests_waiting", "x"),
        ]
    ),
    st.sampled_from(["", '{model_name="m"}', '{a="b', "{", "{}", '{a="\\\\""}', '{model_name="\n"}']),
    st.sampled_from(["1", "0", "1e400", "NaN", "-1", "", "2.5", "1_0", "٣", "0x1"]) | st.text(max_size=4),
    st.sampled_from(["", " 17", "\r", "\x00"]),
)
bodies = st.one_of(
    st.binary(max_size=60),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.lists(metric_lines, max_size=8).map(lambda lines: "\n".join(lines).encode("utf-8", "replace")),
    st.sampled_from([b"[" * 50_000, b'{"a":' * 50_000, b"9" * 5000, b'{"active_jobs": ' + b"9" * 5000 + b"}"]),
)
strange = st.builds(
    Reply,
    status=st.sampled_from([200, 200, 200, 503, 404, 401]) | st.integers(100, 999),
    headers=st.dictionaries(st.sampled_from(["server", "content-type"]), words | st.just("BaseHTTP/0.6 Python/3.11")),
    body=bodies,
    http_version=st.sampled_from(["HTTP/1.0", "HTTP/1.1"]),
    seconds=st.floats(0, 10),
)
known: list[Reply] = [reply for site in SITES for reply in [*site.pages.values(), site.otherwise]]


def spoilt(reply: Reply, keep: float, status: int) -> Reply:
    return attrs.evolve(reply, body=reply.body[: int(len(reply.body) * keep)], status=status)


silences = st.builds(NoReply, why=st.sampled_from(["refused", "timeout", "broken"]), text=st.text(max_size=9))
replies = st.one_of(
    strange,
    st.sampled_from(known),
    st.builds(spoilt, st.sampled_from(known), st.floats(0, 1), st.sampled_from([200, 200, 500])),
    silences,
)


def drive(looking: Any, data: st.DataObject, allowed: set[str]) -> Any:
    path = next(looking)
    for _ in range(MOST_GETS):
        assert path in allowed
        try:
            path = looking.send(data.draw(replies, label=path))
        except StopIteration as end:
            return end.value
    raise AssertionError("it asks for ever")


@hypothesis.given(kind=st.sampled_from(KINDS), data=st.data())
@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
def test_every_look_ends_with_a_reading(kind: Any, data: st.DataObject) -> None:
    reading = drive(kind.look(), data, HARMLESS)
    assert isinstance(reading, Reading)
    if reading.health is not Health.UP:
        assert reading.reason
        assert reading.status is None
    assert not reading.refused or reading.health is Health.DOWN
    status = reading.status
    if status is not None:
        for number in (status.active_jobs, status.waiting or 0, status.slots or 0, status.total_requests or 0):
            assert type(number) is int
            assert 0 <= number <= 2 * 10**12
    assert all(name and len(name) <= 200 and name.isprintable() for name in reading.models)


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
def test_every_detection_ends(data: st.DataObject) -> None:
    detected = drive(detect(), data, ASKED_OF_STRANGERS)
    assert isinstance(detected, Detected)
    assert detected.reason
    assert detected.kind is None or detected.kind in KINDS
    assert detected.silence is None or detected.kind is None
