"""``trio-mlxgate herd``: many requests at once, first straight at a server, then through the gate."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import trio

from trio_mlxgate.commands._stampede import HerdError, HerdResult, HerdSettings, send_herd
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from trio_mlxgate.commands._herd_view import HerdView
    from trio_mlxgate.commands._stampede import HalfResult

_MOST = 10_000
"""More requests at once than any machine's sockets allow for is a slip of the finger."""

API_KEY_VARIABLE = "MLXGATE_API_KEY"

_DESCRIPTION = f"""\
Send a herd of requests at once to an OpenAI-compatible server: first straight at it, then, when it has worked
off what the first half gave up on, through the gate. Without --url the embedded echo server is started: it
runs one inference at a time, as a model on one GPU does, and answers with an echo. The time limit covers a
whole request: from sending when sent straight, from the grant of its slot through the gate. The environment's
{API_KEY_VARIABLE} is sent as a bearer token if it is set. Exit status: 0 the gate lost no request, 1 it lost one,
2 the herd could not be sent.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``herd`` to the commands."""
    parser = subparsers.add_parser(
        "herd", help="many requests at once, without the gate and with it", description=_DESCRIPTION
    )
    parser.add_argument("--url", type=_base_url, help="base URL as openai's SDK takes it: http://127.0.0.1:8080/v1")
    parser.add_argument("--model", help="the model that requests name (default: none is named)")
    parser.add_argument("--requests", type=_count, default=23, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--foreground", type=_count_or_none, metavar="N", help="how many of them have a person waiting (default: 5)"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="limit of each request (default: 5 times what one takes alone)",
    )
    parser.add_argument("--capacity", type=_count, default=1, metavar="N", help="slots of the gate (default: 1)")
    parser.add_argument("--max-tokens", type=_count, default=48, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON, and nothing else")
    parser.add_argument(
        "--service-time", type=_seconds, metavar="SECONDS", help="of the embedded server (default: 0.4)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Send the herd and show what became of it; the exit status."""
    foreground = min(5, args.requests) if args.foreground is None else args.foreground
    if foreground > args.requests:
        return _refuse(f"--foreground {foreground} is more than --requests {args.requests}; lower it")
    if args.url is not None and args.service_time is not None:
        return _refuse("--service-time is about the embedded server; leave it out beside --url")
    key = os.environ.get(API_KEY_VARIABLE, "")
    if not key.isascii() or not key.isprintable():
        return _refuse(f"the environment's {API_KEY_VARIABLE} has characters that no HTTP header may have; set it anew")
    if args.model is not None and not args.model.isprintable():
        return _refuse("--model has characters that are not printable; write the model's name as the server does")
    view: HerdView | None = None
    if not args.json:
        try:
            from trio_mlxgate.commands._herd_view import HerdView
        except ImportError as error:
            return _refuse(f"{error}; or run it with --json")
        view = HerdView()
    try:
        result = trio.run(_main, args, foreground, view)
    except HerdError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _interrupted()
    except BaseExceptionGroup as group:
        # Raised in a task of the herd, it comes in the groups of trio's nurseries.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        return _interrupted()
    if view is None:
        print(json.dumps(result.as_json()))
    else:
        view.show(result, args.url or "the embedded server (an echo, not a model)")
    return 1 if result.gated.lost else 0


async def _main(args: argparse.Namespace, foreground: int, view: HerdView | None) -> HerdResult:
    def settings(base_url: str) -> HerdSettings:
        return HerdSettings(
            base_url=base_url,
            model=args.model,
            requests=args.requests,
            foreground=foreground,
            timeout=args.timeout,
            capacity=args.capacity,
            max_tokens=args.max_tokens,
            api_key=os.environ.get(API_KEY_VARIABLE) or None,
        )

    def report(what: str, half: HalfResult | None) -> None:
        if view is not None:
            view.report(what, half)
        elif what.startswith("no answer"):
            print(what, file=sys.stderr)  # with --json, too, nobody should wonder why nothing happens

    with view or nullcontext():
        if args.url is not None:
            return await send_herd(settings(args.url), report)
        report("starting the embedded server", None)
        async with inference_server(service_time=args.service_time or 0.4) as server:
            return await send_herd(settings(server.base_url), report)


def _interrupted() -> int:
    print("trio-mlxgate herd: interrupted", file=sys.stderr)
    return 130


def _refuse(message: str) -> int:
    print(f"trio-mlxgate herd: {message}", file=sys.stderr)
    return 2


def _base_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        httpx.URL(text).raw_host  # noqa: B018 - refuses hosts that no resolver can be asked for
        (parts.hostname or "").encode("idna")
    except (ValueError, httpx.InvalidURL):
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text!r} is no base URL; give one such as http://127.0.0.1:8080/v1")
    return text


def _count_or_none(text: str) -> int:
    return _whole(text, 0)


def _count(text: str) -> int:
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {least} and <= {_MOST}")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number
