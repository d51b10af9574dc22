"""An assistant on two machines: a classifier answers in JSON, a reasoner streams, tools are asked about first.

It needs ``pip install cattrs``. ``MACMINI=http://macmini.local:8080/v1 MACBOOK=http://macbook.local:8080/v1 python
assistant.py`` talks with your servers until Ctrl-C (both must be set; with one machine give its URL twice); without
these it shows itself with a pretended model, which answers by rules.
"""

import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import httpx
import trio

try:
    import cattrs
    from cattrs.strategies import configure_tagged_union
except ImportError:
    sys.exit("this example needs cattrs: pip install cattrs")

from trio_mlxgate import BackendError, GateRefused, Priority
from trio_mlxgate.backends import BackendRegistry, ModelAdapter

CLASSIFIER_PROMPT = """\
Answer with one JSON object and nothing else. It is one of:
{"action": "direct", "answer": "..."}        you know the answer, and it is short
{"action": "route"}                          it takes thought: another model will answer
{"action": "clarify", "question": "..."}     you can't tell what is meant
{"action": "tools", "call": {"tool": "add_event", "title": "...", "when": "..."}}
{"action": "tools", "call": {"tool": "write_mail", "to": "...", "text": "..."}}"""
REASONER_PROMPT = "Think, then answer in a few sentences."

# ---- what the classifier may say: nothing else gets through ----


@attrs.frozen
class AddEvent:
    title: str
    when: str


@attrs.frozen
class WriteMail:
    to: str
    text: str


Call: TypeAlias = AddEvent | WriteMail


@attrs.frozen
class Direct:
    answer: str


@attrs.frozen
class Route:
    pass


@attrs.frozen
class Clarify:
    question: str


@attrs.frozen
class Tools:
    call: Call


Decision: TypeAlias = Direct | Route | Clarify | Tools

converter = cattrs.Converter(forbid_extra_keys=True)
# JSON has types of its own: a number where a text belongs is a mistake, and not to be made a text of.
converter.register_structure_hook(str, lambda value, _: _text(value))


def name_of(kind: type) -> str:
    """``add_event`` for AddEvent."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


configure_tagged_union(Call, converter, tag_name="tool", tag_generator=name_of)
configure_tagged_union(Decision, converter, tag_name="action", tag_generator=name_of)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return value


class NotUnderstood(Exception):
    """What the classifier said is no decision."""


def read_decision(text: str) -> Decision:
    """The decision in the classifier's answer; models like to wrap their JSON in a fence."""
    start, end = text.find("{"), text.rfind("}")
    try:
        decision: Decision = converter.structure(json.loads(text[start : end + 1]), Decision)  # type: ignore[arg-type]
    except (json.JSONDecodeError, RecursionError) as error:
        raise NotUnderstood(f"that is no JSON: {error}") from None
    except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
        raise NotUnderstood("; ".join(cattrs.transform_error(error))) from None
    return decision


# ---- tools: drafted first, done when confirmed ----


@attrs.define
class Toolbox:
    """What the assistant can do in the world. Mail is only put among the drafts: no code here sends it."""

    calendar: list[AddEvent] = attrs.Factory(list)
    mail_drafts: list[WriteMail] = attrs.Factory(list)

    def do(self, call: Call) -> str:
        if isinstance(call, AddEvent):
            self.calendar.append(call)
            return "It is in your calendar."
        self.mail_drafts.append(call)
        return "It is among your drafts. I never send mail: that is yours to do."


# ---- the assistant ----


@attrs.define
class Assistant:
    """Answers one person at a time. ``cloud`` is asked when no machine here answers; it holds no slot of theirs."""

    registry: BackendRegistry
    toolbox: Toolbox = attrs.Factory(Toolbox)
    cloud: Callable[[str], Awaitable[str]] | None = None
    pending: Call | None = None
    """The draft that waits for a yes or a no."""

    async def answer(self, question: str, say: Callable[[str], object]) -> None:  # noqa: ASYNC910
        """Answer by calling ``say`` with the parts of the answer, as they come. A checkpoint if a model is asked."""
        said: list[str] = []

        def tell(part: str) -> None:
            said.append(part)
            say(part)

        word = question.strip().lower()
        draft, self.pending = self.pending, None  # whatever is said next, a draft is asked about once
        if word == "yes" and draft is None:
            say("There is nothing that I asked you about.")
        elif word in ("yes", "no") and draft is not None:
            say(self.toolbox.do(draft) if word == "yes" else "Then not.")
        else:
            try:
                await self.follow(await self.decide(question), question, tell)
            except (BackendError, GateRefused) as error:
                if any(said):  # what comes now is no continuation of that
                    say("\n[The answer broke off: forget the above. Once more from the beginning:]\n")
                # No slot is held here.
                say(await self.cloud(question) if self.cloud is not None else f"[nobody can answer: {error}]")

    async def follow(self, decision: Decision, question: str, say: Callable[[str], object]) -> None:  # noqa: ASYNC910
        """Do what the classifier decided. A checkpoint if the reasoner is asked."""
        match decision:
            case Direct(text) | Clarify(text):
                say(text)
            case Tools(call):
                self.pending = call
                # repr: a model's text may hold what makes a terminal hide what is asked here.
                told = ", ".join(f"{name}: {value!r}" for name, value in attrs.asdict(call).items())
                say(f"Shall I {name_of(type(call)).replace('_', ' ')} ({told})? yes or no")
            case Route():
                async with self.registry.stream("reasoner", question, priority=Priority.FOREGROUND) as stream:
                    async for delta in stream:
                        say(delta.text)

    async def decide(self, question: str) -> Decision:
        """What the classifier makes of it. What is no decision it is shown once, to be repaired; then the reasoner is
        asked, which needs no JSON. A checkpoint."""
        messages = [{"role": "user", "content": question}]
        said = await self.ask_classifier(messages)
        try:
            return read_decision(said)
        except NotUnderstood as error:
            repair = f"{error}. Say it again as one JSON object."
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": repair}]
            said = await self.ask_classifier(messages)
        try:
            return read_decision(said)
        except NotUnderstood:
            return Route()

    async def ask_classifier(self, messages: Sequence[Mapping[str, str]]) -> str:
        answer = await self.registry.call("classifier", messages, priority=Priority.FOREGROUND, temperature=0)
        return answer.text

    async def digest(self, pages: Sequence[str]) -> list[str]:
        """Digests for tomorrow: in the background, so that whoever asks meanwhile goes first. A checkpoint if any."""
        answers = [await self.registry.call("reasoner", f"Digest this: {page}") for page in pages]
        return [answer.text for answer in answers]  # noqa: ASYNC910


def roles(
    macmini: str, macbook: str, transport: httpx.AsyncBaseTransport | None = None
) -> dict[str, list[ModelAdapter]]:
    """Both roles on both machines. Adapters of one machine share its gate, since it has one GPU."""

    def adapter(machine: str, url: str, role: str, prompt: str) -> ModelAdapter:
        name = f"{machine}-{role}"
        return ModelAdapter(name=name, base_url=url, system_prompt=prompt, kind=kind, transport=transport)

    kind = "openai" if transport is not None else None  # else found out
    return {
        # Each prefers a machine of its own, and has the other's when that is away.
        "classifier": [
            adapter("macmini", macmini, "classifier", CLASSIFIER_PROMPT),
            adapter("macbook", macbook, "classifier", CLASSIFIER_PROMPT),
        ],
        "reasoner": [
            adapter("macbook", macbook, "reasoner", REASONER_PROMPT),
            adapter("macmini", macmini, "reasoner", REASONER_PROMPT),
        ],
    }


# ---- it shows itself ----

SAYS = {
    "What is 2 + 2?": '{"action": "direct", "answer": "Four."}',
    "Why is the sky blue?": '{"action": "route"}',
    "And the other one?": '{"action": "clarify", "question": "Which one do you mean?"}',
    "Tell Ada that I am late": '{"action": "tools", "call": {"tool": "write_mail", "to": "Ada", "text": "late"}}',
    "Lunch with Bob": "Sure! I will add an event.",  # no JSON: it is asked to repair that
}
REPAIRED = '{"action": "tools", "call": {"tool": "add_event", "title": "Lunch with Bob", "when": "noon"}}'


async def pretend(request: httpx.Request) -> httpx.Response:
    """A model that answers by rules, as a server of OpenAI's API would stream it. The MacBook is asleep."""
    await trio.lowlevel.checkpoint()
    if request.url.host == "macbook":
        raise httpx.ConnectError("nobody is there")
    if request.method == "GET":
        return httpx.Response(200, json={"data": []})
    messages = json.loads(request.content)["messages"]
    said = messages[-1]["content"]
    if messages[0]["content"] == CLASSIFIER_PROMPT:
        text = SAYS.get(said, REPAIRED)
    else:
        text = f"(after some thought, about: {said})"
    chunks: list[Any] = [{"delta": {"content": f"{word} "}, "finish_reason": None} for word in text.split(" ")]
    chunks.append({"delta": {}, "finish_reason": "stop"})
    body = "".join(f"data: {json.dumps({'choices': [{'index': 0, **chunk}]})}\n\n" for chunk in chunks)
    return httpx.Response(200, text=body + "data: [DONE]\n\n", headers={"content-type": "text/event-stream"})


async def show(assistant: Assistant) -> None:
    """A person talks while digests are made."""
    async with trio.open_nursery() as nursery:

        async def digests() -> None:
            for digest in await assistant.digest(["one page", "another page"]):
                print("digest:", digest)

        nursery.start_soon(digests)
        for question in [*SAYS, "yes", "yes"]:
            parts: list[str] = []
            await assistant.answer(question, parts.append)
            print(f"> {question}\n{''.join(parts).strip()}")
            if question.startswith("Tell"):
                await assistant.answer("yes", print)
    print("drafts:", assistant.toolbox.mail_drafts, "calendar:", assistant.toolbox.calendar)


def show_plainly(part: str) -> None:
    """Print what a model or a server says, without what would steer the terminal."""
    print("".join(char if char.isprintable() or char == "\n" else "?" for char in part), end="", flush=True)


async def talk(assistant: Assistant) -> None:
    """Read questions from the terminal. A checkpoint."""
    while True:
        print("> ", end="", flush=True)
        # A thread that is left behind: who presses Ctrl-C doesn't want to press Enter, too.
        line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        if not line:
            return
        await assistant.answer(line, show_plainly)
        print()


async def main() -> None:
    macmini, macbook = os.environ.get("MACMINI"), os.environ.get("MACBOOK")
    if bool(macmini) is not bool(macbook):
        sys.exit("set both MACMINI and MACBOOK, each to the URL of its server (the same one twice is fine), or neither")
    if macmini and macbook:
        async with BackendRegistry(roles(macmini, macbook)) as registry:
            await talk(Assistant(registry))
    else:
        pretended = roles("http://macmini/v1", "http://macbook/v1", httpx.MockTransport(pretend))
        async with BackendRegistry(pretended) as registry:
            await show(Assistant(registry))


if __name__ == "__main__":
    try:
        trio.run(main)
    except* KeyboardInterrupt:  # it may have struck in a task that watches the servers
        pass
