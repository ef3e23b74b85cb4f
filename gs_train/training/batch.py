"""The views of one step: render, loss and backward pass of each, by the process that it is dealt to.

Afterwards every process has the gradients and the statistics of all views.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gs_train import losses
from gs_train.config.settings import TrainConfig
from gs_train.distributed.processes import Processes
from gs_train.scene.photos.cache import READ_AHEAD
from gs_train.training.state import TrainState
from gs_train.training.views import TrainingViews


def run_batch(
    state: TrainState,
    views: TrainingViews,
    config: TrainConfig,
    processes: Processes,
    batch: Sequence[tuple[int, Tensor]],
    *,
    figures: bool,
) -> Tensor:
    """Run the backward pass of every view, and collect the statistics of density control and pose refinement.

    Args:
        state: its parameters receive the sum of the views' gradients.
        views: the training views.
        config: resolved.
        processes: the processes that share the views.
        batch: view and background colour of each render.
        figures: whether to measure the loss and the PSNR.

    Returns:
        [2] loss and PSNR (dB) of the last view of the batch; empty unless ``figures``.
    """
    density, indices = state.density, [index for index, _ in batch]
    parameters = [*state.model.parameters.values(), *state.background.parameters()]
    parameters += state.corrections.parameters(indices)
    aligned: list[Tensor] = []
    last = torch.zeros(0)
    with processes.sum_gradients(parameters) as add_round:
        for first in range(0, len(batch), processes.count):
            dealt = min(processes.count, len(batch) - first)
            measured = None
            if processes.rank < dealt:
                # The views of this process, as far as they are drawn.
                own = [*indices[first:], *state.coming_views()][processes.rank :: processes.count]
                views.expect(own[: READ_AHEAD + 1])
                last_round = first + dealt == len(batch)
                index, background = batch[first + processes.rank]
                measured = _run_view(state, views, config, index, background, figures=figures and last_round)
            add_round(dealt)
            for statistics, pose, shown in processes.gather(measured, dealt):
                density.observe(statistics)
                aligned.append(pose)
                last = shown
    views.move_cameras(indices, aligned)
    return last


def _run_view(
    state: TrainState, views: TrainingViews, config: TrainConfig, index: int, background: Tensor, *, figures: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Render a view and run its backward pass.

    Returns:
        The statistics for density control, the aligned pose, and the figures of ``run_batch``.
    """
    # ---- Render and loss
    model, density = state.model, state.density
    (target, weights), render = views.photo(index, background), views.render(model, index, background)
    image = views.exposed(render.image, index)
    loss = losses.photometric_loss(losses.apply_mask(image, target, weights), target, config.lambda_dssim)
    total = loss
    for term in (density.regulariser(model), views.depth_loss(render, index)):
        if term is not None:
            total = total + term

    # ---- Backward. Gradients accumulate over the batch; Adam ignores their scale, so we do not average.
    total.backward()
    statistics = density.measure(render)
    pose = views.measure_pose(render, image, target, weights, index)
    if not figures:
        return statistics, pose, torch.zeros(0)
    psnr = losses.psnr(image.detach().clamp(0.0, 1.0), target, weights)
    return statistics, pose, torch.stack([loss.detach(), psnr.detach()])
