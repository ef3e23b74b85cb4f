"""The interface of the rasterizers: their inputs and outputs. For the same model and camera, every rasterizer computes
the same function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gs_train.cameras.camera import Camera
from gs_train.model.gaussians import GaussianModel


@dataclass(frozen=True, kw_only=True)
class RenderOutput:
    """One rendered view, still attached to the autograd graph."""

    image: Tensor
    """[H, W, 3] float32 linear blend of the colours over the background; not clamped."""
    alpha: Tensor
    """[H, W] float32, 1 - final transmittance."""
    means2d: Tensor
    """[N, 2] or [1, N, 2] projected means in px; rows with radii 0 are undefined. ``screen_gradient`` reads their
    gradient."""
    radii: Tensor
    """[N, 2] int32 half extents in px; 0 in either column means that the Gaussian is not visible in this view."""

    depth: Tensor | None = None
    """[H, W] float32 mean distance along the camera's axis, weighted like the colours, in world units; 0 where no
    Gaussian contributes. None unless requested."""

    def screen_gradient(self, *, absolute: bool = False) -> Tensor | None:
        """[N, 2] dL/dmeans2d in 1/px after ``backward``, None before; rows with radii 0 are undefined.

        Args:
            absolute: return the sum over pixels of |dL/dmeans2d| per axis (AbsGS; Ye et al. 2024), which the render
                must have requested with ``absgrad``.
        """
        gradient: Tensor | None = getattr(self.means2d, "absgrad" if absolute else "grad", None)
        return None if gradient is None else gradient.view(-1, 2)

    def visible(self) -> Tensor:
        """[N] bool: the Gaussian is visible in this view."""
        # Two separate comparisons, because a reduction over two columns takes four times as long on a CPU.
        return (self.radii[..., 0] > 0) & (self.radii[..., 1] > 0)


class Rasterizer(Protocol):
    """Renders a model from a camera, differentiably."""

    name: str
    """``cpu`` or ``gsplat``: the name in logs and checkpoints."""

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
