"""The one exception for what a user can put right.

A ``UserError`` carries one sentence that names the path or the flag and says what to do. The command line prints it and exits with code 2;
everything else propagates with its traceback, because it is our fault.
"""


class UserError(Exception):
    """A fault of the input, told in one sentence that names the file or the flag and the remedy."""
