"""``gs-train``: parses the arguments, runs the subcommand, and turns exceptions into messages and exit codes.

The subcommands are in ``commands/``; the rules for arguments are in ``flags.py``. Exit codes: 0 for success, 2 for a
mistake of the user, 128 plus the signal's number after a signal. Any other exception keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from gs_train import __version__, flags
from gs_train.console import escape_unprintable, flush_stdout, print_error
from gs_train.errors import UserError, describe_full_disk

_USER_ERROR = 2
_SIGPIPE = 13
"""Number of SIGPIPE on every POSIX system; Windows lacks the name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``gs-train`` and exit.

    Args:
        arguments: without the program's name; ``sys.argv`` if None.
    """
    escape_unprintable()
    try:
        try:
            code = _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            flush_stdout()
    except UserError as error:
        print_error(str(error))
        code = _USER_ERROR
    except BrokenPipeError:
        code = 128 + _SIGPIPE
    except OSError as error:
        message = _describe(error)
        if message is None:
            raise
        print_error(message)
        code = _USER_ERROR
    except MemoryError as error:
        print_error(f"{error if str(error) else 'out of memory'}: use smaller images or fewer Gaussians.")
        code = _USER_ERROR
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    if arguments == ["--version"]:
        print(f"gs-train {__version__}")
        return 0
    return flags.parse(arguments).run()


def _describe(error: OSError) -> str | None:
    """The message for a fault of a file; None if the error names no file."""
    full = describe_full_disk(error)
    if full is not None:
        return f"{full} and run the command again; earlier files are intact."
    if error.filename is None:
        return None
    path, reason = os.fsdecode(error.filename), error.strerror or error
    return (
        f"{path} cannot be read or written ({reason}): check the file and its permissions, then run the command again."
    )
