"""Splat files of every known format: chooses the reader or writer by the ending of the name, else by the first bytes.

A new format is one new module that defines ``FORMAT``, and one line in ``FORMATS``. Modules load on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from gs_train.errors import UserError
from gs_train.formats.splat_data import SplatData, SplatFormat

FORMATS: dict[str, str | None] = {
    ".ply": "gs_train.formats.ply",
    # Another layout, which gs-train does not write. Without the entry the name would count as .ply.
    ".compressed.ply": None,
}
"""Ending of a file name -> module of the format. The longest ending that fits wins; upper and lower case are equal."""


def read_splat(path: Path | str) -> SplatData:
    """Read a splat file of any known format.

    Raises:
        UserError: the file does not exist, its format is unknown, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: name a splat file ({_listed(readable_endings())}).")
    read = _by_ending(path).read or _by_content(path).read
    if read is None:
        raise UserError(f"{path} is no splat file that gs-train reads: name a {_listed(readable_endings())} file.")
    return read(path)


def write_splat(path: Path | str, data: SplatData) -> None:
    """Create or replace a splat file; the ending of its name selects the format.

    Raises:
        UserError: no format with this ending can be written, or the file cannot be written.
    """
    splat_writer(Path(path))(Path(path), data)


def splat_writer(path: Path) -> Callable[[Path, SplatData], None]:
    """The writer for the ending of ``path``, so that a command can refuse a name before it computes anything.

    Raises:
        UserError: no format with this ending can be written.
    """
    write = _by_ending(path).write
    if write is None:
        endings = _listed(writable_endings())
        raise UserError(f"{path} has an ending that gs-train does not write: name a file that ends in {endings}.")
    return write


def is_splat_file(path: Path) -> bool:
    """Whether ``read_splat`` has a reader for this file, by ending or content. The file may still be damaged."""
    return path.is_file() and (_by_ending(path).read or _by_content(path).read) is not None


def readable_endings() -> list[str]:
    """Endings of the formats that can be read."""
    return [ending for ending in FORMATS if _format(ending).read is not None]


def writable_endings() -> list[str]:
    """Endings of the formats that can be written."""
    return [ending for ending in FORMATS if _format(ending).write is not None]


def _by_ending(path: Path) -> SplatFormat:
    fitting = [ending for ending in FORMATS if path.name.lower().endswith(ending)]
    return _format(max(fitting, key=len)) if fitting else SplatFormat()


def _by_content(path: Path) -> SplatFormat:
    if not path.is_file():
        return SplatFormat()
    formats = [_format(ending) for ending in FORMATS]
    with path.open("rb") as file:
        head = file.read(max(len(each.signature) for each in formats))
    return next((each for each in formats if each.signature and head.startswith(each.signature)), SplatFormat())


def _format(ending: str) -> SplatFormat:
    module = FORMATS[ending]
    if module is None:
        return SplatFormat()
    found = import_module(module).FORMAT
    assert isinstance(found, SplatFormat), module
    return found


def _listed(endings: list[str]) -> str:
    return " or ".join(endings)
