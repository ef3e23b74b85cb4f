"""The training loop, on one page.

Evaluation, viewers and the command line look in through ``after_step``; the loop knows none of them. The order of a
step is fixed: density control for the step before; learning rates; render, loss and backward for each of its views
(``batch.py``); Adam step, zero_grad, after-step callables. N steps, a checkpoint and M more steps give the same bits on
a CPU as N + M steps, and so do several processes: each holds the whole state, and process 0 alone writes files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gs_train import losses
from gs_train.config.settings import TrainConfig
from gs_train.density.registry import controller_class
from gs_train.density.types import DensityController
from gs_train.distributed.processes import OneProcess, Processes
from gs_train.errors import UserError
from gs_train.model.gaussians import describe_non_finite
from gs_train.run.checkpoint import list_checkpoints, save_checkpoint, scene_fingerprint
from gs_train.run.folder import RunFolder
from gs_train.run.lock import check_unlocked, hold_lock
from gs_train.scene.frame import Frame, training_frame
from gs_train.scene.photos.decode import check_images
from gs_train.scene.types import Scene
from gs_train.training.batch import run_batch
from gs_train.training.log import TrainLog
from gs_train.training.schedule import batch_size_at
from gs_train.training.sh_palette import share_sh
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
    processes: Processes | None = None,
) -> TrainState:
    """Train a scene into the run folder ``out``: config, metrics, checkpoints, and at the end the splat and cameras.

    Args:
        scene: from ``load_scene``.
        config: settings; fractions of the schedule are resolved here.
        out: the run folder; must be new or empty unless ``resume`` or ``overwrite`` is given.
        resume: continue from the newest intact checkpoint in ``out``.
        overwrite: replace the run in ``out``.
        density: a controller class of your own instead of ``config.density.kind``. Pass it to resume, too.
        after_step: called in order after every step.
        should_stop: asked between steps; True saves a checkpoint and returns.
        notify: receives sentences for the user.
        progress: whether to show progress on stderr.
        processes: the processes that train together, from ``start_processes``; None for one.

    Returns:
        The state after the last step, in coordinates of ``training_frame(scene)``; before the last if stopped.

    Raises:
        UserError: the folder, a photo, a checkpoint, the device or the number of processes does not suit the settings.
        FloatingPointError: the loss or a parameter is NaN or infinite.
        MemoryError: an image or the Gaussians need more memory than the machine has.
        OSError: the disk is full; earlier files are intact.
    """
    # ---- Every fault that can be known is found before the first file is written
    config, folder, processes = config.resolved(), RunFolder(Path(out)), processes or OneProcess()
    checkpoints = _check_folder(folder, config, scene, resume=resume, overwrite=overwrite)
    controller: type[DensityController] = density or controller_class(config.density.kind)
    scene = (frame := training_frame(scene)).apply(scene)
    state, views = start_training(scene, frame, config, folder, controller, processes, resume=resume, notify=notify)
    check_images(scene.test_views)
    log = partial(TrainLog, first=state.iteration, last=config.iterations)
    steps = partial(_take_steps, state, views, config, processes, after_step, should_stop, notify)

    # ---- Files are written from here on, by one process
    if processes.rank == 0:
        with hold_lock(folder.path):
            _replace_old_run(folder, checkpoints, resume=resume, overwrite=overwrite)
            folder.write_config(config, scene)
            save = partial(save_checkpoint, folder.checkpoints, config=config, frame=frame, keep=config.keep)
            steps(log(folder.metrics, progress=progress), partial(save, fingerprint=scene_fingerprint(scene)))
            _write_results(folder, state, scene, frame, config, notify)
    else:
        steps(log(None, progress=False), lambda _: None)
    processes.any(False)  # the others wait until process 0 has written the results
    return state


def _check_folder(folder: RunFolder, config: TrainConfig, scene: Scene, *, resume: bool, overwrite: bool) -> list[Path]:
    """Check that the run can be written, and return the checkpoints of the run that is there.

    Raises:
        UserError: the folder is taken or in use, or the config has a name that no file can hold.
    """
    check_unlocked(folder.path)
    if not resume:
        folder.check_free(overwrite=overwrite)
    folder.check_config(config, scene)
    return list_checkpoints(folder.checkpoints)


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
    processes: Processes,
    after_step: Sequence[AfterStep],
    should_stop: Callable[[], bool],
    notify: Callable[[str], None],
    log: TrainLog,
    save: Callable[[dict[str, Any]], object],
) -> None:
    """Take steps up to ``config.iterations`` or until stopped, then save."""
    model, began_s = state.model, time.perf_counter() - state.elapsed_s
    with log:
        while state.iteration < config.iterations and not processes.any(should_stop()):
            # ---- Density control after the step before, so that a saved state is one that a step has fitted
            _control_density(state, views, config, processes, notify)

            # ---- Schedules
            iteration = state.iteration + 1
            views.begin_step(iteration)
            size = batch_size_at(iteration, config.batch_size, int(config.batch_from))
            lr_xyz = model.update_learning_rate(iteration, size)
            if iteration % config.sh_degree_interval == 0:
                model.oneup_sh_degree()
            share_sh(model, iteration, config)

            # ---- Render, loss and backward of each view
            batch = state.draw_batch(size, len(views))
            logs = iteration % config.log_every == 0
            figures = run_batch(state, views, config, processes, batch, figures=logs)

            # ---- Adam steps
            model.step()
            state.step_corrections(iteration)

            state.finish_step(iteration, time.perf_counter() - began_s)

            # ---- Log, after-step callables, save
            log.step()
            if logs:
                loss, psnr_db = (figure.item() for figure in figures)
                _record(log, state, loss, psnr_db, lr_xyz)
            for call in after_step:
                call(state)
            if iteration % config.save_every == 0 and iteration < config.iterations:
                save(state.state_dict())
        save(state.state_dict())


def _control_density(
    state: TrainState,
    views: TrainingViews,
    config: TrainConfig,
    processes: Processes,
    notify: Callable[[str], None],
) -> None:
    """Change the Gaussians as density control plans after the step at ``state.iteration``."""
    if state.iteration == 0:
        return
    views.begin_step(state.iteration)
    size = batch_size_at(state.iteration, config.batch_size, int(config.batch_from))
    state.model.update_learning_rate(state.iteration, size)
    before = len(state.model)
    plan = state.density.plan(state.model, state.iteration, state.background.eval_color())
    if plan is None:
        return
    if plan.changes_rows():
        processes.check_replicas(state.model.parameters, state.iteration)
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
    background, some = state.background.eval_color(), range(0, len(views), math.ceil(len(views) / _FEW))

    def psnr_of(index: int) -> Tensor:
        photo, weights = views.photo(index, background)
        image = views.exposed(views.render(state.model, index, background).image, index)
        return losses.psnr(image.clamp(0.0, 1.0), photo, weights)

    with torch.no_grad():
        figures = [min(figure.item(), losses.HIGHEST_PSNR) for figure in views.map(psnr_of, some)]
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
