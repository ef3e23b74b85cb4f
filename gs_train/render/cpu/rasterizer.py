"""The CPU kernels behind the ``Rasterizer`` protocol. Not the kernels (see the neighbours) and not the drop-in call (``dropin``)."""

from __future__ import annotations

from torch import Tensor

from gs_train.model.gaussians import GaussianModel
from gs_train.render.cpu.autograd import Settings, rasterize
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Camera


class CpuRasterizer:
    """Renders a model with our kernels; the same function as gsplat's on CUDA."""

    name = "cpu"

    def render(self, model: GaussianModel, camera: Camera, world_to_camera: Tensor, background: Tensor) -> RenderOutput:
        """Render ``model`` from ``camera``; arguments and result as in ``Rasterizer.render``, all tensors on the CPU."""
        image, alpha, radii, means2d = rasterize(
            means=model.xyz,
            quats=model.rotation,
            scales=model.scales(),
            opacities=model.opacities(),
            sh0=model.f_dc.squeeze(1),
            sh_rest=model.f_rest,
            view=world_to_camera,
            intrinsics=(camera.fx, camera.fy, camera.cx, camera.cy),
            background=background,
            settings=Settings(width=camera.width, height=camera.height, sh_degree=model.active_sh_degree),
        )
        return RenderOutput(image=image, alpha=alpha, means2d=means2d, radii=radii)
