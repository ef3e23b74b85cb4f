"""``gs-train``: parses the arguments, runs the subcommand, and turns exceptions into messages and exit codes.

The subcommands are in ``commands/``; the rules for arguments are in ``flags.py``. Exit codes: 0 for success, 2 for a
mistake of the user, 128 plus the signal's number after a signal. Any other exception keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence

from gs_train import __version__, flags
from gs_train.console import SIGPIPE, flush_stdout, prepare_streams, print_error, show
from gs_train.errors import UserError, describe_full_disk, describe_gpu_memory
from gs_train.machine import check_threads

_USER_ERROR = 2
_NO_TEMPORARY_FOLDER = (
    "no folder for temporary files can be written to: free space in /tmp, lift the limit on the size of files "
    "(ulimit -f), or name another folder in TMPDIR."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``gs-train`` and exit.

    Args:
        arguments: without the program's name. None for the arguments of this process, which then ends without Python's
            clean-up: thread pools of native libraries take seconds to stop, or hang.
    """
    if arguments is not None:
        sys.exit(_exit_code(arguments))
    prepare_streams()
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        # As an exception, so that unfinished files are removed.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        code = _exit_code(sys.argv[1:])
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(code)


def _exit_code(arguments: Sequence[str]) -> int:
    """Run the subcommand, print the message of a known fault, and flush stdout."""
    try:
        try:
            return _run(list(arguments))
        finally:
            flush_stdout()
    except UserError as error:
        print_error(str(error))
    except BrokenPipeError:
        return 128 + SIGPIPE
    except OSError as error:
        message = _describe(error)
        if message is None:
            raise
        print_error(message)
    except MemoryError as error:
        print_error(f"{error if str(error) else 'out of memory'}: use smaller images or fewer Gaussians.")
    except RuntimeError as error:
        full = describe_gpu_memory(error)
        if full is None:
            raise
        print_error(f"{full}: end other programs on the GPU, or run the command with --device cpu.")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return _USER_ERROR


def _run(arguments: Sequence[str]) -> int:
    if arguments == ["--version"]:
        show(f"gs-train {__version__}")
        return 0
    command = flags.parse(arguments)
    check_threads()
    return command.run()


def _describe(error: OSError) -> str | None:
    """The message for a fault of a file; None if it is unknown which file."""
    full = describe_full_disk(error)
    if full is not None:
        return f"{full} and run the command again; earlier files are intact."
    if error.filename is None:
        # tempfile has tried all places.
        no_folder = isinstance(error, FileNotFoundError) and "temporary directory" in str(error)
        return _NO_TEMPORARY_FOLDER if no_folder else None
    path, reason = os.fsdecode(error.filename), error.strerror or error
    return (
        f"{path} cannot be read or written ({reason}): check the file and its permissions, then run the command again."
    )
