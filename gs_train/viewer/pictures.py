"""Draws one picture of a model for a live view: colour, depth, alpha, or the centres of the Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gs_train.errors import describe_gpu_memory
from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import Rasterizer
from gs_train.viewer.wishes import SMALLEST_PX, Wish

What = Literal["colour", "depth", "alpha", "centres"]
BackgroundChoice = Literal["as trained", "black", "white"]
_DOT_PX = 0.7
"""Standard deviation of the dot of a centre."""
_NEAREST = 0.01
"""Least depth of a dot, world units."""
_DEPTH_TAILS = (0.02, 0.98)
"""Share of the pixels that depths are black or white beyond."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The content of a picture."""

    what: What = "colour"
    """centres shows an opaque dot of equal size for each Gaussian. depth is white for near, alpha for opaque."""
    sh_degree: int = 3
    """Largest degree of the spherical harmonics to evaluate."""
    background: BackgroundChoice = "as trained"
    """Colour behind the Gaussians."""
    resolution: float = 1.0
    """Factor on the size of a picture at rest."""


class _Shown(GaussianModel):
    """A model that shares the tensors of another one."""

    def __init__(self, model: GaussianModel, sh_degree: int, dots: Tensor | None) -> None:
        """Limit the degree; ``dots`` ([N] world units) replaces all scales and makes the Gaussians opaque."""
        vars(self).update(vars(model))
        self.active_sh_degree = min(model.active_sh_degree, sh_degree)
        self._dots = dots

    def scales(self) -> Tensor:
        return super().scales() if self._dots is None else self._dots[:, None].expand(-1, 3).contiguous()

    def opacities(self) -> Tensor:
        opacities = super().opacities()
        return opacities if self._dots is None else torch.ones_like(opacities)


class Painter:
    """Draws pictures with a rasterizer, smaller ones if memory is short."""

    def __init__(self, rasterizer: Rasterizer) -> None:
        """``rasterizer``: compiled with depth."""
        self._rasterizer, self._most_px = rasterizer, float("inf")

    def paint(
        self, model: GaussianModel, wish: Wish, look: Look, background: Callable[[], Tensor], scale: float
    ) -> NDArray[np.uint8] | None:
        """[H, W, 3] RGB of the view that a client wishes; None if even a small picture needs too much memory.

        Args:
            model: unchanged.
            wish: the view.
            look: the content.
            background: gives the [3] RGB colour of the training.
            scale: factor on the size of the client's canvas.

        Raises:
            FloatingPointError: parameters are NaN or infinite.
        """
        canvas_px = wish.lens.width * wish.lens.height
        scale = min(scale, (self._most_px / canvas_px) ** 0.5)
        while True:
            try:
                return self._paint(model, wish, look, background, scale)
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and describe_gpu_memory(error) is None:
                    raise
            # Outside the handler, because the exception holds the buffers.
            camera = wish.camera(scale)
            if max(camera.width, camera.height) <= 2 * SMALLEST_PX:
                return None
            scale /= 2
            self._most_px = scale * scale * canvas_px

    @torch.no_grad()
    def _paint(
        self, model: GaussianModel, wish: Wish, look: Look, background: Callable[[], Tensor], scale: float
    ) -> NDArray[np.uint8]:
        camera = wish.camera(scale)
        pose = torch.from_numpy(wish.world_to_camera).to(model.device, torch.float32)
        if look.background == "as trained":
            colour = background()
        else:
            colour = torch.full((3,), 1.0 if look.background == "white" else 0.0, device=model.device)
        dots = None
        if look.what == "centres":
            depths = model.xyz @ pose[2, :3] + pose[2, 3]
            dots = _DOT_PX / camera.fy * depths.clamp(min=_NEAREST)
        shown = _Shown(model, look.sh_degree, dots)
        output = self._rasterizer.render(shown, camera, pose, colour, depth=look.what == "depth")
        image = output.image
        if look.what == "alpha":
            image = output.alpha[..., None].expand(-1, -1, 3)
        elif output.depth is not None:
            image = _depth_image(output.depth, output.alpha)[..., None].expand(-1, -1, 3)
        return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _depth_image(depth: Tensor, alpha: Tensor) -> Tensor:
    """[H, W] white for the nearest depths of this picture, black for the farthest and where it is transparent."""
    opaque = depth[alpha > 0.5]
    if not len(opaque):
        return alpha
    # Sorted, because torch.quantile takes at most 16 million values.
    ordered = opaque.sort().values
    near, far = (ordered[round(share * (len(ordered) - 1))] for share in _DEPTH_TAILS)
    return (far - depth) / (far - near).clamp(min=1e-6) * alpha
