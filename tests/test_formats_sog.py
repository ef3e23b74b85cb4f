"""Splats as .sog: the images and the JSON, the error of a round trip, unpacked folders, and damaged files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import gs_train_here
from PIL import Image
from splats import assert_close, assert_same_bits, finite_splat, in_order_of, trained_splat

from gs_train.errors import UserError
from gs_train.formats.codebook import make_codebook, nearest_entries
from gs_train.formats.palette import distinct_rows, make_palette
from gs_train.formats.registry import is_splat_file, read_splat
from gs_train.formats.sog import palette_size, read_sog, write_sog


def unpacked(path: Path) -> tuple[Any, dict[str, np.ndarray[Any, np.dtype[np.uint8]]]]:
    """The JSON and the images of a file, [H * W, 4] each."""
    with zipfile.ZipFile(path) as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        meta = json.loads(archive.read("meta.json"))
        images = {}
        for name in archive.namelist():
            if name.endswith(".webp"):
                images[name] = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGBA")).reshape(-1, 4)
    return meta, images


def rewrite(path: Path, change: Callable[[Any, dict[str, bytes]], None], **options: Any) -> None:
    """Change the JSON and the files of a .sog file."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(files.pop("meta.json"))
    change(meta, files)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in {"meta.json": json.dumps(meta).encode(), **files}.items():
            archive.writestr(name, content)


def test_the_pixels_of_a_gaussian(tmp_path: Path) -> None:
    splat = replace(
        finite_splat(2, 1),
        xyz=np.array([[0, 0, 0], [np.e - 1, 1 - np.e, 0]], dtype=np.float32),
        scaling=np.array([[-1, -1, -2], [-2, -2, -50]], dtype=np.float32),
        f_dc=np.array([[[1, 2, 1]], [[2, 2, 1]]], dtype=np.float32),
        opacity=np.array([[0], [99]], dtype=np.float32),
        rotation=np.array([[0.6, 0, 0, -0.8], [-3, 0, 0, 0]], dtype=np.float32),
    )
    write_sog(tmp_path / "a.sog", splat)
    meta, images = unpacked(tmp_path / "a.sog")
    assert (meta["version"], meta["count"]) == (2, 2)
    assert meta["means"]["mins"] == pytest.approx([0, -1, 0]) and meta["means"]["maxs"] == pytest.approx([1, 0, 0])
    # The codes of y are 65535 and 0, so the second Gaussian comes first or last by its x.
    first = int(images["sh0.webp"][1, 3] == 128)
    second = 1 - first
    assert images["sh0.webp"][[first, second], 3].tolist() == [128, 255]
    assert images["means_u.webp"][[first, second], :3].tolist() == [[0, 255, 0], [255, 0, 0]]
    assert images["means_l.webp"][[first, second], :3].tolist() == [[0, 255, 0], [255, 0, 0]]
    # -0.6 sqrt(1/2) + 0.5, and 0.5, of 255; the alpha tells the largest component.
    assert images["quats.webp"][[first, second]].tolist() == [[19, 128, 128, 255], [128, 128, 128, 252]]
    scales, colours = np.array(meta["scales"]["codebook"]), np.array(meta["sh0"]["codebook"])
    np.testing.assert_allclose(scales[images["scales.webp"][first, :3]], [-1, -1, -2], atol=0.01)
    np.testing.assert_allclose(scales[images["scales.webp"][second, :3]], [-2, -2, -20], atol=0.01)
    np.testing.assert_allclose(colours[images["sh0.webp"][first, :3]], [1, 2, 1], atol=0.01)
    assert all(
        len(image) == 16 and (image[2:] == [0, 0, 0, 255]).all() for name, image in images.items() if "sh" not in name
    )
    assert (meta["shN"]["count"], meta["shN"]["bands"]) == (2, 1)
    assert "antialias" not in meta


@pytest.mark.parametrize(("rows", "degree"), [(1, 0), (1, 3), (17, 1), (300, 2), (1000, 3)])
def test_a_round_trip_is_within_the_steps(tmp_path: Path, rows: int, degree: int) -> None:
    splat = replace(trained_splat(rows, degree), antialiased=degree == 3)
    write_sog(tmp_path / "a.sog", splat)
    found = read_sog(tmp_path / "a.sog")
    # Each Gaussian has its own entry of the palette here. Rare values are far from the entries of a codebook.
    assert_close(found, splat, xyz=5e-4, covariance=0.6, colour=0.12, sh=0.04, alpha=0.51 / 255)
    found = in_order_of(found, splat)
    assert np.abs(found.scaling - splat.scaling).mean() < 0.01
    assert np.abs(found.f_rest - splat.f_rest).sum() <= 0.001 * splat.f_rest.size
    first = (tmp_path / "a.sog").read_bytes()
    write_sog(tmp_path / "a.sog", splat)
    assert (tmp_path / "a.sog").read_bytes() == first


def test_a_folder_is_read_like_its_zip_file(tmp_path: Path) -> None:
    splat = trained_splat(40, 1)
    write_sog(tmp_path / "a.sog", splat)
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        archive.extractall(tmp_path / "folder")
    for path in (tmp_path / "folder", tmp_path / "folder" / "meta.json"):
        assert_same_bits(read_splat(path), read_sog(tmp_path / "a.sog"))
        shown = gs_train_here("info", path)
        assert shown.returncode == 0 and "40" in shown.stdout, shown.stderr
        assert gs_train_here("export", path, tmp_path / "b.ply").returncode == 0


def test_a_palette_that_is_smaller_than_the_splat() -> None:
    rng = np.random.default_rng(3)
    groups = rng.normal(size=(60, 24)).astype(np.float32)
    rows = groups[rng.integers(0, 60, 5000)] + rng.normal(0, 0.01, (5000, 24)).astype(np.float32)
    centres, labels = make_palette(rows, 400)
    assert centres.shape == (400, 24) and labels.shape == (5000,)
    error = np.square(rows - centres[labels]).mean()
    assert error < 1.01 * 0.01**2
    # The label is the nearest centre of its cell, so few rows have a nearer one elsewhere.
    nearest = ((rows[:500, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == labels[:500]).mean() > 0.9


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_palettes_of_equal_rows_and_of_all_rows(rows: int) -> None:
    equal = np.ones((rows, 9), dtype=np.float32)
    for size in {1, (rows + 1) // 2, rows}:
        centres, labels = make_palette(equal, size)
        assert len(centres) == size
        np.testing.assert_array_equal(centres[labels], equal)
    different = np.random.default_rng(0).normal(size=(rows, 9)).astype(np.float32)
    centres, labels = make_palette(different, rows)
    np.testing.assert_allclose(centres[labels], different, rtol=1e-6)


def test_distinct_rows_are_told_apart_by_every_bit() -> None:
    rng = np.random.default_rng(4)
    # Multiples of 1/128, as some formats store them, differ in few bits.
    groups = np.unique(rng.integers(-128, 128, (3000, 3)), axis=0).astype(np.float32) / 128
    expected = rng.permutation(np.repeat(np.arange(len(groups)), 3))
    centres, labels = distinct_rows(groups[expected])
    assert len(centres) == len(groups)
    np.testing.assert_array_equal(centres[labels], groups[expected])
    rows = np.array([[0.0], [-0.0], [0.0], [np.nextafter(np.float32(0), np.float32(1))]], dtype=np.float32)
    assert len(set(distinct_rows(rows)[1][:2])) == 2 and len(distinct_rows(rows)[0]) == 3
    centres, labels = distinct_rows(np.zeros((5, 0), dtype=np.float32))
    assert centres.shape == (1, 0) and labels.tolist() == [0] * 5


def test_palette_sizes() -> None:
    assert [palette_size(n, "normal") for n in (1, 5000, 23_000, 200_000, 10**7)] == [1, 4096, 4096, 16384, 65536]
    assert [palette_size(n, "small") for n in (1, 5000, 23_000, 200_000, 10**7)] == [1, 512, 512, 2048, 8192]
    assert [palette_size(n, "high") for n in (1, 5000, 23_000, 200_000, 10**7)] == [1, 5000, 16384, 65536, 65536]


def test_codebooks() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=20_000), [40.0, -60.0]]).astype(np.float32)
    codebook = make_codebook(values)
    assert codebook.shape == (256,) and (np.diff(codebook) >= 0).all()
    error = np.abs(codebook[nearest_entries(codebook, values)] - values)
    assert np.sqrt(np.square(error).mean()) < 0.02 and error[-2:].max() < 0.5
    np.testing.assert_array_equal(make_codebook(np.full(9, 2.5, dtype=np.float32)), np.full(256, 2.5))
    few = np.array([1, 1, 1, 5, 9], dtype=np.float32)
    np.testing.assert_allclose(make_codebook(few)[nearest_entries(make_codebook(few), few)], few)


def webp(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (width, height)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def lossy() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta, files: meta.pop("version"), "has version 1 of the format"),
        (lambda meta, files: meta.update(version=3), "has version 3 of the format"),
        (lambda meta, files: meta.update(count=0), "no Gaussians"),
        (lambda meta, files: meta.update(count=10**9), "promises 24,000,000,000 bytes"),
        (lambda meta, files: meta.update(count=65), "8x8 pixels for 65 values"),
        (lambda meta, files: meta.update(count=True), "no valid 'count'"),
        (lambda meta, files: meta.update(means=[]), "no valid 'means'"),
        (lambda meta, files: meta["means"].update(mins=[0, 0]), "no valid 'mins'"),
        (lambda meta, files: meta["means"].update(maxs=[0, 0, float("nan")]), "no valid 'maxs'"),
        (lambda meta, files: meta["means"].update(maxs=[0, 0, 10**400]), "no valid 'maxs'"),
        (lambda meta, files: meta["means"].update(files=["means_l.webp"]), "no valid 'files'"),
        (lambda meta, files: meta["quats"].update(files=["../quats.webp"]), r"lacks the file \.\./quats\.webp"),
        (lambda meta, files: meta["scales"].update(codebook=[0.0] * 255), "no valid 'codebook'"),
        (lambda meta, files: meta["shN"].update(bands=4), "60 entries of 4 bands"),
        (lambda meta, files: meta["shN"].update(count=59), "names entry 59 of a palette of 59"),
        (lambda meta, files: meta["shN"].update(count=65), "512x1 pixels for|192x1 pixels for"),
        (lambda meta, files: files.pop("sh0.webp"), r"lacks the file sh0\.webp"),
        (lambda meta, files: files.update({"sh0.webp": b"RIFF"}), "not WebP"),
        (lambda meta, files: files.update({"sh0.webp": files["sh0.webp"][:60]}), "an image is broken"),
        (lambda meta, files: files.update({"sh0.webp": lossy()}), "not lossless WebP"),
        (lambda meta, files: files.update({"sh0.webp": webp(16383, 64)}), "16383x64 pixels for 60 values"),
        (lambda meta, files: files.update({"shN_centroids.webp": webp(8, 24)}), "8x24 pixels for 192 values"),
    ],
)
def test_damaged_files(tmp_path: Path, change: Callable[[Any, dict[str, bytes]], None], message: str) -> None:
    path = tmp_path / "a.sog"
    write_sog(path, trained_splat(60, 1))
    rewrite(path, change)
    with pytest.raises(UserError, match=rf"a\.sog is damaged or is not a \.sog splat \(.*({message})"):
        read_sog(path)


def test_a_bomb_in_the_zip_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.sog"
    for name, message in (
        ("meta.json", "its meta.json has 50,000,000 bytes"),
        ("sh0.webp", "promises 50,000,000 bytes"),
    ):
        write_sog(path, trained_splat(60, 1))
        files = {name: bytes(50_000_000)}
        with zipfile.ZipFile(path) as archive:
            files |= {each: archive.read(each) for each in archive.namelist() if each != name}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for each, content in files.items():
                archive.writestr(each, content)
        with pytest.raises(UserError, match=message):
            read_sog(path)


def test_a_deflated_zip_file_is_read_and_other_zip_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sog"
    write_sog(path, trained_splat(60, 1))
    expected = read_sog(path)
    rewrite(path, lambda meta, files: None, compression=zipfile.ZIP_DEFLATED)
    assert_same_bits(read_sog(path), expected)
    rewrite(path, lambda meta, files: None, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match="unknown method"):
        read_sog(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.png", b"")
    with pytest.raises(UserError, match=r"lacks the file meta\.json"):
        read_sog(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.json", "[" * 100_000)
    with pytest.raises(UserError, match="is not JSON"):
        read_sog(path)


def test_zip_files_of_other_formats_are_not_taken_for_sog(tmp_path: Path) -> None:
    for name in ("a.npz", "a.splat.npz", "a"):
        np.savez(tmp_path / "plain.npz", xyz=np.zeros(3))
        (tmp_path / name).write_bytes((tmp_path / "plain.npz").read_bytes())
        assert not is_splat_file(tmp_path / name)
    write_sog(tmp_path / "a.sog", trained_splat(3))
    (tmp_path / "a").write_bytes((tmp_path / "a.sog").read_bytes())
    assert is_splat_file(tmp_path / "a")
