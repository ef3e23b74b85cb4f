"""The Triton kernels of the colours against gsplat's reference in torch: in Triton's interpreter, and on a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gs_train.render import gsplat_cuda

CASES = [(highest, degree) for highest in (3, 2) for degree in range(highest + 1)] + [(0, 0)]


def compare(device: str) -> list[dict[str, float]]:
    """For every case, the largest difference of a colour, and differences of gradients relative to their norms."""
    from gsplat.cuda._torch_impl import _spherical_harmonics

    from gs_train.render.triton_colours import TritonColours

    generator, view = torch.Generator().manual_seed(1), torch.eye(4)
    angle = torch.tensor(0.3)
    view[0, 0] = view[2, 2] = angle.cos()
    view[0, 2], view[2, 0] = angle.sin(), -angle.sin()
    view[:3, 3] = torch.tensor([0.1, -0.2, 1.5])
    differences = []
    for highest, degree in CASES:
        shapes = ((3,), (1, 3), ((highest + 1) ** 2 - 1, 3))
        splat = [torch.randn(50, *shape, generator=generator) for shape in shapes]
        radii = torch.randint(0, 3, (1, 50, 2), generator=generator, dtype=torch.int32)
        upstream = torch.randn(1, 50, 3, generator=generator)

        exact = [tensor.double().requires_grad_() for tensor in splat]
        directions = exact[0] + (view[:3, 3] @ view[:3, :3]).double()
        expected = _spherical_harmonics(degree, directions[None], torch.cat(exact[1:], dim=1)[None])
        visible = (radii > 0).all(dim=-1)[..., None]
        expected = torch.where(visible, (expected + 0.5).clamp(min=0.0), 0.0)
        (expected * upstream).sum().backward()

        inputs = [tensor.to(device, copy=True).requires_grad_() for tensor in splat]
        colours = TritonColours.apply(*inputs, view.to(device), radii.to(device), degree)
        (colours * upstream.to(device)).sum().backward()
        figures = {"colours": float((colours.detach().cpu() - expected.detach()).abs().max())}
        for name, tensor, truth in zip(("xyz", "f_dc", "f_rest"), inputs, exact, strict=True):
            gradient = torch.zeros_like(truth) if truth.grad is None else truth.grad
            figures[name] = float((tensor.grad.cpu() - gradient).norm() / gradient.norm().clamp(min=1e-6))
        differences.append(figures)
    return differences


def check(differences: list[dict[str, float]]) -> None:
    assert len(differences) == len(CASES)
    for case, figures in zip(CASES, differences, strict=True):
        assert max(figures.values()) < 1e-5, (case, figures)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (Linux only)")
def test_the_kernels_agree_with_gsplat_in_the_interpreter() -> None:
    """A process of its own, because Triton chooses its interpreter when it is imported. Its start takes seconds."""
    pytest.importorskip("gsplat", reason="gsplat is not installed")
    done = subprocess.run(
        [sys.executable, "-c", "import json, test_triton_colours as here; print(json.dumps(here.compare('cpu')))"],
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_kernels_agree_with_gsplat_on_a_gpu() -> None:
    fault = gsplat_cuda.why_unusable(print)
    if fault is not None:
        pytest.skip(fault)
    assert gsplat_cuda.triton_colours() is not None
    check(compare("cuda"))
