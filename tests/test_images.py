"""Decoding: every pixel format becomes RGB uint8 at the camera's size, and a damaged file is a UserError."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from gs_train.cameras.camera import Camera
from gs_train.errors import UserError
from gs_train.scene.photos.cache import ImageCache
from gs_train.scene.photos.composite import composite
from gs_train.scene.photos.decode import check_images, decode_image
from gs_train.scene.photos.files import image_size
from gs_train.scene.types import View


def _view(path: Path, size: tuple[int, int]) -> View:
    camera = Camera(width=size[0], height=size[1], fx=1, fy=1, cx=0, cy=0)
    return View(name=path.name, image_path=path, camera=camera, world_to_camera=np.eye(4))


def _noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, name: str) -> None:
    pixels = _noise((13, 7))
    Image.fromarray(pixels).save(tmp_path / name, lossless=True)
    assert image_size(tmp_path / name) == (13, 7)
    decoded = decode_image(_view(tmp_path / name, (13, 7)))
    assert decoded.dtype == np.uint8 and decoded.flags["C_CONTIGUOUS"] and decoded.flags["WRITEABLE"]
    np.testing.assert_array_equal(decoded, pixels)


def test_grey_palette_cmyk_and_sixteen_bits(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    as_rgb = np.repeat(ramp[:, :, None], 3, axis=2)
    file = tmp_path / "a.png"
    for image in (
        Image.fromarray(ramp),
        Image.fromarray(ramp).convert("P"),
        Image.fromarray(ramp.astype(np.uint16) * 257),
    ):
        image.save(file)
        np.testing.assert_array_equal(decode_image(_view(file, (16, 16))), as_rgb)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(decode_image(_view(tmp_path / "a.tif", (16, 16)))[0, 0], (255, 0, 0))


def test_alpha_is_composited_over_the_background(tmp_path: Path) -> None:
    pixels = np.full((2, 3, 4), 200, np.uint8)
    pixels[:, :, 3] = [[255, 128, 0], [0, 255, 128]]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    decoded = decode_image(_view(tmp_path / "a.png", (3, 2)))
    np.testing.assert_allclose(decoded[:, :, 0], [[200, 100, 0], [0, 200, 100]], atol=1)
    over_white = composite(decoded, torch.ones(3)).numpy() * 255.0
    np.testing.assert_allclose(over_white[:, :, 0], [[200, 227, 255], [255, 200, 227]], atol=1)


@pytest.mark.parametrize("size", [(24, 16), (41, 29), (90, 60)])
def test_resized_cutouts_stay_within_the_background(tmp_path: Path, size: tuple[int, int]) -> None:
    """Lanczos resampling overshoots at hard edges, where colour and alpha differ in how much."""
    rng = np.random.default_rng(0)
    pixels = rng.choice([0, 255], (44, 64, 4)).astype(np.uint8)
    pixels[10:30, 10:40] = (255, 255, 255, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    decoded = decode_image(_view(tmp_path / "a.png", size))
    for background in (torch.zeros(3), torch.ones(3)):
        photo = composite(decoded, background)
        assert 0.0 <= photo.min() and photo.max() <= 1.0 + 1e-6


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_noise((12, 8))).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (12, 8)
    assert decode_image(_view(tmp_path / "a.jpg", (12, 8))).shape == (8, 12, 3)


def test_resizing_keeps_the_pixel_grid_in_place(tmp_path: Path) -> None:
    """A linear ramp stays a ramp: value = slope * x at the centre of each larger pixel, with centres at +0.5."""
    ramp = np.repeat((2.0 * (np.arange(96) + 0.5))[None, :, None], 64, axis=0).repeat(3, axis=2)
    Image.fromarray(np.round(ramp).astype(np.uint8)).save(tmp_path / "a.png")
    for size in ((48, 32), (24, 16), (41, 29)):
        decoded = decode_image(_view(tmp_path / "a.png", size))
        assert decoded.shape == (size[1], size[0], 3)
        expected = 2.0 * (np.arange(size[0]) + 0.5) * 96 / size[0]
        np.testing.assert_allclose(decoded[10, 4:-4, 1], expected[4:-4], atol=1.0)


def test_the_cache_keeps_order_and_sizes(tmp_path: Path) -> None:
    sizes = [(5 + i, 9 - i % 3) for i in range(20)]
    for i, size in enumerate(sizes):
        Image.fromarray(_noise(size, i)).save(tmp_path / f"{i}.png")
    cache = ImageCache([_view(tmp_path / f"{i}.png", size) for i, size in enumerate(sizes)])
    assert len(cache) == 20
    assert cache.byte_count() == sum(3 * width * height for width, height in sizes)
    for i, size in enumerate(sizes):
        np.testing.assert_array_equal(cache.get(i), _noise(size, i))
    assert len(ImageCache([])) == 0


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    good, bad = tmp_path / f"good.{suffix}", tmp_path / f"bad.{suffix}"
    Image.fromarray(_noise((64, 48))).save(good)
    whole = good.read_bytes()
    views = [_view(good, (64, 48)), _view(bad, (64, 48)), _view(good, (64, 48))]
    for share in (0.0, 0.02, 0.3, 0.9):
        bad.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=re.escape(f"{bad} cannot be decoded (")) as caught:
            ImageCache(views)
        assert "\n" not in str(caught.value)
    bad.unlink()
    with pytest.raises(UserError, match=re.escape(str(bad))):
        ImageCache(views)


def _refused(path: Path, size: tuple[int, int]) -> str:
    with pytest.raises(UserError, match=re.escape(f"{path} cannot be decoded (")) as caught:
        decode_image(_view(path, size))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow decodes no AVIF")
def test_damaged_avif_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.avif"
    Image.fromarray(_noise((64, 48))).save(file)
    data = bytearray(file.read_bytes())
    data[data.index(b"mdat") + 4 :] = b"\xff" * (len(data) - data.index(b"mdat") - 4)
    file.write_bytes(data)
    _refused(file, (64, 48))


def test_a_dds_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.dds"
    Image.fromarray(_noise((64, 48))).save(file)
    data = bytearray(file.read_bytes())
    data[80:84] = struct.pack("<I", 0x4)  # The pixel format is given by four letters.
    data[84:88] = b"WHAT"
    file.write_bytes(data)
    _refused(file, (64, 48))


@pytest.mark.parametrize(
    "error", [RuntimeError("Failed to decode"), MemoryError(), NotImplementedError("x"), IndexError("out of range")]
)
def test_every_decoder_error_names_the_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Simulates decoders that this Pillow may lack. JPEG 2000's, for example, raises MemoryError for a damaged file."""
    file = tmp_path / "a.png"
    Image.fromarray(_noise((6, 5))).save(file)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    assert "--skip-missing" in _refused(file, (6, 5))


def test_check_images_finds_the_damaged_one(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(_noise((64, 48))).save(good)
    bad.write_bytes(good.read_bytes()[:2000])
    check_images([_view(good, (64, 48))] * 3)
    check_images([])
    with pytest.raises(UserError, match=re.escape(f"{bad} cannot be decoded (")):
        check_images([_view(good, (64, 48)), _view(bad, (64, 48))])


def _png_header(file: Path, width: int, height: int) -> None:
    """A PNG file with this size in its header and almost no pixel data."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    )
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_large_photos_pass_silently_and_huge_ones_are_refused_undecoded(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in ((16384, 12288), (25000, 20000)):
            _png_header(file, *size)
            assert image_size(file) == size
        Image.new("1", (9700, 9700), 1).save(file)
        assert (decode_image(_view(file, (20, 20))) == 255).all()
        _png_header(file, 25000, 20001)
        for read in (lambda: image_size(file), lambda: decode_image(_view(file, (20, 20)))):
            with pytest.raises(UserError, match=r"a\.png is 25000x20001 px, more than the 500 megapixels") as caught:
                read()
            assert "cannot be decoded" not in str(caught.value)
