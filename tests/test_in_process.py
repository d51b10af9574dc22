"""A model in this process, as docs/in_process.md has it: the example's functions, with a model that obeys the test."""

from __future__ import annotations

import functools
import importlib.util
import threading
import types
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.tiny_model import answer, build_tiny_model
from trio_mlxgate import Gate, Priority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "in_process_mlx.py"
if not EXAMPLE.exists():
    pytest.skip("the documentation is not here: these are the tests of an installed package", allow_module_level=True)

LIMIT = 20.0
"""Seconds after which a test, or the model in its thread, gives up. The threads are real, and so is the clock."""


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()


class FakeModel:
    """Blocks its thread for every token until the test allows the token, and notes what it did."""

    def __init__(self, allowed: int = 0) -> None:
        self.allowed = threading.Semaphore(allowed)
        self.made: list[str] = []
        self.working = 0
        self.most_working = 0
        self.closed = 0
        self._lock = threading.Lock()

    def allow(self, tokens: int) -> None:
        self.allowed.release(tokens)

    def generate(self, name: str, tokens: int = 5, error: Exception | None = None) -> Generator[str, None, None]:
        with self._lock:
            self.working += 1
            self.most_working = max(self.most_working, self.working)
        try:
            for number in range(tokens):
                assert self.allowed.acquire(timeout=LIMIT), "the test has forgotten the model"
                self.made.append(f"{name}{number}")
                yield f"{name}{number}"
            if error is not None:
                raise error
        finally:
            with self._lock:
                self.working -= 1
                self.closed += 1

    def maker(self, *args: Any, **kwargs: Any) -> Callable[[], Generator[str, None, None]]:
        return lambda: self.generate(*args, **kwargs)


def limited(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A test that fails when it hangs; the model in its thread gives up after the same time."""

    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(LIMIT):
            await test(*args, **kwargs)

    return run


def new_gate(capacity: int = 1) -> Gate:
    return Gate(capacity, outer_deadline="allow")


def idle(gate: Gate) -> bool:
    seen = gate.statistics()
    return seen.in_flight == seen.tasks_waiting == 0


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - threads tell no event
        await trio.sleep(0.001)


async def let_threads_run() -> None:
    """Time for a thread to do what it must not do."""
    await wait_all_tasks_blocked(0.05)


@limited
async def test_tokens_come_in_order_and_the_slot_goes_back() -> None:
    gate, model = new_gate(), FakeModel(allowed=5)
    async with example.stream_from_thread(gate, model.maker("a")) as tokens:
        assert gate.statistics().in_flight == 1
        assert [text async for text in tokens] == ["a0", "a1", "a2", "a3", "a4"]
        with pytest.raises(StopAsyncIteration):
            await anext(tokens)
    assert model.closed == 1
    assert idle(gate)


@pytest.mark.parametrize("capacity", [1, 2])
@limited
async def test_no_more_threads_generate_than_there_are_slots(capacity: int) -> None:
    gate, model = new_gate(capacity), FakeModel(allowed=8 * 20)
    answers = []

    async def ask(name: str) -> None:
        async with example.stream_from_thread(gate, model.maker(name, 20)) as tokens:
            answers.append([text async for text in tokens])

    async with trio.open_nursery() as nursery:
        for name in "abcdefgh":
            nursery.start_soon(ask, name)
    assert model.most_working == capacity
    assert sorted(answers) == [[f"{name}{number}" for number in range(20)] for name in "abcdefgh"]
    assert idle(gate)


@limited
async def test_the_person_goes_before_the_digests_that_wait() -> None:
    gate, model = new_gate(), FakeModel()

    async def ask(name: str, priority: int) -> None:
        async with example.stream_from_thread(gate, model.maker(name, 2), priority=priority) as tokens:
            async for _ in tokens:
                pass

    async with trio.open_nursery() as nursery:
        for name, priority in (("a", 100), ("b", 100), ("c", 100), ("person", 0)):
            nursery.start_soon(ask, name, priority)
            await wait_all_tasks_blocked()
        model.allow(100)
    assert model.made == ["a0", "a1", "person0", "person1", "b0", "b1", "c0", "c1"]


@pytest.mark.parametrize("how", ["cancelled", "left", "hold_timeout", "failed"])
@limited
async def test_who_leaves_stops_it_between_two_tokens_and_the_slot_waits_for_the_thread(how: str) -> None:
    gate, model = new_gate(), FakeModel(allowed=3)
    read: list[str] = []
    ended: list[str] = []
    scope = trio.CancelScope()
    hold_timeout = {"hold_timeout": 0.2} if how == "hold_timeout" else {}

    async def ask() -> None:
        expected = {"hold_timeout": trio.TooSlowError, "failed": KeyError}
        with scope, pytest.raises(expected[how]) if how in expected else closing(FakeModel().generate("")):
            async with example.stream_from_thread(gate, model.maker("a", 100), **hold_timeout) as tokens:
                async for text in tokens:
                    read.append(text)
                    if len(read) == 3 and how == "left":
                        break
                    if len(read) == 3 and how == "failed":
                        raise KeyError("no such table")
        ended.append("asker")

    async def next_one() -> None:
        async with gate.slot(Priority.FOREGROUND):
            ended.append("next")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until(lambda: len(read) == 3)
        nursery.start_soon(next_one)
        if how == "cancelled":
            scope.cancel()
        if how == "hold_timeout":
            await trio.sleep(0.3)
        await let_threads_run()
        # In the middle of the fourth token nothing can end: not the thread, so not the slot, so not the block.
        assert model.working == 1
        assert ended == []
        assert gate.statistics().in_flight == gate.statistics().tasks_waiting == 1
        model.allow(50)
    assert model.made == ["a0", "a1", "a2", "a3"]
    assert read == ["a0", "a1", "a2"]
    assert sorted(ended) == ["asker", "next"]
    assert model.closed == 1
    assert idle(gate)


@limited
async def test_a_slow_reader_has_one_token_made_for_it_and_no_more() -> None:
    gate, model = new_gate(), FakeModel(allowed=100)
    async with example.stream_from_thread(gate, model.maker("a", 100)) as tokens:
        for number in range(1, 4):
            await until(lambda: len(model.made) >= number)  # noqa: B023 - used here alone
            await let_threads_run()
            assert len(model.made) == number
            await anext(tokens)
    assert len(model.made) <= 4


@limited
async def test_an_error_of_the_generator_comes_bare_after_the_tokens_before_it() -> None:
    gate, model = new_gate(), FakeModel(allowed=2)
    read = []

    async def ask() -> None:
        async with example.stream_from_thread(gate, model.maker("a", 2, ValueError("out of memory"))) as tokens:
            async for text in tokens:
                read.append(text)  # noqa: PERF401 - what was read is kept

    with pytest.raises(ValueError, match="out of memory"):
        await ask()
    assert read == ["a0", "a1"]
    assert idle(gate)


@limited
async def test_an_error_that_was_handled_is_told_once() -> None:
    gate, model = new_gate(), FakeModel()
    async with example.stream_from_thread(gate, model.maker("a", 0, ValueError("out of memory"))) as tokens:
        with pytest.raises(ValueError, match="out of memory"):
            await anext(tokens)
        with pytest.raises(StopAsyncIteration):
            await anext(tokens)
    assert idle(gate)


@limited
async def test_an_error_that_nobody_read_is_raised_on_leaving() -> None:
    gate, model = new_gate(), FakeModel()

    async def ask() -> None:
        async with example.stream_from_thread(gate, model.maker("a", 0, ValueError("out of memory"))):
            await until(lambda: model.closed == 1)
            await let_threads_run()

    with pytest.raises(ValueError, match="out of memory"):
        await ask()
    assert idle(gate)


@limited
async def test_other_threads_of_the_program_do_not_hold_it_up() -> None:
    gate, model = new_gate(), FakeModel(allowed=5)
    limiter = trio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    async with limiter, example.stream_from_thread(gate, model.maker("a")) as tokens:
        assert len([text async for text in tokens]) == 5
    assert idle(gate)


@limited
async def test_a_long_prompt_can_be_left_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, parts = new_gate(), threading.Semaphore(0)
    read: list[int] = []

    def stream_generate(
        model: Any,
        tokenizer: Any,
        prompt: str,
        *,
        prompt_progress_callback: Callable[[int, int], None],
        max_tokens: int,
    ) -> Generator[Any, None, None]:
        for part in range(100):
            prompt_progress_callback(part, 100)
            assert parts.acquire(timeout=LIMIT)
            read.append(part)
        yield from ()

    monkeypatch.setattr(example, "mlx_lm", types.SimpleNamespace(stream_generate=stream_generate))
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            async with example.stream_generate(gate, None, None, "a long one", max_tokens=5) as tokens:
                await anext(tokens)

        nursery.start_soon(ask)
        parts.release(2)
        await until(lambda: len(read) == 2)
        nursery.cancel_scope.cancel()
        parts.release(50)
    assert read == [0, 1, 2]
    assert idle(gate)


@pytest.mark.integration
@limited
async def test_mlx_lm_itself(tmp_path: Path) -> None:
    mlx_lm: Any = pytest.importorskip("mlx_lm")
    gate = new_gate()
    model, tokenizer = await trio.to_thread.run_sync(mlx_lm.load, str(build_tiny_model(tmp_path)))
    answers: dict[str, str] = {}

    async def ask(name: str, tokens: int, leave_after: int | None = None) -> None:
        texts: list[str] = []
        prompt = f"{name} "
        async with example.stream_generate(gate, model, tokenizer, prompt, max_tokens=tokens) as made:
            async for text in made:
                texts.append(text)
                if leave_after == len(texts):
                    break
        answers[name] = "".join(texts)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "whole", 50)
        nursery.start_soon(ask, "another", 250)
        nursery.start_soon(ask, "left", 200, 7)
    assert answers == {"whole": answer(50), "another": answer(250), "left": answer(7)}
    with pytest.raises(ValueError, match="non-zero"):
        await ask("none", 0)
    assert idle(gate)
