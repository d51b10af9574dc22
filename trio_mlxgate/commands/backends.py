"""``trio-mlxgate backends``: what each server is, whether it is well, and how busy it is."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from typing import TYPE_CHECKING

import trio

from trio_mlxgate.backends._settings import is_header
from trio_mlxgate.backends.detecting import kind_named
from trio_mlxgate.commands._looks import Target, Watch
from trio_mlxgate.config import ConfigError, load_config
from trio_mlxgate.core.readings import Health

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_mlxgate.commands._backends_view import BackendsView
    from trio_mlxgate.commands._looks import Row

API_KEY_VARIABLE = "MLXGATE_API_KEY"

_DESCRIPTION = f"""\
Look at servers: what kind each is, whether it is well, how busy it is and why. They are asked by GETs that give
their GPUs no work. On a terminal the table is live until Ctrl-C; else, or with --once or --json, there is one look.
With a configuration file each backend is asked with its own key; the environment's {API_KEY_VARIABLE} is sent as a
bearer token to the servers that are given by their URLs. Exit status after one look: 0 all are well, 1 one is not:
down, or it gave no good answer; 2 nothing could be asked; 130 interrupted.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``backends`` to the commands."""
    parser = subparsers.add_parser(
        "backends", help="what servers are, whether they are well, how busy they are", description=_DESCRIPTION
    )
    parser.add_argument(
        "urls", nargs="*", metavar="URL", help="base URL as openai's SDK takes it: http://127.0.0.1:8080/v1"
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="a configuration file (TOML) with [backends.NAME]")
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="from one look to the next while it is live (default: 5)",
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=2.0, metavar="SECONDS", help="of one look at one server (default: 2)"
    )
    parser.add_argument("--once", action="store_true", help="look once, on a terminal too")
    parser.add_argument("--json", action="store_true", help="look once and print JSON, and nothing else")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look, and show what was seen; the exit status."""
    if bool(args.urls) is bool(args.config):
        return _refuse("give either URLs, or a configuration file with -c FILE")
    view: BackendsView | None = None
    if not args.json:
        try:
            from trio_mlxgate.commands._backends_view import BackendsView
        except ImportError as error:
            return _refuse(f"{error}; or run it with --json")
        view = BackendsView()
    try:
        targets = _configured(args.config) if args.config else _named(args.urls)
        # Made outside of trio: what is wrong with an argument is told as such.
        watch = Watch(targets, timeout=args.timeout, interval=args.interval)
    except ValueError as error:  # a ConfigError is one
        return _refuse(str(error))
    try:
        if view is not None and view.is_terminal and not args.once:
            with view:
                trio.run(watch.keep_looking, view.update)
            raise AssertionError("only an interrupt ends it")
        rows: list[Row] = trio.run(watch.look_once)
    except KeyboardInterrupt:
        return _interrupted()
    except BaseExceptionGroup as group:
        # Raised in a task, it comes in the groups of trio's nurseries.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        return _interrupted()
    if view is None:
        print(json.dumps({"backends": [row.as_json() for row in rows]}))
    else:
        view.show(rows)
    return 0 if all(row.health is Health.UP for row in rows) else 1


def _configured(path: str) -> list[Target]:
    """The backends of a file.

    Raises:
      ConfigError: it isn't as it should be, or a key is missing.
    """
    return [
        Target(
            name=backend.name,
            url=backend.url,
            kind=None if backend.kind is None else kind_named(backend.kind),
            headers=backend.request_headers(),
            model=backend.model,
        )
        for backend in load_config(path).backends.values()
    ]


def _named(urls: Sequence[str]) -> list[Target]:
    """Servers that have no name but their URL.

    Raises:
      ConfigError: the key in the environment is none.
      ValueError: a URL is none, or holds a password, which would be shown.
    """
    key = os.environ.get(API_KEY_VARIABLE, "")
    if not is_header("Authorization", key):
        raise ConfigError(
            f"the environment's {API_KEY_VARIABLE} has characters that no HTTP header may have, or blanks at its ends; "
            "set it anew"
        )
    for url in urls:
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise ValueError(f"a URL holds a user or a password; leave it out, and set {API_KEY_VARIABLE}, or use -c")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return [Target(name=url, url=url, headers=headers) for url in urls]


def _interrupted() -> int:
    print("trio-mlxgate backends: interrupted", file=sys.stderr)
    return 130


def _refuse(message: str) -> int:
    print(f"trio-mlxgate backends: {message}", file=sys.stderr)
    return 2


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.1 <= number <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return number
