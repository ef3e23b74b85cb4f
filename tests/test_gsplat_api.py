"""The drop-in for ``gsplat.rasterization``: signature, modes and errors, and a comparison with gsplat's torch code."""

from __future__ import annotations

import inspect
import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

import gs_train
from gs_train.kernels.cache import cache_folder
from gs_train.kernels.simd import DOUBLES, store, zero_doubles
from gs_train.render.cpu import rasterization
from gs_train.render.cpu.harmonics import direction_gradient, evaluate_basis

WIDTH, HEIGHT = 64, 48


def make_inputs(count: int = 150, cameras: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(7)
    means = torch.rand(count, 3, generator=g) * torch.tensor([4.0, 3.0, 4.0]) + torch.tensor([-2.0, -1.5, 2.0])
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    viewmats[-1, :3, 3] = torch.tensor([0.2, -0.1, 0.5])
    intrinsics = torch.tensor([[50.0, 0.0, 30.0], [0.0, 52.0, 26.0], [0.0, 0.0, 1.0]]).repeat(cameras, 1, 1)
    return {
        "means": means, "quats": torch.randn(count, 4, generator=g), "scales": torch.rand(count, 3,
        generator=g) * 0.2 + 0.02,
        "opacities": torch.rand(count, generator=g), "colors": torch.rand(count, 16, 3, generator=g) - 0.5,
        "viewmats": viewmats,
        "Ks": intrinsics,
    }  # fmt: skip


def render(inputs: dict[str, Tensor], **more: object) -> tuple[Tensor, Tensor, dict]:
    return rasterization(**inputs, width=WIDTH, height=HEIGHT, **more)


def test_the_signature_matches_gsplat() -> None:
    gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed")
    theirs, ours = inspect.signature(gsplat.rasterization).parameters, inspect.signature(rasterization).parameters
    named = [name for name in ours if name != "unsupported"]
    assert named == list(theirs)[: len(named)]
    for name in named:
        if name != "packed":  # the documented difference
            assert ours[name].default == theirs[name].default, name


def test_shapes_modes_and_batches() -> None:
    inputs = make_inputs()
    rgb, alpha, meta = render(inputs, sh_degree=3)
    assert rgb.shape == (2, HEIGHT, WIDTH, 3) and alpha.shape == (2, HEIGHT, WIDTH, 1)
    assert meta["radii"].shape == (2, 150, 2) and meta["means2d"].shape == (2, 150, 2)
    single = {**inputs, "viewmats": inputs["viewmats"][1:], "Ks": inputs["Ks"][1:]}
    assert torch.equal(render(single, sh_degree=3)[0][0], rgb[1])
    both, _, _ = render(inputs, sh_degree=3, render_mode="RGB+ED")
    accumulated, _, _ = render(inputs, sh_degree=3, render_mode="D")
    assert torch.equal(both[..., :3], rgb)
    assert torch.allclose(both[..., 3:] * alpha, accumulated, atol=1e-5)
    white, _, _ = render(inputs, sh_degree=3, backgrounds=torch.ones(2, 3))
    assert torch.allclose(white, rgb + 1.0 - alpha, atol=1e-6)


def test_plain_colours_equal_constant_harmonics() -> None:
    inputs = make_inputs()
    colours = torch.rand(150, 3)
    plain, _, _ = render({**inputs, "colors": colours})
    per_camera, _, _ = render({**inputs, "colors": colours.expand(2, 150, 3)})
    constant = torch.zeros(150, 1, 3)
    constant[:, 0] = (colours - 0.5) / 0.28209479177387814
    harmonics, _, _ = render({**inputs, "colors": constant}, sh_degree=0)
    assert torch.equal(plain, per_camera)
    assert torch.allclose(plain, harmonics, atol=1e-6)


def test_gradients_of_a_batch_add_up() -> None:
    inputs = {name: value.requires_grad_() for name, value in make_inputs().items() if name != "Ks"}
    intrinsics = make_inputs()["Ks"]
    rgb, _, meta = render({**inputs, "Ks": intrinsics}, sh_degree=3, absgrad=True)
    meta["means2d"].retain_grad()
    rgb.square().sum().backward()
    total, per_camera = inputs["means"].grad.clone(), []
    assert (
        meta["means2d"].grad.shape == (2, 150, 2)
        and (meta["means2d"].absgrad >= meta["means2d"].grad.abs() - 1e-3).all()
    )
    for c in range(2):
        inputs["means"].grad = None
        one, _, one_meta = render(
            {**inputs, "viewmats": inputs["viewmats"][c : c + 1], "Ks": intrinsics[c : c + 1]}, sh_degree=3
        )
        one.square().sum().backward()
        per_camera.append(inputs["means"].grad.clone())
        assert torch.allclose(one_meta["means2d"].grad[0], meta["means2d"].grad[c], atol=1e-5)
    assert torch.allclose(per_camera[0] + per_camera[1], total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("packed", True), ("tile_size", 8), ("camera_model", "fisheye"), ("with_ut", True), ("covars", torch.eye(3)),
    ("distributed", True),
     ("rolling_shutter", 1), ("radius_clip", 3.0), ("render_mode", "XYZ"), ("sh_degree", 5)],
)  # fmt: skip
def test_unsupported_arguments_are_refused_by_name(argument: str, value: object) -> None:
    more = {"sh_degree": 3, argument: value}
    with pytest.raises(ValueError, match=argument):
        render(make_inputs(), **more)


def test_wrong_shapes_and_types_are_refused_by_name() -> None:
    inputs = make_inputs()
    with pytest.raises(ValueError, match=r"opacities has shape \(150, 1\)"):
        render({**inputs, "opacities": inputs["opacities"][:, None]}, sh_degree=3)
    with pytest.raises(ValueError, match=r"quats is torch\.float64"):
        render({**inputs, "quats": inputs["quats"].double()}, sh_degree=3)
    with pytest.raises(ValueError, match="colors has shape"):
        render(inputs)


def test_harmonics_of_every_degree_and_their_gradients() -> None:
    """The basis is orthonormal on the sphere, including degree 4, which the float64 reference lacks. Gradients match
    finite differences in float64."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    sampled = np.stack([basis_at(point) for point in points])
    gram = sampled.T @ sampled * 4 * math.pi / len(sampled)
    assert np.abs(gram - np.eye(25)).max() < 0.1
    step = 1e-6
    for point in points[:20]:
        gradient = np.array([gradient_at(point, k) for k in range(25)])
        for axis in range(3):
            offset = step * np.eye(3)[axis]
            slope = (basis_at(point + offset) - basis_at(point - offset)) / (2 * step)
            assert np.allclose(gradient[:, axis], slope, atol=1e-8)


@numba.njit
def one_basis(point: np.ndarray, basis: np.ndarray) -> None:
    x, y, z = (zero_doubles() + point[0], zero_doubles() + point[1], zero_doubles() + point[2])
    evaluate_basis(x, y, z, 4, basis)


@numba.njit
def one_gradient(point: np.ndarray, coefficients: np.ndarray, gradient: np.ndarray) -> None:
    x, y, z = (zero_doubles() + point[0], zero_doubles() + point[1], zero_doubles() + point[2])
    gx, gy, gz = direction_gradient(x, y, z, 4, coefficients)
    store(gradient, np.uint64(0), gx)
    store(gradient, np.uint64(DOUBLES), gy)
    store(gradient, np.uint64(2 * DOUBLES), gz)


def basis_at(point: np.ndarray) -> np.ndarray:
    basis = np.empty((25, DOUBLES))
    one_basis(point, basis.ravel())
    assert np.ptp(basis, axis=1).max() == 0.0
    return basis[:, 0]


def gradient_at(point: np.ndarray, k: int) -> np.ndarray:
    coefficients, gradient = np.zeros((25, DOUBLES)), np.empty((3, DOUBLES))
    coefficients[k] = 1.0
    one_gradient(point, coefficients.ravel(), gradient.ravel())
    return gradient[:, 0]


def test_projection_and_harmonics_match_gsplats_torch_code() -> None:
    """Uses the tolerances of gsplat's own tests between its CUDA kernels and its torch code."""
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")
    inputs = make_inputs(cameras=1)
    names = ("means", "quats", "scales", "viewmats")
    ours = {name: inputs[name].clone().requires_grad_() for name in names}
    theirs = {name: inputs[name].clone().requires_grad_() for name in names}
    covars, _ = torch_impl._quat_scale_to_covar_preci(theirs["quats"], theirs["scales"], compute_preci=False)
    radii, means2d, depths, conics, _ = torch_impl._fully_fused_projection(
        theirs["means"], covars, theirs["viewmats"], inputs["Ks"], WIDTH, HEIGHT, eps2d=0.3
    )
    # The kernels return no colours of single Gaussians. A plain blending of gsplat's projection and colours gives an
    # image to compare.
    directions = theirs["means"] - torch.linalg.inv(theirs["viewmats"])[:, :3, 3]
    colours = (torch_impl._spherical_harmonics(3, directions, inputs["colors"]) + 0.5).clamp(min=0.0)
    image, _, meta = render({**inputs, **ours}, sh_degree=3)
    seen = (meta["radii"][0] > 0).all(-1) & (radii[0] > 0).all(-1)
    assert seen.sum() > 50
    assert torch.allclose(meta["means2d"][0][seen], means2d[0][seen], rtol=1e-4, atol=1e-4)
    assert torch.allclose(meta["depths"][0][seen], depths[0][seen], rtol=1e-4, atol=1e-4)
    expected = blend(means2d[0], conics[0], inputs["opacities"], colours, depths[0], seen)
    # A pixel at the alpha threshold may differ by 1/255.
    assert (image[0] - expected).abs().quantile(0.999) < 1e-4
    weights = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1))
    (image[0] * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, rtol, atol in (
        ("viewmats", 2e-3, 2e-3),
        ("quats", 2e-1, 2e-2),
        ("scales", 5e-1, 2e-1),
        ("means", 1e-2, 6e-2),
    ):
        assert torch.allclose(ours[name].grad, theirs[name].grad, rtol=rtol, atol=atol), name


def blend(means2d: Tensor, conics: Tensor, opacities: Tensor, colours: Tensor, depths: Tensor, seen: Tensor) -> Tensor:
    """Plain front-to-back blending of projected Gaussians, [H, W, 3]."""
    ys, xs = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    rest, image = torch.ones(HEIGHT, WIDTH), torch.zeros(HEIGHT, WIDTH, 3)
    for i in torch.argsort(depths, stable=True).tolist():
        if seen[i] and opacities[i] >= 1 / 255:
            dx, dy = means2d[i, 0] - xs, means2d[i, 1] - ys
            sigma = 0.5 * (conics[i, 0] * dx * dx + conics[i, 2] * dy * dy) + conics[i, 1] * dx * dy
            alpha = (opacities[i] * torch.exp(-sigma)).clamp(max=0.999)
            alpha = torch.where(alpha >= 1 / 255, alpha, torch.zeros_like(alpha))
            image = image + (alpha * rest)[..., None] * colours[i]
            rest = rest * (1 - alpha)
    assert math.isfinite(float(image.detach().sum()))
    return image


def test_outputs_require_gradients_only_if_an_input_does() -> None:
    inputs = make_inputs()
    image, _, meta = render(inputs, sh_degree=3)
    assert not image.requires_grad and not meta["means2d"].requires_grad
    image.numpy()
    inputs["opacities"].requires_grad_()
    assert render(inputs, sh_degree=3)[0].requires_grad


def test_strided_inputs_give_the_same_image() -> None:
    inputs = make_inputs()
    expected, _, _ = render(inputs, sh_degree=3, backgrounds=torch.full((2, 3), 0.5))
    strided = {
        name: value.mT.contiguous().mT if name in ("means", "quats", "scales") else value
        for name, value in inputs.items()
    }
    assert not strided["means"].is_contiguous()
    image, _, _ = render(strided, sh_degree=3, backgrounds=torch.tensor(0.5).expand(2, 3))
    assert torch.equal(image, expected)


def test_two_python_threads_may_render_at_once() -> None:
    inputs = make_inputs()
    expected, _, _ = render(inputs, sh_degree=3)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: render(inputs, sh_degree=3)[0], range(20)))
    assert all(torch.equal(image, expected) for image in results)


def test_the_kernel_cache_depends_on_all_sources(tmp_path: Path) -> None:
    """A kernel contains helpers and constants of other files, so a change in any of them must change the cache
    folder."""
    program = "from gs_train.kernels.cache import cache_folder; print(cache_folder())"
    package = Path(gs_train.__file__).parent
    copy = shutil.copytree(package, tmp_path / "gs_train", ignore=shutil.ignore_patterns("__pycache__"))

    def folder() -> str:
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    before = folder()
    own = cache_folder()
    assert own is not None and Path(before).name == own.name
    changed = copy / "render" / "cpu" / "harmonics.py"
    changed.write_text(changed.read_text() + "\n# changed\n")
    assert folder() != before
