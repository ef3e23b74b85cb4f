"""Draws a plan as SVG: points, cameras and boxes on the ground plane, with the numbers of each block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gs_train.blocks.plan import Plan
from gs_train.scene.extent import camera_centres
from gs_train.scene.part import Region
from gs_train.scene.types import Scene

_SIDE_PX = 800
_MOST_POINTS = 4000
_CENTRAL = (1.0, 99.0)
_COLOURS = ("#3b7dd8", "#d8683b", "#3ba55d", "#a04fc4", "#c9a227", "#2aa6a6")


def draw_plan(scene: Scene, plan: Plan, regions: Sequence[Region]) -> str:
    """The SVG text. Boxes without limits end at the edge of the picture."""
    points, centres = regions[0].flat(scene.points.xyz), regions[0].flat(camera_centres(scene.train_views))
    both = np.concatenate([points, centres])
    low, high = np.percentile(both, _CENTRAL, axis=0)
    margin = 0.05 * float((high - low).max()) or 1.0
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    scale = _SIDE_PX / max(right - left, top - bottom)
    width, height = scale * (right - left), scale * (top - bottom)

    def place(x: float, y: float) -> tuple[float, float]:
        return scale * (min(max(x, left), right) - left), scale * (top - min(max(y, bottom), top))

    shapes = []
    for block, region in zip(plan.blocks, regions, strict=True):
        (x0, y1), (x1, y0) = place(*region.low), place(*region.high)
        colour = _COLOURS[block.number % len(_COLOURS)]
        shapes.append(
            f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="{colour}" '
            f'fill-opacity="0.12" stroke="{colour}" stroke-width="2"/>'
        )
    step = max(1, len(points) // _MOST_POINTS)
    shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1" fill="#888"/>' for x, y in _placed(points[::step], place)]
    shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#c22"/>' for x, y in _placed(centres, place)]
    for block, region in zip(plan.blocks, regions, strict=True):
        (x0, y1), (x1, y0) = place(*region.low), place(*region.high)
        lines = (
            f"Block {block.number}",
            f"{block.photos:,} photos, {block.points:,} points",
            f"{block.steps:,} iterations",
            f"{block.expected_gaussians:,} Gaussians, {block.memory_bytes / 2**30:.1f} GiB",
        )
        for line, text in enumerate(lines):
            y = (y0 + y1) / 2 + 18 * (line - 1.5)
            shapes.append(f'<text x="{(x0 + x1) / 2:.1f}" y="{y:.1f}">{text}</text>')
    style = "text{font:14px sans-serif;text-anchor:middle;paint-order:stroke;stroke:#fff;stroke-width:4px}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {math.ceil(width)} {math.ceil(height)}" '
        f'role="img" aria-label="Blocks of the scene seen from above: points grey, cameras red">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(shapes)}</svg>\n'
    )


def _placed(
    flat: NDArray[np.float64], place: Callable[[float, float], tuple[float, float]]
) -> list[tuple[float, float]]:
    """Places in the picture of positions [N, 2] on the ground plane."""
    return [place(x, y) for x, y in flat.tolist()]
