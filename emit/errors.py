"""How a program ends: the user's errors in one line, and signals after the step that is being computed."""

import contextlib
import os
import shlex
import signal
import sys
from pathlib import Path

SHOWN = 20  # faults that are printed in front of the last line
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # Ctrl-C, and what clusters send


class InputError(Exception):
    """Bad input. The message is one line: "FILE: what is wrong; what to do". Scripts print it and exit with code 2.

    lines: where much is wrong, such a line about each fault; the message says how many there are, and the first.
    """

    def __init__(self, message, lines=()):
        super().__init__(message)
        self.lines = lines


class Faults(dict):
    """What is wrong, {line of an InputError: name of the case or volume}: reading goes on, and `refuse` tells all of it."""

    @contextlib.contextmanager
    def of(self, name):
        """Note the InputError that ends what is done within this context."""
        try:
            yield
        except InputError as error:
            self.update(dict.fromkeys(error.lines or [str(error)], name))

    def refuse(self, root, known=()):
        """Raise one InputError about all of it; known: names that are left out."""
        lines = [line for line, name in self.items() if name not in known]
        if lines[1:]:
            raise InputError(f"{root}: {len(lines)} faults (python -m emit.data check lists all), the first: {lines[0]}", lines)
        if lines:
            raise InputError(lines[0])


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
        more = [f"and {len(error.lines) - SHOWN} more"] * (len(error.lines) > SHOWN)
        for line in (*error.lines[:SHOWN], *more, str(error)):
            print(f"error: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        number = stopped.args[0]
        words = shlex.join([*program(), *sys.argv[1:], *([again] if again and again not in sys.argv else [])])
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            words = f"the same torchrun command and {again}"
        if os.environ.get("RANK", "0") == "0":
            print(f"\nstopped by {signal.Signals(number).name}; go on with: {words}", file=sys.stderr)
        sys.exit(128 + number)
