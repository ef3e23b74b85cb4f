"""Writes a small synthetic city, photographed by a drone, as a scene: to try and to measure blocks.

    python scripts/city.py DIR [--photos 200] [--width 160] [--height 120] [--points 12000] [--seed 0]

The ray caster of ``gs-train sample`` draws it: a plain of 8 by 8 units with 49 buildings.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import look_at
from gs_train.sample.raycast import Array, Box, Solid, bake
from gs_train.sample.scene import write_cast_scene

SIDE, STREETS = 8.0, 7
FLIGHT_HEIGHT, BACK = 2.6, 1.6
"""Height of the drone over the plain, and how far behind its target it is, world units."""


def bricks(rng: np.random.Generator):  # type: ignore[no-untyped-def]
    """A texture: rows of windows in a random colour, with soft noise."""
    wall, glass = rng.uniform(0.25, 0.95, 3), rng.uniform(0.05, 0.45, 3)
    pitch, waves = rng.uniform(18, 34), rng.normal(0, 9, (5, 3))
    phase = rng.uniform(0, 2 * math.pi, 5)

    def texture(position: Array) -> Array:
        x, y, z = position.T * np.float32(pitch)
        share = 0.5 + 0.5 * np.tanh(2.5 * np.sin(x + y) * np.sin(z))
        noise = np.sin(position @ waves.T.astype(np.float32) + phase.astype(np.float32)).mean(axis=1)
        mixed = wall + (glass - wall) * share[:, None] + 0.12 * noise[:, None]
        return np.clip(mixed, 0, 1).astype(np.float32)

    return texture


def city(rng: np.random.Generator) -> tuple[Solid, ...]:
    """The plain and its buildings."""
    solids = [Solid(shape=Box((SIDE / 2, SIDE / 2, 0.05)), centre=(0, 0, -0.05), texture=bricks(rng))]
    pitch = SIDE / STREETS
    for row in range(STREETS):
        for column in range(STREETS):
            x, y = ((at + 0.5) * pitch - SIDE / 2 + rng.normal(0, 0.08) for at in (column, row))
            half = (rng.uniform(0.18, 0.38), rng.uniform(0.18, 0.38), rng.uniform(0.1, 0.5))
            yaw = float(rng.uniform(0, math.pi))
            solids.append(Solid(shape=Box(half), centre=(x, y, half[2]), yaw=yaw, texture=bricks(rng), gloss=0.1))
    return tuple(solids)


def flight(rng: np.random.Generator, photos: int) -> list[np.ndarray]:
    """Poses along the lines of a flight that looks ahead and down, back and forth."""
    lines = max(1, round(math.sqrt(photos)))
    poses = []
    for index in range(photos):
        line, step = divmod(index, math.ceil(photos / lines))
        along = ((step + 0.5) / math.ceil(photos / lines) - 0.5) * 0.95 * SIDE
        across = ((line + 0.5) / lines - 0.5) * 0.95 * SIDE
        # Each line looks in another direction, so that the walls of all sides are seen.
        angle = math.pi / 2 * (line % 4) + rng.normal(0, 0.15)
        target = np.array((along, across, 0.2)) + rng.normal(0, 0.08, 3)
        back = BACK * np.array((math.cos(angle), math.sin(angle), 0.0))
        poses.append(look_at(target - back + (0, 0, FLIGHT_HEIGHT + rng.normal(0, 0.1)), target))
    return poses


def main() -> None:
    """Write the scene."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--height", type=int, default=120)
    parser.add_argument("--points", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for part in ("images", "sparse/0"):
        (options.folder / part).mkdir(parents=True)
    shape_rng, camera_rng, point_rng = (
        np.random.default_rng(each) for each in np.random.SeedSequence(options.seed).spawn(3)
    )
    width, height = options.width, options.height
    camera = Camera(width=width, height=height, fx=0.9 * width, fy=0.9 * width, cx=width / 2, cy=height / 2)
    poses = flight(camera_rng, options.photos)
    write_cast_scene(options.folder, bake(city(shape_rng), options.seed), camera, poses, options.points, point_rng)


if __name__ == "__main__":
    main()
