"""Compares the splat of blocks with one training of the whole scene, by distance from the seams between the blocks.

    python scripts/city.py SCENE
    gs-train train SCENE --out SINGLE --preset fast --iterations 3000 --max-gaussians 30000
    gs-train blocks plan SCENE --out CITY --grid 2x2 --preset fast --iterations 3000 --max-gaussians 30000
    gs-train blocks train CITY --workers 2 && gs-train blocks merge CITY
    python scripts/bench_blocks.py SINGLE CITY

Renders the held-out views from both. The depth of the single splat gives the place of each pixel on the ground plane,
and the distance of the place to the nearest inner border of a block selects the column. Prints PSNR in dB, as Markdown.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from gs_train.blocks.plan import read_plan
from gs_train.cameras.poses import camera_centre
from gs_train.model.gaussians import GaussianModel
from gs_train.run.open import open_splat
from gs_train.run.splat_frame import moved
from gs_train.scene.photos.composite import composite
from gs_train.scene.photos.decode import decode_images

BOUNDS = (0.0, 0.3, 1.5, math.inf)


def seam_distance(flat: np.ndarray, regions: list) -> np.ndarray:  # type: ignore[type-arg]
    """[N] distance of places [N, 2] on the ground plane to the nearest border between two blocks, world units."""
    nearest = np.full(len(flat), np.inf)
    for region in regions:
        low, high = np.array(region.low), np.array(region.high)
        for axis in (0, 1):
            for border in (low[axis], high[axis]):
                if np.isfinite(border):
                    along = flat[:, 1 - axis]
                    beside = np.maximum(np.maximum(low[1 - axis] - along, along - high[1 - axis]), 0.0)
                    nearest = np.minimum(nearest, np.hypot(flat[:, axis] - border, beside))
    return nearest


def main() -> None:
    """Render, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("single", type=Path)
    parser.add_argument("city", type=Path)
    options = parser.parse_args()
    plan = read_plan(options.city)
    regions = [plan.region(block) for block in plan.blocks]
    single, merged = open_splat(options.single), open_splat(options.city / "city.json")
    views, rasterizer = single.load_scene().test_views, single.select_rasterizer("cpu").rasterizer
    # Both in the coordinates of the single run.
    models = {
        "single": GaussianModel.from_splat_data(single.splat(single.frame)),
        "blocks": GaussianModel.from_splat_data(moved(merged.splat(), merged.frame.of_files, single.frame)),
    }
    background = single.background()
    errors: dict[str, list[np.ndarray]] = {name: [] for name in models}  # type: ignore[type-arg]
    means: dict[str, list[float]] = {name: [] for name in models}
    distances = []
    for view, photo in zip(views, decode_images(views), strict=True):
        pose, target = torch.from_numpy(view.world_to_camera).float(), composite(photo, background)
        for name, model in models.items():
            with torch.no_grad():
                output = rasterizer.render(model, view.camera, pose, background, depth=True)
            squared = (output.image.clamp(0, 1) - target).square().mean(dim=2).numpy().ravel()
            errors[name].append(squared)
            means[name].append(-10 * math.log10(squared.mean()))
            if name == "single":
                y, x = np.divmod(np.arange(squared.size), view.camera.width)
                camera, depth = view.camera, output.depth.numpy().ravel()
                local = np.stack(
                    ((x + 0.5 - camera.cx) / camera.fx, (y + 0.5 - camera.cy) / camera.fy, np.ones_like(depth))
                )
                places = (local * depth).T @ view.world_to_camera[:3, :3] + camera_centre(view.world_to_camera)
                distances.append(seam_distance(regions[0].flat(single.frame.to_scene(places)), regions))
    far = np.concatenate(distances)
    names = [f"{a:g} to {b:g}" for a, b in pairwise(BOUNDS)]
    print(
        f"| | Gaussians | mean of {len(views)} views | {' | '.join(names)} units from a seam |"
        f"\n|{'---|' * (len(names) + 3)}"
    )
    for name, model in models.items():
        joined = np.concatenate(errors[name])
        columns = [-10 * math.log10(joined[(far >= low) & (far < high)].mean()) for low, high in pairwise(BOUNDS)]
        figures = " | ".join(f"{value:.2f}" for value in (np.mean(means[name]), *columns))
        print(f"| {name} | {len(model):,} | {figures} |")


if __name__ == "__main__":
    main()
