"""Evaluation during training: the test views are measured every N iterations, and metrics.jsonl gets the figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from gs_train.errors import UserError
from gs_train.evaluate.evaluate import evaluate
from gs_train.model.gaussians import GaussianModel
from gs_train.render.select import Selection
from gs_train.scene.frame import training_frame
from gs_train.scene.types import Scene

Measure = Callable[[GaussianModel, int, torch.Tensor], None]
"""``measure(model, iteration, background)``; it does nothing in iterations without an evaluation."""


def evaluation_every(interval: int, scene: Scene, selection: Selection, metrics: Path) -> Measure:
    """A function that measures a model after every ``interval`` iterations, without changing it.

    It appends lines to metrics.jsonl, for example ``{"iteration": 1000, "test_psnr": 25.1, "test_ssim": 0.81}``.

    Args:
        interval: at least 1.
        scene: from ``load_scene``, in its own coordinates.
        selection: the rasterizer.
        metrics: path of metrics.jsonl.

    Raises:
        UserError: the scene has no test views.
    """
    views = training_frame(scene).apply(scene).test_views
    if not views:
        raise UserError("--eval-every needs test views: train with --test-every 8, or leave --eval-every out.")

    def measure(model: GaussianModel, iteration: int, background: torch.Tensor) -> None:
        if iteration % interval:
            return
        mean = evaluate(model, views, selection.rasterizer, background=background).mean
        line = {"iteration": iteration, "test_psnr": mean.psnr, "test_ssim": mean.ssim}
        with metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return measure
