"""The CPU rasterizer as one differentiable torch function.

It checks the kernels' inputs, runs the kernels of the neighbouring files in order, and returns their gradients. The
checks cover dtype, device and contiguity, because a raw pointer to a strided tensor silently gives wrong results. The
projected means are an input that the forward pass overwrites. Their gradient, which density control needs, is then an
ordinary ``.grad``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from gs_train.kernels.buffers import aligned_buffer
from gs_train.kernels.jit import KERNEL_LOCK, follow_torch_threads
from gs_train.machine import physical_memory
from gs_train.model.gaussians import describe_non_finite
from gs_train.model.spherical_harmonics import MAX_SH_DEGREE
from gs_train.render.cpu.blending import blend_forward
from gs_train.render.cpu.blending_backward import blend_backward
from gs_train.render.cpu.projection import CHUNK, RECORD_SIZE, camera_vector, project_forward
from gs_train.render.cpu.projection_backward import project_backward
from gs_train.render.cpu.tiles import bin_gaussians


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments that have no gradient."""

    width: int
    """px"""
    height: int
    """px"""
    sh_degree: int
    """Degree of spherical harmonics to evaluate; -1 for plain colours."""
    near: float = 0.01
    """Gaussians nearer than this are not rendered, world units."""
    far: float = 1e10
    """Gaussians farther than this are not rendered, world units."""
    eps2d: float = 0.3
    """Low-pass added to the 2D covariance's diagonal, px^2."""
    antialiased: bool = False
    """Reduce opacity to compensate for the area that the low-pass adds."""
    depth: bool = False
    """Composite depth as a fourth channel, with background 0."""
    absgrad: bool = False
    """Also sum the absolute gradients of the projected means over the pixels."""


class Rasterize(torch.autograd.Function):
    """(means, quats, scales, opacities, sh0, sh_rest, view, centre, intrinsics, background, means2d, means2d_absgrad,
    settings) -> (image, alpha, radii).

    All tensors are float32 on the CPU, with shapes as in ``rasterize``. view [4, 4] and centre [3] (the camera's centre
    in the world) are separate inputs, and autograd adds up their gradients. The forward pass writes means2d [N, 2],
    whose gradient is dL/dmeans2d. The backward pass writes means2d_absgrad, [N, 2], or [0, 2] unless requested.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        (
            means,
            quats,
            scales,
            opacities,
            sh0,
            sh_rest,
            view,
            centre,
            intrinsics,
            background,
            means2d,
            means2d_absgrad,
            settings,
        ) = inputs
        arrays = [_array(t) for t in (means, quats, scales, opacities, sh0, sh_rest)]
        camera = camera_vector(intrinsics, settings.width, settings.height, settings.near, settings.far, settings.eps2d)
        pose = _array(view).astype(np.float64), _array(centre).astype(np.float64)
        n = means.shape[0]
        records, radii, visible = (
            aligned_buffer((n, RECORD_SIZE)),
            aligned_buffer((n, 2), np.int32),
            aligned_buffer((n,), np.int32),
        )
        chunk_counts = np.empty((-(-n // CHUNK), 2), np.int32)
        size = settings.width, settings.height
        channels = 4 if settings.depth else 3
        image, transmittance = (
            aligned_buffer((settings.height, settings.width, channels)),
            aligned_buffer((settings.height, settings.width)),
        )
        colours = np.zeros(channels, np.float32)
        colours[:3] = _array(background)
        with KERNEL_LOCK:
            follow_torch_threads()
            with record_function("gs_train::projection"):
                project_forward(
                    *arrays, settings.sh_degree, *pose, camera, *size, settings.antialiased,
                    records, radii, _array(means2d), visible, chunk_counts,
                )  # fmt: skip
            if chunk_counts[:, 1].any() or not np.isfinite(pose[0]).all():
                names = ("means", "quats", "scales", "opacities", "sh0", "sh_rest", "view")
                fault = describe_non_finite(
                    dict(zip(names, (means, quats, scales, opacities, sh0, sh_rest, view), strict=True))
                )
                raise FloatingPointError(fault or f"colours of {chunk_counts[:, 1].sum()} Gaussians overflow")
            with record_function("gs_train::binning"):
                tile_start, pairs = bin_gaussians(records, visible, chunk_counts, *size)
            patches = aligned_buffer((len(pairs) if any(ctx.needs_input_grad) else 0,), np.uint64)
            tile_stop = np.empty(len(tile_start) - 1, np.int64)
            with record_function("gs_train::blending"):
                blend_forward(records, tile_start, pairs, colours, image, transmittance, patches, tile_stop)
        image_tensor, radii_tensor = torch.from_numpy(image), torch.from_numpy(radii)
        ctx.save_for_backward(means, quats, scales, opacities, sh0, sh_rest, view, centre, image_tensor)
        ctx.camera, ctx.settings, ctx.means2d_absgrad = camera, settings, means2d_absgrad
        ctx.kept = records, visible, chunk_counts, (tile_start, tile_stop, pairs, patches), transmittance
        ctx.mark_non_differentiable(radii_tensor)
        return image_tensor, 1.0 - torch.from_numpy(transmittance), radii_tensor

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, image_grad: Tensor, alpha_grad: Tensor, _radii_grad: Tensor) -> Any:
        *parameters, view, centre, image = ctx.saved_tensors
        settings: Settings = ctx.settings
        records, visible, chunk_counts, (tile_start, tile_stop, pairs, patches), transmittance = ctx.kept
        image_grad = image_grad.contiguous()
        grads = [torch.from_numpy(aligned_buffer(tuple(t.shape))) for t in parameters]
        means2d_grad = torch.from_numpy(aligned_buffer((len(records), 2)))
        chunk_grads = np.zeros((len(chunk_counts), 4, 4))
        means, quats, scales, opacities, _, sh_rest = (_array(t) for t in parameters)
        with KERNEL_LOCK:
            follow_torch_threads()
            with record_function("gs_train::blending backward"):
                sums = blend_backward(
                    records, tile_start, tile_stop, pairs, patches,
                    _array(image), transmittance, _array(image_grad), _array(alpha_grad.contiguous()), settings.absgrad,
                )  # fmt: skip
            with record_function("gs_train::projection backward"):
                project_backward(
                    means, quats, scales, opacities, sh_rest, settings.sh_degree,
                    _array(view).astype(np.float64), _array(centre).astype(np.float64), ctx.camera,
                    settings.antialiased, records, visible, chunk_counts, sums,
                    *(_array(g) for g in grads), _array(means2d_grad), _array(ctx.means2d_absgrad), chunk_grads,
                )  # fmt: skip
        # NumPy sums the chunks in a fixed order, for any number of threads.
        pose_grad = torch.from_numpy(chunk_grads.sum(axis=0).astype(np.float32))
        view_grad = torch.cat([pose_grad[:3], torch.zeros(1, 4)])
        background_grad = None
        if ctx.needs_input_grad[9]:
            through = np.einsum("hw,hwc->c", transmittance, image_grad[..., :3].numpy(), dtype=np.float64)
            background_grad = torch.from_numpy(through.astype(np.float32))
        return *grads, view_grad, pose_grad[3, :3].clone(), None, background_grad, means2d_grad, None, None


def _check_memory(settings: Settings) -> None:
    """Raise MemoryError if the image's buffers (colours, alphas, gradients, loss) exceed the machine's memory."""
    needed = settings.width * settings.height * 4 * 24
    installed = physical_memory()
    if installed is not None and needed > installed:
        gib = f"{needed / 2**30:.1f} GiB for its buffers, and this machine has {installed / 2**30:.1f} GiB"
        raise MemoryError(f"an image of {settings.width}x{settings.height} px needs {gib}")


def _array(tensor: Tensor) -> Any:
    """The tensor's memory as a NumPy array. Raises ValueError for a tensor that the kernels would misread."""
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32 or not tensor.is_contiguous():
        kind = f"{'' if tensor.is_contiguous() else 'strided '}{tensor.dtype} on {tensor.device}"
        raise ValueError(f"the CPU kernels take contiguous float32 CPU tensors, not {kind}")
    return tensor.detach().numpy()


def wants_gradient(inputs: Sequence[Tensor]) -> bool:
    """Whether any of the inputs needs a gradient."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)


def check_tensors(expected: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Raise ValueError with the name of a tensor of wrong shape, dtype or device: kernels do not check bounds."""
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}; the CPU rasterizer takes float32 on the CPU"
            )


def rasterize(
    *, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh0: Tensor, sh_rest: Tensor,
    view: Tensor, intrinsics: tuple[float, float, float, float], background: Tensor, settings: Settings,
    means2d: Tensor | None = None, means2d_absgrad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Render one view.

    Args:
        means [N, 3], quats [N, 4] wxyz, scales [N, 3] activated, opacities [N] activated: the Gaussians.
        sh0 [N, 3], sh_rest [N, K-1, 3]: spherical-harmonics coefficients, or plain colours in sh0 if sh_degree is -1.
        view: [4, 4] world -> OpenCV camera. intrinsics: fx, fy, cx, cy in px. background: [3].
        means2d: [N, 2], receives the projected means; None for a new tensor.
        means2d_absgrad: [N, 2], receives the absolute gradients in the backward pass; None for a new tensor.

    Returns:
        image [H, W, 3] (4 channels with depth), alpha [H, W], radii [N, 2] int32, means2d [N, 2] px. After the backward
        pass means2d has ``.grad`` [N, 2] and, if requested, ``.absgrad`` [N, 2].

    Raises:
        ValueError: a wrong shape, dtype, device or focal length, or fewer SH coefficients than the degree needs.
        FloatingPointError: inputs have NaN or infinite values; the message names the inputs and counts the values.
        MemoryError: the image's buffers need more memory than the machine has.
    """
    _check_memory(settings)
    n, rest = means.shape[0], sh_rest.shape[1] if sh_rest.dim() == 3 else 0
    if not all(math.isfinite(value) for value in intrinsics) or intrinsics[0] == 0.0 or intrinsics[1] == 0.0:
        raise ValueError(f"intrinsics (fx, fy, cx, cy) are {intrinsics}; they must be finite, with fx and fy not 0")
    if not -1 <= settings.sh_degree <= MAX_SH_DEGREE or rest + 1 < (settings.sh_degree + 1) ** 2:
        raise ValueError(
            f"sh_degree={settings.sh_degree} with {rest + 1} coefficients per channel; "
            f"it must be -1 to {MAX_SH_DEGREE} and needs (sh_degree + 1)^2 coefficients"
        )
    if means2d is None:
        inputs = (means, quats, scales, opacities, sh0, sh_rest, view, background)
        means2d = torch.empty(means.shape[0], 2, requires_grad=wants_gradient(inputs))
    if means2d_absgrad is None:
        means2d_absgrad = torch.zeros(means.shape[0] if settings.absgrad else 0, 2)
    if settings.absgrad:
        means2d.absgrad = means2d_absgrad  # type: ignore[attr-defined]
    check_tensors({
        "means": (means, (n, 3)), "quats": (quats, (n, 4)), "scales": (scales, (n, 3)), "opacities": (opacities, (n,)),
        "sh0": (sh0, (n, 3)), "sh_rest": (sh_rest, (n, rest, 3)),
        "view": (view, (4, 4)), "background": (background, (3,)),
        "means2d": (means2d, (n, 2)), "means2d_absgrad": (means2d_absgrad, (n if settings.absgrad else 0, 2)),
    })  # fmt: skip
    # Like gsplat, differentiate the general inverse; for a rigid transformation the centre is -R^T t.
    centre = torch.linalg.inv(view)[:3, 3]
    tensors = [t.contiguous() for t in (means, quats, scales, opacities, sh0, sh_rest, view, centre)]
    image, alpha, radii = Rasterize.apply(
        *tensors, intrinsics, background.contiguous(), means2d, means2d_absgrad, settings
    )
    return image, alpha, radii, means2d
