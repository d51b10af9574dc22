"""The guard: a tiny program between us and a model's server, so that the server never outlives us.

It runs as ``python -I -S _guard.py REPORT LC_CTYPE COMMAND...``, imports next to nothing, and nothing of this package.

* Its stdin is the read end of a pipe whose write end we hold. The system closes that however we end, by kill -9 too.
  At the end of the pipe the guard kills the server's process group. A byte that comes says that the server has been
  told to go.
* The server leads a process group of its own, and gets ``/dev/null`` as stdin and the guard's stdout and stderr.
* The variable LC_CTYPE gets the given value again, "" being none: Python sets it at its start, in some places.
* To the descriptor REPORT it writes, a line each: ``pid N`` (written by the server's process itself before it becomes
  the server: so the line is there even if the guard is killed in that moment), ``error TEXT`` if the command can't be
  executed, ``begun`` when it is known whether it can, ``exited N`` with the exit status, negative for a signal. The end
  of that pipe says that the guard has gone.
* When the server has ended, the guard kills what is left of its group at once, or, if the server had been told to go,
  leaves it time to go until the end of the pipe. When all of the group have gone, it ends with the server's exit
  status, 128 + N for signal N as shells do. What was killed and hangs in the system it waits for, so that the number of
  the group isn't given to somebody else, and whoever started it can see whether it is there still.
* It ignores the signals by which people and systems end programs. It is in a session of its own, where a terminal's
  Ctrl-C doesn't come; and if somebody sends it SIGTERM, the server still gets its time to stop.

Not PR_SET_PDEATHSIG: it is Linux's alone, and follows the thread that forked, which may end long before its process.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_LOOK_AT_PARENT = 1.0
"""Seconds. A process that our parent forked without exec would hold the pipe open; our parent's id tells the same."""
_LOOK_AT_GROUP = 0.01
_LOOK_AT_GROUP_AT_MOST = 0.1
_LOOK_AT_WHAT_HANGS = 1.0


def main() -> int:
    parent = os.getppid()
    report, locale, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.environ.pop("LC_CTYPE", None)
    if locale:
        os.environ["LC_CTYPE"] = locale
    os.set_inheritable(report, False)
    for signum in _IGNORED:
        signal.signal(signum, signal.SIG_IGN)
    # A signal of the end of a child writes a byte here, which select() sees.
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    nothing = os.open(os.devnull, os.O_RDWR)

    # Closed by the exec, or by the end of what could not be executed.
    begun, beginning = os.pipe()
    server = os.fork()
    if server == 0:
        _become(command, report, nothing)
    with suppress(OSError):  # it does the same: whoever comes first, the group is there
        os.setpgid(server, server)
    # The end of the output is the server's affair: we don't hold it open.
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.close(beginning)

    watched = [0, woken, begun]
    pause = _LOOK_AT_GROUP
    told = lost = False
    status = None
    while not lost:
        if status is None:
            status = _status(server, told)
            told = told or _is_told()
            if status is not None:
                _tell(report, f"exited {status}")
        if status is not None and (not told or is_gone(server)):
            break
        ready, _, _ = select.select(watched, [], [], _LOOK_AT_PARENT if status is None else pause)
        if status is not None:
            pause = min(1.5 * pause, _LOOK_AT_GROUP_AT_MOST)
        if woken in ready:
            _read(woken)
        if begun in ready:
            _tell(report, "begun")
            watched.remove(begun)
        if 0 in ready:
            told = True
            lost = not _read(0)
        lost = lost or os.getppid() != parent
    _kill_group(server)
    if status is None:
        status = os.waitstatus_to_exitcode(os.waitpid(server, 0)[1])
        _tell(report, f"exited {status}")
    # What hangs in the system goes when the system lets it. The guard's end tells that nobody of the group is left.
    pause = _LOOK_AT_GROUP
    while not is_gone(server):
        time.sleep(pause)
        pause = min(1.5 * pause, _LOOK_AT_WHAT_HANGS)
    return status if status >= 0 else 128 - status


def _become(command: list[str], report: int, nothing: int) -> None:
    """Turn into the server; never returns."""
    try:
        os.setpgid(0, 0)
        # Python ignores some signals, we ignore more, and ignored ones stay so in what is executed.
        signal.set_wakeup_fd(-1)
        for signum in (*_IGNORED, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.dup2(nothing, 0)
        _tell(report, f"pid {os.getpid()}")
        os.execvpe(command[0], command, os.environ)
    except OSError as error:
        _tell(report, f"error {error.strerror or error}")
    except ValueError as error:
        _tell(report, f"error {error}")
    finally:
        # It must not go on as a second guard, whatever happens.
        os._exit(127)


def _status(server: int, told: bool) -> int | None:
    """The server's exit status, negative for a signal; None while it runs. Kills its group, if it had not been told."""
    # The group is killed before the server is reaped: until then its number can't be that of somebody else. macOS has
    # no waitid before Python 3.13: there it is an instant later, and numbers are not given anew so soon.
    if hasattr(os, "waitid"):
        if os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        # What came before its end counts.
        if not (told := told or _is_told()):
            _kill_group(server)
    pid, status = os.waitpid(server, os.WNOHANG)
    if pid == 0:
        return None
    if not told:
        _kill_group(server)
    return os.waitstatus_to_exitcode(status)


def _is_told() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b"-"
    except OSError:
        return b""


def _tell(report: int, line: str) -> None:
    with suppress(OSError):  # whoever wanted to know may have gone
        os.write(report, (line + "\n").encode(errors="replace"))


def _kill_group(group: int) -> None:
    with suppress(OSError):
        os.killpg(group, signal.SIGKILL)


def is_gone(group: int) -> bool:
    """Whether nobody of this process group is alive."""
    try:
        os.killpg(group, 0)
    except PermissionError:
        # On Linux somebody is left who became another user; macOS says so of those who are dead, too.
        if sys.platform == "darwin":
            return True
    except OSError:
        return True
    # On Linux the dead count too until they are reaped, which in containers may take long, or for ever.
    try:
        processes = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return False
    return not any(_is_alive_in(group, process) for process in processes)


def _is_alive_in(group: int, process: str) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as told:
            # Its name stands in parentheses, and may be anything; then: state, parent, group.
            state, _, its_group = told.read().rpartition(b")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return int(its_group) == group and state not in b"ZX"


if __name__ == "__main__":
    sys.exit(main())
