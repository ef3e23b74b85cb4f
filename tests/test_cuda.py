"""The CPU kernels against gsplat's CUDA kernels on the same inputs. Equal results let a run move between machines.

The tests need an NVIDIA GPU and skip without one. Both sides compute in float32 and in different orders. At a pixel
whose alpha or transmittance is next to a threshold (alpha 1/255 or 0.999, transmittance 1e-4), they may decide
differently. The float64 reference finds these pixels. They are excluded from the comparison and from the loss, and the
tests check that they are few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gs_train.cameras.camera import Camera
from gs_train.model.gaussians import GaussianModel
from gs_train.render import gsplat_cuda
from gs_train.render.reference import render_reference
from gs_train.render.select import select_rasterizer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats")
# Relative and absolute tolerances of gsplat's own tests of its CUDA gradients. The absolute tolerances assume gradients
# of size one, so the test scales the gradients.
GRADIENT_TOLERANCE = {
    "means": (1e-2, 6e-2),
    "quats": (2e-1, 2e-2),
    "scales": (5e-1, 2e-1),
    "opacities": (8e-3, 6e-3),
    "colors": (1e-3, 1e-3),
    "viewmats": (2e-3, 2e-3),
}
CAMERA = Camera(width=150, height=100, fx=120.0, fy=125.0, cx=70.0, cy=55.0)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    fault = gsplat_cuda.why_unusable(print)
    if fault is not None:
        pytest.skip(fault)


@dataclass(frozen=True)
class Rendered:
    """The output of one rasterizer, copied to the CPU."""

    image: Tensor
    """[H, W, 3]"""
    alpha: Tensor
    """[H, W, 1]"""
    gradients: dict[str, Tensor]
    """Gradients of the inputs, by argument name."""
    meta: dict[str, Any]
    """The third return value, on the rasterizer's device."""


def random_scene(seed: int, count: int, sh_degree: int) -> dict[str, Tensor]:
    """Arguments of gsplat.rasterization: Gaussians in front of, beside and behind a tilted camera and half outside its
    image, some nearly opaque."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    means = torch.cat([uniform(count, 2, low=-2.5, high=2.5), uniform(count, 1, low=-1.0, high=5.0)], dim=1)
    angle = torch.tensor(0.3)
    viewmat = torch.eye(4)
    viewmat[0, 0] = viewmat[2, 2] = torch.cos(angle)
    viewmat[0, 2] = torch.sin(angle)
    viewmat[2, 0] = -torch.sin(angle)
    viewmat[:3, 3] = torch.tensor([0.1, -0.2, 0.5])
    opacities = uniform(count, low=0.02, high=0.95)
    opacities[: count // 4] = 0.9999
    return {
        "means": means,
        "quats": torch.randn(count, 4, generator=generator),
        "scales": uniform(count, 3, low=-3.5, high=-0.7).exp(),
        "opacities": opacities,
        "colors": torch.randn(count, (sh_degree + 1) ** 2, 3, generator=generator) * 0.4,
        "viewmats": viewmat[None],
    }


def rasterize(
    function: Callable[..., Any], device: str, scene: dict[str, Tensor], sh_degree: int, weights: Tensor
) -> Rendered:
    """Render with ``function``. The loss is the sum of image and alpha, weighted by ``weights`` [H, W, 4]."""
    leaves = {name: scene[name].to(device, copy=True).requires_grad_() for name in NAMES}
    camera = CAMERA
    intrinsics = torch.tensor(
        [[camera.fx, 0.0, camera.cx], [0.0, camera.fy, camera.cy], [0.0, 0.0, 1.0]], device=device
    )
    size = {"width": camera.width, "height": camera.height}
    colours, alphas, meta = function(**leaves, Ks=intrinsics[None], **size, sh_degree=sh_degree, packed=False)
    image, alpha = colours[0], alphas[0]
    (torch.cat([image, alpha], dim=-1) * weights.to(device)).sum().backward()
    gradients = {name: leaf.grad.cpu() for name, leaf in leaves.items() if leaf.grad is not None}
    return Rendered(image.detach().cpu(), alpha.detach().cpu(), gradients, meta)


def far_from_cuts(scene: dict[str, Tensor], sh_degree: int) -> Tensor:
    """[H, W] bool: at this pixel, no alpha and no transmittance of the float64 reference is near a threshold."""
    means, quats, scales, opacities, colours, viewmats = (scene[name].double() for name in NAMES)
    reference = render_reference(
        means=means,
        quats=quats,
        scales=scales,
        opacities=opacities,
        sh=colours,
        sh_degree=sh_degree,
        view=viewmats[0],
        camera=CAMERA,
        background=torch.zeros(3, dtype=torch.float64),
    )
    return reference.margin > 5e-3


def both(scene: dict[str, Tensor], sh_degree: int) -> tuple[Rendered, Rendered, Tensor]:
    """The outputs of the CPU kernels and of gsplat, and the [H, W] mask of comparable pixels."""
    import gsplat

    from gs_train.render.cpu import rasterization

    sound = far_from_cuts(scene, sh_degree)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(CAMERA.height, CAMERA.width, 4, generator=generator) * sound[:, :, None]
    ours = rasterize(rasterization, "cpu", scene, sh_degree, weights)
    theirs = rasterize(gsplat.rasterization, "cuda", scene, sh_degree, weights)
    return ours, theirs, sound


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_image_and_gradients_agree(sh_degree: int) -> None:
    ours, theirs, sound = both(random_scene(seed=sh_degree, count=400, sh_degree=sh_degree), sh_degree)
    assert sound.float().mean() > 0.9
    torch.testing.assert_close(ours.image[sound], theirs.image[sound], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.alpha[sound], theirs.alpha[sound], rtol=1e-4, atol=1e-4)
    for name in NAMES:
        relative, absolute = GRADIENT_TOLERANCE[name]
        ours_here, expected = ours.gradients[name], theirs.gradients[name]
        if name == "viewmats":
            # The last row of a pose is constant, so its gradient has no meaning.
            ours_here, expected = ours_here[:, :3], expected[:, :3]
        # Scale to a root mean square of one, so that the absolute tolerance means the same for every input.
        size = expected.square().mean().sqrt()
        assert size > 0
        torch.testing.assert_close(
            ours_here / size,
            expected / size,
            rtol=relative,
            atol=absolute,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_visible_rows_agree() -> None:
    ours, theirs, _ = both(random_scene(seed=7, count=400, sh_degree=0), 0)
    seen_by_us = (ours.meta["radii"][0] > 0).all(dim=-1)
    seen_by_gsplat = (theirs.meta["radii"][0] > 0).all(dim=-1).cpu()
    # Radii are rounded up, so a Gaussian that just touches the border may be visible on one side only.
    assert (seen_by_us != seen_by_gsplat).sum() <= 1
    either = seen_by_us & seen_by_gsplat
    assert 0 < either.sum() < len(either)
    for key in ("means2d", "depths"):
        torch.testing.assert_close(
            ours.meta[key][0][either].detach(), theirs.meta[key][0].detach().cpu()[either], rtol=1e-4, atol=1e-3
        )


def model_on(device: torch.device | str) -> GaussianModel:
    scene = random_scene(seed=11, count=300, sh_degree=3)
    tensors = {
        "xyz": scene["means"],
        "f_dc": scene["colors"][:, :1],
        "f_rest": scene["colors"][:, 1:],
        "opacity": torch.logit(scene["opacities"].clamp(max=0.95))[:, None],
        "scaling": scene["scales"].log(),
        "rotation": scene["quats"],
    }
    return GaussianModel({name: tensor.to(device).contiguous() for name, tensor in tensors.items()}, active_sh_degree=2)


def test_both_rasterizers_give_the_same_image_and_screen_gradient() -> None:
    """Compares the image over a background, and the screen-space gradient that density control uses."""
    view = random_scene(seed=11, count=1, sh_degree=0)["viewmats"][0]
    outputs = []
    for device in ("cpu", "cuda"):
        selection = select_rasterizer(device, print)
        model = model_on(selection.device)
        background = torch.tensor([0.2, 0.5, 0.9], device=selection.device)
        output = selection.rasterizer.render(model, CAMERA, view.to(selection.device), background)
        output.image.square().sum().backward()
        gradient = output.screen_gradient()
        assert gradient is not None
        outputs.append((output.image.detach().cpu(), gradient.cpu(), output.visible().cpu()))
    (image, gradient, visible), (their_image, their_gradient, theirs_visible) = outputs
    # The test compares whole images, so it tolerates a few pixels next to a threshold.
    assert ((image - their_image).abs() > 1e-4).float().mean() < 0.02
    assert (image - their_image).abs().max() < 0.05
    either = visible & theirs_visible
    difference = (gradient[either] - their_gradient[either]).norm() / their_gradient[either].norm()
    assert difference < 2e-2
