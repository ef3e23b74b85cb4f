"""The CPU kernels against the float64 reference, on random scenes that visit every branch.

If rounding decides a comparison (alpha against 1/255, the stop at T = 1e-4, alpha against 0.999), float32 and float64
may legitimately differ. The reference returns each pixel's distance to the nearest threshold. The few pixels near a
threshold are excluded from the image comparison and from the loss.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gs_train.cameras.camera import Camera
from gs_train.model.gaussians import GaussianModel
from gs_train.render.cpu.autograd import Settings, rasterize
from gs_train.render.cpu.rasterizer import CpuRasterizer
from gs_train.render.reference import ReferenceOutput, render_reference

CAMERA = Camera(width=70, height=45, fx=60.0, fy=64.0, cx=31.0, cy=26.0)
INPUTS = ("means", "quats", "scales", "opacities", "sh", "view", "background")
NEAR_A_JUMP = 2e-5


def make_scene(seed: int, kind: str, count: int = 120) -> dict[str, Tensor]:
    """Random float32 inputs. ``kind`` selects the branches that many Gaussians visit."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=g) * (high - low) + low

    depth = uniform(count, low=1.5, high=8.0)
    if kind == "beside":  # half outside the image, beyond the Jacobian's limits, behind the camera
        depth[: count // 4] = uniform(count // 4, low=-3.0, high=0.3)
        lateral = uniform(count, 2, low=-1.6, high=1.6)
    else:
        lateral = uniform(count, 2, low=-0.7, high=0.7)
    means = torch.cat([lateral * depth.abs()[:, None], depth[:, None]], dim=1)
    scales = torch.exp(uniform(count, 3, low=math.log(0.02), high=math.log(0.5)))
    if kind == "thin":
        scales[:, 0] *= 4.0
        scales[:, 1] *= 0.02
    opacities = uniform(count, low=0.01, high=0.95)
    if kind == "dense":  # saturated alphas and early stops
        opacities = uniform(count, low=0.9, high=1.0)
        scales = scales * 2.0
    angle = 0.2
    view = torch.tensor([
        [math.cos(angle), 0.05, math.sin(angle), 0.3], [-0.04, 0.99, 0.02, -0.2], [-math.sin(angle), 0.03,
        math.cos(angle), 0.4],
        [0.0, 0.0, 0.0, 1.0],
    ])  # fmt: skip
    rotation, _ = torch.linalg.qr(view[:3, :3].double())
    rotation = rotation * torch.sign(torch.diagonal(rotation))
    view[:3, :3] = rotation.float()
    return {
        "means": means, "quats": torch.randn(count, 4, generator=g), "scales": scales, "opacities": opacities,
        "sh": torch.randn(count, 16, 3, generator=g) * 0.3, "view": view, "background": uniform(3),
    }  # fmt: skip


def run_oracle(scene: dict[str, Tensor], degree: int, antialiased: bool) -> tuple[ReferenceOutput, dict[str, Tensor]]:
    inputs = {name: value.double().requires_grad_() for name, value in scene.items()}
    return render_reference(**inputs, sh_degree=degree, camera=CAMERA, antialiased=antialiased), inputs


def run_kernels(
    scene: dict[str, Tensor],
    degree: int,
    *,
    antialiased: bool = False,
    depth: bool = False,
    absgrad: bool = True,
    camera: Camera = CAMERA,
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    inputs = {name: value.clone().requires_grad_() for name, value in scene.items()}
    settings = Settings(
        width=camera.width,
        height=camera.height,
        sh_degree=degree,
        antialiased=antialiased,
        depth=depth,
        absgrad=absgrad,
    )
    outputs = rasterize(
        means=inputs["means"], quats=inputs["quats"], scales=inputs["scales"], opacities=inputs["opacities"],
        sh0=inputs["sh"][:, 0], sh_rest=inputs["sh"][:, 1:], view=inputs["view"], intrinsics=(camera.fx, camera.fy,
        camera.cx, camera.cy),
        background=inputs["background"], settings=settings,
    )  # fmt: skip
    return outputs, inputs


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm().clamp(min=1e-12))


CASES = [
    ("plain", 0, False), ("plain", 1, False), ("plain", 2, False), ("plain", 3, False), ("beside", 3, False), ("thin",
    2, False),
    ("dense", 3, False), ("plain", 3, True), ("thin", 1, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "degree", "antialiased"), CASES)
@pytest.mark.parametrize("seed", [1, 2])
def test_image_and_gradients_match_the_float64_oracle(kind: str, degree: int, antialiased: bool, seed: int) -> None:
    scene = make_scene(seed, kind)
    truth, truth_inputs = run_oracle(scene, degree, antialiased)
    (image, alpha, radii, means2d), inputs = run_kernels(scene, degree, antialiased=antialiased, depth=True)
    clear = truth.margin > NEAR_A_JUMP
    assert clear.float().mean() > 0.9, "the comparison must not hide behind the margin"
    assert torch.equal(radii, truth.radii)
    assert (image[..., :3] - truth.image)[clear].abs().max() < 1e-5
    assert (alpha - truth.alpha)[clear].abs().max() < 1e-5
    assert (image[..., 3] - truth.depth)[clear].abs().max() < 1e-5 * truth.depth.abs().max()

    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(*image.shape, generator=g) * clear[..., None]
    alpha_weights = torch.randn(*alpha.shape, generator=g) * clear
    ((image * weights).sum() + (alpha * alpha_weights).sum()).backward()
    full = torch.cat([truth.image, truth.depth[..., None]], dim=-1)
    ((full * weights.double()).sum() + (truth.alpha * alpha_weights.double()).sum()).backward()
    errors = {name: relative_error(inputs[name].grad, truth_inputs[name].grad) for name in INPUTS}
    errors["means2d"] = relative_error(means2d.grad, truth.means2d.grad * (truth.radii > 0).all(-1, keepdim=True))
    absolute = torch.zeros_like(truth.means2d)
    for i, dx, dy in truth.gradient_terms:
        absolute[i] = torch.stack([dx.grad.abs().sum(), dy.grad.abs().sum()])
    errors["absgrad"] = relative_error(means2d.absgrad, absolute)
    assert max(errors.values()) < 1e-5, errors


def test_the_scenes_visit_the_rare_branches() -> None:
    """The scenes contain early stops, limited Jacobians, and Gaussians behind the camera and half outside the image."""
    dense, _ = run_oracle(make_scene(1, "dense"), 0, False)
    assert (dense.alpha > 1 - 1.1e-3).any(), "no pixel stops early"
    scene = make_scene(1, "beside")
    beside, _ = run_oracle(scene, 0, False)
    points = scene["means"] @ scene["view"][:3, :3].T + scene["view"][:3, 3]
    seen = (beside.radii > 0).all(-1)
    assert (points[:, 2] < 0.01).any(), "nothing behind"
    assert (seen & ((beside.means2d[:, 0] < 0) | (beside.means2d[:, 0] > CAMERA.width))).any(), "nothing half outside"
    limit = (CAMERA.width - CAMERA.cx) / CAMERA.fx + 0.15 * CAMERA.width / CAMERA.fx
    assert (seen & (points[:, 0] / points[:, 2] > limit)).any(), "no Jacobian is limited"


def test_same_bytes_with_one_and_two_threads() -> None:
    scene = make_scene(3, "dense", count=3000)
    camera = Camera(width=203, height=131, fx=180.0, fy=180.0, cx=100.0, cy=60.0)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            (image, alpha, radii, means2d), inputs = run_kernels(scene, 3, camera=camera)
            (image.square().sum() + alpha.sum()).backward()
            grads = [inputs[name].grad for name in INPUTS]
            results.append(
                [
                    t.detach().numpy().tobytes()
                    for t in (image, alpha, radii, means2d, means2d.grad, means2d.absgrad, *grads)
                ]
            )
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (17, 3), (16, 16), (33, 50)])
def test_any_image_size(width: int, height: int) -> None:
    camera = Camera(width=width, height=height, fx=30.0, fy=30.0, cx=width / 2, cy=height / 2)
    scene = make_scene(5, "plain")
    inputs = {name: value.double() for name, value in scene.items()}
    truth = render_reference(**inputs, sh_degree=3, camera=camera)
    (image, *_), _ = run_kernels(scene, 3, camera=camera)
    clear = truth.margin > NEAR_A_JUMP
    assert (image - truth.image)[clear].abs().max() < 1e-5


def test_nothing_visible_gives_the_background_and_zero_gradients() -> None:
    scene = make_scene(1, "plain")
    scene["means"][:, 2] -= 100.0
    (image, alpha, radii, means2d), inputs = run_kernels(scene, 3)
    assert torch.equal(image.detach(), scene["background"].expand_as(image))
    assert not alpha.any() and not radii.any()
    image.sum().backward()
    assert all(not inputs[name].grad.any() for name in ("means", "quats", "scales", "opacities", "sh"))
    assert not means2d.grad.any()
    assert torch.allclose(inputs["background"].grad, torch.full((3,), float(CAMERA.width * CAMERA.height)))


def test_no_gaussians_at_all_give_the_background() -> None:
    scene = {name: (value[:0] if len(value) == 120 else value) for name, value in make_scene(1, "plain").items()}
    (image, alpha, radii, _), inputs = run_kernels(scene, 3)
    assert torch.equal(image.detach(), scene["background"].expand_as(image))
    assert not alpha.any()
    assert radii.shape == (0, 2)
    image.sum().backward()
    assert inputs["means"].grad.shape == (0, 3)


def test_one_gaussian_in_a_large_image() -> None:
    camera = Camera(width=4000, height=3000, fx=3000.0, fy=3000.0, cx=2000.5, cy=1500.25)
    scene = {name: (value[:1] if len(value) == 120 else value) for name, value in make_scene(4, "plain").items()}
    # Near the far corner, float32 pixel coordinates have the coarsest spacing.
    scene["means"] = torch.tensor([[2.6, 1.9, 4.0]])
    scene["scales"] = torch.full((1, 3), 0.004)
    scene["view"] = torch.eye(4)
    (image, alpha, radii, means2d), inputs = run_kernels(scene, 3, camera=camera)
    assert radii.all()
    column, row = (int(value) for value in means2d.detach()[0])
    assert (column, row) == (3950, 2925)
    window = Camera(width=64, height=64, fx=3000.0, fy=3000.0, cx=2000.5 - column + 32, cy=1500.25 - row + 32)
    truth = render_reference(**{name: value.double() for name, value in scene.items()}, sh_degree=3, camera=window)
    clear = (truth.margin > NEAR_A_JUMP)[: 3000 - row + 32]
    part = image.detach()[row - 32 : row + 32, column - 32 : column + 32]
    assert (part - truth.image[: len(part)])[clear].abs().max() < 1e-5
    assert float(alpha.detach()[:100].max()) == 0.0
    image.sum().backward()
    assert all(inputs[name].grad.isfinite().all() for name in INPUTS)
    assert inputs["means"].grad.abs().max() > 0


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_inputs_are_named_and_counted(name: str, value: float) -> None:
    scene = make_scene(2, "plain")
    scene[name].view(-1)[[0, -1]] = value
    message = {"sh": "1 of 360 values of sh0 are not finite, 1 of 5400 values of sh_rest are not finite"}
    expected = message.get(name, f"2 of {scene[name].numel()} values of {name} are not finite")
    with pytest.raises(FloatingPointError, match=expected):
        run_kernels(scene, 3)


def test_non_finite_values_of_a_model_are_named_by_its_parameters() -> None:
    scene = make_scene(2, "plain")
    tensors = {
        "xyz": scene["means"], "rotation": scene["quats"], "scaling": scene["scales"].log(),
        "opacity": scene["opacities"].logit()[:, None],
        "f_dc": scene["sh"][:, :1], "f_rest": scene["sh"][:, 1:],
    }  # fmt: skip
    tensors["scaling"][5, 1] = math.nan
    with pytest.raises(FloatingPointError, match="1 of 360 values of scaling are not finite"):
        CpuRasterizer().render(GaussianModel(tensors), CAMERA, scene["view"], scene["background"])


def test_a_non_finite_view_is_refused() -> None:
    scene = make_scene(2, "plain")
    scene["view"][1, 3] = math.nan
    with pytest.raises(FloatingPointError, match="1 of 16 values of view are not finite"):
        run_kernels(scene, 3)


def test_shapes_that_do_not_fit_are_refused_by_name() -> None:
    good = make_scene(2, "plain")
    short = {
        "means": torch.zeros(120, 2), "quats": good["quats"][:-1], "scales": good["scales"][:-1],
        "opacities": good["opacities"][:-1],
        "view": torch.eye(3), "background": torch.zeros(4),
    }  # fmt: skip
    for name, tensor in short.items():
        with pytest.raises(ValueError, match=f"{name} has shape"):
            run_kernels({**good, name: tensor}, 3)
    with pytest.raises(ValueError, match="sh_degree=3 with 9 coefficients"):
        run_kernels({**good, "sh": good["sh"][:, :9]}, 3)
    with pytest.raises(ValueError, match=r"intrinsics .* are \(0\.0, 1\.0, 4\.0, 4\.0\)"):
        run_kernels(good, 3, camera=Camera(width=8, height=8, fx=0.0, fy=1.0, cx=4.0, cy=4.0))


def test_a_gaussian_on_the_near_plane_is_drawn() -> None:
    scene = {name: (value[:2] if len(value) == 120 else value) for name, value in make_scene(2, "plain").items()}
    scene["view"] = torch.eye(4)
    scene["means"] = torch.tensor([[0.0, 0.0, 0.01], [0.0, 0.0, 0.009999]])
    scene["scales"] = torch.full((2, 3), 1e-4)
    (_, _, radii, _), _ = run_kernels(scene, 0)
    assert (radii > 0).all(-1).tolist() == [True, False]
    assert torch.equal(radii, run_oracle(scene, 0, False)[0].radii)


def test_a_quaternion_of_zeros_is_not_drawn() -> None:
    scene = make_scene(2, "plain")
    (clean, *_), _ = run_kernels(
        {name: (value[1:] if len(value) == 120 else value) for name, value in scene.items()}, 3
    )
    scene["quats"][0] = 0.0
    (image, _, radii, _), _ = run_kernels(scene, 3)
    assert np.array_equal(image.detach().numpy(), clean.detach().numpy())
    assert not radii[0].any()


def test_an_image_too_large_for_memory_is_refused_with_its_size() -> None:
    camera = Camera(width=3_000_000, height=2_000_000, fx=30.0, fy=30.0, cx=0.0, cy=0.0)
    with pytest.raises(MemoryError, match=r"3000000x2000000 px needs \d+\.\d GiB"):
        run_kernels(make_scene(1, "plain"), 0, camera=camera)
