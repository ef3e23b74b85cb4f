"""Makes the plan of a city: divides the scene, shares the steps and the Gaussians out, and writes the folders."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gs_train.atomic_write import atomic_write_text
from gs_train.blocks.draw import draw_plan
from gs_train.blocks.partition import FEWEST_PHOTOS, Block, grid_for, partition
from gs_train.blocks.plan import BYTES_PER_GAUSSIAN, Plan, PlannedBlock
from gs_train.config.settings import TrainConfig
from gs_train.config.toml import write_toml
from gs_train.errors import UserError
from gs_train.options import resolve, schedule_points
from gs_train.run.checkpoint import scene_fingerprint
from gs_train.scene.frame import training_frame
from gs_train.scene.part import Part
from gs_train.scene.types import Scene

KEPT_SHARE = 0.57
"""Share of a block's Gaussians that end in its box; the others fill the views beyond it. Measured on a city."""
_BYTES_PER_PIXEL = 3
_Settings = TypeVar("_Settings")


def make_plan(
    scene: Scene,
    config: TrainConfig,
    city: Path,
    *,
    grid: tuple[int, int] | None = None,
    most_per_block: int,
    fewest_photos: int = FEWEST_PHOTOS,
    notify: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan the blocks of a scene and write the folder ``city``.

    Args:
        scene: the whole, loaded with ``config.scene``.
        config: settings of one training of the whole. A block takes its photos' share of the steps and of all
            intervals, and its points' share of ``max_gaussians``.
        city: a new or empty folder, or that of an earlier plan of the scene without trained blocks.
        grid: columns and rows; None for as many blocks as ``most_per_block`` requires.
        most_per_block: upper limit of the Gaussians of one training.
        fewest_photos: of a block.
        notify: takes sentences for the user.

    Raises:
        UserError: the folder is taken, or a setting does not go with blocks.
    """
    _check_settings(config)
    _check_free(city)
    blocks = math.ceil(config.max_gaussians / (KEPT_SHARE * most_per_block))
    made = partition(scene, *(grid or grid_for(scene, blocks)), fewest_photos=fewest_photos)
    for notice in made.notices:
        notify(notice)
    plan = Plan(
        path=city,
        scene=scene.path.resolve(),
        fingerprint=scene_fingerprint(scene),
        offset=training_frame(scene).of_files.offset,
        test_views=len(scene.test_views),
        blocks=tuple(
            _planned(number, block, scene, config, most_per_block) for number, block in enumerate(made.blocks)
        ),
    )
    for planned, block in zip(plan.blocks, made.blocks, strict=True):
        part = Part(scene=plan.scene, photos=block.photos, region=block.region, margin=made.margin, extent=made.extent)
        part.write(plan.folder(planned))
        settings = block_config(config, planned, len(scene.train_views))
        atomic_write_text(plan.block_settings(planned), write_toml(settings))
    atomic_write_text(plan.settings, write_toml(config))
    atomic_write_text(plan.picture, draw_plan(scene, plan, [block.region for block in made.blocks]))
    plan.write()
    return plan


def block_config(config: TrainConfig, block: PlannedBlock, photos: int) -> TrainConfig:
    """The settings of a block: fewer steps, and intervals that are shorter by the block's share of the ``photos``."""
    share = block.photos / photos
    # Fractions become iterations of the whole first, so that all blocks have one schedule in passes over the photos.
    whole = replace(
        resolve(config, config.iterations),
        optimizer=resolve(config.optimizer, config.iterations),
        density=resolve(config.density, config.iterations),
    )
    return replace(
        _scaled(whole, share),
        iterations=block.iterations,
        max_gaussians=block.max_gaussians,
        scene=replace(config.scene, test_every=0, test_list=""),
        optimizer=_scaled(whole.optimizer, share),
        density=_scaled(whole.density, share),
    )


def _scaled(settings: _Settings, share: float) -> _Settings:
    """The settings with every schedule point, in iterations, times ``share``."""
    changed = {
        name: max(1, round(share * value))
        for name in schedule_points(settings)
        if isinstance(value := getattr(settings, name), int) and value > 0
    }
    return replace(settings, **changed)  # type: ignore[type-var]


def _planned(number: int, block: Block, scene: Scene, config: TrainConfig, most_per_block: int) -> PlannedBlock:
    """The counts of a block."""
    photos, points = len(block.photos) / len(scene.train_views), len(scene.points.xyz)
    share = block.points / points if points else photos
    target = min(config.max_gaussians, math.ceil(share * config.max_gaussians))
    limit = max(1, min(most_per_block, config.max_gaussians, math.ceil(target / KEPT_SHARE)))
    names = set(block.photos)
    pixels = sum(view.camera.width * view.camera.height for view in scene.train_views if view.name in names)
    return PlannedBlock(
        number=number,
        photos=len(block.photos),
        points=block.points,
        iterations=math.ceil(config.iterations * photos),
        max_gaussians=limit,
        expected_gaussians=min(target, math.ceil(KEPT_SHARE * limit)) if limit < config.max_gaussians else target,
        memory_bytes=limit * BYTES_PER_GAUSSIAN + pixels * _BYTES_PER_PIXEL,
    )


def _check_settings(config: TrainConfig) -> None:
    """Raise UserError for corrections that each block would learn in its own way."""
    refused = (
        (config.background == "learned", "--background learned"),
        (config.exposure != "none", f"--exposure {config.exposure}"),
        (config.refine_poses, "--refine-poses"),
    )
    for given, flag in refused:
        if given:
            raise UserError(
                f"{flag} does not go with blocks, because each block would learn its own and they would not fit "
                "together: leave it out."
            )


def _check_free(city: Path) -> None:
    """Raise UserError if the folder is a file, holds other things, or holds trained blocks."""
    if city.exists() and not city.is_dir():
        raise UserError(f"--out {city} is a file: name a folder.")
    if any(city.glob("blocks/*/run")):
        raise UserError(
            f"--out {city} holds trained blocks: go on with gs-train blocks train {city}, or name another folder."
        )
    known = ("plan.json", "plan.svg", "settings.toml", "blocks")
    if city.is_dir() and any(entry.name not in known for entry in city.iterdir()):
        raise UserError(f"--out {city} is not empty and no plan: name another folder.")
