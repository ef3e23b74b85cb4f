"""Only the documented formats are opened, HEIC needs an extra, and faults that photos share are told once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from colmap_files import Model
from command_line import gs_train_here
from PIL import EpsImagePlugin, Image
from transforms_files import document, write

from gs_train.errors import FileFault, UserError, combine_faults
from gs_train.prepare.photos import copy_photos, list_photos, stored_names
from gs_train.prepare.source import inspect_source
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.photos.decode import decode_image
from gs_train.scene.photos.files import image_size, read_header
from gs_train.scene.types import View

ALL = SceneConfig(test_every=0)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if Pillow would start Ghostscript."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)


def _scene(folder: Path) -> Path:
    Model().write_binary(folder / "sparse/0")
    Model().write_photos(folder / "images")
    return folder


@pytest.mark.usefixtures("no_ghostscript")
@pytest.mark.parametrize("name", ["images/b.png", "masks/b.png"])
def test_an_eps_file_is_not_opened(tmp_path: Path, name: str) -> None:
    """With the ending of a photo, because Pillow looks at the content."""
    file = _scene(tmp_path) / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(EPS)
    with pytest.raises(UserError, match=r"b\.png cannot be decoded \(its content is none of JPEG, PNG, .*: convert it"):
        load_scene(tmp_path, ALL)


@pytest.mark.usefixtures("no_ghostscript")
def test_prepare_opens_no_eps_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(EPS)
    with pytest.raises(UserError, match=r"a\.jpg cannot be decoded \(its content is none of"):
        copy_photos([tmp_path / "a.jpg"], [tmp_path / "out/a.jpg"], lambda done: None)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "JPEG2000"])
def test_documented_formats(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "photo"
    Image.new("RGB", (40, 30), (90, 120, 150)).save(file, kind)
    assert image_size(file) == (40, 30)


# ---- HEIC


def _heic_scene(folder: Path, kind: str = "heic") -> Path:
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_pillow(Image.new("RGB", (40, 30), (90, 120, 150)))
    file = write(folder, document(5, ending=f".{kind}"), photos=False)
    (folder / "images").mkdir()
    for number in range(5):
        heif.save(folder / f"images/{number}.{kind}")
    return file


@pytest.mark.parametrize("ending", ["heic", "jpg"])
def test_heic_photos_are_read(tmp_path: Path, ending: str) -> None:
    """Phones also export HEIC under other endings."""
    views = load_scene(_heic_scene(tmp_path, ending), ALL).train_views
    np.testing.assert_allclose(decode_image(views[0])[10, 10], (90, 120, 150), atol=3)


def test_a_heic_photo_is_upright_already(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(Image.new("RGB", (40, 30))).save(tmp_path / "a.heic", exif=exif.tobytes())
    header = read_header(tmp_path / "a.heic")
    assert header.orientation == 1 and header.size in ((40, 30), (30, 40))


@pytest.mark.parametrize("ending", ["heic", "jpg"])
def test_heic_without_the_extra_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    file = _heic_scene(tmp_path, ending)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError) as caught:
        load_scene(file, ALL)
    message = str(caught.value)
    assert (
        message.startswith("5 files (0.")
        and "-m pip install pillow-heif`, or convert the photos to JPEG files of the same names." in message
    )
    # The second remedy, followed: photos of another format under the same names.
    for photo in (tmp_path / "images").iterdir():
        Image.new("RGB", (40, 30), (90, 120, 150)).save(photo, "JPEG")
    assert len(load_scene(file, ALL).train_views) == 5


def test_prepare_takes_heic_photos(tmp_path: Path) -> None:
    _heic_scene(tmp_path)
    photos, _ = list_photos(tmp_path / "images")
    names = stored_names(photos, tmp_path / "images")
    assert names == [f"{number}.heic.jpg" for number in range(5)]
    copy_photos(photos, [tmp_path / "out" / name for name in names], lambda done: None)
    with Image.open(tmp_path / "out" / names[0]) as copy:
        assert (copy.format, copy.size) == ("JPEG", (40, 30))


def test_prepare_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _heic_scene(tmp_path)
    for name in ("gs_train.prepare.source._require", "gs_train.prepare.photos.find_spec"):
        monkeypatch.setattr(name, lambda *_: None)
    with pytest.raises(
        UserError, match=r"it holds 5 \.heic.*or install pillow-heif \(`.* -m pip install pillow-heif`\)\."
    ):
        inspect_source(tmp_path / "images", tmp_path / "new", None)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_prepare_turns_tiff_photos_upright(tmp_path: Path, orientation: int) -> None:
    """A copy that keeps its orientation would be turned for people and lie on its side for COLMAP."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
    copy_photos([tmp_path / "a.tif"], [tmp_path / "out/a.tif"], lambda done: None)
    header = read_header(tmp_path / "out/a.tif")
    assert header.orientation == 1 and header.size == ((30, 40) if orientation == 6 else (40, 30))
    expected = {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1)}[orientation]
    with Image.open(tmp_path / "out/a.tif") as copy:
        np.testing.assert_array_equal(np.asarray(copy), expected)


# ---- faults that photos share


def test_equal_faults_are_combined() -> None:
    faults = [
        FileFault("/s/a.png is bad.", file=Path("/s/a.png"), kind="bad"),
        UserError("other"),
        FileFault("/s/b.png is worse.", file=Path("/s/b.png"), kind="worse"),
        FileFault("/s/c.png is bad.", file=Path("/s/c.png"), kind="bad"),
        UserError("other"),
    ]
    assert list(map(str, combine_faults(faults))) == [
        "2 files (a.png, c.png) share this fault: /s/a.png is bad.",
        "other",
        "/s/b.png is worse.",
    ]


def _fault_lines(scene: Path) -> list[str]:
    done = gs_train_here("info", scene)
    assert done.returncode == 2
    return [line for line in done.stdout.splitlines() if line.startswith("fault")]


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_photos_of_half_the_size_are_one_fault_whose_remedy_works(tmp_path: Path, factor: int) -> None:
    names = [f"{number}.png" for number in range(8)]
    images = [(number, (1.0, 0, 0, 0), (0.1 * number, 0, 4.0), 1, name) for number, name in enumerate(names, 1)]
    model = Model(cameras=[(1, 1, 128, 96, (130.0, 130.0, 64.0, 48.0))], images=images)
    model.write_binary(tmp_path / "sparse/0")
    model.write_photos(tmp_path / "images", divided_by=factor)
    (line,) = _fault_lines(tmp_path)
    assert "8 files (0.png, " in line and "0 of its 0" not in line
    assert f"rename {tmp_path / 'images'} to images_{factor} and train with --resolution {factor}" in line
    (tmp_path / "images").rename(tmp_path / f"images_{factor}")
    views = load_scene(tmp_path, SceneConfig(resolution=factor)).train_views  # type: ignore[arg-type]
    assert {(view.camera.width, view.camera.height) for view in views} == {(128 // factor, 96 // factor)}


def test_a_transforms_file_for_larger_photos_is_one_fault_whose_remedy_works(tmp_path: Path) -> None:
    content = document(5)
    write(tmp_path, {**content, **{key: 4 * content[key] for key in ("w", "h", "cx", "cy", "fl_x", "fl_y")}})
    (line,) = _fault_lines(tmp_path)
    assert (
        "5 files (" in line and "divide w, h, cx, cy, fl_x and fl_y" in line and line.split(" by ")[1].startswith("4")
    )
    write(tmp_path, content)
    assert gs_train_here("info", tmp_path).returncode == 0


def test_damaged_photos_are_one_fault(tmp_path: Path) -> None:
    """Each of them is truncated at another byte, so that the decoder's words differ."""
    write(tmp_path, document(12))
    rng = np.random.default_rng(0)
    for number, file in enumerate(sorted((tmp_path / "images").iterdir())):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(file)
        if number >= 2:
            file.write_bytes(file.read_bytes()[: 2000 + 100 * number])
    (line,) = _fault_lines(tmp_path)
    assert "10 files (10.png, 11.png, 2.png, 3.png, 4.png, ...) share this fault" in line


def test_two_kinds_of_faults_are_two_lines(tmp_path: Path) -> None:
    write(tmp_path, document(8))
    for number in (0, 1, 2):
        Image.new("RGB", (23, 17)).save(tmp_path / f"images/{number}.png")
    for number in (3, 4):
        (tmp_path / f"images/{number}.png").write_text("no photo")
    lines = _fault_lines(tmp_path)
    assert len(lines) == 2 and any("3 files" in line for line in lines) and any("2 files" in line for line in lines)


def test_one_fault_is_told_as_before(tmp_path: Path) -> None:
    write(tmp_path, document(8))
    Image.new("RGB", (23, 17)).save(tmp_path / "images/3.png")
    (line,) = _fault_lines(tmp_path)
    assert f"{tmp_path / 'images/3.png'} is 23x17 px, but its camera" in line and "share" not in line


def test_a_view_of_defaults_reads_eight_and_sixteen_bits(tmp_path: Path) -> None:
    """Programs may decode a photo without a scene."""
    Image.fromarray(np.full((30, 40), 51 * 257, np.uint16)).save(tmp_path / "a.png")
    camera = load_scene(write(tmp_path / "scene", document(3)), ALL).train_views[0].camera
    view = View(name="a", image_path=tmp_path / "a.png", camera=camera, world_to_camera=np.eye(4))
    assert (decode_image(view) == 51).all()
