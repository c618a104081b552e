"""How a program ends: the user's errors in one line, and signals after the step that is being computed."""

import contextlib
import os
import shlex
import signal
import sys
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # Ctrl-C, and what clusters send


class InputError(Exception):
    """Bad input. The message is one line: "FILE: what is wrong; what to do". Scripts print it and exit with code 2."""


class Stopped(BaseException):
    """A signal asked the program to end. args: its number. No Exception: code that handles errors must not hold it up."""


class _Deferred:
    depth, signal = 0, None


@contextlib.contextmanager
def deferred():
    """Within this context a first signal waits; `asked_to_stop` says that it came. A second one acts at once."""
    _Deferred.depth += 1
    try:
        yield
    finally:
        _Deferred.depth -= 1


def asked_to_stop():
    """Return the number of the signal that waits, or None."""
    return _Deferred.signal


def _receive(number, frame):
    if _Deferred.depth and _Deferred.signal is None:
        _Deferred.signal = number
    else:
        raise Stopped(number)


def program():
    """Return the words that started this program, such as ["python", "-m", "emit.generate"], without its flags."""
    words = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    installed = len(words) == 1 and not words[0].endswith(".py")  # a command that pip put on the path
    return [Path(words[0]).name] if installed else ["python", *words]


def run(main, again="--resume"):
    """Call main(). An InputError becomes its one line on stderr and exit code 2, a signal exit code 128 + its number.

    again: the flag with which the same command goes on, if it needs one.
    """
    for number in SIGNALS:
        signal.signal(number, _receive)
    try:
        main()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        number = stopped.args[0]
        words = shlex.join([*program(), *sys.argv[1:], *([again] if again and again not in sys.argv else [])])
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            words = f"the same torchrun command and {again}"
        if os.environ.get("RANK", "0") == "0":
            print(f"\nstopped by {signal.Signals(number).name}; go on with: {words}", file=sys.stderr)
        sys.exit(128 + number)
