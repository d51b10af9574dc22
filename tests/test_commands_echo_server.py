"""``trio-mlxgate echo-server``: its options, its first line, and its ends."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys

import attrs
import pytest

from trio_mlxgate.commands import echo_server, run
from trio_mlxgate.echo_server import EchoSettings, command_line

COMMAND = [sys.executable, "-m", "trio_mlxgate", "echo-server"]


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    echo_server.add_parser(parser.add_subparsers())
    return parser.parse_args(["echo-server", *arguments])


@pytest.mark.parametrize(
    "settings",
    [
        EchoSettings(),
        EchoSettings(
            service_time=1 / 3,
            tokens=3,
            plain_on_disconnect="stop",
            stream_on_disconnect="finish",
            host="::1",
            port=1,
            backlog=5,
            max_body=77,
        ),
    ],
)
def test_the_command_line_gives_the_settings_back(settings: EchoSettings) -> None:
    arguments = parse(*command_line(settings))
    names = [field.name for field in attrs.fields(EchoSettings)]
    assert EchoSettings(**{name: getattr(arguments, name) for name in names}) == settings


def test_bad_arguments_end_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["echo-server", "--tokens=0"]) == 2
    said = capsys.readouterr().err
    assert said == "trio-mlxgate echo-server: tokens is 0: give an int from 1 to 100000\n"
    with pytest.raises(SystemExit) as caught:
        run(["echo-server", "--plain-on-disconnect=wait"])
    assert caught.value.code == 2


@pytest.mark.parametrize("host", ["256.256.256.256", "x" * 300])
def test_a_bad_host_is_said_in_one_line(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["echo-server", f"--host={host}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"can't listen on {host} port 0" in said


@pytest.mark.integration
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_it_quietly(signum: signal.Signals, status: int) -> None:
    # stdin has ended already, which means nothing unless it was asked for.
    with subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["pid"] == process.pid
        assert first["url"].startswith("http://127.0.0.1:")
        process.send_signal(signum)
        rest, said = process.communicate(timeout=10)
        assert (process.returncode, rest, said) == (status, b"", b"")


@pytest.mark.integration
def test_it_ends_with_its_stdin_if_asked_to() -> None:
    done = subprocess.run(
        [*COMMAND, "--until-stdin-closes"], input=b"this is read and dropped", capture_output=True, timeout=10
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.integration
def test_the_help_says_what_it_is() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, timeout=10, check=True, text=True)
    assert "not a model" in done.stdout
    assert "--stream-on-disconnect {finish,stop}" in done.stdout
