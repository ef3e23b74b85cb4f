"""The rasterizer for NVIDIA GPUs: calls gsplat's kernels and returns a ``RenderOutput``.

The kernels are gsplat's, and ``select.py`` chooses the device. gsplat is imported only when this rasterizer is used.
``why_unusable`` loads its kernels first, because a plain import compiles silently for minutes or fails with messages
that name the wrong cause. Background and gradients mean the same as on the CPU, so a run may move between machines.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

from gs_train.cameras.camera import Camera
from gs_train.machine import cpu_threads, free_memory
from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import RenderOutput

_OF_NINJA = re.compile(r"Error building extension|FAILED:|ninja:|\[\d+/\d+\]|Traceback|subprocess\.")
_OF_COMPILER = re.compile(r"\berror\b|\bfatal\b|undefined reference|cannot find|No space left|Killed", re.IGNORECASE)
_LONGEST_REASON = 300
_BYTES_PER_JOB = 3 * 10**9
"""Memory of a compiler at work on one of gsplat's sources."""
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
        # No gradient of Triton's kernels reaches the pose.
        fused = triton_colours() if model.xyz.is_cuda and not world_to_camera.requires_grad else None
        colours_of = fused or gsplat_colours
        colours = colours_of(model.xyz, model.f_dc, model.f_rest, world_to_camera, radii, model.active_sh_degree)
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


Colours = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""Function of xyz, f_dc, f_rest, world_to_camera [4, 4], radii [1, N, 2] and the degree: [1, N, 3] colours from 0 up.
Rows with radii 0 are undefined."""


def gsplat_colours(
    xyz: Tensor, f_dc: Tensor, f_rest: Tensor, world_to_camera: Tensor, radii: Tensor, degree: int
) -> Tensor:
    """``Colours`` by gsplat's kernel."""
    import gsplat

    # The centre of the camera is -R^T t, because a pose is a rigid transformation.
    directions = xyz + world_to_camera[:3, 3] @ world_to_camera[:3, :3]
    coefficients = torch.cat((f_dc, f_rest), dim=1)
    visible = (radii > 0).all(dim=-1)
    evaluated = gsplat.spherical_harmonics(degree, directions[None], coefficients[None], masks=visible)
    return torch.clamp_min(evaluated + 0.5, 0.0)


@functools.cache
def triton_colours() -> Colours | None:
    """``Colours`` by Triton's kernels; None without a GPU, or where Triton does not work. Compiles the kernels."""
    if not torch.cuda.is_available():
        return None
    generator = torch.Generator().manual_seed(0)
    splat = [torch.randn(8, *shape, generator=generator) for shape in ((3,), (1, 3), (15, 3))]
    try:
        from gs_train.render.triton_colours import TritonColours

        view, radii = torch.eye(4).cuda(), torch.ones(1, 8, 2, dtype=torch.int32).cuda()
        functions: tuple[Colours, Colours] = (TritonColours.apply, gsplat_colours)
        found, expected = (_with_gradients(function, splat, view, radii) for function in functions)
        agree = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(found, expected, strict=True))
        return functions[0] if agree else None
    # Triton starts a C compiler and the driver, and every part raises exceptions of its own.
    except Exception:
        return None


def _with_gradients(function: Colours, splat: list[Tensor], view: Tensor, radii: Tensor) -> list[Tensor]:
    """The colours of a small splat on the GPU, and the gradients of a loss on them."""
    xyz, f_dc, f_rest = inputs = [tensor.cuda().requires_grad_() for tensor in splat]
    colours = function(xyz, f_dc, f_rest, view, radii, 3)
    return [colours, *torch.autograd.grad(colours.square().sum(), inputs)]


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
    built = any((folder / f"gsplat_cuda{suffix}").exists() for suffix in (".so", ".pyd", ".lib"))
    return built and _is_up_to_date(folder)


def _is_up_to_date(folder: Path) -> bool:
    """Whether loading the library in the build folder ``folder`` compiles nothing."""
    from torch.utils.cpp_extension import include_paths

    gsplat = importlib.util.find_spec("gsplat")
    assert gsplat is not None and gsplat.origin is not None
    try:
        plan = (folder / "build.ninja").read_text()
        # For a torch or a gsplat in another place, the plan is written anew, and every command in it differs.
        if not all(str(path) in plan for path in (Path(gsplat.origin).parent, include_paths()[0])):
            return False
        with _scripts_on_path():
            dry_run = subprocess.run(["ninja", "-n"], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return False
    return dry_run.returncode == 0 and "no work to do" in dry_run.stdout


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
        with redirect_stdout(StringIO()), _scripts_on_path(), _as_many_jobs_as_memory_allows():
            from gsplat.cuda import _backend
    # A compiler, a linker, a loader and three packages can fail here, each with its own exception type.
    except Exception as error:
        return f"gsplat's CUDA kernels do not load ({_reason(error)})"
    if _backend._C is None:
        return "gsplat found no CUDA toolkit (nvcc) to compile its kernels with"
    return None


def _reason(error: Exception) -> str:
    """The line of an exception's text that names the fault: the first error of the compiler, else the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # The output of ninja repeats the command, a thousand characters, before the compiler's words.
    told = (line for line in lines if not _OF_NINJA.match(line) and " -o " not in line and _OF_COMPILER.search(line))
    line = next(told, lines[0])
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} ..."


@contextmanager
def _as_many_jobs_as_memory_allows() -> Iterator[None]:
    """Set MAX_JOBS, the number of compilers at a time, unless the user has. gsplat's own value may exhaust memory."""
    if "MAX_JOBS" in os.environ:
        yield
        return
    os.environ["MAX_JOBS"] = str(max(1, min(cpu_threads(), free_memory() // _BYTES_PER_JOB)))
    try:
        yield
    finally:
        os.environ.pop("MAX_JOBS", None)


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """Put this environment's scripts on the PATH: torch starts ninja by name, even in an inactive environment."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join(part for part in (sysconfig.get_path("scripts"), before) if part)
    try:
        yield
    finally:
        os.environ["PATH"] = before
