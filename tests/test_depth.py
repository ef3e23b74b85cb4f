"""Depth from the sparse points: the points that a view sees, the error of a render, and its effect on training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gs_train.cameras.camera import Camera
from gs_train.config.toml import load_preset
from gs_train.errors import UserError
from gs_train.model.gaussians import GaussianModel
from gs_train.render.cpu.rasterizer import CpuRasterizer
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import PointCloud, Scene, View
from gs_train.training.depth import PointDepths
from gs_train.training.loop import train

CAMERA = Camera(width=40, height=30, fx=40.0, fy=40.0, cx=20.0, cy=15.0)


def make_scene(xyz: list[tuple[float, float, float]], seen: list[int]) -> Scene:
    """One camera at the origin that looks along z, and points with ids 10, 11, ...

    The camera sees the points with the ids ``seen``.
    """
    count = len(xyz)
    points = PointCloud(xyz=np.array(xyz), rgb=np.zeros((count, 3), np.uint8), ids=np.arange(10, 10 + count))
    view = View(
        name="a",
        image_path=Path("a"),
        camera=CAMERA,
        world_to_camera=np.eye(4),
        point_ids=np.array([*seen, -1, 999], dtype=np.int64),
    )
    return Scene(path=Path("scene"), train_views=(view,), test_views=(), points=points, extent=1.0)


def test_the_error_is_relative_to_the_mean_and_counts_seen_points_only() -> None:
    # The third point is hidden (not seen), the fourth lies behind the camera, the fifth outside the image.
    scene = make_scene([(0, 0, 2), (0.1, 0, 4), (0.1, 0.1, 9), (0, 0, -1), (9, 0, 1)], [10, 11, 13, 14])
    depths = PointDepths(scene, "cpu")
    flat = torch.full((30, 40), 2.0)
    # Inverse depths are 1/2 and 1/4 at the points, with a mean of 3/8, and 1/2 everywhere in the render.
    assert float(depths.error(flat, 0)) == pytest.approx(0.5 * (0.25 / 0.375))
    assert float(depths.error(10 * flat, 0)) > 0.0
    larger = make_scene([(0, 0, 200), (10, 0, 400)], [10, 11])
    assert float(PointDepths(larger, "cpu").error(100 * flat, 0)) == pytest.approx(0.5 * (0.25 / 0.375))


def test_depth_is_read_at_the_point_at_any_size() -> None:
    scene = make_scene([(-0.25, 0.1, 2.0)], [10])
    x, y = 40 * -0.125 + 20, 40 * 0.05 + 15
    for factor in (1, 2, 4):  # at 4, the last row of blocks is 2 pixels high
        height, width = -(-30 // factor), -(-40 // factor)
        columns = (torch.arange(width) + 0.5) * factor
        rows = (torch.arange(height) + 0.5) * factor
        depth = 0.05 * columns[None, :] + 0.02 * rows[:, None]
        expected = abs(1 / (0.05 * x + 0.02 * y) - 1 / 2.0) * 2.0
        assert float(PointDepths(scene, "cpu").error(depth, 0, factor)) == pytest.approx(expected, rel=1e-5)


def test_a_scene_without_point_observations_is_refused() -> None:
    scene = make_scene([(0, 0, 2)], [])
    with pytest.raises(UserError, match="--depth-weight"):
        PointDepths(scene, "cpu")
    with pytest.raises(UserError, match="--depth-weight"):
        PointDepths(replace(scene, points=replace(scene.points, ids=None)), "cpu")


def test_the_rendered_depth_is_a_mean_with_a_matching_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    count = 20
    xyz = torch.rand(count, 3, generator=generator) - 0.5
    xyz[:, 2] += 2.0
    model = GaussianModel(
        {
            "xyz": xyz,
            "f_dc": torch.zeros(count, 1, 3),
            "f_rest": torch.zeros(count, 0, 3),
            "opacity": torch.zeros(count, 1),
            "scaling": torch.full((count, 3), -2.0),
            "rotation": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        }
    )
    render = CpuRasterizer().render(model, CAMERA, torch.eye(4), torch.ones(3), depth=True)
    plain = CpuRasterizer().render(model, CAMERA, torch.eye(4), torch.ones(3))
    assert render.depth is not None and plain.depth is None
    assert torch.equal(render.image, plain.image)
    there = render.alpha > 0.05
    assert (
        bool(there.any())
        and 1.4 < float(render.depth[there].detach().min()) <= float(render.depth[there].detach().max()) < 2.6
    )
    render.depth[there].sum().backward()
    assert model.xyz.grad is not None
    step = 1e-3
    sums = []
    for sign in (1, -1):
        with torch.no_grad():
            moved = GaussianModel({name: p.detach().clone() for name, p in model.parameters.items()})
            moved.xyz[:, 2] += sign * step
            again = CpuRasterizer().render(moved, CAMERA, torch.eye(4), torch.ones(3), depth=True)
        assert again.depth is not None
        sums.append(float(again.depth[there].double().sum()))
    assert float(model.xyz.grad[:, 2].sum()) == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=0.02)


def test_training_with_a_depth_weight_brings_depth_nearer_to_the_points(tiny_scene: Path, tmp_path: Path) -> None:
    scene = load_scene(tiny_scene, SceneConfig())
    errors = []
    for weight in (0.0, 0.5):
        config = replace(load_preset("classic"), iterations=80, device="cpu", max_gaussians=500, depth_weight=weight)
        model = train(scene, config, tmp_path / str(weight)).model
        depths = PointDepths(scene, "cpu")
        view = scene.train_views[0]
        pose = torch.from_numpy(view.world_to_camera).float()
        render = CpuRasterizer().render(model, view.camera, pose, torch.zeros(3), depth=True)
        assert render.depth is not None
        errors.append(float(depths.error(render.depth.detach(), 0)))
    assert errors[1] < 0.8 * errors[0]
