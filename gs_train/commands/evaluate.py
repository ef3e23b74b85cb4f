"""``gs-train eval``: measures a run on the held-out views of its scene."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import tyro

from gs_train.console import end_at_once, notify, print_json, show
from gs_train.errors import UserError
from gs_train.evaluate.perceptual import NAMES, perceptual_for
from gs_train.options import DEVICES, check_device

if TYPE_CHECKING:
    from gs_train.evaluate.metrics import ViewMetrics
    from gs_train.run.open import OpenedSplat

_EXPOSURE_DB = 2.0
"""A larger gain by matching colours suggests that the photos' exposure varies."""
_FEW_PIXELS = 0.4
"""Figures over a smaller share of the pixels come with a warning."""


@dataclass(frozen=True, kw_only=True)
class EvalCommand:
    """Measure PSNR and SSIM of a run on its held-out views, and write a report with each photo beside its render."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run. Its newest intact checkpoint counts."""
    scene: Annotated[Path | None, tyro.conf.arg(metavar="SCENE")] = None
    """Scene folder or transforms .json. Name it if the scene has moved since the training."""
    device: Annotated[str | None, tyro.conf.arg(metavar=DEVICES)] = None
    """Device to render on; the device of the training if not given. cpu leaves a GPU to other work."""
    metrics: Annotated[str, tyro.conf.arg(metavar="{lpips,flip,none}")] = "lpips,flip"
    """Perceptual metrics to measure, where their packages are installed. lpips measures LPIPS only, none saves time."""
    download_weights: tyro.conf.FlagCreatePairsOff[bool] = False
    """Download the weights of LPIPS (233 MB) into torch's cache if they are missing."""
    all_views: tyro.conf.FlagCreatePairsOff[bool] = False
    """Put the pictures of all views into the report. Without it, a report of more than 60 views has the 20 worst."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the result as one JSON object on stdout, and all other text on stderr. Use it in scripts."""

    def __post_init__(self) -> None:
        """Raise UserError for an unknown device or metric."""
        if self.device is not None:
            check_device(self.device)
        for name in self._metrics():
            if name not in NAMES:
                raise UserError(f"--metrics is {self.metrics}: give lpips, flip, lpips,flip or none.")

    def _metrics(self) -> list[str]:
        return [] if self.metrics == "none" else self.metrics.split(",")

    def run(self) -> int:
        """Write results.json, per_view.json, report.html and renders/ into the run folder."""
        from gs_train.evaluate.evaluate import evaluate_refined, evaluate_splat, write_figures
        from gs_train.evaluate.report import write_report
        from gs_train.progress import Progress
        from gs_train.run.folder import RunFolder
        from gs_train.run.open import open_run

        opened = open_run(self.run_folder, notify)
        scene = opened.load_scene(self.scene, notify)
        with end_at_once():
            selection = opened.select_rasterizer(self.device, notify)
        views, split = (scene.test_views, "test") if scene.test_views else (scene.train_views, "train")
        if split == "train":
            _warn_of_training_views(opened)
        run, iteration = RunFolder(self.run_folder), opened.iteration
        assert iteration is not None, "a run has steps"
        perceptual = perceptual_for(views, self._metrics(), selection.device, notify, download=self.download_weights)
        with Progress("eval", len(views), unit="view") as progress:
            evaluation = evaluate_splat(
                opened,
                views,
                selection,
                perceptual=perceptual,
                renders=run.renders(iteration),
                error_maps=run.error_maps(iteration),
                after_view=progress.update,
            )
        refined = None
        if opened.config is not None and opened.config.refine_poses:
            with Progress("eval with refined poses", len(views), unit="view") as progress:
                refined = evaluate_refined(opened, views, selection, after_view=progress.update)
        run.clear_leftovers()
        results, per_view = write_figures(evaluation, run.path, iteration=iteration, split=split, refined=refined)
        report = write_report(run.path, all_views=self.all_views)
        write = notify if self.json else show
        if self.json:
            paths = {"results": str(results), "per_view": str(per_view), "report": str(report)}
            figures = json.loads(results.read_text(encoding="utf-8"))
            print_json({"run": str(run.path), **figures, **paths, "images": [*map(str, evaluation.images)]})
        write(
            f"Iteration {iteration}, {len(views)} {split} view{'' if len(views) == 1 else 's'}: "
            f"{_figures(evaluation.mean)}{_counted(evaluation.mean.counted)}."
        )
        if refined is not None:
            write(f"With the poses of these views refined on their photos: {_figures(refined.mean)}.")
        if evaluation.mean.psnr_colour_matched > evaluation.mean.psnr + _EXPOSURE_DB:
            write(
                "The colours differ more than the shapes: if the photos' exposure varies, train with --exposure affine."
            )
        write(f"Results: {results}")
        write(f"Per view: {per_view}")
        write(f"Photo beside render: {evaluation.images[0]}")
        write(f"Report: {report}")
        write(f"Next: gs-train export {quote(str(self.run_folder))} splat.ply")
        return 0


def _figures(mean: ViewMetrics) -> str:
    texts = [
        f"PSNR {mean.psnr:.2f} dB ({mean.psnr_colour_matched:.2f} dB with colours matched)",
        f"SSIM {mean.ssim:.4f} (valid region)",
    ]
    if mean.lpips is not None:
        texts.append(f"LPIPS {mean.lpips:.4f} (AlexNet)")
    if mean.flip is not None:
        texts.append(f"FLIP {mean.flip:.4f}")
    return ", ".join(texts)


def _counted(share: float) -> str:
    """The share of the photos that the figures are of, if it is not all."""
    if share == 1.0:
        return ""
    if share < _FEW_PIXELS:
        notify(f"Masks hide {100 * (1 - share):.0f} % of the photos: the figures say nothing about the hidden parts.")
    return f", over {100 * share:.1f} % of the pixels"


def _warn_of_training_views(opened: OpenedSplat) -> None:
    notify("There are no test views: evaluating on the training views, which says little about new views.")
    if opened.config is not None and (opened.config.refine_poses or opened.config.exposure != "none"):
        notify("Renders use the poses of the scene and no exposure correction; the training used corrected ones.")
