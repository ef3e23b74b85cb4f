"""Masks and alpha become pixel weights, and loss, density control and metrics ignore pixels of weight 0."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colmap_files import Model
from command_line import gs_train_here
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transforms_files import document, write, write_blender

from gs_train import losses
from gs_train.cameras.camera import Camera
from gs_train.errors import UserError
from gs_train.evaluate.metrics import view_metrics
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.photos.cache import ImageCache
from gs_train.scene.photos.composite import composite, pixel_weights
from gs_train.scene.photos.decode import decode_image
from gs_train.scene.photos.masks import decode_mask
from gs_train.scene.types import AlphaUse, Mask, Scene, View

ALL = SceneConfig(test_every=0)


def _view(photo: Path, size: tuple[int, int], mask: Path | None = None, alpha: AlphaUse = "composite") -> View:
    camera = Camera(width=size[0], height=size[1], fx=1, fy=1, cx=0, cy=0)
    return View(
        name=photo.name,
        image_path=photo,
        camera=camera,
        world_to_camera=np.eye(4),
        mask=None if mask is None else Mask(path=mask),
        alpha=alpha,
    )


def _save(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _half_mask(size: tuple[int, int] = (40, 30), value: int = 255) -> NDArray[np.uint8]:
    """[H, W] mask, black in the left half."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[:, size[0] // 2 :] = value
    return mask


# ---- decoding


def test_a_mask_is_the_fifth_channel(tmp_path: Path) -> None:
    photo = _save(tmp_path / "a.png", np.full((30, 40, 3), 77, np.uint8))
    pixels = decode_image(_view(photo, (40, 30), _save(tmp_path / "m.png", _half_mask())))
    assert pixels.shape == (30, 40, 5) and (pixels[:, :, :3] == 77).all() and (pixels[:, :, 3] == 255).all()
    np.testing.assert_array_equal(pixels[:, :, 4], _half_mask())
    white = _save(tmp_path / "white.png", np.full((30, 40), 255, np.uint8))
    assert decode_image(_view(photo, (40, 30), white)).shape == (30, 40, 3)


@pytest.mark.parametrize("kind", ["255", "1", "jpg", "palette", "bits", "rgb", "16"])
def test_masks_of_all_kinds(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("m.jpg" if kind == "jpg" else "m.png")
    image = {
        "1": Image.fromarray(_half_mask(value=1)),
        "palette": Image.fromarray(_half_mask()).convert("P"),
        "bits": Image.fromarray(_half_mask()).convert("1"),
        "rgb": Image.fromarray(_half_mask()).convert("RGB"),
        "16": Image.fromarray(_half_mask().astype(np.uint16) * 257),
    }.get(kind, Image.fromarray(_half_mask()))
    image.save(file)
    np.testing.assert_array_equal(decode_mask(Mask(path=file)), _half_mask())


def test_resampled_pixels_count_only_if_nothing_masked_is_in_them(tmp_path: Path) -> None:
    """The masked half is white, the rest black. White in a pixel that counts would come from the masked half."""
    mask = _half_mask((123, 90))
    photo = _save(tmp_path / "a.png", np.repeat((255 - mask)[:, :, None], 3, axis=2))
    file = _save(tmp_path / "m.png", mask)
    for size in ((61, 45), (40, 30), (200, 146)):
        pixels = decode_image(_view(photo, size, file))
        counts = pixels[:, :, 4] == 255
        assert set(np.unique(pixels[:, :, 4])) == {0, 255} and 0.4 < counts.mean() <= 0.51
        assert pixels[:, :, :3][counts].max() < 13
    cache = ImageCache([_view(photo, (123, 90), file)])
    for factor in (2, 4, 8):
        small = cache.get(0, factor)
        assert small.shape == (-(-90 // factor), -(-123 // factor), 5)
        counts = small[:, :, 4] == 255
        assert counts.any() and small[:, :, :3][counts].max() == 0
        assert counts[:, -1].all(), "a last column of fewer sources counts too"


def _rgba() -> NDArray[np.uint8]:
    pixels = np.zeros((30, 40, 4), np.uint8)
    pixels[:, :20] = (200, 100, 50, 255)
    pixels[:, 20:] = (200, 100, 50, 51)
    return pixels


def test_uses_of_alpha(tmp_path: Path) -> None:
    photo = _save(tmp_path / "a.png", _rgba())
    composited = decode_image(_view(photo, (40, 30)))
    assert composited[0, 39].tolist() == [40, 20, 10, 51]
    ignored = decode_image(_view(photo, (40, 30), alpha="ignore"))
    assert ignored.shape == (30, 40, 3) and (ignored == (200, 100, 50)).all()
    weighed = decode_image(_view(photo, (40, 30), alpha="mask"))
    assert weighed.shape == (30, 40, 5)
    assert weighed[0, 0].tolist() == [200, 100, 50, 255, 255] and weighed[0, 39].tolist() == [200, 100, 50, 255, 51]
    white = torch.ones(3)
    assert torch.equal(composite(weighed, white), composite(ignored, white)), "compositing has no effect"


@pytest.mark.parametrize("alpha", ["mask", "ignore"])
def test_alpha_modes_leave_photos_without_alpha_alone(tmp_path: Path, alpha: AlphaUse) -> None:
    photo = _save(tmp_path / "a.png", np.full((30, 40, 3), 77, np.uint8))
    assert decode_image(_view(photo, (40, 30), alpha=alpha)).shape == (30, 40, 3)


@pytest.mark.parametrize(("alpha", "right"), [("composite", 255), ("mask", 51), ("ignore", 255)])
def test_masks_and_alpha_together(tmp_path: Path, alpha: AlphaUse, right: int) -> None:
    photo, mask = _save(tmp_path / "a.png", _rgba()), np.full((30, 40), 255, np.uint8)
    mask[:10] = 0
    pixels = decode_image(_view(photo, (40, 30), _save(tmp_path / "m.png", mask), alpha))
    assert pixels.shape == (30, 40, 5)
    assert (
        (pixels[:10, :, 4] == 0).all() and (pixels[10:, :20, 4] == 255).all() and (pixels[10:, 20:, 4] == right).all()
    )
    assert (pixels[:, 20:, 3] == (51 if alpha == "composite" else 255)).all()


def test_weights_as_tensors(tmp_path: Path) -> None:
    photo = _save(tmp_path / "a.png", np.full((30, 40, 3), 51, np.uint8))
    pixels = decode_image(_view(photo, (40, 30), _save(tmp_path / "m.png", _half_mask())))
    found = pixel_weights(pixels, torch.device("cpu"))
    assert found is not None and found.shape == (30, 40, 1) and found.unique().tolist() == [0.0, 1.0]
    assert torch.equal(composite(pixels, torch.ones(3)), torch.full((30, 40, 3), 0.2))
    assert pixel_weights(pixels[:, :, :4], torch.device("cpu")) is None


# ---- finding


def _scene(folder: Path) -> Path:
    Model().write_binary(folder / "sparse/0")
    Model().write_photos(folder / "images")
    return folder


@pytest.mark.parametrize(
    ("photo", "mask"), [("b.png", "b.png"), ("b.png", "b.jpg"), ("b.png", "b.png.png"), ("sub/c d.png", "sub/c d.bmp")]
)
def test_masks_are_found_by_name(tmp_path: Path, photo: str, mask: str) -> None:
    _save(_scene(tmp_path) / "masks" / mask, _half_mask())
    scene = load_scene(tmp_path, ALL)
    assert {view.name: view.mask.path for view in scene.train_views if view.mask} == {photo: tmp_path / "masks" / mask}
    assert scene.notices == (
        f"1 of 4 photos have a mask (in {tmp_path / 'masks'}): masks hide 50.0 % of these photos.",
    )


def test_masks_beside_a_transforms_file(tmp_path: Path) -> None:
    """Masks may lie beside images/, or in folders like the scene's."""
    write(tmp_path / "a", document(3))
    _save(tmp_path / "a/masks/1.png", _half_mask())
    write(tmp_path / "b", document(3))
    _save(tmp_path / "b/masks/images/1.png", _half_mask())
    for name in "ab":
        scene = load_scene(tmp_path / name, ALL)
        assert [view.name for view in scene.train_views if view.mask] == ["images/1.png"]
    # Names in several folders need the folder: train/2.png and test/2.png are two photos.
    write_blender(tmp_path / "c", {"train": 3, "test": 1})
    _save(tmp_path / "c/masks/train/1.png", _half_mask())
    _save(tmp_path / "c/masks/2.png", _half_mask())
    scene = load_scene(tmp_path / "c", SceneConfig())
    assert [view.name for view in (*scene.train_views, *scene.test_views) if view.mask] == ["train/1.png"]


def test_masks_in_another_spelling_of_the_folder_and_the_names(tmp_path: Path) -> None:
    _save(_scene(tmp_path) / "Masks/SUB/C D.PNG", _half_mask())
    assert [view.name for view in load_scene(tmp_path, ALL).train_views if view.mask] == ["sub/c d.png"]


def test_another_folder_of_masks(tmp_path: Path) -> None:
    _save(_scene(tmp_path) / "people/b.png", _half_mask())
    assert all(view.mask is None for view in load_scene(tmp_path, ALL).train_views)
    scene = load_scene(tmp_path, SceneConfig(test_every=0, masks="people"))
    assert [view.name for view in scene.train_views if view.mask] == ["b.png"]
    with pytest.raises(UserError, match=r"nowhere does not exist: .*--masks"):
        load_scene(tmp_path, SceneConfig(masks="nowhere"))
    with pytest.raises(UserError, match="--masks is empty"):
        SceneConfig(masks="")
    with pytest.raises(UserError, match="--alpha is half"):
        SceneConfig(alpha="half")  # type: ignore[arg-type]


def test_masks_of_another_size(tmp_path: Path) -> None:
    _save(_scene(tmp_path) / "masks/b.png", _half_mask((80, 60)))
    scene = load_scene(tmp_path, ALL)
    assert "1 of the masks differ in size" in scene.notices[1]
    np.testing.assert_array_equal(decode_image(scene.train_views[1])[:, :, 4], _half_mask())
    _save(tmp_path / "masks/b.png", _half_mask((80, 62)))
    with pytest.raises(UserError, match=r"masks/b\.png is 80x62 px, but its photo .*images/b\.png is 40x30"):
        load_scene(tmp_path, ALL)
    (tmp_path / "masks/b.png").write_text("no image")
    with pytest.raises(
        UserError,
        match=r"masks/b\.png cannot be decoded .*: convert .*, make the mask again, or remove it from its folder",
    ):
        load_scene(tmp_path, ALL)
    _save(tmp_path / "masks/e.png", _half_mask((80, 62)))
    faults: list[UserError] = []
    assert all(view.mask is None for view in load_scene(tmp_path, ALL, faults.append).train_views)
    assert ["masks/b.png" in str(faults[0]), "masks/e.png" in str(faults[1]), len(faults)] == [True, True, 2]


def test_other_files_beside_a_mask_are_ignored(tmp_path: Path) -> None:
    _save(_scene(tmp_path) / "masks/b.png", _half_mask())
    for name in ("b.json", "b.txt", "e.txt"):
        (tmp_path / "masks" / name).write_text("a note")
    scene = load_scene(tmp_path, ALL)
    assert [view.mask.path for view in scene.train_views if view.mask] == [tmp_path / "masks/b.png"]


def test_a_mask_that_hides_everything_takes_its_view_out(tmp_path: Path) -> None:
    _save(_scene(tmp_path) / "masks/b.png", np.zeros((30, 40), np.uint8))
    _save(tmp_path / "masks/e.png", _half_mask())
    scene = load_scene(tmp_path, ALL)
    assert [view.name for view in scene.train_views] == ["a.png", "e.png", "sub/c d.png"]
    assert "1 photos are left out, because masks hide them completely (b.png)." in scene.notices
    for name in ("a", "e", "sub/c d"):
        _save(tmp_path / f"masks/{name}.png", np.zeros((30, 20 if name == "a" else 40), np.uint8))
    with pytest.raises(
        UserError,
        match=r"leaves 0 of its 4 views .* and 4 masks that hide all .*: correct the masks, .*--invert-masks, or add",
    ):
        load_scene(tmp_path, ALL)


# ---- other forms


def _visible(scene: Scene) -> list[float]:
    """Share of each photo that counts."""
    pixels = [decode_image(view) for view in scene.train_views]
    return [1.0 if each.shape[2] < 5 else float((each[:, :, 4] > 0).mean()) for each in pixels]


def test_masks_that_a_transforms_file_names(tmp_path: Path) -> None:
    """nerfstudio's mask_path. It comes before a file in masks/, which serves the other frames."""
    content = document(4)
    _save(tmp_path / "cut outs/first.png", _half_mask())
    _save(tmp_path / "masks/0.png", np.full((30, 40), 255, np.uint8))
    _save(tmp_path / "masks/1.png", np.kron(_half_mask((4, 30)), np.ones((1, 10), np.uint8)))
    content["frames"][0]["mask_path"] = "./cut outs\\first.png"
    content["frames"][3]["mask_path"] = ""
    file = write(tmp_path, content)
    scene = load_scene(file, ALL)
    assert _visible(scene) == [0.5, 0.5, 1.0, 1.0]
    assert scene.notices[0] == (
        f"2 of 4 photos have a mask (1 named by mask_path; 1 in {tmp_path / 'masks'}): masks hide 50.0 % of these "
        "photos."
    )
    # An explicit folder comes first.
    scene = load_scene(file, SceneConfig(test_every=0, masks="masks/../masks"))
    assert _visible(scene) == [1.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (
            "nowhere.png",
            r"nowhere\.png does not exist, but mask_path names it as the mask of images/1\.png: copy it there",
        ),
        ("m" * 300, r"m does not exist, but mask_path names it"),
        ("../out.png", r"mask_path: '\.\./out\.png' leads out of .*--allow-outside"),
        (7, r"frame 1 \(images/1\.png\): mask_path is 7, which is not a file name"),
    ],
)
def test_a_mask_path_that_leads_nowhere(tmp_path: Path, path: Any, sentence: str) -> None:
    content = document(4)
    content["frames"][1]["mask_path"] = path
    with pytest.raises(UserError, match=sentence):
        load_scene(write(tmp_path, content), ALL)


def test_missing_masks_are_one_fault(tmp_path: Path) -> None:
    content = document(9)
    for number, frame in enumerate(content["frames"]):
        frame["mask_path"] = f"masks/{number}.png"
    faults: list[UserError] = []
    load_scene(write(tmp_path, content), ALL, faults.append)
    assert [str(fault).split(":")[0] for fault in faults] == [
        "9 files (0.png, 1.png, 2.png, 3.png, 4.png, ...) share this fault"
    ]


@pytest.mark.parametrize("colmap", [False, True])
def test_masks_of_instant_ngp(tmp_path: Path, colmap: bool) -> None:
    """They lie beside the photos, and white pixels hide."""
    if colmap:
        _scene(tmp_path)
        _save(tmp_path / "images/dynamic_mask_b.png", _half_mask((40, 30), 200))
        _save(tmp_path / "images/sub/dynamic_mask_c d.png", np.zeros((30, 40), np.uint8))
        expected = [1.0, 0.5, 1.0, 1.0]
    else:
        write(tmp_path, document(4))
        _save(tmp_path / "images/dynamic_mask_1.png", _half_mask())
        _save(tmp_path / "images/dynamic_mask_2.png", np.zeros((30, 40), np.uint8))
        expected = [1.0, 0.5, 1.0, 1.0]
    scene = load_scene(tmp_path, ALL)
    assert _visible(scene) == expected
    notice = "2 of 4 photos have a mask (in dynamic_mask_*.png beside the photos, white pixels hide): "
    assert scene.notices[0] == f"{notice}masks hide 25.0 % of these photos."
    masked = next(view for view in scene.train_views if view.mask and view.mask.hidden)
    np.testing.assert_array_equal(decode_image(masked)[:, :, 4], 255 - _half_mask())


@pytest.mark.parametrize("name", ["b_mask.png", "b.mask.png", "b.png.mask.png", "b.png_mask.png"])
def test_other_names_of_masks(tmp_path: Path, name: str) -> None:
    _save(_scene(tmp_path) / "masks" / name, _half_mask())
    assert [view.name for view in load_scene(tmp_path, ALL).train_views if view.mask] == ["b.png"]


def _in_alpha(mask: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """A mask in the alpha channel."""
    colours = {
        "white": np.full((*mask.shape, 3), 255, np.uint8),
        "black": np.zeros((*mask.shape, 3), np.uint8),
        "red": np.full((*mask.shape, 3), (255, 0, 0), np.uint8),
        "grey": np.full((*mask.shape, 1), 255, np.uint8),
        "photo": np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), np.uint8),
        "white on black": np.repeat(mask[:, :, None], 3, axis=2),
    }[kind]
    return np.concatenate([colours, mask[:, :, None]], axis=2)


@pytest.mark.parametrize("kind", ["white", "black", "red", "grey", "photo", "white on black"])
def test_masks_in_the_alpha_channel(tmp_path: Path, kind: str) -> None:
    """A mask of one colour that hides nothing is read like the others, even if its colour is black."""
    folder = _scene(tmp_path) / "masks"
    _save(folder / "b.png", _in_alpha(_half_mask(), kind))
    if kind != "photo":
        _save(folder / "e.png", _in_alpha(np.full((30, 40), 255, np.uint8), kind))
    scene = load_scene(tmp_path, ALL)
    assert _visible(scene) == [1.0, 0.5, 1.0, 1.0]
    np.testing.assert_array_equal(decode_image(scene.train_views[1])[:, :, 4], _half_mask())
    assert "in the alpha channel): masks hide" in scene.notices[0]


@pytest.mark.parametrize("alpha", [255, 0, None])
def test_masks_in_colours_that_have_an_alpha_channel(tmp_path: Path, alpha: int | None) -> None:
    """The alpha channel of a painting program: opaque, or with a transparent part, beside a mask in black and white."""
    mask = _half_mask()
    pixels = np.concatenate(
        [np.repeat(mask[:, :, None], 3, axis=2), np.full((30, 40, 1), alpha or 0, np.uint8)], axis=2
    )
    if alpha is None:
        pixels[:, :, 3] = 255
        pixels[:5, :, 3] = 0
    _save(_scene(tmp_path) / "masks/b.png", pixels)
    scene = load_scene(tmp_path, ALL)
    np.testing.assert_array_equal(decode_image(scene.train_views[1])[:, :, 4], mask)
    assert "alpha" not in scene.notices[0]


@pytest.mark.parametrize("form", ["folder", "alpha", "instant-ngp", "mask_path"])
def test_inverted_masks_are_noticed_and_can_be_swapped(tmp_path: Path, form: str) -> None:
    """A tenth of each photo is to be hidden; its mask says the opposite."""
    mask = np.zeros((30, 40), np.uint8)
    mask[:3] = 255
    content = document(4)
    for number, frame in enumerate(content["frames"]):
        if form == "instant-ngp":
            _save(tmp_path / f"images/dynamic_mask_{number}.png", 255 - mask)
        else:
            _save(tmp_path / f"masks/{number}.png", _in_alpha(mask, "white") if form == "alpha" else mask)
        if form == "mask_path":
            frame["mask_path"] = f"masks/{number}.png"
    file = write(tmp_path, content)
    scene = load_scene(file, ALL)
    assert "masks hide 90.0 % of these photos." in scene.notices[0]
    assert scene.notices[1] == (
        "Masks rarely hide as much as 90 %: if black and white are swapped, train with --invert-masks."
    )
    scene = load_scene(file, SceneConfig(test_every=0, invert_masks=True))
    assert _visible(scene) == [0.9] * 4
    assert "black and white swapped): masks hide 10.0 % of these photos." in scene.notices[0]
    assert not any("rarely" in notice for notice in scene.notices)


def test_a_flag_that_inverts_masks_by_mistake(tmp_path: Path) -> None:
    mask = np.full((30, 40), 255, np.uint8)
    mask[:3] = 0
    for name in ("a", "b", "e"):
        _save(_scene(tmp_path) / f"masks/{name}.png", mask if name != "a" else mask[:, :20])
    scene = load_scene(tmp_path, SceneConfig(test_every=0, invert_masks=True))
    assert any(notice.endswith("swapped, leave --invert-masks out.") for notice in scene.notices)


def test_info_and_eval_say_how_much_is_hidden(tiny_scene: Path, tmp_path: Path) -> None:
    scene, run = tmp_path / "scene", tmp_path / "run"
    mask = np.zeros((48, 64), np.uint8)
    mask[:12] = 255
    for file in (tiny_scene / "images").iterdir():
        _save(scene / "masks" / file.name, mask)
    for name in ("images", "sparse"):
        (scene / name).symlink_to(tiny_scene / name)
    described = gs_train_here("info", scene)
    assert "masks          8, which hide 75.0 % of their photos" in described.stdout and described.returncode == 0
    flags = "--iterations 4 --device cpu --max-gaussians 1000 --save-every 4".split()
    for swap in ((), ("--invert-masks",)):
        trained = gs_train_here("train", scene, "--out", run, "--overwrite", *flags, *swap)
        assert trained.returncode == 0 and ("rarely hide as much" in trained.stderr) == (not swap), trained.stderr
        evaluated = gs_train_here("eval", run)
        share = 0.75 if swap else 0.25
        assert f"over {100 * share:.1f} % of the pixels" in evaluated.stdout
        assert ("Masks hide 75 % of the photos" in evaluated.stderr) == (not swap)
        assert json.loads((run / "results.json").read_text())["counted"] == pytest.approx(share)


# ---- loss, metrics


def _pair(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, target = torch.rand(2, 32, 48, 3, generator=generator)
    mask = torch.ones(32, 48, 1)
    mask[8:20, 10:30] = 0.0
    return image, target, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_ignores_masked_pixels(dtype: torch.dtype) -> None:
    image, target, mask = (tensor.to(dtype) for tensor in _pair())
    soft = mask * 0.25
    gradients = []
    for counts in (mask, soft):
        render = image.clone().requires_grad_()
        loss = losses.photometric_loss(losses.apply_mask(render, target, counts), target, 0.2)
        loss.backward()
        assert render.grad is not None
        assert not render.grad[8:20, 10:30].any() and render.grad[0, 0].all()
        gradients.append((loss, render.grad))
        painted = torch.where(mask == 0.0, torch.rand(3, dtype=dtype), image)
        same = losses.photometric_loss(losses.apply_mask(painted, target, counts), target, 0.2)
        assert torch.equal(same, loss.detach())
    assert losses.apply_mask(image, target, None) is image
    # With L1 alone a weight of w scales error and gradient by w.
    alone = [losses.photometric_loss(losses.apply_mask(image, target, counts), target, 0.0) for counts in (mask, soft)]
    torch.testing.assert_close(alone[1], 0.25 * alone[0])


def test_metrics_ignore_masked_pixels() -> None:
    image, target, mask = _pair()
    kept = (mask > 0)[:, :, 0]
    expected = -10 * np.log10(((image - target)[kept].double() ** 2).mean().item())
    metrics = view_metrics(image, target, mask)
    assert metrics.psnr == pytest.approx(expected, abs=1e-4)
    assert metrics == view_metrics(torch.where(mask == 0, torch.tensor(5.0), image), target, mask)
    assert metrics.ssim > view_metrics(image, target).ssim
    assert view_metrics(image, target, torch.ones(32, 48, 1)).psnr == pytest.approx(
        view_metrics(image, target).psnr, abs=1e-4
    )
    soft = view_metrics(image, target, torch.where(kept, 1.0, 0.5)[:, :, None])
    squared = ((image - target).double() ** 2).mean(dim=2)
    weights = torch.where(kept, 1.0, 0.5).double()
    assert soft.psnr == pytest.approx(-10 * np.log10(((weights * squared).sum() / weights.sum()).item()), abs=1e-4)


# ---- a run


def test_a_run_ignores_masked_pixels(tiny_scene: Path, tmp_path: Path) -> None:
    """Scenes that differ only in masked pixels give the same bits.

    SSIM is off, because its windows reach across a mask's edge.
    """
    splats = []
    for name, colour in (("red", (255, 0, 0)), ("green", (0, 255, 0))):
        scene = tmp_path / name
        for file in sorted((tiny_scene / "images").iterdir()):
            photo = np.asarray(Image.open(file).convert("RGB")).copy()
            mask = np.full(photo.shape[:2], 255, np.uint8)
            photo[10:30, 20:40], mask[10:30, 20:40] = colour, 0
            _save(scene / "images" / file.name, photo)
            _save(scene / "masks" / file.name, mask)
        (scene / "sparse").symlink_to(tiny_scene / "sparse")
        run = tmp_path / f"run_{name}"
        flags = "--iterations 12 --device cpu --max-gaussians 1000 --lambda-dssim 0"
        sizes = "--start-downscale 2 --full-size-from 6"
        density = "--density.kind multiview --density.interval 4"
        rounds = "--density.from-iteration 1 --density.until-iteration 10"
        trained = gs_train_here("train", scene, "--out", run, *f"{flags} {sizes} {density} {rounds}".split())
        assert trained.returncode == 0, trained.stderr
        assert "8 of 8 photos have a mask" in trained.stderr
        evaluated = gs_train_here("eval", run)
        assert evaluated.returncode == 0, evaluated.stderr
        figures = json.loads((run / "per_view.json").read_text())
        splats.append(
            (
                (run / "point_cloud/iteration_12/point_cloud.ply").read_bytes(),
                [view["psnr"] for view in figures.values()],
            )
        )
    assert splats[0] == splats[1]


@pytest.mark.slow
def test_masked_objects_leave_no_ghost(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "scripts" / "bench_masks.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "out"], capture_output=True, text=True, check=False, cwd=script.parents[1]
    )
    assert done.returncode == 0, done.stderr
    gain = next(line.split("|")[2] for line in done.stdout.splitlines() if line.startswith("| gain"))
    assert float(gain) >= 1.0
