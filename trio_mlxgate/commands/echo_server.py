"""``trio-mlxgate echo-server``: a server that runs one inference at a time and answers with an echo."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import attrs
import trio

from trio_mlxgate.echo_server import EchoSettings, serve_inference

if TYPE_CHECKING:
    import argparse

_DESCRIPTION = """\
A server to try a gate against: an echo, not a model. It speaks OpenAI's HTTP API, runs one inference at a
time in the order of arrival, and answers with the words of the question. GET /status tells what it is doing.
Its first line on stdout is JSON: {"url": ..., "base_url": ..., "pid": ...}. It ends on SIGTERM (status 0) and on SIGINT
(status 130).
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``echo-server`` to the commands."""
    parser = subparsers.add_parser(
        "echo-server", help="a single-inference server that answers with an echo", description=_DESCRIPTION
    )
    # Each option is a field of the settings and takes its default from there.
    defaults = EchoSettings()

    def option(field: str, kind: type, text: str, choices: tuple[str, ...] | None = None) -> None:
        flag = "--" + field.replace("_", "-")
        default = getattr(defaults, field)
        parser.add_argument(
            flag,
            type=kind,
            default=default,
            choices=choices,
            metavar=None if choices else kind.__name__.upper(),
            help=f"{text} (default: {default})",
        )

    option("service_time", float, "seconds of a whole inference")
    option("tokens", int, "tokens of an answer, unless the request's own maximum is lower; a token is a word")
    policies = ("finish", "stop")
    option("plain_on_disconnect", str, "what becomes of a plain request whose client has gone", policies)
    option("stream_on_disconnect", str, "what becomes of a streamed request whose client has gone", policies)
    option("host", str, "address to listen on")
    option("port", int, "port to listen on; 0 chooses a free one")
    option("backlog", int, "connections that may wait to be accepted")
    option("max_body", int, "bytes of the largest request body")
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="end when stdin reaches its end, so that the server never outlives whoever holds the other end",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until told to end. Returns 0, or 130 after SIGINT, or 2 if it could not start as asked."""
    fields = {field.name: getattr(args, field.name) for field in attrs.fields(EchoSettings)}
    try:
        settings = EchoSettings(**fields)
    except (TypeError, ValueError) as error:
        return _complain(error)
    try:
        return trio.run(_serve, settings, args.until_stdin_closes)
    except KeyboardInterrupt:
        # Ctrl-C in the moment before the signal receiver is in place, or after it.
        return 130


def _complain(problem: object) -> int:
    print(f"trio-mlxgate echo-server: {problem}", file=sys.stderr)
    return 2


async def _serve(settings: EchoSettings, until_stdin_closes: bool) -> int:
    """Serve until a signal or the end of stdin, and return the exit status. A checkpoint."""
    status = 0

    async def end_on_signal() -> None:
        nonlocal status
        async for signum in signals:
            status = 130 if signum == signal.SIGINT else 0
            nursery.cancel_scope.cancel()

    async def end_with_stdin() -> None:
        # In a thread, since pipes, files and consoles can all be read in one on every system. It is left behind.
        await trio.to_thread.run_sync(_read_to_the_end, sys.__stdin__, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_on_signal)
            if until_stdin_closes:
                nursery.start_soon(end_with_stdin)
            try:
                url = await nursery.start(serve_inference, settings)
                print(json.dumps({"url": url, "base_url": f"{url}/v1", "pid": os.getpid()}), flush=True)
            except BrokenPipeError:
                # Whoever started us has gone already, and the other end of stdout with them.
                nursery.cancel_scope.cancel()
            except (OSError, UnicodeError) as error:
                status = _complain(
                    f"can't listen on {settings.host} port {settings.port}: {error}. "
                    "Give another --port (0 chooses a free one) or another --host."
                )
                nursery.cancel_scope.cancel()
    return status


def _read_to_the_end(stdin: Any) -> None:
    """Read until there is nothing more to come; a stdin that is closed or missing has ended already."""
    if stdin is None:
        return
    # os.read, not stdin.read: the interpreter aborts if a thread holds the file object's lock when it ends.
    descriptor = stdin.fileno()
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:
        return
