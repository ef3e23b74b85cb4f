"""A city as one splat: a manifest ``city.json`` of the splats of its blocks, which stay files of their own.

A block contributes the Gaussians whose centres lie in its box on the ground plane. The boxes are half-open, so a
Gaussian on a border belongs to one block. The boxes themselves come from ``blocks/``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.atomic_write import atomic_write_text
from gs_train.errors import UserError
from gs_train.formats.ply import stream_ply
from gs_train.formats.splat_data import SplatData, SplatFormat, SplatStream

Triple = tuple[float, float, float]
_KEY = "gs_train_city"
"""The first key of a manifest. Its value is the number of the format."""
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CityBlock:
    """The part of a city that one splat file holds."""

    number: int
    """Number of the block in the plan."""
    file: str
    """Path of its .ply inside the folder of the manifest, with slashes."""
    offset: Triple
    """Scene coordinates = offset + positions in the file."""
    axes: tuple[Triple, Triple]
    """Two unit vectors that span the ground plane, scene coordinates."""
    low: tuple[float, float]
    """Lower limits of its box along the axes, world units, inside; -inf without a limit."""
    high: tuple[float, float]
    """Upper limits, outside; inf without a limit."""
    gaussians: int
    """Number of Gaussians in the box."""

    def contains(self, xyz: NDArray[np.float32]) -> NDArray[np.bool_]:
        """[N] whether positions [N, 3] of the file are in the box; false for positions that are not finite."""
        x, y, z = (xyz[:, i].astype(np.float64) + self.offset[i] for i in range(3))
        inside = np.isfinite(xyz).all(axis=1)
        with np.errstate(invalid="ignore"):
            for (a, b, c), low, high in zip(self.axes, self.low, self.high, strict=True):
                # One formula for each row: a matrix product rounds differently for different numbers of rows.
                along = a * x + b * y + c * z
                inside &= (along >= low) & (along < high)
        return np.asarray(inside)


@dataclass(frozen=True, kw_only=True)
class City:
    """The content of a manifest."""

    folder: Path
    """The folder of the manifest."""
    offset: Triple
    """Offset of the splat: scene coordinates = offset + positions."""
    blocks: tuple[CityBlock, ...]
    """At least one."""

    def source(self, block: CityBlock) -> SplatStream:
        """The whole splat of a block, as in its file; raises UserError if it is missing or damaged."""
        path = self.folder / block.file
        if not path.is_file():
            raise UserError(
                f"{path}, a block of {self.folder}, does not exist: copy it there, or train the block again and merge "
                "again."
            )
        return stream_ply(path)

    def block_pieces(self, block: CityBlock) -> Iterator[SplatData]:
        """The Gaussians of a block in its box, relative to the offset of the city; their number is not checked."""
        shift = tuple(own - whole for own, whole in zip(block.offset, self.offset, strict=True))
        for piece in self.source(block).pieces():
            kept = piece.keep(block.contains(piece.xyz))
            yield replace(kept, xyz=(kept.xyz + np.array(shift)).astype(np.float32)) if any(shift) else kept

    def stream(self) -> SplatStream:
        """All Gaussians, block by block.

        Raises:
            UserError: a file is missing or damaged, or the files do not fit together.
        """
        first, *others = [(block, self.source(block)) for block in self.blocks]
        form = _form(first[1])
        for block, source in others:
            if _form(source) != form:
                raise UserError(
                    f"{self.folder / first[0].file} has {form}, and {self.folder / block.file} has {_form(source)}: "
                    "train all blocks with the same settings."
                )
        for block, source in (first, *others):
            if source.count < block.gaussians:
                raise self._changed(block)
        return SplatStream(
            count=sum(block.gaussians for block in self.blocks),
            sh_degree=first[1].sh_degree,
            antialiased=first[1].antialiased,
            pieces=self._pieces,
        )

    def _pieces(self) -> Iterator[SplatData]:
        for block in self.blocks:
            left = block.gaussians
            for piece in self.block_pieces(block):
                left -= len(piece)
                if left < 0:
                    raise self._changed(block)
                yield piece
            if left:
                raise self._changed(block)

    def _changed(self, block: CityBlock) -> UserError:
        return UserError(
            f"{self.folder / block.file} has changed since the merge: merge again with gs-train blocks merge "
            f"{self.folder}."
        )

    def write(self, path: Path) -> None:
        """Write the manifest; raises OSError."""
        blocks = [asdict(block) for block in self.blocks]
        for block in blocks:
            for name in ("low", "high"):
                # JSON has no infinite numbers.
                block[name] = [value if math.isfinite(value) else None for value in block[name]]
        atomic_write_text(path, json.dumps({_KEY: _FORMAT, "offset": self.offset, "blocks": blocks}, indent=1) + "\n")


def _form(stream: SplatStream) -> str:
    return f"SH degree {stream.sh_degree}{', antialiased' if stream.antialiased else ', not antialiased'}"


def read_manifest(path: Path) -> City:
    """Read a manifest; the files of its blocks are not opened.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content[_KEY] != _FORMAT:
            raise ValueError(f"its format is {content[_KEY]}, and this version knows {_FORMAT}")
        blocks = tuple(_block(entry) for entry in content["blocks"])
        if not blocks:
            raise ValueError("it has no blocks")
        return City(folder=path.parent, offset=_triple(content["offset"]), blocks=blocks)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name the city.json of a merged city.") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no intact manifest of a city ({error or type(error).__name__}): write it again with "
            f"gs-train blocks merge {path.parent}."
        ) from None


def _block(entry: dict[str, Any]) -> CityBlock:
    number, gaussians, file = entry["number"], entry["gaussians"], entry["file"]
    if type(number) is not int or type(gaussians) is not int or min(number, gaussians) < 0:
        raise ValueError("a number of a block is no count")
    parts = PurePosixPath(file).parts
    if not parts or PurePosixPath(file).is_absolute() or ".." in parts or "\\" in file:
        raise ValueError(f"{file!r} is no file inside its folder")
    first, second = (_triple(axis) for axis in entry["axes"])
    (left, bottom), (right, top) = (_limits(entry[name], sign) for name, sign in (("low", -1.0), ("high", 1.0)))
    return CityBlock(
        number=number,
        file=file,
        offset=_triple(entry["offset"]),
        axes=(first, second),
        low=(left, bottom),
        high=(right, top),
        gaussians=gaussians,
    )


def _triple(values: Any) -> Triple:
    x, y, z = map(float, values)
    if not all(map(math.isfinite, (x, y, z))):
        raise ValueError("a number is not finite")
    return x, y, z


def _limits(values: Any, sign: float) -> tuple[float, float]:
    first, second = (sign * math.inf if value is None else float(value) for value in values)
    if math.isnan(first) or math.isnan(second):
        raise ValueError("a limit is no number")
    return first, second


def _stream(path: Path) -> SplatStream:
    return read_manifest(path).stream()


def _is_manifest(head: bytes) -> bool:
    return head.lstrip().startswith(b"{") and f'"{_KEY}"'.encode() in head


FORMAT = SplatFormat(
    read=lambda path: _stream(path).collect(),
    stream=_stream,
    read_offset=lambda path: read_manifest(path).offset,
    recognise=_is_manifest,
)
"""The entry for ``registry.py``."""
