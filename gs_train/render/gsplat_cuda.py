"""The rasterizer for NVIDIA GPUs: calls ``gsplat.rasterization`` and returns a ``RenderOutput``.

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


class GsplatRasterizer:
    """gsplat's CUDA kernels behind the ``Rasterizer`` protocol. Call ``why_unusable`` first: it loads the kernels."""

    name = "gsplat"

    def __init__(self, *, antialiased: bool = False) -> None:
        """``antialiased``: as in ``select_rasterizer``."""
        import gsplat

        self._rasterization = gsplat.rasterization
        self._mode = "antialiased" if antialiased else "classic"

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
        intrinsics = torch.tensor(
            [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]],
            dtype=torch.float32,
            device=world_to_camera.device,
        )
        # packed=False, because the packed path fails a shape assertion in some calls and renumbers the rows of means2d.
        colours, alphas, meta = self._rasterization(
            means=model.xyz,
            quats=model.rotation,
            scales=model.scales(),
            opacities=model.opacities(),
            colors=torch.cat((model.f_dc, model.f_rest), dim=1),
            viewmats=world_to_camera[None],
            Ks=intrinsics[None],
            width=camera.width,
            height=camera.height,
            sh_degree=model.active_sh_degree,
            packed=False,
            render_mode="RGB+ED" if depth else "RGB",
            rasterize_mode=self._mode,
            absgrad=absgrad,
        )
        # The background is composited here, because gsplat's own compositing fails in some modes.
        alpha = alphas[0, :, :, 0]
        image = colours[0, :, :, :3] + (1.0 - alpha)[:, :, None] * background
        # Rows of gsplat's means2d with radii 0 are uninitialised; RenderOutput declares them undefined.
        return RenderOutput(
            image=image,
            alpha=alpha,
            means2d=_keeping_gradient(meta["means2d"]),
            radii=meta["radii"][0],
            depth=colours[0, :, :, 3] if depth else None,
        )


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
