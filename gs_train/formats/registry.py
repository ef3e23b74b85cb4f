"""Splat files of every known format: the content of a file selects its reader, the ending of a name its writer.

A new format is one new module that defines ``FORMAT``, and one line in ``FORMATS``. Modules load on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from gs_train.errors import UserError
from gs_train.formats.splat_data import SplatData, SplatFormat, SplatStream
from gs_train.options import flag_name

FORMATS: dict[str, str | None] = {
    ".ply": "gs_train.formats.ply",
    ".compressed.ply": "gs_train.formats.compressed_ply",
    ".splat": "gs_train.formats.splat",
    ".spz": "gs_train.formats.spz",
    ".sog": "gs_train.formats.sog",
    ".glb": "gs_train.formats.glb",
    ".html": "gs_train.formats.html",
    "city.json": "gs_train.formats.city",
}
"""Ending of a file name -> module of the format. The longest ending that fits wins; upper and lower case are equal. A
key without a dot in front is a whole name."""
_HEAD_BYTES = 4096
_META = "meta.json"


def _silent(_sentence: str) -> None:
    """Ignore a note."""


def read_splat(path: Path | str, notify: Callable[[str], None] = _silent, **options: Any) -> SplatData:
    """Read a splat file of any known format.

    Args:
        path: the file; for an unpacked .sog its folder or its meta.json.
        notify: takes a sentence about a file whose name promises another format than it holds.
        options: of the format, for example ``spz_axes="rub"`` for .spz.

    Raises:
        UserError: the file does not exist, its format is unknown or lacks an option, or it is damaged.
    """
    path, found = _reader(Path(path), notify, options)
    assert found.read is not None
    return found.read(path, **options)


def splat_stream(path: Path | str, notify: Callable[[str], None] = _silent, **options: Any) -> SplatStream:
    """As ``read_splat``, in pieces. Formats that must be read as a whole give the pieces of the splat in memory."""
    path, found = _reader(Path(path), notify, options)
    if found.stream is not None:
        return found.stream(path)
    assert found.read is not None
    return SplatStream.of(found.read(path, **options))


def stream_writer(path: Path) -> Callable[[Path, SplatStream], None] | None:
    """The writer in pieces for the ending of ``path``; None if its format is written as a whole."""
    return _format(_by_ending(path)).write_stream


def offset_inside(path: Path) -> tuple[float, float, float] | None:
    """The offset that a splat file holds itself: scene coordinates = offset + positions. None if it holds none.

    Raises:
        UserError: the file is damaged.
    """
    read = _format(_by_content(path)).read_offset
    return None if read is None else read(path)


def _reader(path: Path, notify: Callable[[str], None], options: dict[str, Any]) -> tuple[Path, SplatFormat]:
    """The file to read and its format, which has a reader; raises UserError as ``read_splat``."""
    if not path.exists():
        raise UserError(f"{path} does not exist: name a splat file ({_listed(readable_endings())}).")
    path = _data_file(path)
    named, held = _by_ending(path), _by_content(path)
    found = _format(held or named)
    if found.read is None:
        raise UserError(f"{path} is no splat file that gs-train reads: name a {_listed(readable_endings())} file.")
    if named and held and named != held:
        notify(f"{path} holds a {held} splat, though its name ends in {named}: it is read as {held}.")
    _check_options(path, found.read_options, options)
    return path, found


def write_splat(path: Path | str, data: SplatData, notify: Callable[[str], None] = _silent, **options: Any) -> None:
    """Create or replace a splat file; the ending of its name selects the format.

    Args:
        path: the file.
        data: the Gaussians.
        notify: takes sentences about parts of the splat that the format cannot hold.
        options: of the format, for example ``quality="high"`` for .sog.

    Raises:
        UserError: no format with this ending can be written, it lacks an option, or the file cannot be written.
    """
    splat_writer(Path(path), notify, **options)(Path(path), data)


def splat_writer(
    path: Path, notify: Callable[[str], None] = _silent, **options: Any
) -> Callable[[Path, SplatData], None]:
    """The writer for the ending of ``path``, so that a command can refuse a name before it computes anything.

    The arguments and errors are described at ``write_splat``.
    """
    ending = _by_ending(path)
    chosen = _format(ending)
    save = chosen.write
    if save is None:
        endings = _listed(writable_endings())
        raise UserError(f"{path} has an ending that gs-train does not write: name a file that ends in {endings}.")
    _check_options(path, chosen.write_options, options)

    def write(target: Path, data: SplatData) -> None:
        if data.sh_degree > chosen.max_sh_degree:
            kept = chosen.max_sh_degree
            limit = f"hold degrees up to {kept}" if kept else "hold no view-dependent colours"
            notify(f"Left out the SH degrees {kept + 1} to {data.sh_degree}: {ending} files {limit}.")
            data = data.up_to_degree(kept)
        note = save(target, data, **options)
        if note is not None:
            notify(note)

    return write


def is_splat_file(path: Path) -> bool:
    """Whether ``read_splat`` has a reader for this file, by ending or content. The file may still be damaged."""
    path = _data_file(path)
    return path.is_file() and _format(_by_content(path) or _by_ending(path)).read is not None


def readable_endings() -> list[str]:
    """Endings of the formats that can be read."""
    return [ending for ending in FORMATS if _format(ending).read is not None]


def writable_endings() -> list[str]:
    """Endings of the formats that can be written."""
    return [ending for ending in FORMATS if _format(ending).write is not None]


def _check_options(path: Path, known: tuple[str, ...], given: dict[str, Any]) -> None:
    """Raise UserError if an option is not one of the format of ``path``."""
    for name in given:
        if name not in known:
            holders = [each for each in FORMATS if name in (*_format(each).read_options, *_format(each).write_options)]
            flag = flag_name(name)
            raise UserError(f"{flag} is an option of {_listed(holders)} files, and {path} is none: leave out {flag}.")


def _data_file(path: Path) -> Path:
    """``path``, or the meta.json in the folder ``path``."""
    return path / _META if (path / _META).is_file() else path


def _by_ending(path: Path) -> str:
    """The ending of the format that the name of a file promises; empty if no format has its ending."""
    name = path.name.lower()
    fitting = [ending for ending in FORMATS if (name.endswith(ending) if ending.startswith(".") else name == ending)]
    return max(fitting, key=len, default="")


def _by_content(path: Path) -> str:
    """The ending of the format that a file holds; empty if no format recognises its first bytes."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    # Of ".ply" and ".compressed.ply", the longer ending is the more special format.
    return max((ending for ending in FORMATS if _format(ending).holds(head)), key=len, default="")


def _format(ending: str) -> SplatFormat:
    module = FORMATS.get(ending)
    if module is None:
        return SplatFormat()
    found = import_module(module).FORMAT
    assert isinstance(found, SplatFormat), module
    return found


def _listed(endings: list[str]) -> str:
    return " or ".join(endings)
