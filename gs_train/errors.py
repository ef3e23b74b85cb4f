"""The one exception for what a user can put right, and how its sentence lists names.

A ``UserError`` carries one sentence that names the path or the flag and says what to do. The command line prints it and exits with code 2;
everything else propagates with its traceback, because it is our fault.
"""

from collections.abc import Sequence

_NAMED_AT_MOST = 5


class UserError(Exception):
    """A fault of the input, told in one sentence that names the file or the flag and the remedy."""


def first_few(names: Sequence[str]) -> str:
    """At most five of the names, for a sentence, and dots where there are more."""
    return ", ".join(names[:_NAMED_AT_MOST]) + (", ..." if len(names) > _NAMED_AT_MOST else "")
