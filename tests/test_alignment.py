"""Cameras that are aligned to photos, to coloured points and to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from gs_train.alignment.estimate import robust_step, without_exposure
from gs_train.alignment.gauge import is_common, without_common_motion
from gs_train.alignment.motion import (
    mean_square_px,
    motion_between,
    moved,
    pixel_flow,
    pixel_metric,
    rotation_matrix,
)
from gs_train.alignment.photo import align_to_photo, reduced_image
from gs_train.alignment.points import PointAlignment, align_to_points
from gs_train.cameras.camera import Camera
from gs_train.evaluate.metrics import view_metrics
from gs_train.evaluate.refine import refine_on_photos
from gs_train.model.gaussians import GaussianModel
from gs_train.render.cpu.rasterizer import CpuRasterizer
from gs_train.render.types import RenderOutput
from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import load_scene
from gs_train.scene.photos.decode import decode_image
from gs_train.scene.types import Scene, View

CAMERA = Camera(width=96, height=72, fx=90.0, fy=95.0, cx=50.0, cy=34.0)
MOTION = torch.tensor([0.004, -0.006, 0.008, 0.02, -0.015, 0.03], dtype=torch.float64)


def start_pose() -> Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(Rotation.from_rotvec([0.2, -0.1, 0.05]).as_matrix())
    pose[:3, 3] = torch.tensor([0.1, -0.2, 4.0])
    return pose


def project(camera: Camera, pose: Tensor, xyz: Tensor) -> Tensor:
    x, y, z = (xyz @ pose[:3, :3].T + pose[:3, 3]).unbind(-1)
    return torch.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("alignment") / "scene"
    write_sample_scene(folder, views=10, width=160, height=120, points=2500)
    return load_scene(folder)


def spoiled(views: tuple[View, ...], angle: float, shift: float) -> tuple[View, ...]:
    """Views turned by about ``angle`` radians and shifted by about ``shift`` units."""
    random = np.random.default_rng(3)
    return tuple(
        replace(
            view,
            world_to_camera=moved(
                torch.from_numpy(view.world_to_camera),
                torch.from_numpy(np.concatenate([angle * random.normal(size=3), shift * random.normal(size=3)])),
            ).numpy(),
        )
        for view in views
    )


def stacked(views: tuple[View, ...]) -> Tensor:
    return torch.stack([torch.from_numpy(view.world_to_camera) for view in views])


# ---- motions ----


def test_the_flow_is_the_derivative_of_the_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    xyz, pose = torch.rand(20, 3, generator=generator, dtype=torch.float64) * 2 - 1, start_pose()
    x, y, z = (xyz @ pose[:3, :3].T + pose[:3, 3]).unbind(-1)
    flow = pixel_flow(CAMERA, x / z, y / z, 1 / z)
    before = project(CAMERA, pose, xyz)
    for axis in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[axis] = 1e-6
        numeric = (project(CAMERA, moved(pose, step), xyz) - before) / 1e-6
        torch.testing.assert_close(flow[:, axis], numeric, rtol=1e-4, atol=1e-3)


def test_the_metric_is_the_mean_squared_displacement() -> None:
    generator = torch.Generator().manual_seed(0)
    xyz, pose = torch.rand(50, 3, generator=generator, dtype=torch.float64) * 2 - 1, start_pose()
    x, y, z = (xyz @ pose[:3, :3].T + pose[:3, 3]).unbind(-1)
    metric = pixel_metric(pixel_flow(CAMERA, x / z, y / z, 1 / z), torch.ones(50))
    displaced = project(CAMERA, moved(pose, 0.1 * MOTION), xyz) - project(CAMERA, pose, xyz)
    expected = displaced.square().sum(dim=0).mean()
    torch.testing.assert_close(mean_square_px(0.1 * MOTION, metric), expected, rtol=0.02, atol=0.0)


def test_a_motion_is_recovered_from_two_poses() -> None:
    pose = start_pose()
    torch.testing.assert_close(motion_between(pose, moved(pose, MOTION)), MOTION, rtol=0.0, atol=2e-4)


def test_rotations_by_vectors() -> None:
    for vector in ([0.3, -0.5, 0.2], [1e-9, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 2.5, 0.0]):
        expected = torch.from_numpy(Rotation.from_rotvec(vector).as_matrix())
        torch.testing.assert_close(rotation_matrix(torch.tensor(vector, dtype=torch.float64)), expected)


# ---- the robust step ----


def test_an_exposure_is_no_residual_and_outliers_hardly_count() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(200, 3, generator=generator)
    values = reference * torch.tensor([0.7, 1.0, 1.2]) + 0.05
    values[::20] = 1.0
    residual = without_exposure(values, reference, softness=0.02)
    kept = torch.ones(200, dtype=torch.bool)
    kept[::20] = False
    assert residual[kept].abs().max() < 0.01


def test_a_step_without_information_is_zero() -> None:
    step = robust_step(torch.zeros(6, 30), torch.randn(30, generator=torch.Generator().manual_seed(0)))
    assert step.tolist() == [0.0] * 6


# ---- the common motion ----


def test_the_common_motion_of_all_cameras_is_undone(scene: Scene) -> None:
    given = stacked(scene.train_views)
    metric = align_points(scene, scene.train_views).metric
    turn = torch.from_numpy(Rotation.from_rotvec([0.004, 0.006, -0.003]).as_matrix())
    common = torch.eye(4, dtype=torch.float64)
    common[:3, :3], common[:3, 3] = turn, torch.tensor([0.02, -0.01, 0.015])
    together = given @ common
    together[:, :3, 3] *= 1.003
    assert mean_px(given, together, metric) > 0.5
    assert is_common(together, given, metric)
    assert mean_px(given, without_common_motion(together, given, metric), metric) < 0.02


def test_errors_of_single_cameras_are_kept(scene: Scene) -> None:
    given, wrong = stacked(scene.train_views), stacked(spoiled(scene.train_views, 0.006, 0.03))
    metric = align_points(scene, scene.train_views).metric
    after = without_common_motion(wrong, given, metric)
    assert not is_common(wrong, given, metric)
    assert mean_px(given, after, metric) > 0.7 * mean_px(given, wrong, metric)


def mean_px(before: Tensor, after: Tensor, metric: Tensor) -> float:
    return float(mean_square_px(motion_between(before, after), metric).mean().sqrt())


# ---- photos ----


def textured_model() -> GaussianModel:
    """A wall of coloured Gaussians at z = 0, and some in front of it."""
    generator = torch.Generator().manual_seed(1)
    across = torch.linspace(-3, 3, 40)
    wall = torch.cartesian_prod(across, across)
    xyz = torch.cat([wall, 0.3 * torch.rand(len(wall), 1, generator=generator)], dim=1)
    xyz[::7, 2] -= 1.0
    count = len(xyz)
    return GaussianModel(
        {
            "xyz": xyz,
            "f_dc": torch.rand(count, 1, 3, generator=generator) * 3 - 1.5,
            "f_rest": torch.zeros(count, 0, 3),
            "opacity": torch.full((count, 1), 2.0),
            "scaling": torch.full((count, 3), -2.2),
            "rotation": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        }
    )


def rendered(model: GaussianModel, pose: Tensor) -> RenderOutput:
    with torch.no_grad():
        return CpuRasterizer().render(model, CAMERA, pose.float(), torch.zeros(3), depth=True)


@pytest.mark.parametrize("change", [lambda photo: photo, lambda photo: 0.7 * photo + 0.1], ids=["plain", "exposure"])
def test_a_camera_moves_onto_its_photo(change: Callable[[Tensor], Tensor]) -> None:
    model, right = textured_model(), start_pose()
    photo = change(rendered(model, right).image)
    pose = moved(right, MOTION)
    errors = []
    for reduction in (2, 1, 1, 1):
        render = rendered(model, pose)
        assert render.depth is not None
        fit = align_to_photo(CAMERA, render.image, photo, render.depth, render.alpha, reduction=reduction)
        errors.append(float(mean_square_px(motion_between(right, pose), fit.metric).sqrt()))
        pose = moved(pose, fit.motion)
    errors.append(float(mean_square_px(motion_between(right, pose), fit.metric).sqrt()))
    assert errors[0] > 0.8 and errors[-1] < 0.03, errors


def test_masked_pixels_do_not_move_a_camera() -> None:
    model, pose = textured_model(), start_pose()
    render = rendered(model, pose)
    photo, weights = render.image.clone(), torch.ones(CAMERA.height, CAMERA.width, 1)
    photo[:, :30] = photo[:, 3:33].clone()
    weights[:, :34] = 0.0
    assert render.depth is not None
    fit = align_to_photo(CAMERA, render.image, photo, render.depth, render.alpha, weights)
    assert mean_square_px(fit.motion, fit.metric).sqrt() < 1e-3
    fit = align_to_photo(CAMERA, render.image, photo, render.depth, render.alpha)
    assert mean_square_px(fit.motion, fit.metric).sqrt() > 0.05


def test_the_covariance_tells_how_far_an_estimate_is_off() -> None:
    """Blurred errors of a tenth of the contrast, like those of an unfinished splat, on a photo from the right pose."""
    model, pose = textured_model(), start_pose()
    render = rendered(model, pose)
    assert render.depth is not None
    squared, expected = [], []
    for seed in range(30):
        noise = torch.randn(1, 3, CAMERA.height // 6, CAMERA.width // 6, generator=torch.Generator().manual_seed(seed))
        blurred = torch.nn.functional.interpolate(noise, (CAMERA.height, CAMERA.width), mode="bilinear")[0]
        photo = render.image + 0.05 * blurred.permute(1, 2, 0)
        fit = align_to_photo(CAMERA, render.image, photo, render.depth, render.alpha)
        squared.append(float(mean_square_px(fit.motion, fit.metric)))
        expected.append(float((fit.covariance @ fit.metric).trace()))
    assert 0.5 < np.mean(squared) / np.mean(expected) < 2.0


def test_a_camera_without_a_finite_estimate_stays() -> None:
    render = rendered(textured_model(), start_pose())
    assert render.depth is not None
    fit = align_to_photo(CAMERA, render.image * 1e30, render.image, render.depth, render.alpha)
    assert fit.motion.isfinite().all() and fit.covariance.isfinite().all()
    fit = align_to_photo(CAMERA, render.image * torch.inf, render.image, render.depth, render.alpha)
    assert fit.motion.tolist() == [0.0] * 6 and not fit.covariance.any()


def test_reducing_an_image_takes_means() -> None:
    image = torch.arange(24.0).view(4, 6, 1).expand(4, 6, 3)
    assert reduced_image(image, 2)[:, :, 0].tolist() == [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]


def test_poses_refined_on_photos_raise_the_figures_of_the_views(scene: Scene) -> None:
    """The photos are renders of the model, so the right poses have a perfect PSNR."""
    model, right = textured_model(), start_pose()
    wrong = moved(right, MOTION)
    view = replace(scene.test_views[0], camera=CAMERA, world_to_camera=wrong.numpy())
    photo = (rendered(model, right).image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gs_train.evaluate.refine.decode_images", lambda views: [photo for _ in views])
        (refined,) = refine_on_photos(model, [view], CpuRasterizer(), background=torch.zeros(3))
    target = torch.from_numpy(photo) / 255.0
    before, after = (
        view_metrics(rendered(model, torch.from_numpy(each.world_to_camera)).image, target).psnr
        for each in (view, refined)
    )
    assert before < 32 and after > 40, (before, after)


def test_a_view_that_fits_keeps_its_pose(scene: Scene) -> None:
    model, pose = textured_model(), start_pose()
    view = replace(scene.test_views[0], camera=CAMERA, world_to_camera=pose.numpy())
    photo = (rendered(model, pose).image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gs_train.evaluate.refine.decode_images", lambda views: [photo for _ in views])
        (refined,) = refine_on_photos(model, [view], CpuRasterizer(), background=torch.zeros(3))
    assert motion_between(pose, torch.from_numpy(refined.world_to_camera)).abs().max() < 1e-4


# ---- points ----


def align_points(scene: Scene, views: tuple[View, ...]) -> PointAlignment:
    return align_to_points(views, scene.points, lambda index: decode_image(views[index]))


@pytest.mark.parametrize("recorded", [True, False], ids=["points recorded", "points not recorded"])
def test_wrong_cameras_come_back_to_the_points(scene: Scene, recorded: bool) -> None:
    views = spoiled(scene.train_views, 0.007, 0.035)
    if not recorded:
        views = tuple(replace(view, point_ids=None) for view in views)
    result = align_points(scene, views)
    right = stacked(scene.train_views)
    assert int(result.aligned.sum()) >= len(views) - 2
    before, after = (
        mean_square_px(motion_between(right, poses), result.metric)[result.aligned].mean().sqrt()
        for poses in (stacked(views), result.poses)
    )
    assert before > 1.5 and after < 0.3 * before, (before, after)


@pytest.mark.parametrize("recorded", [True, False], ids=["points recorded", "points not recorded"])
def test_right_cameras_stay(scene: Scene, recorded: bool) -> None:
    views = scene.train_views
    if not recorded:
        views = tuple(replace(view, point_ids=None) for view in views)
    result = align_points(scene, views)
    assert torch.equal(result.poses, stacked(views))
    assert not result.aligned.any()


def test_a_photo_that_sees_few_points_keeps_its_pose(scene: Scene) -> None:
    views = spoiled(scene.train_views, 0.007, 0.035)
    few = replace(scene.points, xyz=scene.points.xyz[:40], rgb=scene.points.rgb[:40])
    if scene.points.ids is not None:
        few = replace(few, ids=scene.points.ids[:40])
    result = align_to_points(views, few, lambda index: decode_image(views[index]))
    assert torch.equal(result.poses, stacked(views)) and not result.metric.any()
