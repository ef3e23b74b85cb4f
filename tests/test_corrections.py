"""Learned exposures and refined poses of the training views."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import gs_train_here

from gs_train.cameras.camera import Camera
from gs_train.evaluate.metrics import match_colours
from gs_train.model.gaussians import GaussianModel
from gs_train.render.cpu.rasterizer import CpuRasterizer
from gs_train.training.corrections import Exposure, PerViewParameter, PoseRefinement


def test_only_the_view_that_was_used_is_stepped_and_the_mean_stays() -> None:
    each = PerViewParameter(torch.zeros(3, 2), lambda _: 0.1)
    for _ in range(4):
        each.zero_mean(1, torch.zeros(2)).sum().backward()
        each.step(1)
    values = each.state_dict()["values"]
    assert torch.equal(values[[0, 2]], torch.zeros(2, 2)) and bool((values[1] < -0.3).all())
    mean = torch.tensor([5.0, -7.0])
    torch.testing.assert_close(torch.stack([each.zero_mean(index, mean) for index in range(3)]).mean(dim=0), mean)


def test_resuming_from_a_saved_state_takes_the_same_steps() -> None:
    def step(each: PerViewParameter, index: int) -> None:
        each.zero_mean(index, torch.zeros(2)).square().sum().backward()
        each.step(index + 1)

    start = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    whole, part = PerViewParameter(start, lambda i: 0.1 / i), PerViewParameter(start, lambda i: 0.1 / i)
    for index in (0, 1, 1):
        step(whole, index)
        step(part, index)
    again = PerViewParameter(torch.zeros(2, 2), lambda i: 0.1 / i)
    again.load_state_dict(part.state_dict())
    for index in (1, 0):
        step(whole, index)
        step(again, index)
    assert torch.equal(whole.state_dict()["values"], again.state_dict()["values"])


def test_exposure_learns_the_gains_of_the_photos_relative_to_their_mean() -> None:
    gains = torch.tensor([0.8, 1.0, 1.2])
    exposure = Exposure(3, 300, "cpu")
    image = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exposure.exposed(image, 0), image)
    for iteration in range(1, 301):
        index = iteration % 3
        (exposure.exposed(image, index) - gains[index] * image).square().mean().backward()
        exposure.step(iteration)
    for index in range(3):
        torch.testing.assert_close(exposure.exposed(image, index).detach(), gains[index] * image, atol=0.03, rtol=0.0)


def test_matching_colours_undoes_an_affine_change_and_accepts_a_single_colour() -> None:
    image = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0))
    changed = image @ torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.7, 0.2], [0.1, 0.0, 0.9]]) + 0.05
    torch.testing.assert_close(match_colours(changed, image), image, atol=1e-5, rtol=0.0)
    grey = torch.full((4, 4, 3), 0.5)
    torch.testing.assert_close(match_colours(grey, grey / 2), grey / 2, atol=1e-4, rtol=0.0)


def pose(angle: float, shift: tuple[float, float, float]) -> torch.Tensor:
    """[4, 4] rotation about x by ``angle`` in radians, then a shift."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = torch.eye(4)
    matrix[1:3, 1:3] = torch.tensor([[cos, -sin], [sin, cos]])
    matrix[:3, 3] = torch.tensor(shift)
    return matrix


def test_a_refined_pose_is_rigid_and_turns_about_its_own_centre() -> None:
    poses = PoseRefinement(2, 100, extent=3.0, device="cpu")
    before = pose(0.3, (0.1, -0.2, 2.0))
    torch.testing.assert_close(poses.refined(before, 0), before)
    poses.load_state_dict(
        {**poses.state_dict(), "values": torch.tensor([[0.02, 0.0, 0.0, 0, 0, 0], [-0.02, 0.0, 0.0, 0, 0, 0]])}
    )
    after = poses.refined(before, 0).detach()
    torch.testing.assert_close(after[:3, :3] @ after[:3, :3].T, torch.eye(3))
    centres = [-matrix[:3, :3].T @ matrix[:3, 3] for matrix in (before, after)]
    torch.testing.assert_close(*centres)
    angle = torch.arccos((torch.trace(before[:3, :3].T @ after[:3, :3]) - 1) / 2)
    assert float(angle) == pytest.approx(0.02, rel=1e-3)
    poses.load_state_dict(
        {**poses.state_dict(), "values": torch.tensor([[0, 0, 0, 0.0, 0.01, 0.0], [0, 0, 0, 0.0, -0.01, 0.0]])}
    )
    after = poses.refined(before, 0).detach()
    torch.testing.assert_close(
        -after[:3, :3].T @ after[:3, 3] - centres[0], torch.tensor([0.0, 0.03, 0.0]), atol=1e-5, rtol=0.0
    )


def test_gradients_of_the_rasterizer_correct_wrong_poses() -> None:
    """The Gaussians are right, and two cameras are off by opposite rotations and shifts. Refinement reduces the pose
    errors to less than 30 %."""
    generator = torch.Generator().manual_seed(1)
    count = 60
    model = GaussianModel(
        {
            "xyz": torch.rand(count, 3, generator=generator) * 2 - 1,
            "f_dc": torch.rand(count, 1, 3, generator=generator) * 2 - 1,
            "f_rest": torch.zeros(count, 0, 3),
            "opacity": torch.full((count, 1), 2.0),
            "scaling": torch.full((count, 3), -2.0),
            "rotation": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        }
    )
    camera = Camera(width=48, height=48, fx=50.0, fy=50.0, cx=24.0, cy=24.0)
    rasterizer, black = CpuRasterizer(), torch.zeros(3)
    right = pose(0.0, (0.0, 0.0, 3.0))
    photo = rasterizer.render(model, camera, right, black).image.detach()
    wrong = [pose(sign * 0.02, (sign * 0.03, 0.0, 3.0)) for sign in (1, -1)]
    poses = PoseRefinement(2, 600, extent=1.0, device="cpu")
    for iteration in range(1, 601):
        index = iteration % 2
        image = rasterizer.render(model, camera, poses.refined(wrong[index], index), black).image
        (image - photo).square().mean().backward()
        poses.step(iteration)
    for index in range(2):
        left = (poses.refined(wrong[index], index).detach() - right).abs().max()
        assert left < 0.3 * (wrong[index] - right).abs().max()


def test_the_refined_cameras_are_written_beside_the_originals(tiny_scene: Path, tmp_path: Path) -> None:
    flags = ("--iterations", 12, "--device", "cpu", "--refine-poses", "--exposure", "affine", "--max-gaussians", 500)
    done = gs_train_here("train", tiny_scene, "--out", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    given, refined = (
        json.loads((tmp_path / "run" / f"{name}.json").read_text()) for name in ("cameras", "cameras_refined")
    )
    assert [camera["img_name"] for camera in given] == [camera["img_name"] for camera in refined]
    moved = [np.abs(np.subtract(a["position"], b["position"])).max() for a, b in zip(given, refined, strict=True)]
    assert moved[0] == 0.0, "the test view has moved"
    assert 1e-6 < max(moved) < 0.1


def test_training_from_a_splat_keeps_its_degree(tiny_run: Path, tiny_scene: Path, tmp_path: Path) -> None:
    splat = tiny_run / "point_cloud" / "iteration_24" / "point_cloud.ply"
    common = ("train", tiny_scene, "--device", "cpu", "--init-from", splat)
    done = gs_train_here(*common, "--out", tmp_path / "run", "--iterations", 1, "--max-gaussians", 2000)
    assert done.returncode == 0, done.stderr
    start, after = (
        torch.load(next((run / "checkpoints").glob(f"*{number}.pt")), weights_only=True)["state"]["model"]
        for run, number in ((tiny_run, 24), (tmp_path / "run", 1))
    )
    assert after["active_sh_degree"] == 3
    torch.testing.assert_close(after["parameters"]["f_dc"], start["parameters"]["f_dc"], atol=0.01, rtol=0.0)
    for flags, words in (
        (("--max-gaussians", 3), "--max-gaussians"),
        (("--sh-degree", 1), "--sh-degree"),
        (("--antialiased",), "--antialiased"),
    ):
        refused = gs_train_here(*common, "--out", tmp_path / "other", *flags)
        assert refused.returncode == 2 and words in refused.stderr and refused.stderr.strip().count("\n") <= 1, (
            refused.stderr
        )
