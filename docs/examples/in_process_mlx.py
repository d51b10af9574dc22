"""A model inside this program: mlx_lm generates in a worker thread behind the gate, and trio streams its tokens.

python in_process_mlx.py MODEL     a directory with a model, or its name on the Hugging Face hub
"""

import math
import sys
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from typing import Any

import trio

from trio_mlxgate import Gate, Priority

try:
    import mlx_lm  # pyright: ignore[reportMissingImports]
except ImportError:
    mlx_lm: Any = None  # type: ignore[no-redef]


class Tokens:
    """What a generator in a thread has made: ``async for text in tokens``. An error of the generator is raised here."""

    def __init__(self, received: trio.MemoryReceiveChannel[str]) -> None:
        self._received = received
        self.error: Exception | None = None

    def __aiter__(self) -> "Tokens":
        return self

    async def __anext__(self) -> str:
        """The next text. Always a checkpoint."""
        try:
            return await self._received.receive()
        except trio.EndOfChannel:
            if self.error is None:
                raise StopAsyncIteration from None
            error, self.error = self.error, None
            raise error from None


@asynccontextmanager
async def stream_from_thread(
    gate: Gate,
    generate: Callable[[], Generator[str, None, None]],
    *,
    priority: int = Priority.BACKGROUND,
    hold_timeout: float = math.inf,
) -> AsyncIterator[Tokens]:
    """Run a blocking generator in a thread, under a slot of the gate: ``async with ... as tokens``.

    Leaving the block early, a cancellation and the end of ``hold_timeout`` stop the generator between two tokens. The
    slot goes back when the thread has ended. Entering is always a checkpoint, and leaving too.
    """
    send, receive = trio.open_memory_channel[str](0)  # no token is made ahead of the reader but the one in the hand
    tokens = Tokens(receive)
    failed: Exception | None = None

    def work() -> None:
        with closing(generate()) as texts:
            for text in texts:
                trio.from_thread.run(send.send, text)  # raises trio.Cancelled here when the caller has left

    async def run_work() -> None:  # noqa: ASYNC910 - a checkpoint, also where it fails
        with send:
            try:
                # A limiter of its own: the gate is the bound, and other threads of the program must not hold this up.
                await trio.to_thread.run_sync(work, limiter=trio.CapacityLimiter(1))
            except Exception as error:  # noqa: BLE001 - raised where the tokens are read
                tokens.error = error

    async with gate.slot(priority, hold_timeout=hold_timeout):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_work)
            try:
                yield tokens
            except Exception as error:  # noqa: BLE001 - raised below, since the nursery would wrap it
                failed = error
            nursery.cancel_scope.cancel()
        receive.close()
        if failed is None:
            failed = tokens.error  # the generator's, if nobody has read so far
        if failed is not None:
            raise failed


def stream_generate(
    gate: Gate,
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    priority: int = Priority.BACKGROUND,
    hold_timeout: float = math.inf,
    **options: Any,
) -> AbstractAsyncContextManager[Tokens]:
    """``mlx_lm.stream_generate`` behind the gate; the options are its own, such as ``max_tokens``."""

    def still_wanted(*_: int) -> None:
        trio.from_thread.check_cancelled()  # between two parts of a long prompt, before there is a token

    def generate() -> Generator[str, None, None]:
        options["prompt_progress_callback"] = still_wanted
        with closing(mlx_lm.stream_generate(model, tokenizer, prompt, **options)) as responses:
            for response in responses:
                yield response.text

    return stream_from_thread(gate, generate, priority=priority, hold_timeout=hold_timeout)


async def main(model_name: str) -> None:
    gate = Gate(1, name="GPU")

    # Loading keeps the GPU and the memory busy as well, so it is work behind the gate.
    async with gate.slot(Priority.FOREGROUND):
        model, tokenizer = await trio.to_thread.run_sync(mlx_lm.load, model_name)

    async def ask(  # noqa: ASYNC114 - the linter need not know it by name
        who: str,
        question: str,
        priority: int = Priority.BACKGROUND,
        leave_after: float = math.inf,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        answer: list[str] = []
        with trio.CancelScope() as scope:
            async with stream_generate(gate, model, tokenizer, prompt, priority=priority, max_tokens=24) as tokens:
                print(f"{who} begins")
                task_status.started()
                async for text in tokens:
                    answer.append(text)
                    if len(answer) == leave_after:
                        scope.cancel()
        end = f"was cancelled after {len(answer)} tokens" if scope.cancelled_caught else "ends"
        print(f"{who} {end}: {''.join(answer)!r}")

    async with trio.open_nursery() as nursery:
        await nursery.start(ask, "digest 1", "Sum up the first page.")
        nursery.start_soon(ask, "digest 2", "Sum up the second page.")
        nursery.start_soon(ask, "digest 3", "Sum up the third page.", Priority.BACKGROUND, 5)
        await trio.lowlevel.checkpoint()
        # Who comes last, and is a person, goes before the digests that wait.
        nursery.start_soon(ask, "person", "What is a gate good for?", Priority.FOREGROUND)


if __name__ == "__main__":
    if mlx_lm is None:
        sys.exit("this example needs mlx_lm: pip install mlx-lm (on Linux: pip install 'mlx-lm[cpu]')")
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1])
