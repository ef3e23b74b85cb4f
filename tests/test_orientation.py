"""EXIF orientation: photos are turned where the cameras describe upright photos, and left alone where they do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import gs_train_here
from numpy.typing import NDArray
from PIL import Image
from transforms_files import document, write

from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.photos.decode import decode_image
from gs_train.scene.photos.files import image_size, inverse, turned
from gs_train.scene.types import Scene, View

ALL = SceneConfig(test_every=0)
EVERY = (2, 3, 4, 5, 6, 7, 8)


@pytest.fixture(scope="module")
def square_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample scene whose photos have equal sides, so that their size says nothing about their orientation."""
    folder = tmp_path_factory.mktemp("square") / "scene"
    write_sample_scene(folder, views=6, width=48, height=48, points=400)
    return folder


def _store(path: Path, pixels: NDArray[np.uint8], orientation: int, *, upright: bool, kind: str = "PNG") -> None:
    """Write a photo with an EXIF orientation. Turning it by that shows ``pixels`` if ``upright``; else it stores
    them."""
    image = Image.fromarray(pixels)
    image = turned(image, inverse(orientation)) if upright else image
    if kind == "TIFF":
        image.save(path, kind, tiffinfo={0x0112: orientation})
        return
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, kind, exif=exif, quality=97)


def _with_orientation(scene: Path, target: Path, orientation: int, *, upright: bool, kind: str = "PNG") -> Path:
    """A copy of ``scene`` with EXIF orientations. The files keep their names, whatever their kind."""
    shutil.copytree(scene, target)
    for file in (target / "images").iterdir():
        _store(file, _pixels(file), orientation, upright=upright, kind=kind)
    return target


def _pixels(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _check_photos(scene: Scene, original: Path, most: float = 0.0) -> None:
    """The photos of the scene show those of ``original``, up to a mean difference of JPEG."""
    for view in scene.train_views:
        off = np.abs(decode_image(view).astype(float) - _pixels(original / "images" / view.name)).mean()
        assert off <= most, view.name


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_photos_that_were_turned_by_other_software(
    tiny_scene: Path, tmp_path: Path, orientation: int, kind: str
) -> None:
    """Sizes decide for 6 and 8, the colours of the points for 3."""
    folder = _with_orientation(tiny_scene, tmp_path / "scene", orientation, upright=True, kind=kind)
    scene = load_scene(folder, ALL)
    _check_photos(scene, tiny_scene, most=7.0 if kind in ("JPEG", "WEBP") else 0.0)
    (notice,) = (notice for notice in scene.notices if "EXIF" in notice)
    assert notice.startswith("8 of 8 photos are turned upright by their EXIF orientation, because ")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", EVERY)
def test_photos_that_were_used_as_stored(tiny_scene: Path, tmp_path: Path, orientation: int, kind: str) -> None:
    """COLMAP does so with every format. Pillow turns TIFF files on its own, which must have no effect."""
    folder = _with_orientation(tiny_scene, tmp_path / "scene", orientation, upright=False, kind=kind)
    assert image_size(folder / "images/view_000.png") == (64, 48)
    scene = load_scene(folder, ALL)
    _check_photos(scene, tiny_scene)
    (notice,) = (notice for notice in scene.notices if "EXIF" in notice)
    assert "8 of 8 photos have an EXIF orientation that is not applied" in notice


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("orientation", EVERY)
def test_colours_decide_where_both_sizes_fit(
    square_scene: Path, tmp_path: Path, orientation: int, upright: bool
) -> None:
    folder = _with_orientation(square_scene, tmp_path / "scene", orientation, upright=upright)
    _check_photos(load_scene(folder, ALL), square_scene)


def test_photos_stay_as_stored_without_points(tmp_path: Path) -> None:
    file = write(tmp_path, document(4))
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    _store(tmp_path / "images/1.png", pixels, 3, upright=False)
    scene = load_scene(file, ALL)
    np.testing.assert_array_equal(decode_image(scene.train_views[1]), pixels)
    assert any("neither sizes nor colours show" in notice and "1 of 4 photos" in notice for notice in scene.notices)


def test_photos_of_unclear_size_follow_the_others(tmp_path: Path) -> None:
    """A phone stores a portrait photo with orientation 6, and one that was taken upside down with 3."""
    file = write(tmp_path, document(4))
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    for number, orientation in ((1, 6), (2, 3)):
        _store(tmp_path / f"images/{number}.png", pixels, orientation, upright=True)
    scene = load_scene(file, ALL)
    for number in (1, 2):
        np.testing.assert_array_equal(decode_image(scene.train_views[number]), pixels)
    assert "2 of 4 photos are turned upright" in scene.notices[0]


def test_reduced_photos_are_turned_too(tiny_scene: Path, tmp_path: Path) -> None:
    folder = _with_orientation(tiny_scene, tmp_path / "scene", 6, upright=True)
    (folder / "images_2").mkdir()
    for file in (folder / "images").iterdir():
        small = np.asarray(Image.open(tiny_scene / "images" / file.name).convert("RGB").reduce(2))
        _store(folder / "images_2" / file.name, small, 6, upright=True)
    view = load_scene(folder, SceneConfig(test_every=0, resolution=2)).train_views[0]
    assert view.image_path.parent.name == "images_2"
    small = np.asarray(Image.open(tiny_scene / "images" / view.name).convert("RGB").reduce(2))
    np.testing.assert_array_equal(decode_image(view), small)


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("mask_is", ["upright", "stored", "stored with EXIF"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_masks_turn_with_their_photos(
    tiny_scene: Path, tmp_path: Path, orientation: int, mask_is: str, upright: bool
) -> None:
    """Masks may show the stored or the upright photo, in scenes of either kind.

    A size that fits both ways, as with orientation 3, means that the mask is turned as the scene is.
    """
    folder = _with_orientation(tiny_scene, tmp_path / "scene", orientation, upright=upright)
    weight = np.full((48, 64), 255, np.uint8)
    weight[:10, :30] = 0
    (folder / "masks").mkdir()
    image = Image.fromarray(weight)
    if upright and mask_is != "upright":
        image = turned(image, inverse(orientation))
    if not upright and mask_is == "upright":
        image = turned(image, orientation)
    exif = Image.Exif()
    if mask_is == "stored with EXIF":
        exif[0x0112] = orientation
    image.save(folder / "masks/view_001.png", exif=exif)
    view = load_scene(folder, ALL).train_views[1]
    pixels = decode_image(view)
    other_way = orientation == 3 and (mask_is == "stored") == upright and mask_is != "stored with EXIF"
    np.testing.assert_array_equal(pixels[:, :, 4], weight[::-1, ::-1] if other_way else weight)
    np.testing.assert_array_equal(pixels[:, :, :3], _pixels(tiny_scene / "images" / view.name))


def test_a_photo_that_fits_neither_way_is_a_fault(tiny_scene: Path, tmp_path: Path) -> None:
    folder = _with_orientation(tiny_scene, tmp_path / "scene", 6, upright=True)
    _store(folder / "images/view_003.png", np.zeros((20, 70, 3), np.uint8), 6, upright=True)
    done = gs_train_here("info", folder)
    assert done.returncode == 2 and "view_003.png is 70x20 px, but its camera" in done.stdout


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_data_is_no_fault(tmp_path: Path, exif: bytes) -> None:
    file = write(tmp_path, document(4, ending=".jpg"))
    for number in range(4):
        Image.new("RGB", (40, 30), (90, 120, 150)).save(tmp_path / f"images/{number}.jpg", exif=exif)
    views: tuple[View, ...] = load_scene(file, ALL).train_views
    assert [view.orientation for view in views] == [1] * 4
    assert decode_image(views[0]).shape == (30, 40, 3)


def test_training_and_evaluation_agree(tiny_scene: Path, tmp_path: Path) -> None:
    """The splat of turned photos is that of the upright photos, bit for bit, and so are the figures."""
    splats, figures = [], []
    turned_scene = _with_orientation(tiny_scene, tmp_path / "turned", 8, upright=True)
    for name, scene in (("upright", tiny_scene), ("turned", turned_scene)):
        run = tmp_path / f"run_{name}"
        flags = "--iterations 6 --device cpu --max-gaussians 1000".split()
        trained = gs_train_here("train", scene, "--out", run, *flags)
        assert trained.returncode == 0, trained.stderr
        assert trained.stderr.count("EXIF") == (name == "turned")
        assert gs_train_here("eval", run).returncode == 0
        splats.append((run / "point_cloud/iteration_6/point_cloud.ply").read_bytes())
        figures.append((run / "per_view.json").read_text())
    assert splats[0] == splats[1] and figures[0] == figures[1]
