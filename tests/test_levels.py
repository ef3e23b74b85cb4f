"""Photos of more than 8 bits: one white for all photos of a scene, the right pixels, or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiff_files import write_tiff
from transforms_files import SIZE, document, write

from gs_train.errors import UserError
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.photos.decode import check_images, decode_image
from gs_train.scene.types import Scene

ALL = SceneConfig(test_every=0)
COUNT = 4


def _photo(number: int) -> NDArray[np.float64]:
    """[H, W] brightness 0 to 1 of one photo: smooth, and brighter from photo to photo, up to 1 in the last one."""
    x, y = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]))
    return (0.25 + 0.25 * number) * (0.1 + 0.9 * x * y)


def _scene(folder: Path, ending: str, store: Any) -> Scene:
    file = write(folder, document(COUNT, ending=ending), photos=False)
    (folder / "images").mkdir()
    for number in range(COUNT):
        store(folder / f"images/{number}{ending}", _photo(number))
    return load_scene(file, ALL)


def _errors(scene: Scene) -> list[float]:
    """Mean difference of each photo from its brightness, of 255."""
    pixels = [decode_image(view)[:, :, 0] for view in scene.train_views]
    return [float(np.abs(each - 255.0 * _photo(number)).mean()) for number, each in enumerate(pixels)]


def _scaled(white: float, dtype: Any) -> Any:
    """Stores a photo as a TIFF whose brightness 1 is ``white``."""
    return lambda path, photo: write_tiff(path, (photo * white + 0.5 * (np.dtype(dtype).kind != "f")).astype(dtype))


@pytest.mark.parametrize(
    ("white", "dtype", "named"),
    [
        (1.0, np.float32, "float"),
        (255.0, np.float32, "255 (8 bits)"),
        (1.03, np.float32, "float"),
        (65535.0, np.float32, "65535 (16 bits)"),
        (37.0, np.float32, "37 becomes white"),
        (255, np.int32, "255 (8 bits)"),
        (4095, np.int32, "4095 (12 bits)"),
        (65535, np.uint32, None),
        (2**31 - 1, np.uint32, "becomes white"),
        (1023, np.uint16, "1023 (10 bits)"),
        (4095, np.uint16, "4095 (12 bits)"),
        (16383, np.int16, "16383 (14 bits)"),
        (65535, np.uint16, None),
    ],
)
def test_one_channel_of_any_range(tmp_path: Path, white: float, dtype: Any, named: str | None) -> None:
    scene = _scene(tmp_path, ".tif", _scaled(white, dtype))
    assert max(_errors(scene)) < (4.5 if white == 1.03 else 0.6)
    assert len(scene.notices) == 1 + (named is not None), "the other notice is about the points"
    assert named is None or (f"{COUNT} photos have" in scene.notices[0] and named in scene.notices[0])


def test_twelve_bits_in_a_sixteen_bit_png(tmp_path: Path) -> None:
    scene = _scene(
        tmp_path, ".png", lambda path, photo: Image.fromarray(np.round(photo * 4095).astype(np.uint16)).save(path)
    )
    assert max(_errors(scene)) < 0.6


def test_photos_of_several_formats_share_one_white(tmp_path: Path) -> None:
    """A dark photo that happens to fit 12 bits keeps its brightness beside a photo of 16 bits."""
    file = write(tmp_path, document(2, ending=".tif"), photos=False)
    write_tiff(tmp_path / "images/0.tif", np.full(SIZE[::-1], 4000, np.uint16))
    write_tiff(tmp_path / "images/1.tif", np.full(SIZE[::-1], 60000, np.uint16), big=True)
    views = load_scene(file, ALL).train_views
    assert [int(decode_image(view)[0, 0, 0]) for view in views] == [16, 233]


def test_missing_values_and_values_beyond_white(tmp_path: Path) -> None:
    def store(path: Path, photo: NDArray[np.float64]) -> None:
        values = photo.astype(np.float32)
        values[0, :5] = (np.nan, np.inf, -np.inf, -9999.0, 1.05)
        write_tiff(path, values)

    scene = _scene(tmp_path, ".tif", store)
    pixels = decode_image(scene.train_views[0])
    assert pixels[0, :5, 0].tolist() == [0, 255, 0, 0, 255]
    np.testing.assert_allclose(pixels[1:, :, 0], 255 * _photo(0)[1:], atol=0.51)


def test_resizing_follows_the_levels(tmp_path: Path) -> None:
    _scene(tmp_path, ".tif", _scaled(1.0, np.float32))
    view = load_scene(tmp_path, SceneConfig(test_every=0, resolution=2)).train_views[3]
    expected = np.asarray(Image.fromarray((_photo(3) * 255).astype(np.float32)).resize((20, 15), Image.Resampling.BOX))
    np.testing.assert_allclose(decode_image(view)[2:-2, 2:-2, 0], expected[2:-2, 2:-2], atol=2)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32])
def test_a_tiff_is_right_or_refused(tmp_path: Path, dtype: Any, channels: int) -> None:
    """Separate planes, compression and byte order in every combination: Pillow decodes some of them to noise."""
    photo = _photo(3)
    white = {np.uint8: 255, np.uint16: 65535, np.int16: 16383, np.int32: 2**30, np.float32: 1.0}[dtype]
    values = (photo * white).astype(dtype)
    values = values if channels == 1 else np.repeat(values[:, :, None], channels, axis=2)
    seen = 0
    for number, flags in enumerate(np.ndindex(2, 2, 2)):
        planar, deflated, big = map(bool, flags)
        file = write(tmp_path / str(number), document(2, ending=".tif"), photos=False)
        for name in ("0", "1"):
            write_tiff(file.parent / f"images/{name}.tif", values, planar=planar, deflated=deflated, big=big)
        try:
            view = load_scene(file, SceneConfig(test_every=0, alpha="ignore")).train_views[0]
        except UserError as fault:
            assert "2 files (0.tif, 1.tif) share this fault" in str(fault) and str(fault).endswith(".")
            continue
        expected = photo * 255 * (white / view.white if channels == 1 and dtype != np.uint8 else 1.0)
        assert np.abs(decode_image(view)[:, :, 0] - expected).mean() < 1.0, flags
        seen += 1
    assert seen >= (4 if channels == 1 or dtype in (np.uint8, np.uint16) else 0)


def test_sixteen_bits_per_colour(tmp_path: Path) -> None:
    """The remedy for the refused planes: the same pixels as an ordinary TIFF."""
    colours = np.random.default_rng(0).integers(0, 65536, (*SIZE[::-1], 3), dtype=np.uint16)
    file = write(tmp_path, document(2, ending=".tif"), photos=False)
    for name in ("0", "1"):
        write_tiff(tmp_path / f"images/{name}.tif", colours, planar=True)
    with pytest.raises(UserError, match=r"0\.tif is a TIFF whose planes .*: store the photos again as 8-bit PNG or"):
        load_scene(file, ALL)
    for name in ("0", "1"):
        write_tiff(tmp_path / f"images/{name}.tif", colours)
    np.testing.assert_array_equal(decode_image(load_scene(file, ALL).train_views[0]), colours >> 8)
    for name in ("0", "1"):
        Image.fromarray((colours >> 8).astype(np.uint8)).save(tmp_path / f"images/{name}.tif")
    np.testing.assert_array_equal(decode_image(load_scene(file, ALL).train_views[0]), colours >> 8)


@pytest.mark.parametrize("bits", [8, 16])
def test_black_photos_are_noticed(tmp_path: Path, bits: int) -> None:
    """12 bits in 16 per colour, of which Pillow keeps the upper 8 bits; and 8-bit photos made of these."""

    def store(path: Path, photo: NDArray[np.float64]) -> None:
        values = np.repeat(np.round(photo * 4095).astype(np.uint16)[:, :, None], 3, axis=2)
        write_tiff(path, values if bits == 16 else (values >> 8).astype(np.uint8))

    scene = _scene(tmp_path, ".tif", store)
    assert any("nearly black" in notice for notice in scene.notices)
    check_images(scene.train_views)


def test_photos_with_dark_parts_are_not_black(tmp_path: Path) -> None:
    def store(path: Path, photo: NDArray[np.float64]) -> None:
        pixels = np.zeros((*photo.shape, 3), np.uint8)
        pixels[:10, :10] = 200
        Image.fromarray(pixels).save(path)

    assert not any("black" in notice for notice in _scene(tmp_path, ".png", store).notices)
