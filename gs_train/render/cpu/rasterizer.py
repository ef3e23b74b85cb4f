"""The CPU kernels behind the ``Rasterizer`` protocol. Not the kernels (see the neighbours) and not the drop-in call (``dropin``)."""

from __future__ import annotations

from torch import Tensor

from gs_train.model.gaussians import GaussianModel, describe_non_finite
from gs_train.render.cpu.autograd import Settings, rasterize
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Camera


class CpuRasterizer:
    """Renders a model with our kernels; the same function as gsplat's on CUDA."""

    name = "cpu"

    def render(self, model: GaussianModel, camera: Camera, world_to_camera: Tensor, background: Tensor) -> RenderOutput:
        """Render ``model`` from ``camera``; arguments and result as in ``Rasterizer.render``, all tensors on the CPU.

        Raises:
            FloatingPointError: a parameter is NaN or infinite; names the tensors, and how many of their values are.
            MemoryError: the image's buffers need more memory than the machine has.
        """
        try:
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
        except FloatingPointError as error:
            # Under the names that the user knows, where they are to blame: an activation can overflow, too.
            raise FloatingPointError(describe_non_finite(model.parameters) or str(error)) from None
        return RenderOutput(image=image, alpha=alpha, means2d=means2d, radii=radii)
