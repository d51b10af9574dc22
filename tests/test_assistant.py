"""The assistant of the documentation: what it decides, that it asks before it acts, and who goes first."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from tests.limits import ends_within
from trio_mlxgate import Priority
from trio_mlxgate.backends import BackendRegistry, current_endpoint_gates
from trio_mlxgate.instrumentation import Granted
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("cattrs")
PATH = Path(__file__).parent.parent / "docs" / "examples" / "assistant.py"
if not PATH.exists():
    pytest.skip("the documentation is not here: these are the tests of an installed package", allow_module_level=True)


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("assistant", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["assistant"] = module  # its classes are looked up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["assistant"]


MAIL = '{"action": "tools", "call": {"tool": "write_mail", "to": "Ada", "text": "late"}}'
EVENT = '{"action": "tools", "call": {"tool": "add_event", "title": "Lunch", "when": "noon"}}'


# ---- what the classifier says ----


def test_each_decision_is_read(example: Any) -> None:
    read = example.read_decision
    assert read('{"action": "direct", "answer": "Four."}') == example.Direct("Four.")
    assert read('```json\n{"action": "route"}\n```') == example.Route()
    assert read('{"action": "clarify", "question": "Which?"}') == example.Clarify("Which?")
    assert read(MAIL) == example.Tools(example.WriteMail("Ada", "late"))
    assert read(EVENT) == example.Tools(example.AddEvent("Lunch", "noon"))


@pytest.mark.parametrize(
    "said",
    [
        *("", "yes", "{", "{}", "[]", "null", '"route"', "{'action': 'route'}", '{"action": "dance"}', '{"action": 1}'),
        *('{"action": []}', '{"action": "direct"}', '{"action": "direct", "answer": 4}', '{"action": "route", "x": 1}'),
        *(
            '{"action": "tools", "call": {"tool": "send_mail"}}',
            '{"action": "tools", "call": {}}',
            '{"action": "tools"}',
        ),
        *('{"action": "tools", "call": []}', "{" * 100_000, '{"a": ' * 5000, '{"a":' * 5000 + "1" + "}" * 5000),
        # Each tool has arguments of its own.
        '{"action": "tools", "call": {"tool": "write_mail", "to": ["Ada"], "text": "late"}}',
        '{"action": "tools", "call": {"tool": "write_mail", "to": "Ada"}}',
        '{"action": "tools", "call": {"tool": "write_mail", "to": "Ada", "text": "late", "bcc": "Eve"}}',
        '{"action": "tools", "call": {"tool": "add_event", "to": "Ada", "text": "late"}}',
    ],
    ids=lambda said: said[:40],
)
def test_what_is_no_decision_is_told_as_such(said: str, example: Any) -> None:
    with pytest.raises(example.NotUnderstood) as caught:
        example.read_decision(said)
    assert str(caught.value)


# ---- with a model that answers by rules ----


class Model:
    """Answers of the classifier by question; the reasoner thinks aloud. Keeps what it was asked."""

    def __init__(self, example: Any, *answers: str) -> None:
        self.example = example
        self.answers = list(answers)
        self.asked: list[tuple[str, list[dict[str, str]]]] = []
        self.away: set[str] = set()
        self.breaks_off = False

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        host = request.url.host
        if host in self.away:
            raise httpx.ConnectError("nobody is there")
        if request.method == "GET":
            return httpx.Response(200, json={})
        messages = json.loads(request.content)["messages"]
        classifier = messages[0]["content"] == self.example.CLASSIFIER_PROMPT
        self.asked.append((host, messages))
        text = self.answers.pop(0) if classifier else "deep thought"
        chunks: list[Any] = [{"delta": {"content": text}}, {"delta": {}, "finish_reason": "stop"}]
        if self.breaks_off and not classifier:
            chunks.pop()
        lines = [f"data: {json.dumps({'choices': [{'index': 0, **chunk}]})}\n\n" for chunk in chunks]
        return httpx.Response(200, text="".join(lines), headers={"content-type": "text/event-stream"})


def with_model(model: Model, talk: Callable[[Any, Callable[[str], Any]], Any], **more: Any) -> Any:
    """Talk with an assistant before that model, on the virtual clock; returns the assistant."""

    async def main() -> Any:
        roles = model.example.roles("http://macmini/v1", "http://macbook/v1", httpx.MockTransport(model))
        async with BackendRegistry(roles) as registry:
            await registry.wait_healthy("reasoner")
            assistant = model.example.Assistant(registry, **more)

            async def say(question: str) -> str:
                parts: list[str] = []
                await assistant.answer(question, parts.append)
                return "".join(parts)

            await talk(assistant, say)
            return assistant

    with ends_within(30):
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_nothing_is_done_before_a_yes_and_mail_is_never_sent(example: Any) -> None:
    async def talk(assistant: Any, say: Any) -> None:
        assert "yes or no" in await say("tell Ada that I am late")
        assert assistant.toolbox.mail_drafts == []
        assert "never send" in await say(" Yes\n")
        assert assistant.toolbox.mail_drafts == [example.WriteMail("Ada", "late")]
        assert "nothing that I asked" in await say("yes")  # there is no second one
        assert len(assistant.toolbox.mail_drafts) == 1

    with_model(Model(example, MAIL), talk)
    assert "smtp" not in PATH.read_text().lower()


def test_a_no_or_another_question_drops_the_draft(example: Any) -> None:
    async def talk(assistant: Any, say: Any) -> None:
        await say("lunch")
        assert await say("no") == "Then not."
        await say("lunch again")
        assert await say("what is 2 + 2?") == "Four."
        assert "nothing that I asked" in await say("yes")
        assert assistant.toolbox.calendar == []
        assert assistant.pending is None

    with_model(Model(example, EVENT, EVENT, '{"action": "direct", "answer": "Four."}'), talk)


def test_what_is_no_json_may_be_repaired_once(example: Any) -> None:
    model = Model(example, "Sure!", EVENT, "Sure!", "Of course!")

    async def talk(assistant: Any, say: Any) -> None:
        assert "add event" in await say("lunch")
        assert await say("and now think") == "deep thought"  # not understood twice: the reasoner needs no JSON

    with_model(model, talk)
    repair = model.asked[1][1]
    assert [message["role"] for message in repair] == ["system", "user", "assistant", "user"]
    assert "no JSON" in repair[-1]["content"]
    assert len(model.asked) == 5


def test_the_other_machine_answers_and_the_cloud_when_both_are_away(example: Any) -> None:
    model = Model(example, *['{"action": "route"}'] * 2)
    asked: list[str] = []

    async def cloud(question: str) -> str:
        gates = current_endpoint_gates()
        asked.append(question)
        assert all(gates[f"http://{host}"].statistics().in_flight == 0 for host in ("macmini", "macbook"))
        await trio.lowlevel.checkpoint()
        return "from above"

    async def talk(assistant: Any, say: Any) -> None:
        assert await say("think") == "deep thought"
        assert {host for host, _ in model.asked} == {"macmini", "macbook"}
        model.away = {"macbook"}
        assert await say("think") == "deep thought"
        assert model.asked[-1][0] == "macmini"
        model.away = {"macbook", "macmini"}
        assert await say("think") == "from above"

    with_model(model, talk, cloud=cloud)
    assert asked == ["think"]


def test_what_is_asked_before_a_tool_is_used_is_not_hidden(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hiding = json.dumps({"action": "tools", "call": {"tool": "write_mail", "to": "Eve", "text": "\r\x1b[2KHi\u202e"}})

    async def talk(assistant: Any, say: Any) -> None:
        asked = await say("greet Ada")
        assert asked == "Shall I write mail (to: 'Eve', text: '\\r\\x1b[2KHi\\u202e')? yes or no"

    with_model(Model(example, hiding), talk)
    example.show_plainly("a\r\x1b[2Kb\n")
    assert capsys.readouterr().out == "a??[2Kb\n"


def test_another_answer_after_one_that_broke_off_begins_anew(example: Any) -> None:
    model = Model(example, *['{"action": "route"}'] * 2)
    model.breaks_off = True

    async def cloud(question: str) -> str:
        await trio.lowlevel.checkpoint()
        return "from above"

    async def talk(assistant: Any, say: Any) -> None:
        first, told, second = (await say("think")).splitlines()
        assert (first, second) == ("deep thought", "from above")
        assert "broke off" in told
        assert "from the beginning" in told
        assistant.cloud = None
        assert "broke off" in await say("think")

    with_model(model, talk, cloud=cloud)


# ---- as a program ----


@pytest.mark.integration
@pytest.mark.parametrize("given", ["MACMINI", "MACBOOK"])
def test_one_machine_alone_is_told(given: str) -> None:
    done = subprocess.run(
        [sys.executable, PATH],
        env={**environment(), given: "http://127.0.0.1:9/v1"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("set both MACMINI and MACBOOK")
    assert done.stderr.count("\n") == 1


@pytest.mark.integration
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_an_interrupt_ends_it_at_once() -> None:
    url = "http://127.0.0.1:9/v1"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", PATH],
        env={**environment(), "MACMINI": url, "MACBOOK": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with ends_within(30), process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.read(2) == b"> "
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0  # with nothing more from its stdin, which is open
            assert b"Traceback" not in process.stderr.read()
        finally:
            process.kill()


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("MACMINI", "MACBOOK")}


# ---- before real servers ----


@pytest.mark.integration
async def test_a_person_goes_before_digests_on_one_machine(example: Any) -> None:
    """The embedded server answers with an echo, so the classifier's answer is no JSON, and the reasoner answers."""
    granted: list[int] = []

    class Watch:
        def interest(self, *kinds: type[Any]) -> Callable[[], bool]:
            return lambda: Granted in kinds

        def __call__(self, details: Any) -> None:
            if isinstance(details, Granted):
                granted.append(details.priority)

    with ends_within(60):
        async with inference_server(service_time=0.3) as server:
            current_endpoint_gates().add(server.base_url, {"hooks": [Watch()], "outer_deadline": "allow"})
            async with BackendRegistry(example.roles(server.base_url, server.base_url)) as registry:
                await registry.wait_healthy("reasoner")
                assistant = example.Assistant(registry)
                digests: list[str] = []

                async def digest(page: str) -> None:
                    digests.extend(await assistant.digest([page]))

                async with trio.open_nursery() as nursery:
                    for number in range(4):
                        nursery.start_soon(digest, f"page {number}")
                    await trio.sleep(0.2)
                    parts: list[str] = []
                    await assistant.answer("who goes first?", parts.append)
                    assert "".join(parts).startswith("who goes first?")
            seen = await server.status()
    assert len(digests) == 4
    assert (seen["max_active_jobs"], seen["overlaps"]) == (1, 0)
    # Three calls of the person, one after the other, each before all digests that waited: between them one digest gets
    # in, since at that moment nobody else waits.
    assert granted == [Priority.BACKGROUND, *[Priority.FOREGROUND, Priority.BACKGROUND] * 3]
