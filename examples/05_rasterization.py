"""Fit Gaussians to a picture with `gs_train.rasterization`, a drop-in for `gsplat.rasterization` on CPU tensors.

    python examples/05_rasterization.py photo.jpg fitted.png

The call has gsplat's argument names, shapes and results, so a program written for gsplat runs on a CPU with this one
import changed.
"""

import sys

import numpy as np
import torch
from PIL import Image

from gs_train import rasterization

SIZE, COUNT = 128, 1000


def main(photo: str, fitted: str, steps: str = "200") -> None:
    with Image.open(photo) as stored:
        target = torch.from_numpy(np.array(stored.convert("RGB").resize((SIZE, SIZE)))).float() / 255.0
    torch.manual_seed(0)
    # Flat Gaussians one unit in front of a camera that sees the square from -0.5 to 0.5.
    means = torch.cat([torch.rand(COUNT, 2) - 0.5, torch.ones(COUNT, 1)], dim=1).requires_grad_()
    scales = torch.full((COUNT, 3), 0.02).log().requires_grad_()
    quats = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(COUNT, 1).requires_grad_()
    opacities = torch.zeros(COUNT, requires_grad=True)
    colors = torch.zeros(COUNT, 3, requires_grad=True)
    intrinsics = torch.tensor([[[SIZE, 0.0, SIZE / 2], [0.0, SIZE, SIZE / 2], [0.0, 0.0, 1.0]]])
    optimizer = torch.optim.Adam([means, scales, quats, opacities, colors], lr=0.02)
    for step in range(int(steps)):
        images, _, _ = rasterization(
            means,
            quats,
            scales.exp(),
            opacities.sigmoid(),
            colors.sigmoid(),
            torch.eye(4)[None],
            intrinsics,
            SIZE,
            SIZE,
        )
        loss = (images[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == int(steps) - 1:
            print(f"step {step}: PSNR {-10 * loss.log10().item():.2f} dB")
    Image.fromarray((images[0].detach().clamp(0.0, 1.0) * 255.0).to(torch.uint8).numpy()).save(fitted)


if __name__ == "__main__":
    main(*sys.argv[1:])
