"""Planned cities with given splats in place of trainings."""

from __future__ import annotations

import math
from pathlib import Path

from gs_train.blocks.plan import Plan, PlannedBlock, read_plan
from gs_train.formats.ply import write_ply
from gs_train.formats.splat_data import SplatData
from gs_train.run.splat_frame import write_offset
from gs_train.scene.frame import Frame
from gs_train.scene.part import Part, Region

GROUND = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
Offset = tuple[float, float, float]
NONE = (0.0, 0.0, 0.0)


def write_city(
    folder: Path,
    splats: list[SplatData | None],
    borders: list[float],
    *,
    axes: tuple[Offset, Offset] = GROUND,
    offset: Offset = NONE,
    offsets: list[Offset] | None = None,
    max_gaussians: int = 9,
) -> Plan:
    """A planned city whose blocks lie side by side along the first axis, with given splats in place of trainings."""
    blocks = tuple(
        PlannedBlock(
            number=number,
            photos=1,
            points=1,
            iterations=10 + number,
            finish_iterations=1,
            max_gaussians=max_gaussians,
            expected_gaussians=5,
            memory_bytes=9,
        )
        for number in range(len(splats))
    )
    plan = Plan(path=folder, scene=folder, fingerprint="", offset=offset, test_views=0, blocks=blocks)
    limits = [-math.inf, *borders, math.inf]
    for block, splat in zip(blocks, splats, strict=True):
        low, high = limits[block.number : block.number + 2]
        region = Region(axes=axes, low=(low, -math.inf), high=(high, math.inf))
        plan.folder(block).mkdir(parents=True)
        Part(scene=folder, photos=("a",), region=region, margin=1.0, extent=5.0).write(plan.folder(block))
        if splat is not None:
            path = plan.run(block).point_cloud(block.iterations)
            write_ply(path, splat)
            write_offset(path, Frame(offset=(offsets or [NONE] * len(splats))[block.number]))
    plan.write()
    return read_plan(folder)
