"""The start of a block's finish: its own Gaussians, and its neighbours' Gaussians around its box.

A block is trained alone, so its Gaussians do not fit to its neighbours' Gaussians where the merge cuts. Its finish
trains it further together with the neighbours' Gaussians near the border. The neighbours do the same with the same
Gaussians and nearly the same photos, so the copies of a border change alike, and the merge takes each Gaussian from
one of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gs_train.blocks.merge import city_block
from gs_train.blocks.plan import Plan, PlannedBlock
from gs_train.errors import UserError
from gs_train.formats.city import City, CityBlock
from gs_train.formats.ply import write_ply_stream
from gs_train.formats.splat_data import SplatData, SplatStream
from gs_train.run.splat_frame import write_offset
from gs_train.scene.frame import Frame
from gs_train.scene.part import Part, Region


def neighbourhoods(plan: Plan) -> list[tuple[PlannedBlock, ...]]:
    """For each block, the other blocks that reach into the margin around its box."""
    parts = [plan.part(block) for block in plan.blocks]
    return [
        tuple(
            other
            for other in plan.blocks
            if other.number != block.number and _meet(_near(parts[block.number]), parts[other.number].region)
        )
        for block in plan.blocks
    ]


def ready(plan: Plan) -> set[int]:
    """Numbers of the blocks that are trained, with all their neighbours."""
    trained = {block.number for block in plan.blocks if plan.trained(block) is not None}
    near = neighbourhoods(plan)
    return {number for number in trained if all(other.number in trained for other in near[number])}


def write_start(plan: Plan, block: PlannedBlock) -> None:
    """Write the splat that the finish of a block starts from, ``plan.start``.

    It has the Gaussians of the merged city up to the margin around the box, and the block's own beyond it. If they are
    more than ``block.max_gaussians``, the farthest from the box are left out, so that the finish needs no more memory
    than the training.

    Raises:
        UserError: the block or a neighbour is not trained, its splat is damaged, the splats do not fit together, or the
            file cannot be written.
        OSError: the file with the offset cannot be written.
    """
    part, own = plan.part(block), _trained(plan, block)
    others = tuple(_trained(plan, each) for each in neighbourhoods(plan)[block.number])
    city = City(folder=plan.path, offset=own.offset, blocks=(own, *others))
    form = city.stream()

    def is_near(splat: SplatData) -> NDArray[np.bool_]:
        return _near(part).contains(_positions(splat, city))

    pieces = list(city.block_pieces(own))
    around = [piece.keep(~is_near(piece)) for piece in city.source(own).pieces()]
    around += [piece.keep(is_near(piece)) for other in others for piece in city.block_pieces(other)]
    room = block.max_gaussians - sum(map(len, pieces))
    distances = np.concatenate([part.region.distance(_positions(piece, city)) for piece in around])
    chosen = np.zeros(len(distances), bool)
    chosen[np.argsort(distances, kind="stable")[: max(0, room)]] = True
    bounds = np.cumsum([len(piece) for piece in around])[:-1]
    pieces += [piece.keep(keep) for piece, keep in zip(around, np.split(chosen, bounds), strict=True)]
    start = SplatStream(
        count=sum(map(len, pieces)),
        sh_degree=form.sh_degree,
        antialiased=form.antialiased,
        pieces=lambda: iter(pieces),
    )
    write_ply_stream(plan.start(block), start)
    write_offset(plan.start(block), Frame(offset=own.offset))


def _trained(plan: Plan, block: PlannedBlock) -> CityBlock:
    splat = plan.trained(block)
    if splat is None:
        raise UserError(
            f"block {block.number} of {plan.path} is not trained yet: train it before its neighbours finish."
        )
    return city_block(plan, block, splat)


def _near(part: Part) -> Region:
    """The box and the margin around it."""
    return part.region.widened(part.margin)


def _meet(first: Region, second: Region) -> bool:
    """Whether two boxes with the same axes overlap."""
    return all(a < b for a, b in zip((*first.low, *second.low), (*second.high, *first.high), strict=True))


def _positions(splat: SplatData, city: City) -> NDArray[np.float64]:
    """[N, 3] in scene coordinates."""
    return splat.xyz.astype(np.float64) + city.offset
