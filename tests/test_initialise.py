"""Initial Gaussians, from points or at random positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gs_train.model.gaussians import PARAMETER_NAMES, GaussianModel
from gs_train.model.initialise import RANDOM_COUNT, initialise_model
from gs_train.scene.types import PointCloud

BOX = np.array([[-4.0, -4.0, -1.2], [4.0, 4.0, 3.2]])


def cloud(xyz: NDArray[np.float64]) -> PointCloud:
    rgb = np.random.default_rng(1).integers(0, 256, size=(len(xyz), 3), dtype=np.uint8)
    return PointCloud(xyz=xyz, rgb=rgb)


def make(points: PointCloud, *, max_gaussians: int = 1_000_000, seed: int = 0) -> GaussianModel:
    generator = torch.Generator().manual_seed(seed)
    return initialise_model(
        points,
        sh_degree=3,
        extent=4.4,
        lr_scale=lambda xyz: float(len(xyz)),
        place=lambda unit: BOX[0] + unit * (BOX[1] - BOX[0]),
        max_gaussians=max_gaussians,
        generator=generator,
        device="cpu",
    )


def test_one_gaussian_per_point() -> None:
    points = cloud(np.random.default_rng(0).normal(size=(50, 3)))
    model = make(points)
    assert np.array_equal(model.xyz.detach().numpy(), points.xyz.astype(np.float32))
    colour = 0.5 + 0.28209479177387814 * model.f_dc.detach().numpy()[:, 0]
    assert np.allclose(colour, points.rgb / 255.0, atol=1e-6)
    assert model.f_rest.shape == (50, 15, 3) and not model.f_rest.any()
    assert torch.equal(model.rotation, torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(50, 1))
    assert model.opacities().tolist() == pytest.approx([0.1] * 50)
    assert (model.active_sh_degree, model.max_sh_degree, model.spatial_lr_scale) == (0, 3, 50.0)
    squared = ((points.xyz[:, None] - points.xyz[None]) ** 2).sum(-1)
    expected = np.sqrt(np.sort(squared, axis=1)[:, 1:4].mean(axis=1))
    assert np.allclose(model.scales().detach().numpy(), expected[:, None], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_points_get_finite_scales(count: int) -> None:
    model = make(cloud(np.arange(3.0 * count).reshape(count, 3)))
    assert len(model) == count and model.scaling.isfinite().all()
    if count == 1:
        assert model.scales()[0, 0].item() == pytest.approx(0.01 * 4.4)
    if count == 2:
        assert model.scales()[0, 0].item() == pytest.approx(27.0**0.5)


def test_coinciding_points_get_the_smallest_scale() -> None:
    model = make(cloud(np.zeros((10, 3))))
    assert model.scales().flatten().tolist() == pytest.approx([1e-7**0.5] * 30, rel=1e-5)


def test_too_many_points_become_a_random_subset() -> None:
    points = cloud(np.arange(300.0).reshape(100, 3))
    model = make(points, max_gaussians=40)
    rows = (model.xyz[:, 0] / 3.0).round().long().tolist()
    assert len(rows) == 40 and rows == sorted(set(rows)) and rows != list(range(40))
    assert np.allclose(
        0.5 + 0.28209479177387814 * model.f_dc.detach().numpy()[:, 0], points.rgb[rows] / 255.0, atol=1e-6
    )
    assert rows != (make(points, max_gaussians=40, seed=1).xyz[:, 0] / 3.0).round().long().tolist()


def test_without_points_random_gaussians_are_placed_by_the_caller() -> None:
    empty = cloud(np.zeros((0, 3)))
    model = make(empty, max_gaussians=5000)
    assert len(model) == 5000 <= RANDOM_COUNT
    low, high = model.xyz.amin(dim=0), model.xyz.amax(dim=0)
    np.testing.assert_allclose(torch.stack([low, high]).detach().numpy(), BOX, atol=0.05)
    assert not model.f_dc.any() and model.scaling.isfinite().all()
    again = make(empty, max_gaussians=5000)
    assert all(torch.equal(model.parameters[name], again.parameters[name]) for name in PARAMETER_NAMES)


def test_a_limit_of_zero_gaussians_is_refused() -> None:
    with pytest.raises(ValueError, match="max_gaussians"):
        make(cloud(np.zeros((3, 3))), max_gaussians=0)
