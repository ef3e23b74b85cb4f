"""Evaluation: renders views, compares them with the photos, and writes figures and side-by-side images.

The metrics themselves are in ``metrics.py``. Every field of ``ViewMetrics`` goes to results.json, as the mean over the
views, and to per_view.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gs_train.atomic_write import atomic_write, atomic_write_text
from gs_train.errors import UserError
from gs_train.evaluate.metrics import SSIM_REGION, ViewMetrics, view_metrics
from gs_train.evaluate.perceptual import FLIP_PIXELS_PER_DEGREE, LPIPS_INPUT, LPIPS_NET, NO_PERCEPTUAL, Perceptual
from gs_train.evaluate.pictures import png_names
from gs_train.evaluate.refine import refine_on_photos
from gs_train.losses import WINDOW, apply_mask
from gs_train.model.gaussians import GaussianModel
from gs_train.render.select import Selection
from gs_train.render.types import Rasterizer
from gs_train.run.open import OpenedSplat
from gs_train.scene.photos.composite import composite, pixel_weights
from gs_train.scene.photos.decode import decode_images
from gs_train.scene.types import View


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of a set of views."""

    per_view: dict[str, ViewMetrics]
    """By view name."""
    images: tuple[Path, ...]
    """PNGs with the photo on the left and the render on the right, in the order of the views; empty if none are
    written."""
    gaussians: int
    """Number of Gaussians rendered."""
    rasterizer: str
    """Name of the rasterizer: ``cpu`` or ``gsplat``."""
    not_measured: Mapping[str, str] = field(default_factory=dict)
    """The reason, one sentence, for each perceptual metric that is None."""

    @property
    def mean(self) -> ViewMetrics:
        """Mean of each metric over the views; None if a view lacks it."""
        figures = [asdict(metrics) for metrics in self.per_view.values()]
        columns: dict[str, list[Any]] = {name: [each[name] for each in figures] for name in figures[0]}
        means: dict[str, Any] = {
            name: None if None in values else sum(values) / len(values) for name, values in columns.items()
        }
        return ViewMetrics(**means)


def evaluate(
    model: GaussianModel,
    views: Sequence[View],
    rasterizer: Rasterizer,
    *,
    background: torch.Tensor,
    perceptual: Perceptual = NO_PERCEPTUAL,
    renders: Path | None = None,
    error_maps: Path | None = None,
    names: Sequence[str] | None = None,
    after_view: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Render every view and compare it with its photo.

    Args:
        model: on the rasterizer's device.
        views: at least one.
        rasterizer: renders the views.
        background: [3] RGB in 0..1 to render over, on the model's device.
        perceptual: LPIPS and FLIP, from ``find_perceptual``; the default measures neither.
        renders: folder for one PNG per view, with the photo on the left and the render on the right; None writes none.
        error_maps: folder for FLIP's map of each view, under the same names; None writes none.
        names: of the PNGs, for views that are a part of all views; None for ``png_names`` of the views.
        after_view: called after every view.

    Raises:
        UserError: a photo cannot be decoded, or is too small for SSIM.
        OSError: an image cannot be written.
    """
    for view in views:
        if min(view.camera.width, view.camera.height) < WINDOW:
            raise UserError(
                f"{view.image_path} is trained at less than {WINDOW} px, too small for SSIM: train a larger "
                "--resolution."
            )
    names = png_names([view.name for view in views]) if names is None else names
    per_view: dict[str, ViewMetrics] = {}
    with torch.no_grad():
        for view, photo, name in zip(views, decode_images(views), names, strict=True):
            pose = torch.from_numpy(view.world_to_camera).to(model.device, torch.float32)
            image = rasterizer.render(model, view.camera, pose, background).image
            target = composite(photo, background)
            weight = pixel_weights(photo, background.device)
            per_view[view.name], error_map = _measure(image, target, weight, perceptual)
            if error_maps is not None and error_map is not None:
                _save(error_maps / name, error_map)
            if renders is not None:
                _save_beside(renders / name, target, image)
            after_view()
    return Evaluation(
        per_view=per_view,
        images=() if renders is None else tuple(renders / name for name in names),
        gaussians=len(model),
        rasterizer=rasterizer.name,
        not_measured=perceptual.missing,
    )


def _measure(
    image: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, perceptual: Perceptual
) -> tuple[ViewMetrics, NDArray[np.uint8] | None]:
    """The metrics of a view, and FLIP's error map [H, W, 3] if it is measured."""
    # Masked pixels take the photo's colours, so they cause no error.
    shown = apply_mask(image.clamp(0.0, 1.0), target, weight)
    flip, error_map = (None, None) if perceptual.flip is None else perceptual.flip(shown, target)
    lpips = None if perceptual.lpips is None else perceptual.lpips(shown, target)
    return replace(view_metrics(image, target, weight), lpips=lpips, flip=flip), error_map


def evaluate_splat(
    opened: OpenedSplat,
    views: Sequence[View],
    selection: Selection,
    *,
    perceptual: Perceptual = NO_PERCEPTUAL,
    renders: Path | None = None,
    error_maps: Path | None = None,
    after_view: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate an opened splat over its own background.

    Example::

        opened = open_splat(Path("runs/mine"))
        scene = opened.load_scene()
        mean = evaluate_splat(opened, scene.test_views, opened.select_rasterizer()).mean

    Args:
        opened: from ``open_splat``.
        views: at least one.
        selection: from ``opened.select_rasterizer``.
        perceptual, renders, error_maps, after_view: as in ``evaluate``.

    Raises:
        UserError: as in ``evaluate``, or the splat has NaN or infinite values.
        OSError: as in ``evaluate``.
    """
    with _damage_told(opened):
        return evaluate(
            opened.model(selection.device),
            views,
            selection.rasterizer,
            background=opened.background(selection.device),
            perceptual=perceptual,
            renders=renders,
            error_maps=error_maps,
            after_view=after_view,
        )


def evaluate_refined(
    opened: OpenedSplat, views: Sequence[View], selection: Selection, *, after_view: Callable[[], None] = lambda: None
) -> Evaluation:
    """Evaluate an opened splat at the poses that fit the photos best (see ``refine.py``). Writes no pictures.

    Args:
        opened, views, selection, after_view: as in ``evaluate_splat``.

    Raises:
        UserError: as in ``evaluate``.
    """
    with _damage_told(opened):
        model, background = opened.model(selection.device), opened.background(selection.device)
        refined = refine_on_photos(model, views, selection.rasterizer, background=background, after_view=after_view)
        return evaluate(model, refined, selection.rasterizer, background=background)


@contextmanager
def _damage_told(opened: OpenedSplat) -> Iterator[None]:
    """A model with values that are not finite is damaged on the disk, which is no fault of the program."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(f"{opened.path} is damaged ({error}): copy it again, or train again.") from None


def write_figures(
    evaluation: Evaluation, folder: Path, *, iteration: int | None, split: str, refined: Evaluation | None = None
) -> tuple[Path, Path]:
    """Write results.json (the means and their circumstances) and per_view.json into ``folder``; returns both paths.

    Args:
        evaluation: of the views.
        folder: an existing folder.
        iteration: steps taken.
        split: ``test`` or ``train``.
        refined: of the same views with poses refined on the photos; its figures get the ending ``_refined_poses``.
    """
    results, per_view = folder / "results.json", folder / "per_view.json"
    figures = {
        "iteration": iteration,
        "split": split,
        "views": len(evaluation.per_view),
        **asdict(evaluation.mean),
        **({} if refined is None else _of_refined_poses(refined.mean)),
        "ssim_region": SSIM_REGION,
        "lpips_net": LPIPS_NET,
        "lpips_input": LPIPS_INPUT,
        "flip_pixels_per_degree": FLIP_PIXELS_PER_DEGREE,
        "not_measured": dict(evaluation.not_measured),
        "gaussians": evaluation.gaussians,
        "rasterizer": evaluation.rasterizer,
    }
    atomic_write_text(results, json.dumps(figures, indent=2) + "\n")
    each = {name: asdict(metrics) for name, metrics in evaluation.per_view.items()}
    for name, metrics in ({} if refined is None else refined.per_view).items():
        each[name] |= _of_refined_poses(metrics)
    atomic_write_text(per_view, json.dumps(each, indent=2) + "\n")
    return results, per_view


def _of_refined_poses(metrics: ViewMetrics) -> dict[str, float]:
    """The measured figures under names of their own; the share of pixels is that of the given poses."""
    figures = asdict(metrics).items()
    return {f"{name}_refined_poses": value for name, value in figures if name != "counted" and value is not None}


def _save_beside(path: Path, photo: torch.Tensor, image: torch.Tensor) -> None:
    pixels = (torch.cat([photo, image], dim=1).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    _save(path, pixels.cpu().numpy())


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    picture = Image.fromarray(pixels)
    atomic_write(path, lambda file: picture.save(file, format="PNG"))
