"""``GsplatRasterizer`` against ``CpuRasterizer``: on the double of gsplat's kernels, and on a GPU if there is one."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import gsplat_double
import pytest
import torch
from torch import Tensor

from gs_train.cameras.camera import Camera
from gs_train.model.gaussians import GaussianModel
from gs_train.render import gsplat_cuda
from gs_train.render.cpu.rasterizer import CpuRasterizer
from gs_train.render.types import Rasterizer, RenderOutput

CAMERA = Camera(width=40, height=28, fx=35.0, fy=36.0, cx=17.0, cy=16.5)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Where gsplat's kernels run, and how closely they agree with the CPU's."""

    device: str
    image: float
    """Largest difference of a pixel."""
    gradient: float
    """Norm of the difference of a gradient, relative to the gradient's norm."""


@pytest.fixture(params=["double", pytest.param("cuda", marks=pytest.mark.cuda)])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    if request.param == "double":
        gsplat_double.install(monkeypatch)
        return Kernels(device="cpu", image=1e-5, gradient=1e-4)
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    fault = gsplat_cuda.why_unusable(print)
    if fault is not None:
        pytest.skip(fault)
    # gsplat's kernels use fast approximations of exp and division.
    return Kernels(device="cuda", image=1e-3, gradient=1e-2)


def tensors(seed: int, count: int = 40) -> dict[str, Tensor]:
    """Gaussians in front of, beside and behind the camera at z = -1.5, some across the image's border."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    return {
        "xyz": torch.cat([uniform(count, 2, low=-2.2, high=2.2), uniform(count, 1, low=-3.0, high=5.0)], dim=1),
        "f_dc": torch.randn(count, 1, 3, generator=generator) * 0.4,
        "f_rest": torch.randn(count, 15, 3, generator=generator) * 0.2,
        "opacity": torch.logit(uniform(count, 1, low=0.02, high=0.95)),
        "scaling": uniform(count, 3, low=-2.5, high=-0.7),
        "rotation": torch.randn(count, 4, generator=generator),
    }


def pose() -> Tensor:
    """World to camera: 0.3 rad about y, 1.5 back."""
    angle = torch.tensor(0.3)
    view = torch.eye(4)
    view[0, 0] = view[2, 2] = torch.cos(angle)
    view[0, 2], view[2, 0] = torch.sin(angle), -torch.sin(angle)
    view[:3, 3] = torch.tensor([0.1, -0.2, 1.5])
    return view


def by_rigid_motion(view: Tensor, gradient: Tensor) -> Tensor:
    """[6] gradients by a rotation about each camera axis and by a shift along it."""
    parts = []
    for axis in range(3):
        turn = torch.zeros(4, 4)
        turn[(axis + 1) % 3, (axis + 2) % 3], turn[(axis + 2) % 3, (axis + 1) % 3] = -1.0, 1.0
        parts += [(gradient * (turn @ view)).sum(), gradient[axis, 3]]
    return torch.stack(parts)


def render_and_differentiate(
    rasterizer: Rasterizer, device: str, splat: dict[str, Tensor], sh_degree: int, *, absgrad: bool, depth: bool
) -> tuple[RenderOutput, dict[str, Tensor]]:
    """The render, and the gradients of a loss on image, alpha and depth by every input, on the CPU."""
    model = GaussianModel({name: tensor.to(device) for name, tensor in splat.items()}, active_sh_degree=sh_degree)
    view = pose().to(device).requires_grad_()
    background = torch.tensor([0.2, 0.5, 0.9], device=device, requires_grad=True)
    render = rasterizer.render(model, CAMERA, view, background, absgrad=absgrad, depth=depth)
    loss = render.image.square().sum() + 0.3 * render.alpha.sum()
    if render.depth is not None:
        loss = loss + 0.1 * render.depth.sum()
    loss.backward()
    screen = render.screen_gradient()
    assert view.grad is not None and background.grad is not None and screen is not None
    visible = render.visible()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.parameters.items()}
    gradients |= {"background": background.grad, "screen": screen[visible]}
    gradients["pose"] = by_rigid_motion(pose(), view.grad.cpu())
    if absgrad:
        absolute = render.screen_gradient(absolute=True)
        assert absolute is not None
        gradients["absgrad"] = absolute[visible]
    return render, {name: gradient.cpu() for name, gradient in gradients.items()}


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "absgrad and depth"])
def test_images_and_gradients_agree_with_the_cpu(
    kernels: Kernels, sh_degree: int, antialiased: bool, extras: bool
) -> None:
    splat = tensors(seed=20 + sh_degree)
    arguments = {"absgrad": extras, "depth": extras}
    on_cpu, expected = render_and_differentiate(
        CpuRasterizer(antialiased=antialiased), "cpu", splat, sh_degree, **arguments
    )
    rasterizer = gsplat_cuda.GsplatRasterizer(antialiased=antialiased)
    output, gradients = render_and_differentiate(rasterizer, kernels.device, splat, sh_degree, **arguments)

    assert 5 < on_cpu.visible().sum() < 40
    assert torch.equal(output.visible().cpu(), on_cpu.visible())
    for name in ("image", "alpha"):
        difference = getattr(output, name).detach().cpu() - getattr(on_cpu, name).detach()
        assert difference.abs().max() < kernels.image, name
    assert (output.depth is not None) == extras
    if output.depth is not None and on_cpu.depth is not None:
        difference = output.depth.detach().cpu() - on_cpu.depth.detach()
        assert difference.abs().max() < kernels.image * on_cpu.depth.max()
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        difference = (gradient - expected[name]).norm()
        assert difference <= kernels.gradient * expected[name].norm(), name


def test_a_view_of_nothing_is_the_background(kernels: Kernels) -> None:
    splat = tensors(seed=3)
    splat["xyz"][:, 2] = -10.0
    render, gradients = render_and_differentiate(
        gsplat_cuda.GsplatRasterizer(), kernels.device, splat, 3, absgrad=True, depth=True
    )
    assert not render.visible().any()
    background = torch.tensor([0.2, 0.5, 0.9])
    assert torch.equal(render.image.detach().cpu(), background.expand(CAMERA.height, CAMERA.width, 3))
    assert render.depth is not None and not render.depth.any() and not render.alpha.any()
    for name in ("xyz", "f_dc", "f_rest", "opacity", "scaling", "rotation"):
        assert not gradients[name].any(), name


def test_no_tensor_of_a_step_outlives_it(kernels: Kernels) -> None:
    model = GaussianModel({name: tensor.to(kernels.device) for name, tensor in tensors(seed=5).items()})
    rasterizer, view = gsplat_cuda.GsplatRasterizer(), pose().to(kernels.device)
    alive = []
    for _ in range(5):
        render = rasterizer.render(model, CAMERA, view, torch.zeros(3, device=kernels.device), absgrad=True)
        render.image.square().sum().backward()
        assert render.screen_gradient() is not None and render.screen_gradient(absolute=True) is not None
        alive += [weakref.ref(render.means2d), weakref.ref(render.radii), weakref.ref(render.image)]
        for parameter in model.parameters.values():
            parameter.grad = None
    del render
    gc.collect()
    assert [each() for each in alive] == [None] * len(alive)


def test_rendering_works_under_no_grad(kernels: Kernels) -> None:
    model = GaussianModel({name: tensor.to(kernels.device) for name, tensor in tensors(seed=5).items()})
    with torch.no_grad():
        render = gsplat_cuda.GsplatRasterizer().render(
            model, CAMERA, pose().to(kernels.device), torch.zeros(3, device=kernels.device)
        )
    assert not render.image.requires_grad
    assert render.screen_gradient() is None
