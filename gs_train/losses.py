"""The photometric loss, SSIM and PSNR: in plain torch on any device, and the loss in fused kernels for training.

SSIM follows Wang et al. 2004 with the original trainer's constants: window 11, sigma 1.5, C1 = 0.01**2, C2 = 0.03**2,
per channel, for values in 0..1. On a CPU a depthwise convolution costs more than the whole rasterizer, so the Gaussian
window is applied as small matrix products, 32 outputs from 42 inputs at a time. Torch, the CPU kernels
(``kernels.ssim``) and the GPU kernels (``triton_loss``) compute the same value and the same gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import record_function

Padding = Literal["same", "valid"]
WINDOW = 11
HIGHEST_PSNR = 100.0
"""dB; the value of a perfect match in a mean of PSNRs, because its true value is infinite."""
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_BLOCK = 32  # outputs per matrix product: a larger block means fewer but more expensive products


def _window() -> Tensor:
    """[WINDOW] float64 weights of the Gaussian window along one axis; their sum is 1."""
    x = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-0.5 * (x / _SIGMA) ** 2)
    return window / window.sum()


@functools.cache
def _band(device: torch.device, dtype: torch.dtype) -> Tensor:
    """[_BLOCK + WINDOW - 1, _BLOCK]: each column is the Gaussian window, shifted by one row from the column before."""
    window = _window()
    band = torch.zeros(_BLOCK + WINDOW - 1, _BLOCK, dtype=torch.float64)
    for column in range(_BLOCK):
        band[column : column + WINDOW, column] = window
    return band.to(device=device, dtype=dtype)


def _blur_rows(planes: Tensor) -> Tensor:
    """[B, H, W] -> [B, W, H]: convolve along W with zero padding, then transpose. Two calls are the full blur."""
    count, height, width = planes.shape
    blocks, halo = -(-width // _BLOCK), WINDOW // 2
    padded = torch.nn.functional.pad(planes, (halo, blocks * _BLOCK - width + halo))
    # One large product, because torch's batched product is slow on strided windows.
    windows = padded.unfold(-1, _BLOCK + WINDOW - 1, _BLOCK).reshape(-1, _BLOCK + WINDOW - 1)
    blurred = (windows @ _band(planes.device, planes.dtype)).view(count, height, -1)[..., :width]
    return blurred.transpose(1, 2).contiguous()


def _blur(planes: Tensor) -> Tensor:
    """[B, H, W] -> [B, H, W]: convolve with the window along both axes."""
    return _blur_rows(_blur_rows(planes))


def _ssim_terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SSIM map and its derivatives with respect to blur(x), blur(x**2) and blur(x * y); all planes are [3, H, W]."""
    mean_x, mean_y, xx, yy, xy = _blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    a1, a2 = 2 * mean_x * mean_y + _C1, 2 * (xy - mean_x * mean_y) + _C2
    b1, b2 = mean_x**2 + mean_y**2 + _C1, xx - mean_x**2 + yy - mean_y**2 + _C2
    ssim = a1 * a2 / (b1 * b2)
    by_xx, by_xy = -ssim / b2, 2 * a1 / (b1 * b2)
    by_mean = 2 * mean_y * a2 / (b1 * b2) - 2 * mean_x * ssim / b1 - 2 * mean_x * by_xx - mean_y * by_xy
    return ssim, by_mean, by_xx, by_xy


class _PhotometricLoss(torch.autograd.Function):
    """The loss and its gradient. The gradient reuses the loss's blurs and needs only three more."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, lambda_dssim: float, border: int) -> Tensor:
        if image.device.type == "cpu" and image.dtype == torch.float32:
            # Imported here, because importing Numba takes a second and a CUDA machine does not need it.
            from gs_train.kernels.ssim import photometric_loss_and_gradient

            pixels = image.detach().contiguous().numpy(), target.contiguous().numpy()
            with record_function("gs_train::loss"):
                value, gradient_pixels = photometric_loss_and_gradient(*pixels, lambda_dssim, border)
            ctx.save_for_backward(torch.from_numpy(gradient_pixels))
            return torch.tensor(value, dtype=torch.float32)
        x, y = image.permute(2, 0, 1).contiguous(), target.permute(2, 0, 1).contiguous()
        ssim, *derivatives = _ssim_terms(x, y)
        ssim = _inner(ssim, border)
        difference = x - y
        if ctx.needs_input_grad[0]:
            # Excluded windows contribute no derivatives.
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
        padding: for SSIM, as in ``ssim``; the L1 part counts all pixels.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes, dtypes or devices differ, or ``valid`` for an image smaller than the window.
    """
    kinds = [(tuple(t.shape), t.dtype, t.device) for t in (image, target)]
    if image.dim() != 3 or image.shape[2] != 3 or kinds[0] != kinds[1]:
        message = " and ".join(f"{shape} {dtype} on {device}" for shape, dtype, device in kinds)
        raise ValueError(f"image and target must both be [H, W, 3], of one dtype and on one device, not {message}")
    border = _border(image, padding)
    if image.is_cuda and image.dtype == torch.float32 and _triton_fault() is None:
        return _by_triton(image, target, lambda_dssim, border)
    return _PhotometricLoss.apply(image, target, lambda_dssim, border)  # type: ignore[no-any-return]


def _by_triton(image: Tensor, target: Tensor, lambda_dssim: float, border: int) -> Tensor:
    """The loss by the Triton kernels."""
    from gs_train.triton_loss import TritonPhotometricLoss

    loss: Tensor = TritonPhotometricLoss.apply(image, target, lambda_dssim, border, _weights(), (_C1, _C2))
    return loss


@functools.cache
def _weights() -> tuple[float, ...]:
    return tuple(_window().tolist())


@functools.cache
def _triton_fault() -> str | None:
    """Why Triton's kernels do not work on this machine's GPU, as a phrase; None if they do. Compiles them."""
    pixels = torch.linspace(0.0, 1.0, 3 * WINDOW**2).view(WINDOW, WINDOW, 3)
    expected = pixels.double().requires_grad_()
    try:
        on_gpu = pixels.cuda().requires_grad_()
        for image, loss_of in ((expected, _PhotometricLoss.apply), (on_gpu, _by_triton)):
            loss_of(image, image.detach().flip(0), 0.5, 0).backward()
        assert expected.grad is not None and on_gpu.grad is not None
        agrees = torch.allclose(on_gpu.grad.double().cpu(), expected.grad, rtol=1e-3, atol=1e-5)
        return None if agrees else "Triton's kernels compute another gradient"
    # Triton starts a C compiler and the driver, and every part raises exceptions of its own.
    except Exception as error:
        return f"Triton does not work ({(str(error).strip() or type(error).__name__).splitlines()[0]})"


def prepare(device: torch.device, notify: Callable[[str], None]) -> None:
    """Compile the loss's kernels for ``device``, if it is a GPU. Tells if it needs the slower operators of torch."""
    if device.type == "cuda":
        fault = _triton_fault()
        if fault is not None:
            notify(f"The loss runs on plain torch operators, which makes a step about 3 ms longer: {fault}.")


def apply_mask(image: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Replace masked pixels of the render by the target's, so that they cause no error; partial weights interpolate.

    A loss on the result, per pixel or over windows, has no error at pixels of weight 0. The gradient that reaches the
    image, and through it density control, is multiplied by the weight.

    Args:
        image: [H, W, 3] rendered.
        target: [H, W, 3].
        weight: [H, W, 1] in 0..1, 0 for masked pixels; None for no mask, which costs nothing.

    Returns:
        [H, W, 3], weight * image + (1 - weight) * target.
    """
    return image if weight is None else torch.lerp(target, image, weight)


def warm_up() -> None:
    """Compute the loss of a tiny image on the CPU, which compiles its kernels."""
    image = torch.zeros(1, 1, 3)
    photometric_loss(image, image, 0.5)


def ssim(image: Tensor, target: Tensor, padding: Padding) -> Tensor:
    """Mean SSIM of two [H, W, 3] images in 0..1.

    Args:
        image, target: [H, W, 3] in 0..1.
        padding: ``same`` pads with zeros (training), ``valid`` counts whole windows only (evaluation).

    Raises:
        ValueError: ``valid`` for an image smaller than the window.
    """
    return _inner(_ssim_terms(image.permute(2, 0, 1), target.permute(2, 0, 1))[0], _border(image, padding)).mean()


def _border(image: Tensor, padding: Padding) -> int:
    """Number of pixels on each side of [H, W, 3] whose windows are excluded."""
    if padding == "same":
        return 0
    if min(image.shape[:2]) < WINDOW:
        raise ValueError(
            f"SSIM on the valid region needs at least {WINDOW} pixels each way, not {tuple(image.shape[:2])}"
        )
    return WINDOW // 2


def _inner(planes: Tensor, border: int) -> Tensor:
    """[B, H, W] -> [B, H - 2 border, W - 2 border]: remove the border."""
    return planes[:, border : planes.shape[1] - border, border : planes.shape[2] - border]


def psnr(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB of two [H, W, 3] images in 0..1; ``weight`` [H, W, 1] weights the pixels."""
    squared = (image - target).square()
    if weight is None:
        return -10.0 * torch.log10(squared.mean())
    return -10.0 * torch.log10((weight * squared).sum() / (image.shape[2] * weight.sum()).clamp_min(1e-12))
