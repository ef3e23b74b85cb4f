"""Everything between the settings and the first step: rasterizer, photos, training views, the first state, the
checkpoint to resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from gs_train import losses
from gs_train.config.settings import TrainConfig
from gs_train.density.types import DensityController, DensitySetup, Views
from gs_train.distributed.processes import Processes
from gs_train.errors import UserError
from gs_train.formats.splat_data import SplatData
from gs_train.machine import free_memory
from gs_train.model.initialise import initialise_model
from gs_train.options import names_where
from gs_train.render.select import Selection, select_rasterizer
from gs_train.run.checkpoint import Checkpoint, check_scene, list_checkpoints, lookup, newest_intact
from gs_train.run.folder import RunFolder
from gs_train.scene.agreement import check_agreement
from gs_train.scene.extent import pixel_width, place_random_points
from gs_train.scene.frame import Frame
from gs_train.scene.hull import hull_points
from gs_train.scene.photos.cache import ImageCache
from gs_train.scene.types import Scene
from gs_train.training.background import Background
from gs_train.training.corrections import Corrections
from gs_train.training.depth import PointDepths
from gs_train.training.initial_splat import initial_splat, model_of, splat_points
from gs_train.training.replicas import check_batch, replica_facts
from gs_train.training.schedule import downscale_at
from gs_train.training.state import TrainState
from gs_train.training.views import TrainingViews


def start_training(
    scene: Scene,
    frame: Frame,
    config: TrainConfig,
    folder: RunFolder,
    controller: type[DensityController],
    processes: Processes,
    *,
    resume: bool,
    notify: Callable[[str], None],
) -> tuple[TrainState, TrainingViews]:
    """Build the training views and the state before the next step. Writes no file.

    Args:
        scene, frame: the scene in the coordinates of training, and these coordinates.
        config: resolved.
        folder: the run.
        controller: class of density control.
        processes: the processes that train together.
        resume: restore the newest intact checkpoint of ``folder``.
        notify: receives sentences for the user.

    Raises:
        UserError: there is nothing to resume, the device is missing, a photo cannot be decoded, the disk has no room
            for photos, the splat to start from does not fit, or the processes differ.
    """
    check_batch(config, processes, notify)
    checkpoint = checkpoint_to_resume(scene, frame, config, folder, notify) if resume else None
    with processes.in_turn():
        selection = _select(config, controller, notify)
    processes.use_device(selection.device)
    splat = None
    if not resume:
        splat = initial_splat(config, scene.extent, frame, notify) if config.init_from else None
        if not config.scene.ignore_pose_check:
            points, named = (scene.points, scene.path) if splat is None else (splat_points(splat), config.init_from)
            check_agreement(scene, points, str(named), notify)
    corrections = Corrections(scene, config, selection.device)
    images = cache_images(scene, config, folder, notify, processes.count_here)
    if not resume:
        corrections.start(scene, images.get, notify)
    views = TrainingViews(
        images,
        scene.train_views,
        selection,
        corrections,
        downscale_at=partial(downscale_at, start=config.start_downscale, full_size_from=int(config.full_size_from)),
        depths=PointDepths(scene, selection.device) if config.depth_weight > 0 else None,
        depth_weight=config.depth_weight,
        absgrad=controller.needs_absgrad,
        processes=processes,
    )
    start = _with_points(scene, images, config, notify) if splat is None and checkpoint is None else scene
    state = start_state(start, config, selection.device, views, corrections, controller, splat=splat)
    if checkpoint is not None:
        _restore(state, checkpoint, len(views))
        notify(f"Resuming from {checkpoint.path}.")
    processes.check_same(partial(replica_facts, scene, config, state))
    return state, views


def _with_points(scene: Scene, images: ImageCache, config: TrainConfig, notify: Callable[[str], None]) -> Scene:
    """The scene with points from its photos, if it has none and the photos show some."""
    if len(scene.points.xyz) > 0 or config.random_points:
        return scene
    photo_of = partial(images.get, downscale=config.start_downscale)
    points = hull_points(scene.train_views, photo_of, scene.extent, config.seed)
    where = "where no photo is transparent"
    if points is None:
        from gs_train.scene.sweep import sweep_points  # Slow to import, and scenes with points do not need it.

        points = sweep_points(scene.train_views, photo_of, scene.extent, config.seed)
        where = "on which photos agree"
    if len(points.xyz) > 0:
        notify(f"Training starts from {len(points.xyz):,} points {where}.")
    else:
        notify(f"Training starts from random points, because there are hardly any {where}.")
    return replace(scene, points=points)


def _select(config: TrainConfig, controller: type[DensityController], notify: Callable[[str], None]) -> Selection:
    """The rasterizer, with all kernels of the training compiled."""
    selection = select_rasterizer(
        config.device,
        notify,
        antialiased=config.antialiased,
        absgrad=controller.needs_absgrad,
        depth=config.depth_weight > 0 or config.refine_poses,
        also_compile=[losses.warm_up],
    )
    notify(f"Device {selection.reason}.")
    losses.prepare(selection.device, notify)
    return selection


def _restore(state: TrainState, checkpoint: Checkpoint, views: int) -> None:
    """Load a checkpoint into the state of a new run of ``views`` training views.

    Raises:
        UserError: the content does not fit the run.
    """
    try:
        state.load_state_dict(checkpoint.state)
        if not all(0 <= index < views for index in state.view_order):
            raise ValueError(f"state.view_order names a view beyond {views}")
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{checkpoint.path} holds no state of this run ({error}): remove it to resume from the checkpoint before, "
            "or start again in another --out."
        ) from error


def start_state(
    scene: Scene,
    config: TrainConfig,
    device: torch.device,
    views: Views,
    corrections: Corrections,
    controller: type[DensityController],
    *,
    splat: SplatData | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
        scene: gives the points and the extent, in the coordinates of training.
        config: resolved.
        device: device of the Gaussians. The generators live on the CPU, so that a seed gives the same draws everywhere.
        views: the training views, for density control.
        corrections: learned exposures and poses, as ``views`` uses them.
        controller: class of density control.
        splat: Gaussians to start from instead of the points, from ``initial_splat``.
    """
    # Two streams, so that changes in density control keep the order of the views. Even and odd seeds keep them apart.
    view_generator = torch.Generator().manual_seed(2 * config.seed)
    density_generator = torch.Generator().manual_seed(2 * config.seed + 1)
    lr_scale = partial(_lr_scale, scene=scene, unit=config.optimizer.xyz_lr_unit)
    if splat is not None:
        model = model_of(splat, config.sh_degree, lr_scale(splat.xyz.astype(np.float64)), device)
    else:
        model = initialise_model(
            scene.points,
            sh_degree=config.sh_degree,
            extent=scene.extent,
            lr_scale=lr_scale,
            place=partial(place_random_points, views=scene.train_views, extent=scene.extent),
            max_gaussians=config.max_gaussians,
            generator=density_generator,
            device=device,
        )
    model.training_setup(config.optimizer)
    setup = DensitySetup(
        config=config.density,
        max_gaussians=config.max_gaussians,
        extent=scene.extent,
        gaussians=len(model),
        photo_pixels=sum(view.camera.width * view.camera.height for view in scene.train_views),
        white_background=config.background == "white",
        views=views,
        generator=density_generator,
        device=model.device,
    )
    return TrainState(
        model=model,
        density=controller(setup),
        background=Background(config.background, density_generator, device),
        corrections=corrections,
        view_generator=view_generator,
        density_generator=density_generator,
    )


def _lr_scale(xyz: NDArray[np.float64], scene: Scene, unit: str) -> float:
    """The unit of the learning rate of the positions, training units; xyz [N, 3] are the positions of the Gaussians."""
    return scene.extent if unit == "extent" else pixel_width(scene.train_views, xyz, scene.extent)


def cache_images(
    scene: Scene, config: TrainConfig, folder: RunFolder, notify: Callable[[str], None], caches: int
) -> ImageCache:
    """The decoded photos of the training views; photos beyond ``config.image_cache_gb`` lie on the run's disk.

    ``caches`` processes of this machine share the memory: each has a cache of its own.

    Raises:
        UserError: a photo cannot be decoded, or the disk has no room.
    """
    # The system's folder for temporary files lies in memory on many systems, so the run's disk is used.
    disk = folder.nearest_existing().absolute()
    budget = round(config.image_cache_gb * 1e9) if config.image_cache_gb > 0 else free_memory() // 2
    images = ImageCache(scene.train_views, budget // caches, disk)
    if stored := images.stored_byte_count():
        notify(
            f"The decoded photos take {stored / 1e9:.1f} GB, more than --image-cache-gb: they are read from an unnamed "
            f"file in {disk}."
        )
    return images


def checkpoint_to_resume(
    scene: Scene, frame: Frame, config: TrainConfig, folder: RunFolder, notify: Callable[[str], None]
) -> Checkpoint:
    """The newest intact checkpoint of a run, checked against the scene and the config.

    Raises:
        UserError: there is none, it belongs to another scene or version, it lies past ``config.iterations``, or a
            setting that decides the parts of the state has changed.
    """
    checkpoint = newest_intact(folder.checkpoints, notify)
    check_scene(checkpoint, scene, frame)
    count = len(list_checkpoints(folder.checkpoints))
    if count > config.keep:
        notify(
            f"{folder.checkpoints} holds {count} checkpoints: with --keep {config.keep} the next save removes all but "
            f"the newest {config.keep}."
        )
    now = asdict(config)
    for name in names_where(TrainConfig, "shapes_state"):
        saved, wanted = lookup(checkpoint.config, name), lookup(now, name)
        if saved != wanted:
            raise UserError(
                f"{folder.config} says {name} = {wanted!r} but {checkpoint.path} was trained with {saved!r}: restore "
                "the "
                "old value, or start again in another --out."
            )
    if checkpoint.iteration > config.iterations:
        raise UserError(
            f"--iterations is {config.iterations} but {checkpoint.path} already has {checkpoint.iteration}: give a "
            "larger number."
        )
    written = checkpoint.versions["torch"]
    if written != torch.__version__:
        notify(
            f"{checkpoint.path} was written with torch {written}: with {torch.__version__} the last bits may differ."
        )
    return checkpoint
