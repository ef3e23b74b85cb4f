"""The training loop, on one page.

Evaluation, viewers and the command line look in through ``after_step``; the loop knows none of them. The order of a
step is fixed: density control for the step before; learning rates; render, loss, backward and observe for each of its
views; Adam step, zero_grad, after-step callables. N steps, a checkpoint and M more steps give the same bits on a CPU as
N + M steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gs_train import losses
from gs_train.config.settings import TrainConfig
from gs_train.density.registry import controller_class
from gs_train.density.types import DensityController
from gs_train.errors import UserError
from gs_train.model.gaussians import describe_non_finite
from gs_train.run.checkpoint import list_checkpoints, save_checkpoint, scene_fingerprint
from gs_train.run.folder import RunFolder
from gs_train.run.lock import check_unlocked, hold_lock
from gs_train.scene.frame import Frame, training_frame
from gs_train.scene.photos.decode import check_images
from gs_train.scene.types import Scene
from gs_train.training.log import TrainLog
from gs_train.training.schedule import batch_size_at
from gs_train.training.start import start_training
from gs_train.training.state import TrainState
from gs_train.training.views import TrainingViews

_COLLAPSE_DB = 10.0
"""Loss of PSNR in one round that is no plan. A last round of multiview on small photos costs 6 dB, which return."""
_FEW = 5
"""Number of views that show whether pruned Gaussians are missed."""

AfterStep = Callable[[TrainState], None]
"""Called after every step with the state after it; must not change the state."""


def train(
    scene: Scene,
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    density: type[DensityController] | None = None,
    after_step: Sequence[AfterStep] = (),
    should_stop: Callable[[], bool] = lambda: False,
    notify: Callable[[str], None] = lambda _: None,
    progress: bool = True,
) -> TrainState:
    """Train a scene into the run folder ``out``: config, metrics, checkpoints, and at the end the splat and cameras.

    Args:
        scene: from ``load_scene``.
        config: settings; fractions of the schedule are resolved here.
        out: the run folder; must be new or empty unless ``resume`` or ``overwrite`` is given.
        resume: continue from the newest intact checkpoint in ``out``.
        overwrite: replace the run in ``out``.
        density: a density controller class of your own (see ``DensityController``) instead of the kind that
            ``config.density.kind`` names. Pass the same class to resume.
        after_step: called in order after every step.
        should_stop: asked between steps; True saves a checkpoint and returns.
        notify: receives sentences for the user.
        progress: whether to show progress on stderr.

    Returns:
        The state after the last step, in coordinates of ``training_frame(scene)``; before the last if stopped.

    Raises:
        UserError: ``out`` is taken, another process trains in it, there is no intact checkpoint to resume, the device
            is missing, a photo cannot be decoded, or the disk has no room for photos that exceed memory.
        FloatingPointError: the loss or a parameter is NaN or infinite.
        MemoryError: an image or the Gaussians need more memory than the machine has.
        OSError: the disk is full; earlier files are intact.
    """
    # ---- Every fault that can be known is found before the first file is written
    config, folder = config.resolved(), RunFolder(Path(out))
    check_unlocked(folder.path)
    if not resume:
        folder.check_free(overwrite=overwrite)
    folder.check_config(config, scene)
    checkpoints = list_checkpoints(folder.checkpoints)
    controller: type[DensityController] = density or controller_class(config.density.kind)
    scene = (frame := training_frame(scene)).apply(scene)
    state, views = start_training(scene, frame, config, folder, controller, resume=resume, notify=notify)
    check_images(scene.test_views)

    # ---- Files are written from here on, by one process
    with hold_lock(folder.path):
        _replace_old_run(folder, checkpoints, resume=resume, overwrite=overwrite)
        folder.write_config(config, scene)
        save = partial(save_checkpoint, folder.checkpoints, config=config, frame=frame, keep=config.keep)
        save = partial(save, fingerprint=scene_fingerprint(scene))
        log = TrainLog(folder.metrics, first=state.iteration, last=config.iterations, progress=progress)
        _take_steps(state, views, config, log, save, after_step, should_stop, notify)
        _write_results(folder, state, scene, frame, config, notify)
    return state


def _replace_old_run(folder: RunFolder, checkpoints: list[Path], *, resume: bool, overwrite: bool) -> None:
    """Remove the files of an old run, unless it is resumed.

    Raises:
        UserError: the folder is taken, or another process has trained in it since ``checkpoints`` were listed.
    """
    if not resume:
        folder.clear(overwrite=overwrite)
    elif list_checkpoints(folder.checkpoints) != checkpoints:
        raise UserError(f"another training has just written to {folder.path}: run the same command again.")


def _write_results(
    folder: RunFolder,
    state: TrainState,
    scene: Scene,
    frame: Frame,
    config: TrainConfig,
    notify: Callable[[str], None],
) -> None:
    """Write the facts of the training, and after the last step the splat and the cameras."""
    device = str(state.model.device)
    folder.write_facts(iteration=state.iteration, gaussians=len(state.model), loop_s=state.elapsed_s, device=device)
    if state.iteration == config.iterations:
        refined = state.corrections.refined(scene.train_views)
        splat = state.model.to_splat_data(antialiased=config.antialiased)
        folder.write_results(splat, scene, frame, state.iteration, refined_views=refined, notify=notify)


def _take_steps(
    state: TrainState,
    views: TrainingViews,
    config: TrainConfig,
    log: TrainLog,
    save: Callable[[dict[str, Any]], object],
    after_step: Sequence[AfterStep],
    should_stop: Callable[[], bool],
    notify: Callable[[str], None],
) -> None:
    """Take steps up to ``config.iterations`` or until stopped, then save."""
    model, density = state.model, state.density
    began_s = time.perf_counter() - state.elapsed_s
    with log:
        while state.iteration < config.iterations and not should_stop():
            # ---- Density control after the step before, so that a saved state is one that a step has fitted
            _control_density(state, views, config, notify)

            # ---- Schedules
            iteration = state.iteration + 1
            views.begin_step(iteration)
            lr_xyz = model.update_learning_rate(iteration)
            if iteration % config.sh_degree_interval == 0:
                model.oneup_sh_degree()
            for _ in range(batch_size_at(iteration, config.batch_size, int(config.batch_from))):
                index = state.next_view(len(views))
                views.expect([index, *state.coming_views()])
                background = state.background.sample()

                # ---- Render and loss
                (target, weights), render = views.photo(index, background), views.render(model, index, background)
                image = views.exposed(render.image, index)
                loss = losses.photometric_loss(losses.apply_mask(image, target, weights), target, config.lambda_dssim)
                total = loss
                for term in (density.regulariser(model), views.depth_loss(render, index)):
                    if term is not None:
                        total = total + term

                # ---- Backward. Gradients accumulate over the batch; Adam ignores their scale, so we do not average.
                total.backward()
                density.observe(render)
                views.observe(render, image, target, weights, index)

            # ---- Adam steps
            model.step()
            state.step_corrections(iteration)

            state.finish_step(iteration, time.perf_counter() - began_s)

            # ---- Log, after-step callables, save
            log.step()
            if iteration % config.log_every == 0:
                psnr_db = losses.psnr(image.detach().clamp(0.0, 1.0), target, weights).item()
                _record(log, state, loss.item(), psnr_db, lr_xyz)
            for call in after_step:
                call(state)
            if iteration % config.save_every == 0 and iteration < config.iterations:
                save(state.state_dict())
        save(state.state_dict())


def _control_density(
    state: TrainState, views: TrainingViews, config: TrainConfig, notify: Callable[[str], None]
) -> None:
    """Change the Gaussians as density control plans after the step at ``state.iteration``."""
    if state.iteration == 0:
        return
    views.begin_step(state.iteration)
    state.model.update_learning_rate(state.iteration)
    before = len(state.model)
    plan = state.density.plan(state.model, state.iteration, state.background.eval_color())
    if plan is None:
        return
    if 2 * plan.row_count(before) >= before:
        state.apply_plan(plan, config)
        return
    # Most Gaussians go. The controller may know that the photos do not need them.
    was_db = max(_psnr_of_some(state, views), state.smoothed.get("best_psnr", -math.inf))
    state.apply_plan(plan, config)
    is_db = _psnr_of_some(state, views)
    if is_db < was_db - _COLLAPSE_DB:
        left = f"{len(state.model):,} of {before:,} Gaussians after iteration {state.iteration}"
        fall = f"the PSNR of the training photos falls from {was_db:.1f} to {is_db:.1f} dB"
        remedy = "train again with --density.kind mcmc, which moves Gaussians instead of pruning them"
        notify(f"Density control leaves {left}, and {fall}: if it stays low, {remedy}.")


def _psnr_of_some(state: TrainState, views: TrainingViews) -> float:
    """Mean PSNR of a few training views, dB."""
    background, figures = state.background.eval_color(), []
    with torch.no_grad():
        for index in range(0, len(views), math.ceil(len(views) / _FEW)):
            photo, weights = views.photo(index, background)
            image = views.exposed(views.render(state.model, index, background).image, index)
            figures.append(min(losses.psnr(image.clamp(0.0, 1.0), photo, weights).item(), losses.HIGHEST_PSNR))
    return math.fsum(figures) / len(figures)


def _record(log: TrainLog, state: TrainState, loss: float, psnr_db: float, lr_xyz: float) -> None:
    """Log one step. A loss or a parameter that is not finite ends training, because no later step would repair it."""
    # gsplat leaves Gaussians with NaN out, so the loss alone does not tell.
    fault = describe_non_finite(state.model.parameters)
    if fault or not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at iteration {state.iteration}{'; ' if fault else ''}{fault}")
    # A view that is matched exactly (all black, for example) would make the running mean infinite for good.
    psnr_db = min(psnr_db, losses.HIGHEST_PSNR)
    state.smooth("loss", loss)
    state.smooth("psnr", psnr_db)
    state.smoothed["best_psnr"] = max(state.smoothed["psnr"], state.smoothed.get("best_psnr", -math.inf))
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
