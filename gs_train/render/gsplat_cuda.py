"""The rasterizer for NVIDIA GPUs: calls ``gsplat.rasterization`` and gives what every rasterizer here gives.

It is not a kernel of ours and not the place that chooses a device (``select.py`` is). gsplat is imported only when this rasterizer is
used, and its kernels are loaded through ``why_unusable``, because a plain import compiles for minutes without a word or fails with
messages that name the wrong cause. The invariant: background and gradients mean the same as on the CPU, so a run may change machines.
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

from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Camera


class GsplatRasterizer:
    """gsplat's CUDA kernels behind the ``Rasterizer`` protocol. Ask ``why_unusable`` first: the first render loads the kernels."""

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
        """Render ``model`` from ``camera``; arguments and result as in ``Rasterizer.render``, all tensors on one CUDA device."""
        intrinsics = torch.tensor(
            [[camera.fx, 0.0, camera.cx], [0.0, camera.fy, camera.cy], [0.0, 0.0, 1.0]],
            dtype=torch.float32,
            device=world_to_camera.device,
        )
        # packed=False because the packed code path fails a shape assertion in some calls and renumbers the rows of means2d.
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
        # The background is composited here rather than by gsplat, whose own way is not sound in every mode.
        alpha = alphas[0, :, :, 0]
        image = colours[0, :, :, :3] + (1.0 - alpha)[:, :, None] * background
        # Only rows with radii > 0 hold anything in gsplat's means2d; RenderOutput promises no more.
        return RenderOutput(
            image=image,
            alpha=alpha,
            means2d=_with_gradient_of(meta["means2d"]),
            radii=meta["radii"][0],
            depth=colours[0, :, :, 3] if depth else None,
        )


def _with_gradient_of(batched: Tensor) -> Tensor:
    """Return the [N, 2] content of a [1, N, 2] graph tensor, as a tensor whose ``grad`` the backward pass fills.

    gsplat keeps a camera axis that RenderOutput does not have, and indexing makes a new graph node that no gradient flows through.
    So the values are handed out detached and a hook on gsplat's own tensor passes its gradient on.
    """
    view = batched.detach()[0]

    def pass_on(gradient: Tensor) -> None:
        view.grad = gradient[0] if view.grad is None else view.grad + gradient[0]
        if hasattr(batched, "absgrad"):
            view.absgrad = batched.absgrad[0]  # type: ignore[attr-defined]

    if batched.requires_grad:
        batched.register_hook(pass_on)
    return view


def kernels_built() -> bool:
    """Say whether gsplat's kernels are compiled for this torch already, without compiling them."""
    if importlib.util.find_spec("gsplat") is None:
        return False
    if importlib.util.find_spec("gsplat.csrc") is not None:
        return True
    # gsplat itself asks this private function of torch where its kernels lie, so it is there whenever gsplat works.
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory("gsplat_cuda", verbose=False))
    return any((folder / f"gsplat_cuda{suffix}").exists() for suffix in (".so", ".pyd", ".lib"))


def why_unusable(notify: Callable[[str], None]) -> str | None:
    """Load gsplat's kernels, compiling them if need be, and return None; or return what is wrong, as a phrase.

    Args:
        say: takes one line for the user before a compilation, which lasts minutes and happens once per machine and torch version.
    """
    if importlib.util.find_spec("gsplat") is None:
        return "gsplat is not installed"
    try:
        if not kernels_built():
            notify("gsplat compiles its CUDA kernels now: this takes minutes, once")
        # Whatever gsplat prints while it loads is replaced by the line above and the phrase below.
        with redirect_stdout(StringIO()), _scripts_on_path():
            from gsplat.cuda import _backend
    except (
        Exception
    ) as error:  # a compiler, a linker, a loader and three packages can fail here, each with a type of its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"gsplat's CUDA kernels do not load ({lines[0]})"
    if _backend._C is None:
        return "gsplat found no CUDA toolkit (nvcc) to compile its kernels with"
    return None


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """Put this environment's scripts on the PATH: torch starts ninja by name, and an environment need not be activated to be used."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join(part for part in (sysconfig.get_path("scripts"), before) if part)
    try:
        yield
    finally:
        os.environ["PATH"] = before
