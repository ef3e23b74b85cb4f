"""SSIM against a direct convolution in float64, and the gradient of the loss against finite differences."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from gs_train.losses import photometric_loss, psnr, ssim


def direct_ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """SSIM map of two [H, W] planes with zero padding, computed from the definition with SciPy."""
    window = [math.exp(-0.5 * ((i - 5) / 1.5) ** 2) for i in range(11)]
    window = [w / sum(window) for w in window]

    def blur(plane: Tensor) -> Tensor:
        once = correlate1d(plane.numpy(), window, axis=0, mode="constant")
        return torch.from_numpy(correlate1d(once, window, axis=1, mode="constant"))

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    return (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))


def images(height: int, width: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(height * 1000 + width)
    x = torch.rand(height, width, 3, generator=g, dtype=torch.float64)
    return x, (x + 0.2 * torch.randn(height, width, 3, generator=g, dtype=torch.float64)).clamp(0, 1)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (32, 42), (33, 70), (64, 11)])
def test_ssim_matches_the_definition(height: int, width: int) -> None:
    x, y = images(height, width)
    expected = torch.stack([direct_ssim_map(x[..., c], y[..., c]) for c in range(3)])
    assert float(ssim(x, y, "same")) == pytest.approx(float(expected.mean()), abs=1e-12)
    if min(height, width) >= 11:
        assert float(ssim(x, y, "valid")) == pytest.approx(float(expected[:, 5:-5, 5:-5].mean()), abs=1e-12)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_loss_value_and_gradient(padding: Literal["same", "valid"]) -> None:
    x, y = images(20, 37)
    x.requires_grad_()
    loss = photometric_loss(x, y, 0.2, padding)
    expected = 0.8 * (x - y).abs().mean() + 0.2 * (1 - ssim(x, y, padding))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-14)
    (gradient,) = torch.autograd.grad(loss * 3.0, x)
    (through_autograd,) = torch.autograd.grad(expected * 3.0, x)
    assert torch.allclose(gradient, through_autograd, rtol=1e-9, atol=1e-15)
    small_x, small_y = images(6, 5)
    assert torch.autograd.gradcheck(lambda v: photometric_loss(v, small_y, 0.2), small_x.requires_grad_())


def test_valid_ssim_refuses_images_smaller_than_the_window() -> None:
    x, y = images(10, 30)
    for refuse in (lambda: ssim(x, y, "valid"), lambda: photometric_loss(x, y, 0.2, "valid")):
        with pytest.raises(ValueError, match="11 pixels"):
            refuse()


def test_images_that_do_not_fit_together_are_refused() -> None:
    image = torch.zeros(20, 30, 3)
    for target in (
        torch.zeros(20, 20, 3),
        torch.zeros(21, 30, 3),
        torch.zeros(20, 30, 3).double(),
        torch.zeros(20, 30, 3).byte(),
    ):
        with pytest.raises(ValueError, match=r"must both be \[H, W, 3\]"):
            photometric_loss(image, target, 0.2)
    for channels in (1, 4):
        with pytest.raises(ValueError, match=r"must both be \[H, W, 3\]"):
            photometric_loss(torch.zeros(20, 30, channels), torch.zeros(20, 30, channels), 0.2)


def test_psnr() -> None:
    assert float(psnr(torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1))) == pytest.approx(20.0, abs=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "padding"),
    [
        *((height, width, "same") for height, width in [(1, 1), (5, 7), (32, 64), (33, 65), (70, 130), (65, 31)]),
        *((height, width, "valid") for height, width in [(11, 11), (12, 33), (33, 65), (70, 130), (64, 32), (75, 42)]),
    ],
)
def test_the_fused_kernels_agree_with_torch(height: int, width: int, padding: Literal["same", "valid"]) -> None:
    x, y = images(height, width)
    single = x.float().requires_grad_()
    loss = photometric_loss(single, y.float(), 0.2, padding)
    loss.backward()
    double = single.detach().double().requires_grad_()
    expected = photometric_loss(double, y.float().double(), 0.2, padding)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-7)
    assert (single.grad - double.grad).abs().max() < 1e-5 * double.grad.abs().max()
