"""The training views at the current training size: photo, camera and pose of each view, and renders from it.

The order of the views is in ``state.py``, decoding in ``scene/photos/decode.py``, caching in ``scene/photos/cache.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.profiler import record_function

from gs_train.cameras.camera import Camera
from gs_train.distributed.processes import OneProcess, Processes
from gs_train.model.gaussians import GaussianModel
from gs_train.render.select import Selection
from gs_train.render.types import RenderOutput
from gs_train.scene.photos.cache import ImageCache
from gs_train.scene.photos.composite import composite, pixel_weights
from gs_train.scene.photos.on_device import PhotosOnDevice
from gs_train.scene.types import View
from gs_train.training.corrections import Corrections
from gs_train.training.depth import PointDepths


class TrainingViews:
    """All training views of a scene, by index."""

    def __init__(
        self,
        images: ImageCache,
        views: Sequence[View],
        selection: Selection,
        corrections: Corrections,
        *,
        downscale_at: Callable[[int], int] = lambda iteration: 1,
        depths: PointDepths | None = None,
        depth_weight: float = 0.0,
        absgrad: bool = False,
        processes: Processes | None = None,
    ) -> None:
        """Gather the data of each view.

        Args:
            images: photos of ``views``.
            views: in the order of their indices.
            selection: the rasterizer and its device.
            corrections: learned exposures and poses.
            downscale_at: iteration -> factor by which photos are reduced: 1, 2, 4 or 8.
            depths: depths that renders should have; None renders no depth.
            depth_weight: weight of the depth error in the loss.
            absgrad: whether renders collect absolute gradients.
            processes: the processes that train together; None for one.
        """
        self._photos = PhotosOnDevice(images, selection.device, selection.photo_memory)
        self._cameras = [view.camera for view in views]
        poses = torch.stack([torch.from_numpy(view.world_to_camera) for view in views])
        self._poses = poses.to(selection.device, torch.float32)
        self._rasterizer, self._corrections, self._depths = selection.rasterizer, corrections, depths
        self._depth_weight = depth_weight
        self._downscale_at, self._absgrad = downscale_at, absgrad
        self._downscale, self._iteration = 1, 0
        self._processes = processes or OneProcess()

    def __len__(self) -> int:
        return len(self._cameras)

    def begin_step(self, iteration: int) -> None:
        """Set the training size for the step at ``iteration`` (from 1)."""
        self._downscale, self._iteration = self._downscale_at(iteration), iteration

    def camera(self, index: int) -> Camera:
        """The camera of view ``index`` at the current training size."""
        return self._cameras[index].reduced(self._downscale)

    def expect(self, indices: Sequence[int]) -> None:
        """Announce the next views, the current one first, so that their photos are read and copied ahead."""
        self._photos.expect(indices, self._downscale)

    def photo(self, index: int, background: Tensor) -> tuple[Tensor, Tensor | None]:
        """The photo of view ``index``, composited over ``background`` ([3] RGB, 0 to 1) where it has alpha.

        Returns:
            [H, W, 3] float32, 0 to 1; and pixel weights [H, W, 1], 0 to 1, or None if every pixel counts fully.
        """
        with record_function("gs_train::photo"):
            pixels = self._photos.get(index, self._downscale)
        return composite(pixels, background), pixel_weights(pixels, background.device)

    def render(self, model: GaussianModel, index: int, background: Tensor) -> RenderOutput:
        """Render the model from view ``index`` over ``background``, without its exposure."""
        pose, depth = self._corrections.pose(self._poses[index], index), self._depths is not None
        depth = depth or self._corrections.need_depth
        return self._rasterizer.render(model, self.camera(index), pose, background, absgrad=self._absgrad, depth=depth)

    def exposed(self, image: Tensor, index: int) -> Tensor:
        """A render of view ``index``, [H, W, 3], as it is compared with its photo."""
        return self._corrections.exposed(image, index)

    def map(self, function: Callable[[int], Tensor], indices: Iterable[int]) -> Iterator[Tensor]:
        """``function`` of some views, float32 of one shape, in the order of their indices; several processes share the
        work."""
        return self._processes.map(function, indices)

    def measure_pose(
        self, render: RenderOutput, image: Tensor, photo: Tensor, weights: Tensor | None, index: int
    ) -> Tensor:
        """Align the pose of view ``index`` to its render in this step, for ``move_cameras``.

        Args:
            render: of the view.
            image: [H, W, 3] the render with its exposure.
            photo, weights: from ``photo``.
            index: the view.
        """
        camera = self.camera(index)
        return self._corrections.measure(index, self._iteration, camera, render, image, photo, weights)

    def move_cameras(self, indices: Sequence[int], measured: Sequence[Tensor]) -> None:
        """Move the cameras of the views of a step by the results of ``measure_pose``."""
        self._corrections.move(indices, measured)

    def depth_loss(self, render: RenderOutput, index: int) -> Tensor | None:
        """Weighted error of the depth of a render of view ``index``, scalar; None if depths are not trained."""
        if self._depths is None or render.depth is None:
            return None
        return self._depth_weight * self._depths.error(render.depth, index, self._downscale)
