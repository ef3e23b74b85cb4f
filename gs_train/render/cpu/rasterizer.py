"""The CPU kernels behind the ``Rasterizer`` protocol. The neighbouring files hold the kernels, and ``gsplat_api`` the
drop-in function."""

from __future__ import annotations

import torch
from torch import Tensor

from gs_train.cameras.camera import Camera
from gs_train.model.gaussians import GaussianModel, describe_non_finite
from gs_train.render.cpu.autograd import Settings, rasterize
from gs_train.render.types import RenderOutput


class CpuRasterizer:
    """Renders a model with our CPU kernels, which compute the same function as gsplat's on CUDA."""

    name = "cpu"

    def __init__(self, *, antialiased: bool = False) -> None:
        """``antialiased``: as in ``select_rasterizer``."""
        self._antialiased = antialiased

    def warm_up(self, *, absgrad: bool = False, depth: bool = False) -> None:
        """Render one Gaussian and run backward, which compiles all kernels that training with these arguments needs."""
        shapes = {
            "xyz": (1, 3),
            "f_dc": (1, 1, 3),
            "f_rest": (1, 0, 3),
            "opacity": (1, 1),
            "scaling": (1, 3),
            "rotation": (1, 4),
        }
        model = GaussianModel({name: torch.ones(shape) for name, shape in shapes.items()})
        camera = Camera(width=1, height=1, fx=1.0, fy=1.0, cx=0.5, cy=0.5)
        render = self.render(model, camera, torch.eye(4), torch.zeros(3), absgrad=absgrad, depth=depth)
        (render.image.sum() + (0.0 if render.depth is None else render.depth.sum())).backward()

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
        """Render ``model`` from ``camera``, as in ``Rasterizer.render``; all tensors are on the CPU.

        Raises:
            FloatingPointError: parameters have NaN or infinite values; the message names the tensors and counts them.
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
                intrinsics=camera.pinhole_intrinsics(),
                background=background,
                settings=Settings(
                    width=camera.width,
                    height=camera.height,
                    sh_degree=model.active_sh_degree,
                    antialiased=self._antialiased,
                    absgrad=absgrad,
                    depth=depth,
                ),
            )
        except FloatingPointError as error:
            # Name the model's parameters, which the user knows. They may be finite, because an activation can overflow.
            raise FloatingPointError(describe_non_finite(model.parameters) or str(error)) from None
        return RenderOutput(
            image=image[..., :3],
            alpha=alpha,
            means2d=means2d,
            radii=radii,
            depth=image[..., 3] / alpha.clamp(min=1e-10) if depth else None,
        )
