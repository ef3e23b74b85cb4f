"""Learned exposures and refined poses of the training views."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import gs_train_here

from gs_train.alignment.motion import mean_square_px, motion_between, moved
from gs_train.alignment.points import align_to_points
from gs_train.config.toml import load_preset
from gs_train.evaluate.metrics import match_colours
from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import load_scene
from gs_train.scene.photos.decode import decode_image
from gs_train.scene.types import Scene, View
from gs_train.training.corrections import Exposure
from gs_train.training.loop import train
from gs_train.training.poses import PoseRefinement


def test_only_the_view_that_was_used_is_stepped_and_the_mean_stays() -> None:
    exposure = Exposure(3, 100, "cpu")
    image = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(0))
    for iteration in range(1, 5):
        exposure.exposed(image, 1).sum().backward()
        exposure.step(iteration)
    values, identity = exposure.state_dict()["values"], torch.eye(3, 4)
    assert torch.equal(values[[0, 2]], identity.expand(2, 3, 4)) and bool((values[1] < identity).all())
    mean = torch.stack([exposure.exposed(image, index) for index in range(3)]).mean(dim=0)
    torch.testing.assert_close(mean, image)


def test_resuming_from_a_saved_state_takes_the_same_steps() -> None:
    image = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(0))

    def step(exposure: Exposure, index: int) -> None:
        exposure.exposed(image, index).square().sum().backward()
        exposure.step(index + 1)

    whole, part, again = (Exposure(2, 10, "cpu") for _ in range(3))
    for index in (0, 1, 1):
        step(whole, index)
        step(part, index)
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


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("corrections") / "scene"
    write_sample_scene(folder, views=10, width=160, height=120, points=2500)
    return load_scene(folder)


def with_wrong_poses(scene: Scene) -> Scene:
    """Training cameras turned by half a degree and moved by 1 % of the extent."""
    random = np.random.default_rng(5)

    def spoil(view: View) -> View:
        turn, shift = (vector / np.linalg.norm(vector) for vector in random.normal(size=(2, 3)))
        motion = np.concatenate([np.radians(0.5) * turn, 0.01 * scene.extent * shift])
        pose = moved(torch.from_numpy(view.world_to_camera), torch.from_numpy(motion))
        return replace(view, world_to_camera=pose.numpy())

    return replace(scene, train_views=tuple(map(spoil, scene.train_views)))


def error_px(scene: Scene, right: Scene) -> float:
    """Root mean square of the displacements that wrong poses of the training cameras give the points, px."""
    views = right.train_views
    metric = align_to_points(views, right.points, lambda index: decode_image(views[index])).metric
    before, after = (
        torch.stack([torch.from_numpy(view.world_to_camera) for view in each.train_views]) for each in (right, scene)
    )
    return float(mean_square_px(motion_between(before, after), metric).mean().sqrt())


def refine(scene: Scene, folder: Path, **settings: Any) -> Scene:
    """The scene with the cameras that a short training has refined."""
    config = replace(load_preset("tiny"), iterations=150, device="cpu", refine_poses=True, **settings)
    state = train(scene, config, folder, progress=False)
    refined = state.corrections.refined(scene.train_views)
    assert refined is not None
    return replace(scene, train_views=tuple(refined))


def test_wrong_poses_are_refined_in_a_training(sample: Scene, tmp_path: Path) -> None:
    wrong = with_wrong_poses(sample)
    assert error_px(wrong, sample) > 1.5
    assert error_px(refine(wrong, tmp_path / "run"), sample) < 0.3


def test_poses_that_the_points_confirm_are_kept(sample: Scene, tmp_path: Path) -> None:
    notes: list[str] = []
    config = replace(load_preset("tiny"), iterations=40, device="cpu")
    train(sample, config, tmp_path / "plain", progress=False)
    train(sample, replace(config, refine_poses=True), tmp_path / "refined", progress=False, notify=notes.append)
    assert any("points confirm the poses" in note for note in notes)
    plain, refined = (
        (tmp_path / run / "point_cloud/iteration_40/point_cloud.ply").read_bytes() for run in ("plain", "refined")
    )
    assert plain == refined


def test_right_poses_hardly_move_without_that_confirmation(sample: Scene, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gs_train.training.poses._ENOUGH_JUDGED", 1.0)
        refined = refine(sample, tmp_path / "run")
    assert 0.001 < error_px(refined, sample) < 0.15


def test_without_points_the_splat_alone_refines_the_poses(sample: Scene, tmp_path: Path) -> None:
    """The points make the splat, but the alignment to them before the first step is left out."""
    wrong = with_wrong_poses(sample)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoseRefinement, "align_to_points", lambda *_: None)
        refined = refine(wrong, tmp_path / "run")
    assert error_px(refined, sample) < 0.95 * error_px(wrong, sample)


def test_refined_poses_are_saved_and_restored(sample: Scene) -> None:
    poses, again = (PoseRefinement(sample, 100, torch.device("cpu")) for _ in range(2))
    wrong = with_wrong_poses(sample)
    other = PoseRefinement(wrong, 100, torch.device("cpu"))
    again.load_state_dict(other.state_dict())
    assert torch.equal(again.pose(0), other.pose(0)) and not torch.equal(again.pose(0), poses.pose(0))


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
    assert max(moved) < 1e-9, "the points confirm the poses of the sample scene"
    done = gs_train_here("eval", tmp_path / "run")
    assert done.returncode == 0 and "refined on their photos: PSNR" in done.stdout, done.stdout + done.stderr
    results, per_view = (
        json.loads((tmp_path / "run" / f"{name}.json").read_text()) for name in ("results", "per_view")
    )
    for figures in (results, *per_view.values()):
        assert figures["psnr_refined_poses"] >= figures["psnr"] - 0.01
        assert {"ssim_refined_poses", "psnr_colour_matched_refined_poses"} <= figures.keys()


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
