"""Merges the splats of the blocks: ``CITY/city.json``, the manifest, and ``CITY/city.ply``, one file of all.

The manifest stays the primary form: it refers to the files of the blocks, which keep their own offsets. Both are
written in pieces, so the memory does not grow with the number of Gaussians.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from gs_train.atomic_write import clear_leftovers
from gs_train.blocks.plan import Plan, PlannedBlock
from gs_train.errors import UserError
from gs_train.formats.city import City, CityBlock
from gs_train.formats.ply import stream_ply, write_ply_stream
from gs_train.run.splat_frame import read_offset, write_offset
from gs_train.scene.frame import Frame

MANIFEST, MERGED = "city.json", "city.ply"


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """A merged city."""

    path: Path
    """The splat of all blocks."""
    manifest: Path
    """The manifest of the blocks' files."""
    gaussians: int
    """Number of Gaussians."""
    per_block: dict[int, int]
    """Number of a block -> Gaussians in its box; blocks without a splat are left out."""


def merge(
    plan: Plan,
    *,
    allow_missing: bool = False,
    notify: Callable[[str], None],
    after_block: Callable[[], None] = lambda: None,
) -> MergeResult:
    """Write ``city.json`` and ``city.ply`` of a city: from each block the Gaussians whose centres are in its box.

    Args:
        plan: of the city.
        allow_missing: leave out blocks without a splat.
        notify: takes sentences about blocks that are left out, and about an offset.
        after_block: called for every block after its Gaussians are counted.

    Raises:
        UserError: a block has no splat, a splat is damaged, the splats do not fit together, or a file cannot be
            written.
    """
    city = city_of(plan, allow_missing=allow_missing, notify=notify, after_block=after_block)
    stream = city.stream()
    manifest, merged = plan.path / MANIFEST, plan.path / MERGED
    try:
        for path in (manifest, merged):
            clear_leftovers(plan.path, path.name)
        city.write(manifest)
        offset = write_offset(merged, Frame(offset=city.offset))
    except OSError as error:
        raise UserError(
            f"{plan.path} cannot be written ({error.strerror or error}): free space, or check its permissions."
        ) from error
    write_ply_stream(merged, stream)
    if offset is not None:
        notify(offset)
    counts = {block.number: block.gaussians for block in city.blocks}
    return MergeResult(path=merged, manifest=manifest, gaussians=stream.count, per_block=counts)


def city_of(
    plan: Plan,
    *,
    allow_missing: bool = False,
    notify: Callable[[str], None],
    after_block: Callable[[], None] = lambda: None,
) -> City:
    """The blocks of a plan as one splat; reads every splat to count its Gaussians. Arguments and errors as for
    ``merge``."""
    missing = [block for block in plan.blocks if plan.splat(block) is None]
    if missing:
        _tell_missing(plan, missing, allow_missing=allow_missing, notify=notify)
    unfinished = [block for block in plan.blocks if plan.finished(block) is None]
    if unfinished and not missing:
        numbers = ", ".join(str(block.number) for block in unfinished)
        notify(
            f"{len(unfinished)} of {len(plan.blocks)} blocks are not finished, and fit less well to their neighbours: "
            f"{numbers}. gs-train blocks train {quote(str(plan.path))} finishes them."
        )
    blocks = []
    for planned in plan.blocks:
        splat = plan.splat(planned)
        if splat is None:
            continue
        blocks.append(_counted(plan, city_block(plan, planned, splat)))
        after_block()
    return City(folder=plan.path, offset=plan.offset, blocks=tuple(blocks))


def city_block(plan: Plan, planned: PlannedBlock, splat: Path) -> CityBlock:
    """The part of the city in the box of a block that the file ``splat`` holds; its Gaussians are not counted.

    Raises:
        UserError: the offset of the file, or the ``part.json`` of the block, is damaged.
    """
    region = plan.region(planned)
    return CityBlock(
        number=planned.number,
        file=splat.relative_to(plan.path).as_posix(),
        offset=read_offset(splat).offset,
        axes=region.axes,
        low=region.low,
        high=region.high,
        gaussians=0,
    )


def _counted(plan: Plan, block: CityBlock) -> CityBlock:
    """The block with the number of its Gaussians."""
    pieces = stream_ply(plan.path / block.file).pieces()
    count = sum(int(block.contains(piece.xyz).sum()) for piece in pieces)
    return replace(block, gaussians=count)


def _tell_missing(
    plan: Plan, missing: list[PlannedBlock], *, allow_missing: bool, notify: Callable[[str], None]
) -> None:
    """Refuse missing splats, or tell about them."""
    numbers = ", ".join(str(block.number) for block in missing)
    named = f"the blocks {numbers} have" if len(missing) > 1 else f"the block {numbers} has"
    train = f"train with gs-train blocks train {quote(str(plan.path))}"
    if len(missing) == len(plan.blocks):
        raise UserError(f"no block of {plan.path} has a splat yet: {train}.")
    if not allow_missing:
        raise UserError(f"{named} no splat in {plan.path} yet: {train}, or leave them out with --allow-missing.")
    notify(f"Left out {len(missing)} of {len(plan.blocks)} blocks, which have no splat yet: {numbers}.")
