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
from gs_train.config.toml import read_config, write_toml
from gs_train.errors import UserError
from gs_train.model.schedule import get_expon_lr_func
from gs_train.options import resolve, schedule_points
from gs_train.run.checkpoint import scene_fingerprint
from gs_train.scene.frame import training_frame
from gs_train.scene.load import load_scene
from gs_train.scene.part import Part
from gs_train.scene.types import Scene

_FINISH_SHARE = 0.3
"""Share of a block's steps that it takes together with the Gaussians of its neighbours."""
USUAL_KEPT_SHARE = 0.57
"""Share of a block's Gaussians that end in its box, measured on a city. The others fill the views beyond the box."""
_BYTES_PER_PIXEL = 3
_Settings = TypeVar("_Settings")
_LEARNING_RATES = "xyz_lr_init xyz_lr_final f_dc_lr f_rest_lr opacity_lr scaling_lr rotation_lr".split()


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
    blocks = math.ceil(config.max_gaussians / (USUAL_KEPT_SHARE * most_per_block))
    made = partition(scene, *(grid or grid_for(scene, blocks)), fewest_photos=fewest_photos)
    for notice in made.notices:
        notify(notice)
    scene_path = scene.path.resolve()
    parts = [
        Part(scene=scene_path, photos=block.photos, region=block.region, margin=made.margin, extent=made.extent)
        for block in made.blocks
    ]
    plan = Plan(
        path=city,
        scene=scene_path,
        fingerprint=scene_fingerprint(scene),
        offset=training_frame(scene).of_files.offset,
        test_views=len(scene.test_views),
        blocks=tuple(
            _planned(number, block, part.cut(city, scene), scene, config, most_per_block)
            for number, (block, part) in enumerate(zip(made.blocks, parts, strict=True))
        ),
    )
    for planned, part in zip(plan.blocks, parts, strict=True):
        part.write(plan.folder(planned))
        settings = block_config(config, planned, len(scene.train_views))
        atomic_write_text(plan.block_settings(planned), write_toml(settings))
        atomic_write_text(plan.finish_settings(planned), write_toml(finish_config(settings, planned)))
    atomic_write_text(plan.settings, write_toml(config))
    atomic_write_text(plan.picture, draw_plan(scene, plan, [block.region for block in made.blocks]))
    plan.write()
    return plan


def planned_scene(plan: Plan) -> tuple[TrainConfig, Scene]:
    """The settings of the whole, and the whole scene.

    Raises:
        UserError: the scene has faults, or is not the one that was planned.
    """
    config = read_config(plan.settings)[0]
    scene = load_scene(plan.scene, config.scene)
    if scene_fingerprint(scene) != plan.fingerprint:
        raise UserError(
            f"{plan.path} is the plan of another scene: {plan.scene} has other photos or poses now; plan it again in "
            "a new folder."
        )
    return config, scene


def block_config(config: TrainConfig, block: PlannedBlock, photos: int) -> TrainConfig:
    """The settings of a block with a share of the ``photos``: its share of the steps and of all intervals.

    Adam moves a parameter that one step in k sees by its learning rate times the root of k at each visit. A block sees
    each of its Gaussians in more of its steps than the whole would, so its learning rates are divided by the root of
    its share.
    """
    share = block.photos / photos
    # Fractions become iterations of the whole first, so that all blocks have one schedule in passes over the photos.
    whole = replace(
        resolve(config, config.iterations),
        optimizer=resolve(config.optimizer, config.iterations),
        density=resolve(config.density, config.iterations),
    )
    optimizer = _scaled(whole.optimizer, share)
    faster = {name: getattr(optimizer, name) / math.sqrt(share) for name in _LEARNING_RATES}
    return replace(
        _scaled(whole, share),
        iterations=block.iterations,
        max_gaussians=block.max_gaussians,
        scene=replace(config.scene, test_every=0, test_list=""),
        optimizer=replace(optimizer, **faster),
        density=_scaled(whole.density, share),
    )


def finish_config(config: TrainConfig, block: PlannedBlock) -> TrainConfig:
    """The settings of a block's finish from those of its training: the last steps of the schedule, without density
    control. The photos have their full size, and the rate of the positions falls on from its value at the end of the
    training."""
    rates = config.optimizer
    xyz_lr = get_expon_lr_func(rates.xyz_lr_init, rates.xyz_lr_final, max_steps=int(rates.xyz_lr_max_steps))
    return replace(
        config,
        iterations=block.finish_iterations,
        start_downscale=1,
        full_size_from=0,
        batch_from=max(0, int(config.batch_from) - block.iterations),
        # The training has checked them.
        scene=replace(config.scene, ignore_pose_check=True),
        # So the rates of the other groups fall again: with constant rates a finish loses 0.4 dB.
        optimizer=replace(
            rates,
            xyz_lr_init=xyz_lr(block.iterations),
            xyz_lr_delay_steps=0,
            xyz_lr_max_steps=block.finish_iterations,
        ),
        density=replace(config.density, interval=0, opacity_reset_interval=0),
    )


def _scaled(settings: _Settings, share: float) -> _Settings:
    """The settings with every schedule point, in iterations, times ``share``."""
    changed = {
        name: max(1, round(share * value))
        for name in schedule_points(settings)
        if isinstance(value := getattr(settings, name), int) and value > 0
    }
    return replace(settings, **changed)  # type: ignore[type-var]


def _planned(
    number: int, block: Block, part: Scene, scene: Scene, config: TrainConfig, most_per_block: int
) -> PlannedBlock:
    """The counts of a block; ``part`` is the block as a scene."""
    photos, points = len(block.photos) / len(scene.train_views), len(scene.points.xyz)
    share = block.points / points if points else photos
    # The training starts from the points that the photos see, of which the box holds some.
    kept_share = block.points / len(part.points.xyz) if block.points else USUAL_KEPT_SHARE
    target = min(config.max_gaussians, math.ceil(share * config.max_gaussians))
    limit = max(1, min(most_per_block, config.max_gaussians, math.ceil(target / kept_share)))
    steps = math.ceil(config.iterations * photos)
    finish = max(1, round(_FINISH_SHARE * steps))
    pixels = sum(view.camera.width * view.camera.height for view in part.train_views)
    return PlannedBlock(
        number=number,
        photos=len(block.photos),
        points=block.points,
        iterations=max(1, steps - finish),
        finish_iterations=finish,
        max_gaussians=limit,
        expected_gaussians=min(target, math.ceil(kept_share * limit)),
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
