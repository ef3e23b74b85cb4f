"""What every rasterizer takes and gives. The invariant: two rasterizers given the same model and camera compute the same function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gs_train.model.gaussians import GaussianModel
from gs_train.scene.types import Camera


@dataclass(frozen=True, kw_only=True)
class RenderOutput:
    """One rendered view, still attached to the autograd graph."""

    image: Tensor
    """[H, W, 3] float32 linear blend of the colours over the background; not clamped."""
    alpha: Tensor
    """[H, W] float32, 1 - final transmittance."""
    means2d: Tensor
    """[N, 2] projected means in px. After ``backward`` its ``grad`` holds dL/dmeans2d in px, and if asked for its ``absgrad`` the
    sum of its pixels' absolute parts; rows with radii 0 are meaningless."""
    radii: Tensor
    """[N, 2] int32 half extents in px; 0 in either column means the view does not see the Gaussian."""

    depth: Tensor | None = None
    """[H, W] float32, if asked for: the mean distance along the camera's axis, weighed as the colours are; world units, 0 where
    nothing is seen."""

    def visible(self) -> Tensor:
        """[N] bool: the view sees the Gaussian."""
        # Column by column, because a reduction over two columns takes four times as long on a CPU.
        return (self.radii[..., 0] > 0) & (self.radii[..., 1] > 0)


class Rasterizer(Protocol):
    """Turns a model and a camera into an image, differentiably."""

    name: str
    """``cpu`` or ``gsplat``; what logs and checkpoints call it."""

    def render(
        self,
        model: GaussianModel,
        camera: Camera,
        world_to_camera: Tensor,
        background: Tensor,
        *,
        absgrad: bool = False,
        depth: bool = False,
    ) -> RenderOutput:
        """Render ``model`` from ``camera``.

        Args:
            model: the Gaussians, on this rasterizer's device.
            camera: pinhole intrinsics and image size, px.
            world_to_camera: [4, 4] float32, world -> OpenCV camera, on the model's device.
            background: [3] float32 RGB in 0..1, on the model's device.
            absgrad: also sum the absolute gradients of the projected means over the pixels.
            depth: also render depth.
        """
        ...
