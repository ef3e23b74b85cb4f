"""The needs of a page that this machine serves: viser, a free port, and the command that forwards it over ssh.

This module imports neither torch nor viser, so that a fault shows before the work begins.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from packaging.version import Version

from gs_train.errors import UserError

LOOPBACK = "127.0.0.1"
HIGHEST_PORT = 65535
_PORTS_TO_TRY = 20
_LEAST_VISER = "1.1.1"
_Bound = TypeVar("_Bound")


def check_viser() -> None:
    """Raise UserError if viser, which shows the live view, is missing or too old."""
    remedy = (
        f'install it with pip install "viser>={_LEAST_VISER}", or train without --viewer and look at the run with '
        "gs-train view."
    )
    try:
        found = version("viser")
    except PackageNotFoundError:
        raise UserError(f"--viewer needs the package viser: {remedy}") from None
    if Version(found) < Version(_LEAST_VISER):
        raise UserError(f"--viewer needs viser {_LEAST_VISER} or newer, and {found} is installed: {remedy}")


def check_port(flag: str, port: int) -> None:
    """Raise UserError, naming the flag, for a number that is no port; 0 stands for any free port."""
    if not 0 <= port <= HIGHEST_PORT:
        raise UserError(f"{flag} {port} is no port: give a number from 1 to {HIGHEST_PORT}.")


def bind_first_free(bind: Callable[[int], _Bound], port: int, flag: str) -> _Bound:
    """The result of ``bind(port)`` for the first port from ``port`` on that is free.

    Args:
        bind: takes a port; raises OSError if it is taken.
        port: from 1 to 65535; 0 for any free port.
        flag: the flag that sets the port.

    Raises:
        UserError: none of the next ports is free.
    """
    last = min(port + _PORTS_TO_TRY, HIGHEST_PORT + 1) - 1
    for candidate in range(port, last + 1):
        try:
            return bind(candidate)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise UserError(f"no port from {port} to {last} is free: name another one in {flag}.")


def free_port(host: str, port: int, host_flag: str, port_flag: str) -> int:
    """The first free port of an address of this machine, from ``port`` on.

    Args:
        host: name or address.
        port: from 1 to 65535; 0 for any free port.
        host_flag: the flag that sets the host.
        port_flag: the flag that sets the port.

    Raises:
        UserError: ``host`` is no address of this machine, or none of the next ports is free.
    """

    def bind(candidate: int) -> int:
        family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":
                # As servers do: a connection that has just ended does not take the port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])

    try:
        if not host:
            raise OSError(errno.EADDRNOTAVAIL, "it is empty")
        return bind_first_free(bind, port, port_flag)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"{host_flag} {host} is no address of this machine ({reason}): give {LOOPBACK}, or 0.0.0.0 for all "
            "addresses."
        ) from error


def ssh_hint(port: int) -> str | None:
    """The command that forwards ``port`` to the user's own machine; None outside an ssh session."""
    if "SSH_CONNECTION" not in os.environ:
        return None
    return f"From your own machine: ssh -L {port}:{LOOPBACK}:{port} HOST, then open http://{LOOPBACK}:{port}/ there."
