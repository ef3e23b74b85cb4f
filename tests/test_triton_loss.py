"""The Triton kernels of the loss against the CPU kernels: in Triton's interpreter, and on a GPU if there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gs_train import losses

CASES = [
    *((height, width, "same") for height, width in [(1, 1), (5, 7), (12, 43), (33, 65)]),
    *((height, width, "valid") for height, width in [(11, 11), (13, 50)]),
]


def compare(device: str) -> list[tuple[float, float]]:
    """For every case, the difference of the losses, and the largest difference of the gradients relative to the largest
    gradient. A third of the pixels is masked, and some pixels are equal to their target."""
    differences = []
    for height, width, padding in CASES:
        generator = torch.Generator().manual_seed(1000 * height + width)
        photo = torch.rand(height, width, 3, generator=generator)
        render = (photo + 0.2 * torch.randn(height, width, 3, generator=generator)).round(decimals=1)
        weight = (torch.rand(height, width, 1, generator=generator) * 1.5).clamp(max=1.0).round(decimals=1)
        results = []
        for where in ("cpu", device):
            image = render.to(where, copy=True).requires_grad_()
            target = photo.to(where)
            loss_of = losses.photometric_loss if where == "cpu" and not results else fused_loss
            loss = loss_of(losses.apply_mask(image, target, weight.to(where)), target, 0.2, padding)
            (3.0 * loss).backward()
            results.append((loss.detach().cpu(), image.grad.cpu()))
        (expected, expected_gradient), (loss, gradient) = results
        largest = expected_gradient.abs().max()
        differences.append(
            (float((loss - expected).abs()), float((gradient - expected_gradient).abs().max() / largest))
        )
    return differences


def fused_loss(image: torch.Tensor, target: torch.Tensor, lambda_dssim: float, padding: losses.Padding) -> torch.Tensor:
    """``photometric_loss`` by the Triton kernels, wherever the images lie."""
    return losses._by_triton(image, target, lambda_dssim, losses._border(image, padding))


def check(differences: list[tuple[float, float]]) -> None:
    assert len(differences) == len(CASES)
    for case, (value, gradient) in zip(CASES, differences, strict=True):
        assert value < 1e-6 and gradient < 1e-5, case


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (Linux only)")
def test_the_kernels_agree_with_the_cpu_in_the_interpreter() -> None:
    """A process of its own, because Triton chooses its interpreter when it is imported. Its start takes seconds."""
    program = (
        "import json, test_triton_loss as here, gs_train.triton_loss as kernels; "
        "kernels._TILE.update(ROWS=64, COLUMNS=256); print(json.dumps(here.compare('cpu')))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_kernels_agree_with_the_cpu_on_a_gpu() -> None:
    assert losses._triton_fault() is None
    check(compare("cuda"))


def test_a_gpu_without_triton_uses_torch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_triton_fault", lambda: "Triton does not work (no C compiler)")
    said: list[str] = []
    losses.prepare(torch.device("cuda"), said.append)
    losses.prepare(torch.device("cpu"), said.append)
    assert len(said) == 1 and "plain torch operators" in said[0] and "no C compiler" in said[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_fault_of_triton_is_a_phrase() -> None:
    losses._triton_fault.cache_clear()
    try:
        fault = losses._triton_fault()
    finally:
        losses._triton_fault.cache_clear()
    assert fault is not None and fault.startswith("Triton does not work (") and "\n" not in fault
