"""Faults of splat files, as sentences, and the limits that keep a small file from filling the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gs_train.atomic_write import atomic_write
from gs_train.errors import UserError
from gs_train.formats.splat_data import SplatData

_MOST_EXPANSION = 50
"""Largest ratio of unpacked bytes to the file's bytes. Trained splats stay below 5."""
_ALWAYS_ALLOWED = 16 << 20
"""Unpacked bytes that a file of any size may have."""
_LARGEST = float(np.finfo(np.float32).max)
_MOST_VALUE = np.float32(1e30)
_Kind = TypeVar("_Kind")


class Damaged(ValueError):
    """A file breaks the rules of its format. The text completes the sentence "FILE is damaged: ..."."""


@contextmanager
def reading(path: Path, ending: str) -> Iterator[None]:
    """Turn faults of a file that is read inside the block into UserError, and silence NumPy's warnings.

    Args:
        path: the file.
        ending: of the format, for example ``.spz``.
    """
    try:
        # Damaged numbers become NaN or infinite values, which ``info`` and ``export`` report.
        with np.errstate(all="ignore"):
            yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: name a splat file.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check the file.") from error
    except Damaged as error:
        raise UserError(
            f"{path} is damaged or is not a {ending} splat ({error}): export it again, for example as .ply, "
            "which every program writes."
        ) from error


def write_file(path: Path, content: bytes) -> None:
    """Create or replace a file; raises UserError if it cannot be written."""
    try:
        atomic_write(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): free space or choose another place."
        ) from error


def writable(path: Path, data: SplatData) -> SplatData:
    """The splat with values that every compact format can compute with: absurd values are clipped to +-1e30.

    Raises:
        UserError: it has no Gaussians, or NaN or infinite values.
    """
    if len(data) == 0:
        raise UserError(f"{path} would have no Gaussians: export another splat.")
    if not data.is_finite().all():
        raise UserError(f"{path} cannot hold NaN or infinite values: leave these Gaussians out.")
    names = ("f_dc", "f_rest", "opacity", "scaling")
    return replace(data, **{name: np.clip(getattr(data, name), -_MOST_VALUE, _MOST_VALUE) for name in names})


def check_expansion(unpacked: int, packed: int) -> None:
    """Raise Damaged if ``unpacked`` bytes cannot honestly come from a file of ``packed`` bytes."""
    if unpacked > max(_ALWAYS_ALLOWED, _MOST_EXPANSION * packed):
        raise Damaged(f"its header promises {unpacked:,} bytes, but the file has {packed:,}")


def member(table: Any, name: str, kind: type[_Kind]) -> _Kind:
    """The value of a name in a JSON object; raises Damaged if it is missing or of another type."""
    value = table.get(name) if isinstance(table, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise Damaged(f"its JSON has no valid '{name}'")
    return value


def numbers(table: Any, name: str, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[count] float32 numbers of a JSON array; raises Damaged if it is missing, of other values or length."""
    values = member(table, name, list)
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if len(values) != count or not plain or any(abs(value) > _LARGEST for value in values):
        raise Damaged(f"its JSON has no valid '{name}'")
    found = np.array(values, dtype=np.float32)
    if not np.isfinite(found).all():
        raise Damaged(f"its JSON has no valid '{name}'")
    return found
