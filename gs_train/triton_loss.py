"""The photometric loss on an NVIDIA GPU, in four Triton kernels: two for its value, two for its gradient.

``losses.py`` defines the loss and chooses this module where Triton works. In torch operators the same loss takes about
sixty kernels and four times the memory. An image [H, W, 3] is read as [H, 3 W]: the same channel of the next pixel is
three columns away, so the channels need no planes of their own. The window is separable: one kernel blurs along the
rows, the next along the columns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = {"ROWS": 4, "COLUMNS": 128}
"""Outputs of one program."""
_SIZES = ["height", "row"]
"""Arguments whose values do not lead to another compilation, which takes seconds: images have many sizes."""


@triton.jit
def _along_row(source, r, c, height, row, window, WINDOW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Blur a plane [height, row] along its rows at (r, c); zero outside."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in tl.static_range(WINDOW):
        at = c + 3 * (tap - WINDOW // 2)
        inside = (r < height) & (at >= 0) & (at < row)
        total += tl.load(window + tap) * tl.load(source + r * row + at, mask=inside, other=0.0)
    return total


@triton.jit
def _along_column(source, r, c, height, row, window, WINDOW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Blur a plane [height, row] along its columns at (r, c); zero outside."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in tl.static_range(WINDOW):
        at = r + (tap - WINDOW // 2)
        inside = (at >= 0) & (at < height) & (c < row)
        total += tl.load(window + tap) * tl.load(source + at * row + c, mask=inside, other=0.0)
    return total


@triton.jit(do_not_specialize=_SIZES)
def _blur_products(
    image,  # [height, row]: x
    target,  # [height, row]: y
    window,  # [WINDOW]
    blurred,  # [5, height, row]: x, y, x^2, y^2 and x y, blurred along the rows; written
    height,
    row,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    sum_x = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_y = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_xx = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_yy = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_xy = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in tl.static_range(WINDOW):
        at = c + 3 * (tap - WINDOW // 2)
        inside = (r < height) & (at >= 0) & (at < row)
        x = tl.load(image + r * row + at, mask=inside, other=0.0)
        y = tl.load(target + r * row + at, mask=inside, other=0.0)
        weight = tl.load(window + tap)
        sum_x += weight * x
        sum_y += weight * y
        sum_xx += weight * (x * x)
        sum_yy += weight * (y * y)
        sum_xy += weight * (x * y)
    exists = (r < height) & (c < row)
    out = blurred + r * row + c
    size = height * row
    tl.store(out, sum_x, mask=exists)
    tl.store(out + size, sum_y, mask=exists)
    tl.store(out + 2 * size, sum_xx, mask=exists)
    tl.store(out + 3 * size, sum_yy, mask=exists)
    tl.store(out + 4 * size, sum_xy, mask=exists)


@triton.jit(do_not_specialize=[*_SIZES, "border"])
def _value(
    image,  # [height, row]
    target,  # [height, row]
    window,  # [WINDOW]
    blurred,  # [5, height, row], from _blur_products
    derivatives,  # [3, height, row]: of SSIM by the blurs of x, x^2 and x y; written
    partials,  # [programs]: parts of the loss; written
    height,
    row,
    border,
    lambda_dssim,
    l1_scale,
    ssim_scale,
    c1,
    c2,
    WITH_DERIVATIVES: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    size = height * row
    mean_x = _along_column(blurred, r, c, height, row, window, WINDOW, ROWS, COLUMNS)
    mean_y = _along_column(blurred + size, r, c, height, row, window, WINDOW, ROWS, COLUMNS)
    xx = _along_column(blurred + 2 * size, r, c, height, row, window, WINDOW, ROWS, COLUMNS)
    yy = _along_column(blurred + 3 * size, r, c, height, row, window, WINDOW, ROWS, COLUMNS)
    xy = _along_column(blurred + 4 * size, r, c, height, row, window, WINDOW, ROWS, COLUMNS)
    a1 = 2.0 * mean_x * mean_y + c1
    a2 = 2.0 * (xy - mean_x * mean_y) + c2
    b1 = mean_x * mean_x + mean_y * mean_y + c1
    b2 = xx - mean_x * mean_x + yy - mean_y * mean_y + c2
    ssim = a1 * a2 / (b1 * b2)
    counted = (r >= border) & (r < height - border) & (c >= 3 * border) & (c < row - 3 * border)
    exists = (r < height) & (c < row)
    here = r * row + c
    if WITH_DERIVATIVES:
        by_xx = -ssim / b2
        by_xy = 2.0 * a1 / (b1 * b2)
        by_mean = 2.0 * mean_y * a2 / (b1 * b2) - 2.0 * mean_x * ssim / b1 - 2.0 * mean_x * by_xx - mean_y * by_xy
        # Excluded windows contribute no derivatives.
        tl.store(derivatives + here, tl.where(counted, by_mean, 0.0), mask=exists)
        tl.store(derivatives + size + here, tl.where(counted, by_xx, 0.0), mask=exists)
        tl.store(derivatives + 2 * size + here, tl.where(counted, by_xy, 0.0), mask=exists)
    x = tl.load(image + here, mask=exists, other=0.0)
    y = tl.load(target + here, mask=exists, other=0.0)
    part = l1_scale * tl.abs(x - y) - ssim_scale * tl.where(counted, ssim, 0.0)
    total = tl.sum(tl.sum(part, axis=1), axis=0)
    # The sum of all parts is (1 - lambda) L1 + lambda (1 - SSIM).
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partials + program, total + tl.where(program == 0, lambda_dssim, 0.0))


@triton.jit(do_not_specialize=_SIZES)
def _blur_derivatives(
    derivatives,  # [3, height, row], from _value
    window,  # [WINDOW]
    blurred,  # [3, height, row]: blurred along the rows; written
    height,
    row,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    exists = (r < height) & (c < row)
    size = height * row
    for plane in tl.static_range(3):
        total = _along_row(derivatives + plane * size, r, c, height, row, window, WINDOW, ROWS, COLUMNS)
        tl.store(blurred + plane * size + r * row + c, total, mask=exists)


@triton.jit(do_not_specialize=_SIZES)
def _gradient(
    image,  # [height, row]
    target,  # [height, row]
    window,  # [WINDOW]
    blurred,  # [3, height, row], from _blur_derivatives
    upstream,  # []: derivative by the loss
    gradient,  # [height, row]; written
    height,
    row,
    l1_scale,
    ssim_scale,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    size = height * row
    by_mean = _along_column(blurred, r, c, height, row, window, WINDOW, ROWS, COLUMNS)
    by_xx = _along_column(blurred + size, r, c, height, row, window, WINDOW, ROWS, COLUMNS)
    by_xy = _along_column(blurred + 2 * size, r, c, height, row, window, WINDOW, ROWS, COLUMNS)
    exists = (r < height) & (c < row)
    here = r * row + c
    x = tl.load(image + here, mask=exists, other=0.0)
    y = tl.load(target + here, mask=exists, other=0.0)
    sign = tl.where(x > y, 1.0, tl.where(x < y, -1.0, 0.0))
    total = l1_scale * sign - ssim_scale * (by_mean + 2.0 * x * by_xx + y * by_xy)
    tl.store(gradient + here, tl.load(upstream) * total, mask=exists)


class TritonPhotometricLoss(torch.autograd.Function):
    """``losses.photometric_loss`` for float32 images, differentiable in the image only."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        target: Tensor,
        lambda_dssim: float,
        border: int,
        window: Sequence[float],
        constants: tuple[float, float],
    ) -> Tensor:
        """The loss of two [H, W, 3] images.

        Args:
            image, target, lambda_dssim: as in ``losses.photometric_loss``.
            border: number of pixels on each side whose windows are excluded from SSIM.
            window: weights of the window along one axis; their number is odd.
            constants: C1 and C2 of SSIM.
        """
        image, target = image.detach().contiguous(), target.contiguous()
        height, width = image.shape[:2]
        weights = _on_device(tuple(window), image.device)
        counted = 3 * (height - 2 * border) * (width - 2 * border)
        scales = float(1.0 - lambda_dssim) / image.numel(), float(lambda_dssim) / counted
        grid = triton.cdiv(3 * width, _TILE["COLUMNS"]), triton.cdiv(height, _TILE["ROWS"])
        size = {"height": height, "row": 3 * width, "WINDOW": len(window), **_TILE}
        blurred = image.new_empty((5, *image.shape))
        _blur_products[grid](image, target, weights, blurred, **size)
        with_derivatives = ctx.needs_input_grad[0]
        derivatives = image.new_empty((3, *image.shape) if with_derivatives else (1,))
        partials = image.new_empty(grid[0] * grid[1])
        _value[grid](
            image,
            target,
            weights,
            blurred,
            derivatives,
            partials,
            border=border,
            lambda_dssim=float(lambda_dssim),
            l1_scale=scales[0],
            ssim_scale=scales[1],
            c1=constants[0],
            c2=constants[1],
            WITH_DERIVATIVES=with_derivatives,
            **size,
        )
        ctx.save_for_backward(image, target, weights, derivatives)
        ctx.scales, ctx.grid, ctx.size = scales, grid, size
        return partials.sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """The gradient by the image; None for the other arguments."""
        image, target, weights, derivatives = ctx.saved_tensors
        blurred, gradient = torch.empty_like(derivatives), torch.empty_like(image)
        _blur_derivatives[ctx.grid](derivatives, weights, blurred, **ctx.size)
        l1_scale, ssim_scale = ctx.scales
        _gradient[ctx.grid](
            image,
            target,
            weights,
            blurred,
            upstream.contiguous(),
            gradient,
            l1_scale=l1_scale,
            ssim_scale=ssim_scale,
            **ctx.size,
        )
        return gradient, None, None, None, None, None


@functools.cache
def _on_device(window: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(window, dtype=torch.float32).to(device)
