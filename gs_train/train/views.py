"""The training views as a step meets them: photo and camera at the size that is trained now, rendered over the background of this step.

Not here: the order of the views (``state.py``) and decoding (``scene/images.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gs_train.model.gaussians import GaussianModel
from gs_train.render.select import Selection
from gs_train.render.types import RenderOutput
from gs_train.scene.composite import over, weight
from gs_train.scene.images import ImageCache
from gs_train.scene.types import Camera, View


class TrainingViews:
    """All training views of a scene, by index."""

    downscale: int
    """The size trained now: 1/1, 1/2, 1/4 or 1/8 of the photos'. Whoever takes steps sets it."""
    background: Tensor
    """[3] RGB in 0..1. Whoever takes steps sets it; black at first."""

    def __init__(self, views: Sequence[View], selection: Selection, *, absgrad: bool = False) -> None:
        """Decode all photos.

        Args:
            views: in the order of their indices.
            selection: renders them.
            absgrad: whether renders collect absolute gradients.

        Raises:
            UserError: a photo cannot be decoded.
        """
        self._images = ImageCache(views)
        self._cameras = [view.camera for view in views]
        self._poses = torch.stack([torch.from_numpy(view.world_to_camera) for view in views]).to(selection.device, torch.float32)
        self._rasterizer, self._absgrad = selection.rasterizer, absgrad
        self.downscale, self.background = 1, torch.zeros(3, device=selection.device)

    def __len__(self) -> int:
        return len(self._cameras)

    def camera(self, index: int) -> Camera:
        """The camera of view ``index`` at the size trained now."""
        return self._cameras[index].reduced(self.downscale)

    def photo(self, index: int) -> tuple[Tensor, Tensor | None]:
        """[H, W, 3] float32 in 0..1, over the background where it has alpha; and [H, W, 1] how much each pixel counts, None for all."""
        pixels = self._images.get(index, self.downscale)
        return over(pixels, self.background), weight(pixels, self.background.device)

    def render(self, model: GaussianModel, index: int) -> RenderOutput:
        """The model from the camera of view ``index``, over the background."""
        return self._rasterizer.render(model, self.camera(index), self._poses[index], self.background, absgrad=self._absgrad)
