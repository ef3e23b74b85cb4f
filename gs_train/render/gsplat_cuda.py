"""The rasterizer for NVIDIA GPUs: calls gsplat's kernels and returns a ``RenderOutput``.

The kernels are gsplat's, and ``select.py`` chooses the device. gsplat is imported only when this rasterizer is used.
``why_unusable`` loads its kernels first, because a plain import compiles silently for minutes or fails with messages
that name the wrong cause. Background and gradients mean the same as on the CPU, so a run may move between machines.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

from gs_train.cameras.camera import Camera
from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import RenderOutput

_TILE = 16
"""Width and height of gsplat's tiles, px (its default)."""


class GsplatRasterizer:
    """gsplat's CUDA kernels behind the ``Rasterizer`` protocol. Call ``why_unusable`` first: it loads the kernels.

    It calls gsplat's kernels one by one, not ``gsplat.rasterization``, which inverts the pose on the GPU and waits for
    the result, and composites the background only in some modes.
    """

    name = "gsplat"

    def __init__(self, *, antialiased: bool = False) -> None:
        """``antialiased``: as in ``select_rasterizer``."""
        import gsplat

        self._gsplat, self._antialiased = gsplat, antialiased

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
        """Render ``model`` from ``camera``, as in ``Rasterizer.render``; all tensors are on one CUDA device."""
        fx, fy, cx, cy = camera.pinhole_intrinsics()
        intrinsics = torch.tensor([[[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]], dtype=torch.float32)
        opacities = model.opacities()
        # packed=False, because the packed path renumbers the rows of means2d. Rows with radii 0 stay uninitialised;
        # RenderOutput declares them undefined.
        radii, means2d, depths, conics, compensations = self._gsplat.fully_fused_projection(
            model.xyz,
            None,
            model.rotation,
            model.scales(),
            world_to_camera[None],
            # A copy that does not block: the GPU may still be busy with the step before.
            intrinsics.to(world_to_camera.device, non_blocking=True),
            camera.width,
            camera.height,
            packed=False,
            calc_compensations=self._antialiased,
            opacities=opacities,
        )
        opacities = opacities[None] if compensations is None else opacities * compensations
        colours = self._colours(model, world_to_camera, visible=(radii > 0).all(dim=-1))
        if depth:
            colours = torch.cat((colours, depths[:, :, None]), dim=-1)
            background = torch.cat((background, background.new_zeros(1)))
        image, alpha = self._blend(means2d, conics, colours, opacities, radii, depths, background, camera, absgrad)
        return RenderOutput(
            image=image[:, :, :3] if depth else image,
            alpha=alpha,
            means2d=_keeping_gradient(means2d),
            radii=radii[0],
            depth=image[:, :, 3] / alpha.clamp(min=1e-10) if depth else None,
        )

    def _colours(self, model: GaussianModel, world_to_camera: Tensor, visible: Tensor) -> Tensor:
        """[1, N, 3] colours seen from the camera; only rows of ``visible`` ([1, N] bool) are defined."""
        # The centre of the camera is -R^T t, because a pose is a rigid transformation.
        directions = model.xyz + world_to_camera[:3, 3] @ world_to_camera[:3, :3]
        coefficients = torch.cat((model.f_dc, model.f_rest), dim=1)
        evaluated = self._gsplat.spherical_harmonics(
            model.active_sh_degree, directions[None], coefficients[None], masks=visible
        )
        return torch.clamp_min(evaluated + 0.5, 0.0)

    def _blend(
        self,
        means2d: Tensor,
        conics: Tensor,
        colours: Tensor,
        opacities: Tensor,
        radii: Tensor,
        depths: Tensor,
        background: Tensor,
        camera: Camera,
        absgrad: bool,
    ) -> tuple[Tensor, Tensor]:
        """Blend projected Gaussians ([1, N, ...] each) over ``background`` ([C]): image [H, W, C] and alpha [H, W]."""
        columns, rows = -(-camera.width // _TILE), -(-camera.height // _TILE)
        _, tile_ids, gaussian_ids = self._gsplat.isect_tiles(means2d, radii, depths, _TILE, columns, rows)
        image, alpha = self._gsplat.rasterize_to_pixels(
            means2d,
            conics,
            colours,
            opacities,
            camera.width,
            camera.height,
            _TILE,
            self._gsplat.isect_offset_encode(tile_ids, 1, columns, rows),
            gaussian_ids,
            backgrounds=background[None],
            absgrad=absgrad,
        )
        # An index would copy the gradient of the image in the backward pass; squeeze does not.
        return image.squeeze(0), alpha.squeeze(0).squeeze(-1)


def _keeping_gradient(means2d: Tensor) -> Tensor:
    """Return a graph tensor whose ``grad`` the backward pass fills.

    A hook that copies the gradient to another tensor would be simpler to use, but its closure and the tensor would
    refer to each other through the graph, where the garbage collector does not look: no step's tensors would be freed.
    """
    if means2d.requires_grad:
        means2d.retain_grad()
    return means2d


def kernels_built() -> bool:
    """Whether gsplat's kernels are already compiled for this torch. Compiles nothing."""
    if importlib.util.find_spec("gsplat") is None:
        return False
    if importlib.util.find_spec("gsplat.csrc") is not None:
        return True
    # gsplat itself locates its kernels with this private function of torch, so the function exists if gsplat works.
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory("gsplat_cuda", verbose=False))
    return any((folder / f"gsplat_cuda{suffix}").exists() for suffix in (".so", ".pyd", ".lib"))


def why_unusable(notify: Callable[[str], None]) -> str | None:
    """Load gsplat's kernels and compile them if necessary.

    Args:
        notify: receives one line before a compilation, which takes minutes, once per machine and torch version.

    Returns:
        None if the kernels work, else the fault as a phrase for an error message.
    """
    if importlib.util.find_spec("gsplat") is None:
        return "gsplat is not installed"
    try:
        if not kernels_built():
            notify("gsplat compiles its CUDA kernels now: this takes minutes, once")
        # The line above and the phrase below replace gsplat's own output during loading.
        with redirect_stdout(StringIO()), _scripts_on_path():
            from gsplat.cuda import _backend
    # A compiler, a linker, a loader and three packages can fail here, each with its own exception type.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"gsplat's CUDA kernels do not load ({lines[0]})"
    if _backend._C is None:
        return "gsplat found no CUDA toolkit (nvcc) to compile its kernels with"
    return None


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """Put this environment's scripts on the PATH: torch starts ninja by name, even in an inactive environment."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join(part for part in (sysconfig.get_path("scripts"), before) if part)
    try:
        yield
    finally:
        os.environ["PATH"] = before
