"""The one error that is the user's to mend: one line that names the file, what is wrong with it, and the remedy."""

import sys


class InputError(Exception):
    """Bad input. The message is one line: "FILE: what is wrong; what to do". Scripts print it and exit with code 2."""


def run(main):
    """Call main(); turn an InputError into its one line on stderr and exit code 2, and Ctrl-C into exit code 130."""
    try:
        main()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; a run with checkpoints goes on with --resume", file=sys.stderr)
        sys.exit(130)
