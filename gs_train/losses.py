"""The photometric loss, SSIM and PSNR, wherever the tensors are: plain torch, and for training on a CPU a pair of fused kernels.

SSIM follows Wang et al. 2004 with the original trainer's constants: window 11, sigma 1.5, C1 = 0.01**2, C2 = 0.03**2, per channel, for
values in 0..1. A depthwise convolution costs more than the whole rasterizer on a CPU, so the Gaussian window is applied as small matrix
products: 32 outputs from 42 inputs at a time. The invariant: torch and kernels compute the same value and the same gradient.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor

Padding = Literal["same", "valid"]
WINDOW = 11
HIGHEST_PSNR = 100.0
"""dB; what a match without error counts for where PSNRs are averaged, because the mean would be infinite otherwise."""
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_BLOCK = 32  # Outputs per matrix product; the products' cost grows with it, their number shrinks.


@functools.cache
def _band(device: torch.device, dtype: torch.dtype) -> Tensor:
    """[_BLOCK + WINDOW - 1, _BLOCK]: the Gaussian window, shifted by one from column to column."""
    x = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-0.5 * (x / _SIGMA) ** 2)
    window /= window.sum()
    band = torch.zeros(_BLOCK + WINDOW - 1, _BLOCK, dtype=torch.float64)
    for column in range(_BLOCK):
        band[column : column + WINDOW, column] = window
    return band.to(device=device, dtype=dtype)


def _blur_rows(planes: Tensor) -> Tensor:
    """[B, H, W] -> [B, W, H]: convolved along W, zeros beyond the border, and transposed, so that twice this is the whole blur."""
    count, height, width = planes.shape
    blocks, halo = -(-width // _BLOCK), WINDOW // 2
    padded = torch.nn.functional.pad(planes, (halo, blocks * _BLOCK - width + halo))
    # One large product: a batched one runs a slow path over strided windows.
    windows = padded.unfold(-1, _BLOCK + WINDOW - 1, _BLOCK).reshape(-1, _BLOCK + WINDOW - 1)
    blurred = (windows @ _band(planes.device, planes.dtype)).view(count, height, -1)[..., :width]
    return blurred.transpose(1, 2).contiguous()


def _blur(planes: Tensor) -> Tensor:
    """[B, H, W] -> [B, H, W], convolved with the window along both axes."""
    return _blur_rows(_blur_rows(planes))


def _ssim_terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SSIM map and its derivatives by blur(x), blur(x**2), blur(x * y); planes [3, H, W]."""
    mean_x, mean_y, xx, yy, xy = _blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    a1, a2 = 2 * mean_x * mean_y + _C1, 2 * (xy - mean_x * mean_y) + _C2
    b1, b2 = mean_x**2 + mean_y**2 + _C1, xx - mean_x**2 + yy - mean_y**2 + _C2
    ssim = a1 * a2 / (b1 * b2)
    by_xx, by_xy = -ssim / b2, 2 * a1 / (b1 * b2)
    by_mean = 2 * mean_y * a2 / (b1 * b2) - 2 * mean_x * ssim / b1 - 2 * mean_x * by_xx - mean_y * by_xy
    return ssim, by_mean, by_xx, by_xy


class _PhotometricLoss(torch.autograd.Function):
    """The loss with its gradient, which shares all blurs but three with it."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, lambda_dssim: float, padding: Padding) -> Tensor:
        kinds = [(tuple(t.shape), t.dtype, t.device) for t in (image, target)]
        if image.dim() != 3 or image.shape[2] != 3 or kinds[0] != kinds[1]:
            message = " and ".join(f"{shape} {dtype} on {device}" for shape, dtype, device in kinds)
            raise ValueError(f"image and target must both be [H, W, 3], of one dtype and on one device, not {message}")
        border = _border(image, padding)
        if image.device.type == "cpu" and image.dtype == torch.float32:
            # Imported here, so that a CUDA machine does not wait for the compiler of CPU kernels.
            from gs_train.kernels.ssim import photometric_loss_and_gradient

            pixels = image.detach().contiguous().numpy(), target.contiguous().numpy()
            value, gradient_pixels = photometric_loss_and_gradient(*pixels, lambda_dssim, border)
            ctx.save_for_backward(torch.from_numpy(gradient_pixels))
            return torch.tensor(value, dtype=torch.float32)
        x, y = image.permute(2, 0, 1).contiguous(), target.permute(2, 0, 1).contiguous()
        ssim, *derivatives = _ssim_terms(x, y)
        ssim = _inner(ssim, border)
        difference = x - y
        if ctx.needs_input_grad[0]:
            # Windows that do not count have no derivatives.
            padded = torch.nn.functional.pad(_inner(torch.cat(derivatives), border), (border,) * 4)
            blurred_mean, blurred_xx, blurred_xy = _blur(padded).chunk(3)
            ssim_grad = blurred_mean + 2 * x * blurred_xx + y * blurred_xy
            gradient = (1 - lambda_dssim) / x.numel() * difference.sign() - lambda_dssim / ssim.numel() * ssim_grad
            ctx.save_for_backward(gradient.permute(1, 2, 0).contiguous())
        return (1 - lambda_dssim) * difference.abs().mean() + lambda_dssim * (1 - ssim.mean())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None


def photometric_loss(image: Tensor, target: Tensor, lambda_dssim: float, padding: Padding = "same") -> Tensor:
    """(1 - lambda) * L1 + lambda * (1 - SSIM); Kerbl et al. 2023, eq. 7. Differentiable in ``image`` only.

    Args:
        image: [H, W, 3] rendered, float.
        target: [H, W, 3] in 0..1, same dtype and device.
        lambda_dssim: weight of the SSIM part, 0..1.
        padding: for SSIM, as in ``ssim``; the L1 part is over all pixels.

    Returns:
        Scalar.

    Raises:
        ValueError: the two do not fit together, or ``valid`` for an image smaller than the window.
    """
    return _PhotometricLoss.apply(image, target, lambda_dssim, padding)  # type: ignore[no-any-return]


def apply_mask(image: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The image with the target in its place where the weight is 0, and between the two where it is between 0 and 1.

    Whatever is then compared with the target, pixel by pixel or over windows, sees no error where nothing counts; and the gradient that
    reaches the image, and with it whatever density control makes of it, is multiplied by the weight.

    Args:
        image: [H, W, 3] rendered.
        target: [H, W, 3].
        weight: [H, W, 1] in 0..1; None for 1 throughout, which costs nothing.
    """
    return image if weight is None else torch.lerp(target, image, weight)


def warm_up() -> None:
    """Take the loss of a small image on the CPU, so that its kernels are there."""
    image = torch.zeros(1, 1, 3)
    photometric_loss(image, image, 0.5)


def ssim(image: Tensor, target: Tensor, padding: Padding) -> Tensor:
    """Mean SSIM of two [H, W, 3] images in 0..1: ``same`` pads with zeros (training), ``valid`` keeps whole windows only (evaluation).

    Raises:
        ValueError: ``valid`` for an image smaller than the window.
    """
    return _inner(_ssim_terms(image.permute(2, 0, 1), target.permute(2, 0, 1))[0], _border(image, padding)).mean()


def _border(image: Tensor, padding: Padding) -> int:
    """Pixels on each side of [H, W, 3] whose windows do not count."""
    if padding == "same":
        return 0
    if min(image.shape[:2]) < WINDOW:
        raise ValueError(
            f"SSIM on the valid region needs at least {WINDOW} pixels each way, not {tuple(image.shape[:2])}"
        )
    return WINDOW // 2


def _inner(planes: Tensor, border: int) -> Tensor:
    """[B, H, W] without the border."""
    return planes[:, border : planes.shape[1] - border, border : planes.shape[2] - border]


def psnr(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB of two [H, W, 3] images in 0..1, over the pixels that count by ``weight`` [H, W, 1], if given."""
    squared = (image - target).square()
    if weight is None:
        return -10.0 * torch.log10(squared.mean())
    return -10.0 * torch.log10((weight * squared).sum() / (image.shape[2] * weight.sum()).clamp_min(1e-12))
