"""The training loop, on one page.

It knows neither the command line nor evaluation nor a viewer: those look in through ``after_step``. The order of a step is fixed: learning
rates; render, loss, backward, observe for each of its views; Adam step, zero_grad, density, after-step callables. The invariant: N steps,
a checkpoint, and M steps from it give the same bits on a CPU as N + M steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from gs_train import losses
from gs_train.config.settings import TrainConfig
from gs_train.density.apply import apply_plan
from gs_train.errors import UserError
from gs_train.model.gaussians import describe_non_finite
from gs_train.model.morton import morton_order
from gs_train.render.select import select_rasterizer
from gs_train.run.checkpoint import Checkpoint, check_scene, newest_intact, save_checkpoint, scene_fingerprint
from gs_train.run.folder import RunFolder
from gs_train.scene.photos.cache import ImageCache
from gs_train.scene.photos.decode import check_images
from gs_train.scene.types import Scene
from gs_train.training.depth import PointDepths
from gs_train.training.log import TrainLog
from gs_train.training.schedule import batch_size_at, downscale_at
from gs_train.training.state import TrainState, start_state
from gs_train.training.views import TrainingViews

_MAKE_THE_STATE = ("sh_degree", "background", "exposure", "refine_poses", "optimizer.visible_only", "density.kind")
"""Settings that decide what a state consists of."""

AfterStep = Callable[[TrainState], None]
"""Called after every step with the state as the step left it; must not change it."""


def train(
    scene: Scene,
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    after_step: Sequence[AfterStep] = (),
    should_stop: Callable[[], bool] = lambda: False,
    notify: Callable[[str], None] = lambda _: None,
) -> TrainState:
    """Train a scene into the run folder ``out``: config.toml, metrics.jsonl, checkpoints, and at the end the splat and cameras.json.

    Args:
        scene: from ``load_scene``.
        config: fractions of the schedule are resolved here.
        out: the run folder; must be new or empty unless ``resume`` or ``overwrite`` is given.
        resume: go on from the newest sound checkpoint in ``out``.
        overwrite: replace the run in ``out``.
        after_step: called in order after every step.
        should_stop: asked between steps; when it says yes, a checkpoint is saved and the state so far returned.
        notify: takes sentences that the user should hear.

    Returns:
        The state after the last step taken; ``state.iteration < config.iterations`` when it was stopped.

    Raises:
        UserError: ``out`` is taken, there is nothing sound to resume, the device cannot be had, an image cannot be decoded, or the disk
            has no room for those that memory cannot take.
        FloatingPointError: the loss or a parameter has become NaN or infinite.
        MemoryError: an image or the Gaussians need more than there is.
        OSError: the disk is full; what was written before is intact.
    """
    # ---- Everything that can be known to be wrong, before the first step
    config, folder = config.resolved(), RunFolder(Path(out))
    if not resume:
        folder.check_free(overwrite=overwrite)
    folder.check_config(config, scene)
    checkpoint = checkpoint_to_resume(scene, config, folder, notify) if resume else None
    absgrad, depth = config.density.kind == "absgrad", config.depth_weight > 0
    selection = select_rasterizer(
        config.device,
        notify,
        antialiased=config.antialiased,
        absgrad=absgrad,
        depth=depth,
        also_compile=[losses.warm_up],
    )
    notify(f"Device {selection.reason}.")
    images = cache_images(scene, config, folder, notify)
    views = TrainingViews(images, scene.train_views, selection, absgrad=absgrad)
    state = start_state(scene, config, selection.device, views, resumed=resume)
    views.exposure, views.poses = state.exposure, state.poses
    views.point_depths = PointDepths(scene, selection.device) if depth else None
    if checkpoint is not None:
        state.load_state_dict(checkpoint.state)
        notify(f"Going on from {checkpoint.path}.")
    check_images(scene.test_views)

    # ---- From here on files are written
    if not resume:
        folder.clear(overwrite=overwrite)
    folder.write_config(config, scene)
    _run(state, views, scene, config, folder, after_step, should_stop)
    if state.iteration == config.iterations:
        folder.write_results(state.model, scene, state.iteration, antialiased=config.antialiased, poses=state.poses)
    return state


def cache_images(scene: Scene, config: TrainConfig, folder: RunFolder, notify: Callable[[str], None]) -> ImageCache:
    """The decoded photos of the training views, those beyond ``config.image_cache_gb`` on the disk that the run is written to.

    Raises:
        UserError: a photo cannot be decoded, or the disk has no room.
    """
    # Not in the system's folder for temporary files, which on many systems lies in memory.
    disk = folder.nearest_existing().absolute()
    budget = round(config.image_cache_gb * 1e9) if config.image_cache_gb > 0 else None
    images = ImageCache(scene.train_views, budget, disk)
    if stored := images.stored_byte_count():
        notify(
            f"The photos take {stored / 1e9:.1f} GB decoded, more than --image-cache-gb: they are read from a nameless file in {disk}."
        )
    return images


def checkpoint_to_resume(
    scene: Scene, config: TrainConfig, folder: RunFolder, notify: Callable[[str], None]
) -> Checkpoint:
    """The newest sound checkpoint of a run, which is of this scene and not past the end.

    Raises:
        UserError: there is none, it is of another scene or a newer version, it lies past ``config.iterations``, or config.toml has been
            given settings that its state does not fit.
    """
    checkpoint = newest_intact(folder.checkpoints, notify)
    check_scene(checkpoint, scene)
    for name in _MAKE_THE_STATE:
        *table, key = name.split(".")
        then, now = checkpoint.config, asdict(config)
        for part in table:
            then, now = then[part], now[part]
        if then.get(key, now[key]) != now[key]:  # An older gs-train may not know it.
            message = f"{folder.config} says {name} = {now[key]!r} and {checkpoint.path} was trained with {then[key]!r}"
            raise UserError(f"{message}: put that back, or train afresh in another --out.")
    if checkpoint.iteration > config.iterations:
        raise UserError(
            f"--iterations {config.iterations} is less than the {checkpoint.iteration} iterations that {checkpoint.path} has: "
            "give a larger number."
        )
    if checkpoint.versions["torch"] != torch.__version__:
        written = checkpoint.versions["torch"]
        notify(
            f"{checkpoint.path} was written with torch {written}: with {torch.__version__} the last bits may differ."
        )
    return checkpoint


def _run(
    state: TrainState,
    views: TrainingViews,
    scene: Scene,
    config: TrainConfig,
    folder: RunFolder,
    after_step: Sequence[AfterStep],
    should_stop: Callable[[], bool],
) -> None:
    """Take steps until ``config.iterations`` or until stopped, then save."""
    model, density = state.model, state.density
    save = partial(
        save_checkpoint,
        folder.checkpoints,
        state,
        config=config,
        fingerprint=scene_fingerprint(scene),
        keep=config.keep,
    )
    began_s = time.perf_counter() - state.elapsed_s

    with TrainLog(folder.metrics, first=state.iteration, last=config.iterations) as log:
        while state.iteration < config.iterations and not should_stop():
            # ---- How large, how fast, and how many views
            iteration = state.iteration + 1
            views.downscale = downscale_at(iteration, config.start_downscale, int(config.full_size_from))
            lr_xyz = model.update_learning_rate(iteration)
            if iteration % config.sh_degree_interval == 0:
                model.oneup_sh_degree()
            visible = torch.zeros(len(model), dtype=torch.bool, device=model.device)
            for _ in range(batch_size_at(iteration, config.batch_size, int(config.batch_from))):
                index = state.next_view(len(views))
                views.expect([index, *state.coming_views()])
                views.background = state.background.sample()

                # ---- Render and compare
                (target, weight), render = views.photo(index), views.render(model, index)
                image = views.exposed(render.image, index)
                loss = losses.photometric_loss(losses.apply_mask(image, target, weight), target, config.lambda_dssim)
                total, regulariser, depth_error = loss, density.regulariser(model), views.depth_error(render, index)
                if regulariser is not None:
                    total = total + regulariser
                if depth_error is not None:
                    total = total + config.depth_weight * depth_error

                # ---- Go back; the views' gradients add up, and whether to their sum or their mean is the same to Adam
                total.backward()
                density.observe(render, views.camera(index))
                visible |= render.visible()
                views.background = views.background.detach()

            # ---- Learn
            model.step(iteration, visible)
            state.step_corrections(iteration)

            # ---- Add and remove Gaussians
            plan = density.plan(model, iteration)
            if plan is not None:
                apply_plan(plan, model, state.density_generator, reset_opacity_to=config.density.reset_opacity_to)
                if plan.changes_rows():
                    model.reorder_optimizer(morton_order(model.xyz))
            state.iteration = iteration
            state.elapsed_s = time.perf_counter() - began_s

            # ---- Tell and keep
            log.step()
            if iteration % config.log_every == 0:
                psnr_db = losses.psnr(image.detach().clamp(0.0, 1.0), target, weight).item()
                _record(log, state, loss.item(), psnr_db, lr_xyz)
            if iteration % config.save_every == 0 and iteration < config.iterations:
                save()
            for look in after_step:
                look(state)
        save()


def _record(log: TrainLog, state: TrainState, loss: float, psnr_db: float, lr_xyz: float) -> None:
    """One logging step. A loss that is not finite ends training, because no later step would mend it."""
    if not math.isfinite(loss):
        fault = describe_non_finite(state.model.parameters)
        raise FloatingPointError(f"the loss is {loss} at iteration {state.iteration}{'; ' if fault else ''}{fault}")
    # A view that is matched exactly (all black, say) would make the running mean infinite for good.
    psnr_db = min(psnr_db, losses.HIGHEST_PSNR)
    state.smooth("loss", loss)
    state.smooth("psnr", psnr_db)
    line = {
        "iteration": state.iteration,
        "loss": loss,
        "psnr": psnr_db,
        "gaussians": len(state.model),
        "lr_xyz": lr_xyz,
        "sh_degree": state.model.active_sh_degree,
        "elapsed_s": round(state.elapsed_s, 3),
    }
    log.record(line, loss=state.smoothed["loss"], psnr=state.smoothed["psnr"])
