"""The training views as a step meets them: photo and camera at the size that is trained now, rendered over the background of this step.

Not here: the order of the views (``state.py``), decoding (``scene/images.py``) and where the pixels lie (``scene/cache.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gs_train.model.gaussians import GaussianModel
from gs_train.render.select import Selection
from gs_train.render.types import RenderOutput
from gs_train.scene.cache import ImageCache
from gs_train.scene.composite import over
from gs_train.scene.types import Camera, View


class TrainingViews:
    """All training views of a scene, by index."""

    downscale: int
    """The size trained now: 1/1, 1/2, 1/4 or 1/8 of the photos'. Whoever takes steps sets it."""
    background: Tensor
    """[3] RGB in 0..1. Whoever takes steps sets it; black at first."""

    def __init__(self, images: ImageCache, views: Sequence[View], selection: Selection, *, absgrad: bool = False) -> None:
        """Put together what belongs to each view.

        Args:
            images: of ``views``.
            views: in the order of their indices.
            selection: renders them.
            absgrad: whether renders collect absolute gradients.
        """
        self._images = images
        self._cameras = [view.camera for view in views]
        self._poses = torch.stack([torch.from_numpy(view.world_to_camera) for view in views]).to(selection.device, torch.float32)
        self._rasterizer, self._absgrad = selection.rasterizer, absgrad
        self.downscale, self.background = 1, torch.zeros(3, device=selection.device)

    def __len__(self) -> int:
        return len(self._cameras)

    def camera(self, index: int) -> Camera:
        """The camera of view ``index`` at the size trained now."""
        return self._cameras[index].reduced(self.downscale)

    def expect(self, indices: Sequence[int]) -> None:
        """Say which views come next, this step's first, so that their photos are there when they are asked for."""
        self._images.expect(indices, self.downscale)

    def photo(self, index: int) -> Tensor:
        """[H, W, 3] float32 in 0..1, over the background where it has alpha."""
        return over(self._images.get(index, self.downscale), self.background)

    def render(self, model: GaussianModel, index: int) -> RenderOutput:
        """The model from the camera of view ``index``, over the background."""
        return self._rasterizer.render(model, self.camera(index), self._poses[index], self.background, absgrad=self._absgrad)
