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
from gs_train.scene.photos.cache import ImageCache
from gs_train.scene.photos.composite import over, weight
from gs_train.scene.types import Camera, View
from gs_train.training.depth import PointDepths
from gs_train.training.exposure import Exposure
from gs_train.training.poses import PoseRefinement


class TrainingViews:
    """All training views of a scene, by index."""

    downscale: int
    """The size trained now: 1/1, 1/2, 1/4 or 1/8 of the photos'. Whoever takes steps sets it."""
    background: Tensor
    """[3] RGB in 0..1. Whoever takes steps sets it; black at first."""
    exposure: Exposure | None = None
    """What each photo's exposure does to a render; None for nothing. Whoever learns it sets it."""
    point_depths: PointDepths | None = None
    """What depth should be; None where nothing asks, and then none is rendered."""
    poses: PoseRefinement | None = None
    """How the cameras are moved; None for not at all. Whoever learns it sets it."""

    def __init__(
        self, images: ImageCache, views: Sequence[View], selection: Selection, *, absgrad: bool = False
    ) -> None:
        """Put together what belongs to each view.

        Args:
            images: of ``views``.
            views: in the order of their indices.
            selection: renders them.
            absgrad: whether renders collect absolute gradients.
        """
        self._images = images
        self._cameras = [view.camera for view in views]
        self._poses = torch.stack([torch.from_numpy(view.world_to_camera) for view in views]).to(
            selection.device, torch.float32
        )
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

    def photo(self, index: int) -> tuple[Tensor, Tensor | None]:
        """[H, W, 3] float32 in 0..1, over the background where it has alpha; and [H, W, 1] how much each pixel counts, None for all."""
        pixels = self._images.get(index, self.downscale)
        return over(pixels, self.background), weight(pixels, self.background.device)

    def render(self, model: GaussianModel, index: int) -> RenderOutput:
        """The model from the camera of view ``index``, over the background, before any exposure."""
        pose = self._poses[index] if self.poses is None else self.poses.refined(self._poses[index], index)
        return self._rasterizer.render(
            model, self.camera(index), pose, self.background, absgrad=self._absgrad, depth=self.point_depths is not None
        )

    def depth_error(self, render: RenderOutput, index: int) -> Tensor | None:
        """How far the depth of a render of view ``index`` is from that of the points it sees; None where nothing asks."""
        if self.point_depths is None or render.depth is None:
            return None
        return self.point_depths.error(render.depth, index, self.downscale)

    def exposed(self, image: Tensor, index: int) -> Tensor:
        """A render of view ``index``, [H, W, 3], as it is to be compared with the photo."""
        return image if self.exposure is None else self.exposure.exposed(image, index)
