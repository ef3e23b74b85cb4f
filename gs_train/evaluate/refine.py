"""Refines the poses of views on their photos while the splat stays as it is.

A splat that is trained with refined poses may lie a fraction of a pixel beside the poses of its test views. Figures at
refined test poses show how good the splat itself is; they go under names of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gs_train.alignment.motion import moved
from gs_train.alignment.photo import align_to_photo
from gs_train.losses import psnr
from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import Rasterizer
from gs_train.scene.photos.composite import composite, pixel_weights
from gs_train.scene.photos.decode import decode_images
from gs_train.scene.types import View

_REDUCTIONS = (4, 4, 2, 2, 1, 1, 1, 1)
"""Factors by which images are reduced in the steps, from coarse to fine."""


def refine_on_photos(
    model: GaussianModel,
    views: Sequence[View],
    rasterizer: Rasterizer,
    *,
    background: Tensor,
    after_view: Callable[[], None] = lambda: None,
) -> list[View]:
    """The views with the poses that fit their photos best, found by Gauss-Newton steps from the given poses.

    A view keeps its pose if no step raises its PSNR.

    Args:
        model: on the rasterizer's device; left unchanged.
        views: with photos.
        rasterizer: renders the views.
        background: [3] RGB in 0..1 to render over, on the model's device.
        after_view: called after every view.

    Raises:
        UserError: a photo cannot be decoded.
    """
    refined = []
    with torch.no_grad():
        for view, pixels in zip(views, decode_images(views), strict=True):
            photo, weights = composite(pixels, background), pixel_weights(pixels, background.device)
            pose = torch.from_numpy(view.world_to_camera).to(model.device, torch.float64)
            best_db, best = -torch.inf, pose
            for reduction in (*_REDUCTIONS, None):
                render = rasterizer.render(model, view.camera, pose.float(), background, depth=True)
                image = render.image.clamp(0.0, 1.0)
                if (db := psnr(image, photo, weights).item()) > best_db:
                    best_db, best = db, pose
                if reduction is not None and render.depth is not None:
                    fit = align_to_photo(
                        view.camera, image, photo, render.depth, render.alpha, weights, reduction=reduction
                    )
                    pose = moved(pose, fit.motion)
            refined.append(replace(view, world_to_camera=best.cpu().numpy()))
            after_view()
    return refined
