"""The inputs of a step: photos at smaller sizes with matching cameras, backgrounds, sizes and batches by iteration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs_train.cameras.camera import Camera
from gs_train.config.settings import BackgroundKind
from gs_train.scene.photos.cache import ImageCache
from gs_train.scene.photos.composite import composite
from gs_train.scene.types import View
from gs_train.training.background import Background
from gs_train.training.schedule import batch_size_at, downscale_at


def make_view(path: Path, width: int, height: int) -> View:
    camera = Camera(width=width, height=height, fx=9.0, fy=8.0, cx=4.0, cy=3.0)
    return View(name=path.name, image_path=path, camera=camera, world_to_camera=np.eye(4))


def test_sizes_double_at_equal_intervals_up_to_the_full_size() -> None:
    sizes = [downscale_at(iteration, 4, 101) for iteration in range(1, 140)]
    assert sizes == [4] * 50 + [2] * 50 + [1] * 39
    assert {downscale_at(iteration, 8, 1) for iteration in range(1, 9)} == {1}
    assert {downscale_at(iteration, 1, 1000) for iteration in range(1, 9)} == {1}
    assert downscale_at(1, 8, 2) == 8


def test_batches_start_at_batch_from() -> None:
    assert [batch_size_at(iteration, 4, 3) for iteration in range(1, 6)] == [1, 1, 4, 4, 4]


def test_a_smaller_photo_is_the_mean_of_the_pixels_and_is_cached(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    view = make_view(tmp_path / "a.png", 10, 7)
    cache = ImageCache([view])
    half = cache.get(0, 2)
    assert half.shape == (4, 5, 3) == (view.camera.reduced(2).height, view.camera.reduced(2).width, 3)
    np.testing.assert_allclose(half[:3], pixels[:6].reshape(3, 2, 5, 2, 3).mean(axis=(1, 3)), atol=0.51)
    np.testing.assert_allclose(half[3], pixels[6].reshape(5, 2, 3).mean(axis=1), atol=0.51)
    assert cache.get(0, 2) is half and cache.get(0, 1) is cache.get(0)
    assert cache.byte_count() == pixels.nbytes + half.nbytes


def test_a_reduced_camera_sees_the_same_through_larger_pixels() -> None:
    camera = Camera(width=101, height=50, fx=80.0, fy=70.0, cx=50.0, cy=26.0)
    small = camera.reduced(4)
    assert (small.width, small.height) == (26, 13)
    # The ray through the middle of a block of 4 x 4 pixels is the ray through the middle of the larger pixel.
    assert (4 * 3 + 2 - camera.cx) / camera.fx == (3 + 0.5 - small.cx) / small.fx
    assert (4 * 5 + 2 - camera.cy) / camera.fy == (5 + 0.5 - small.cy) / small.fy
    assert camera.reduced(1) is camera


def test_only_photos_with_alpha_show_the_background() -> None:
    opaque = np.full((2, 2, 3), 51, np.uint8)
    clear = np.dstack([np.full((2, 2, 3), 51, np.uint8), np.full((2, 2, 1), 102, np.uint8)])
    background = torch.tensor([1.0, 0.5, 0.0])
    assert torch.equal(composite(opaque, background), torch.full((2, 2, 3), 0.2))
    torch.testing.assert_close(composite(clear, background)[0, 0], 0.2 + 0.6 * background)


def test_an_opaque_photo_loses_its_alpha_channel(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 3), (10, 20, 30, 255)).save(tmp_path / "a.png")
    assert ImageCache([make_view(tmp_path / "a.png", 4, 3)]).get(0).shape == (3, 4, 3)


@pytest.mark.parametrize(("kind", "eval_color"), [("black", 0.0), ("white", 1.0), ("random", 0.0), ("learned", 0.5)])
def test_backgrounds(kind: BackgroundKind, eval_color: float) -> None:
    generator = torch.Generator().manual_seed(0)
    background = Background(kind, generator, "cpu")
    first, second = background.sample(), background.sample()
    assert background.eval_color().tolist() == [eval_color] * 3
    assert torch.equal(first, second) == (kind != "random")
    assert first.requires_grad == (kind == "learned")
    assert 0.0 <= float(first.detach().min()) and float(first.detach().max()) <= 1.0


def test_a_learned_background_finds_its_colour_and_resumes_from_its_state() -> None:
    wanted = torch.tensor([0.9, 0.1, 0.4])
    whole, half, other = (Background("learned", torch.Generator(), "cpu") for _ in range(3))

    def learn(background: Background, steps: int) -> None:
        for _ in range(steps):
            (background.sample() - wanted).square().sum().backward()
            background.step()

    learn(whole, 800)
    learn(half, 300)
    other.load_state_dict(half.state_dict())
    learn(other, 500)
    torch.testing.assert_close(whole.eval_color(), wanted, atol=0.02, rtol=0.0)
    assert torch.equal(other.eval_color(), whole.eval_color())


def test_a_photo_with_alpha_gets_premultiplied_colours(tmp_path: Path) -> None:
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, :32] = (200, 100, 50, 255)
    pixels[:, 32:] = (200, 100, 50, 51)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    decoded = ImageCache([make_view(tmp_path / "a.png", 64, 48)]).get(0)
    assert decoded.shape == (48, 64, 4)
    assert decoded[0, 0].tolist() == [200, 100, 50, 255] and decoded[0, 63].tolist() == [40, 20, 10, 51]
