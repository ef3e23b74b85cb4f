"""Situations of ``test_input_matrix.py``: changes of the tiny scene as other programs, cameras and people make them."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from altered_scenes import Content, write_points
from numpy.typing import NDArray
from PIL import Image
from tiff_files import write_tiff

from gs_train.cameras.poses import pose_at
from gs_train.scene.photos.files import inverse, turned

Pixels = NDArray[np.uint8]
Alter = Callable[[Path], Any]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A change of a copy of the tiny scene, and the result."""

    alter: Alter
    """Changes the scene folder."""
    told: str = ""
    """Part of the notice, or of the sentence if there is a remedy; a regular expression."""
    remedy: Alter | None = None
    """Follows the sentence; None if the scene loads at once."""
    flags: tuple[str, ...] = ()
    """Flags that the remedy names."""
    like: Alter | None = None
    """Makes the scene to compare with of another copy; None for the plain scene."""
    levels: float = 0.0
    """Largest mean difference of the pixels of a photo, of 255."""
    trains: bool = False
    """Whether the loaded scene may differ a little, so that its training decides."""


# ---- changes


def _each_photo(change: Callable[[Path, Pixels], Any]) -> Alter:
    """Calls ``change`` with each file, after deleting it, and its pixels [H, W, 3]."""

    def alter(scene: Path) -> None:
        for file in sorted((scene / "images").iterdir()):
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
            file.unlink()
            change(file, pixels)

    return alter


def _exif(orientation: int, *, upright: bool, kind: str = "PNG") -> Alter:
    """Photos with an EXIF orientation, whose poses describe the upright or the stored pixels."""

    def store(file: Path, pixels: Pixels) -> None:
        image = Image.fromarray(pixels)
        image = turned(image, inverse(orientation)) if upright else image
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(file, kind, exif=exif) if kind == "PNG" else image.save(file, kind, tiffinfo={0x0112: orientation})

    return _each_photo(store)


def _content(scene: Path, change: Callable[[Content], Any], *, transforms: bool = False) -> None:
    """Writes the scene's model anew, after a change, as a text model or as a transforms.json."""
    content = Content.of(scene)
    content = change(content) or content
    if transforms:
        content.write_transforms(scene / "transforms.json")
        shutil.rmtree(scene / "sparse")
    else:
        content.write_text(scene / "sparse/0")


def _document(change: Callable[[Path, dict[str, Any]], Any]) -> Alter:
    """The scene as a transforms.json, after a change of the document."""

    def alter(scene: Path) -> None:
        _content(scene, lambda content: None, transforms=True)
        document = json.loads((scene / "transforms.json").read_text())
        change(scene, document)
        (scene / "transforms.json").write_text(json.dumps(document))

    return alter


def _paths(prefix: str, separator: str = "/") -> Alter:
    """A transforms.json with other paths in front of the names of the photos."""

    def change(scene: Path, document: dict[str, Any]) -> None:
        for frame in document["frames"]:
            frame["file_path"] = f"{prefix}{frame['file_path']}".replace("/", separator)

    return _document(change)


def _poses(change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Callable[[Content], None]:
    def alter(content: Content) -> None:
        content.poses = {name: change(pose) for name, pose in content.poses.items()}

    return alter


def _points(order: tuple[int, int, int], signs: tuple[float, float, float]) -> Callable[[Content], None]:
    def alter(content: Content) -> None:
        content.xyz = content.xyz[:, order] * signs

    return alter


def _rename(in_model: Callable[[str], str], on_disk: Callable[[str], str], encoding: str = "utf-8") -> Alter:
    """Changes the names of the photos in the model, and those of the files."""

    def alter(scene: Path) -> None:
        content = Content.of(scene).rename(in_model)
        write = content.write_text if encoding == "cp1252" else content.write_binary
        write(scene / "sparse/0", encoding=encoding)
        (scene / "images").rename(scene / "old")
        for file in (scene / "old").iterdir():
            target = scene / "images" / on_disk(file.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)

    return alter


def _same(name: str) -> str:
    return name


def _model_and(place: str, *more: Callable[[Path], Any]) -> Alter:
    """Moves the model to ``place``."""

    def alter(scene: Path) -> None:
        (scene / "sparse/0").rename(scene / "model")
        shutil.rmtree(scene / "sparse")
        (scene / place).parent.mkdir(parents=True, exist_ok=True)
        (scene / "model").rename(scene / place)
        for change in more:
            change(scene)

    return alter


def _scrap(place: str) -> Callable[[Path], None]:
    def write(scene: Path) -> None:
        model = next(folder for folder in scene.glob("sparse/*") if (folder / "images.bin").exists())
        shutil.copytree(model, scene / "copy/sparse/0")
        Content.of(scene / "copy").keep(3, 50).write_text(scene / place)
        shutil.rmtree(scene / "copy")

    return write


def _own_points(place: str, convert: Callable[[Pixels], NDArray[Any]], *, transforms: bool = False) -> Alter:
    def alter(scene: Path) -> None:
        content = Content.of(scene)
        if transforms:
            content.write_transforms(scene / "transforms.json", points=None)
            shutil.rmtree(scene / "sparse")
        else:
            content.write_text(scene / "sparse/0", points=False)
        write_points(scene / place, content.xyz, convert(content.rgb))

    return alter


# ---- masks: a person, as a magenta block, walks through all photos


def _block(pixels: Pixels) -> tuple[Pixels, Pixels]:
    """The photo with the block, and its mask [H, W], black over the block."""
    painted, mask = pixels.copy(), np.full(pixels.shape[:2], 255, np.uint8)
    painted[10:26, 12:30], mask[10:26, 12:30] = (255, 0, 255), 0
    return painted, mask


def _masked(store: Callable[[Path, str, Pixels], Any]) -> Alter:
    """Photos with the block. ``store`` writes a mask, from the scene folder, the photo's name and the mask."""

    def alter(scene: Path) -> None:
        def paint(file: Path, pixels: Pixels) -> None:
            painted, mask = _block(pixels)
            Image.fromarray(painted).save(file)
            store(scene, file.name, mask)

        _each_photo(paint)(scene)

    return alter


def _save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _in_alpha(scene: Path, name: str, mask: Pixels) -> None:
    _save(scene / "masks" / name, np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask]))


MASKED = _masked(lambda scene, name, mask: _save(scene / "masks" / name, mask))


def _mask_paths(prefix: str) -> Alter:
    """A transforms.json whose frames name their masks, in a folder that is not searched."""

    def change(scene: Path, document: dict[str, Any]) -> None:
        _masked(lambda scene, name, mask: _save(scene / "people" / name, mask))(scene)
        for frame in document["frames"]:
            frame["mask_path"] = prefix + frame["file_path"].replace("images/", "people/")

    return _document(change)


# ---- pixels: grey photos of more than 8 bits


def _grey(store: Callable[[Path, Pixels], Any]) -> Alter:
    return _each_photo(lambda file, pixels: store(file, pixels.mean(axis=2).round().astype(np.uint8)))


GREY = _grey(lambda file, grey: Image.fromarray(grey).save(file))


def _tiff(convert: Callable[[Pixels], NDArray[Any]]) -> Alter:
    """The files keep their names: the content decides."""
    return _grey(lambda file, grey: write_tiff(file, convert(grey)))


def _planar(file: Path, pixels: Pixels) -> None:
    write_tiff(file, pixels.astype(np.uint16) * 257, planar=True)


def _as_png(scene: Path) -> None:
    """Stores planar photos again."""
    for file in (scene / "images").iterdir():
        data = np.frombuffer(file.read_bytes()[-64 * 48 * 6 :], "<u2").reshape(3, 48, 64)
        file.unlink()
        Image.fromarray((data // 257).astype(np.uint8).transpose(1, 2, 0)).save(file)


def _heic(file: Path, pixels: Pixels) -> None:
    import pillow_heif

    pillow_heif.from_pillow(Image.fromarray(pixels)).save(file.with_suffix(".heic"), quality=-1, chroma=444)


# ---- changes of one situation

FLIP = np.diag((1.0, -1.0, -1.0, 1.0))
UTM = (448251.0, 5411944.0, 35.0)


def _far_photo(content: Content) -> None:
    pose = content.poses["view_003.png"]
    content.poses["view_003.png"] = pose_at(np.array((2e5, 0.0, 0.0)), pose[:3, :3])


def _no_photo(scene: Path) -> None:
    def remove(content: Content) -> None:
        del content.poses["view_003.png"]

    _content(scene, remove)


def _opencv_axes(scene: Path, document: dict[str, Any]) -> None:
    for frame in document["frames"]:
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) @ FLIP).tolist()


def _correct_axes(scene: Path) -> None:
    document = json.loads((scene / "transforms.json").read_text())
    _opencv_axes(scene, document)
    (scene / "transforms.json").write_text(json.dumps(document))


def _edited(scene: Path) -> None:
    """nerfstudio's folder with wrong poses in COLMAP's model, which the user has corrected in the transforms.json."""
    Content.of(scene).write_transforms(scene / "transforms.json")
    _content(scene, _poses(np.linalg.inv))
    (scene / "colmap").mkdir()
    (scene / "sparse").rename(scene / "colmap/sparse")


def _two_that_fit(scene: Path) -> None:
    (scene / "images").rename(scene / "old")
    for name in ("a", "b"):
        shutil.copytree(scene / "old", scene / "images" / name)


def _cut(scene: Path) -> None:
    file = scene / "sparse/0/images.bin"
    shutil.copy(file, scene / "whole")
    file.write_bytes(file.read_bytes()[:-20])


def _move(source: str, target: str) -> Alter:
    def alter(scene: Path) -> None:
        (scene / target).parent.mkdir(parents=True, exist_ok=True)
        (scene / source).rename(scene / target)

    return alter


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", f"Küche_{name}")


def _nfd(name: str) -> str:
    return unicodedata.normalize("NFD", f"Küche_{name}")


def _division_camera(scene: Path) -> None:
    """A camera of COLMAP 4 with hardly any distortion, as COLMAP writes it."""
    import pycolmap

    model = pycolmap.Reconstruction(scene / "sparse/0")
    (camera,) = model.cameras.values()
    fx, fy, cx, cy = camera.params
    camera.model = pycolmap.CameraModelId.DIVISION
    camera.params = [fx, fy, cx, cy, 1e-4]
    model.write_binary(scene / "sparse/0")


def _undistort(scene: Path) -> None:
    """Undistorts the photos as the sentence says, and puts the new scene in place of the old one."""
    import pycolmap

    new = scene.parent / "new"
    pycolmap.undistort_images(output_path=new, input_path=scene / "sparse/0", image_path=scene / "images")
    scene.rename(scene.parent / "old")
    new.rename(scene)


# ---- the table

SITUATIONS: dict[str, Situation] = {
    # Orientation
    "exif: portrait, poses of the upright photos": Situation(alter=_exif(6, upright=True), told="turned upright"),
    "exif: upside down, poses of the upright photos": Situation(alter=_exif(3, upright=True), told="turned upright"),
    "exif: TIFF on its side": Situation(alter=_exif(8, upright=True, kind="TIFF"), told="turned upright"),
    "exif: portrait, poses of the stored pixels": Situation(alter=_exif(6, upright=False), told="not applied"),
    "exif: TIFF upside down, poses of the stored pixels": Situation(
        alter=_exif(3, upright=False, kind="TIFF"), told="not applied"
    ),
    # Masks
    "masks: in masks/": Situation(alter=MASKED, told="8 of 8 photos have a mask", trains=True),
    "masks: in alpha": Situation(alter=_masked(_in_alpha), like=MASKED, told="in the alpha channel"),
    "masks: mask_path": Situation(alter=_mask_paths(""), like=MASKED, told="named by mask_path"),
    "masks: mask_path of another computer": Situation(alter=_mask_paths("/home/me/scene/"), like=MASKED),
    "masks: dynamic_mask": Situation(
        alter=_masked(lambda scene, name, mask: _save(scene / "images" / f"dynamic_mask_{name}", 255 - mask)),
        like=MASKED,
        told="white pixels hide",
    ),
    "masks: black and white swapped": Situation(
        alter=_masked(lambda scene, name, mask: _save(scene / "masks" / name, 255 - mask)),
        told=r"Masks rarely hide as much as \d+ %: .* train with --invert-masks",
        flags=("--invert-masks",),
        like=MASKED,
    ),
    "masks: upper case": Situation(
        alter=_masked(lambda scene, name, mask: _save(scene / "masks" / name.upper(), mask)), like=MASKED
    ),
    # Scale and place
    "place: UTM coordinates": Situation(alter=lambda s: _content(s, lambda c: c.move(offset=UTM)), trains=True),
    "place: metres from the centre of the earth": Situation(
        alter=lambda s: _content(s, lambda c: c.move(offset=(4.1e6, 8.5e5, 4.8e6))), trains=True
    ),
    "scale: kilometres": Situation(alter=lambda s: _content(s, lambda c: c.move(scale=1e-3)), trains=True),
    "scale: millimetres": Situation(alter=lambda s: _content(s, lambda c: c.move(scale=1e3)), trains=True),
    "place: one photo far away": Situation(
        alter=lambda s: _content(s, _far_photo),
        told=r"1 of 8 photos \(view_003\.png\) are 2e\+05",
        like=_no_photo,
        trains=True,
    ),
    # Poses and points
    "poses: camera-to-world": Situation(
        alter=lambda s: _content(s, _poses(np.linalg.inv)),
        told="the poses are inverted .*Correct the poses",
        remedy=lambda s: _content(s, _poses(np.linalg.inv)),
    ),
    "poses: OpenCV axes in a transforms.json": Situation(
        alter=_document(_opencv_axes),
        told="y and z axes of the cameras are flipped .*Correct the poses",
        remedy=_correct_axes,
    ),
    "points: y and z swapped": Situation(
        alter=lambda s: _content(s, _points((0, 2, 1), (1, 1, -1))),
        told=r"the points \(x, y, z\) are read as \(x, -z, y\).*Correct the poses or the points",
        remedy=lambda s: _content(s, _points((0, 2, 1), (1, -1, 1))),
    ),
    "points: mirrored, on purpose": Situation(
        alter=lambda s: _content(s, _points((0, 1, 2), (-1, 1, 1))),
        told="go on as they are with --ignore-pose-check",
        flags=("--ignore-pose-check",),
        like=lambda s: _content(s, _points((0, 1, 2), (-1, 1, 1))),
    ),
    # Several models
    "models: sparse/0 is a scrap": Situation(
        alter=_model_and("sparse/1", _scrap("sparse/0")), told="sparse/1 is used, .*: sparse/0"
    ),
    "models: sparse/1 is a scrap": Situation(alter=_scrap("sparse/1"), told="sparse/0 is used, .*: sparse/1"),
    "models: only sparse/1": Situation(alter=_model_and("sparse/1")),
    "models: in the scene folder itself": Situation(
        alter=_model_and("model", lambda s: [file.rename(s / file.name) for file in (s / "model").iterdir()])
    ),
    "models: undistorted, in dense/0": Situation(alter=_model_and("dense/0/sparse", _move("images", "dense/0/images"))),
    "models: a corrected transforms.json": Situation(
        alter=_edited,
        told=r"models: colmap/sparse/0 is used, .*: transforms\.json \(8\)",
        flags=("--model", "transforms.json"),
    ),
    "models: images.bin is missing": Situation(
        alter=_move("sparse/0/images.bin", "elsewhere"),
        told=r"sparse/0 holds cameras\.bin, .* also needs images\.bin: export the model again or copy it again",
        remedy=_move("elsewhere", "sparse/0/images.bin"),
    ),
    "models: images.bin is cut": Situation(
        alter=_cut,
        told=r"images\.bin \(byte \d+\) is truncated or corrupt",
        remedy=_move("whole", "sparse/0/images.bin"),
    ),
    # Names
    "names: .PNG for .png": Situation(alter=_rename(_same, str.upper), told="spelled otherwise"),
    "names: .jpg for .png": Situation(
        alter=_rename(lambda n: n.replace("png", "jpg"), _same), told="spelled otherwise"
    ),
    "names: backslashes": Situation(alter=_rename(lambda n: f"a\\{n}", lambda n: f"a/{n}"), told="spelled otherwise"),
    "names: composed letters": Situation(alter=_rename(_nfc, _nfd), told=r"spelled otherwise .*u\\u0308"),
    "names: images/ in front": Situation(alter=_rename(lambda n: f"images/{n}", _same), told="spelled otherwise"),
    "names: GBK": Situation(
        alter=_rename(lambda n: f"照片_{n}", lambda n: f"照片_{n}", "gbk"),
        told="not UTF-8 text: they fit .* as gb18030",
    ),
    "names: Windows-1252, in text": Situation(alter=_rename(_nfc, _nfc, "cp1252"), told="not UTF-8 text: they fit"),
    "names: GBK, and other names on disk": Situation(
        alter=_rename(lambda n: f"照片_{n}", lambda n: f"photo_{n}", "gbk"),
        told="the names are not UTF-8 text: rename the photos with plain letters and digits and run the reconstruction",
        remedy=_rename(lambda n: f"photo_{n[-12:]}", _same),
    ),
    "names: paths of Windows": Situation(alter=_paths("C:/Users/me/My scene/", "\\"), told="spelled otherwise"),
    "names: paths of another computer": Situation(alter=_paths("/home/me/scene/"), told="spelled otherwise"),
    "names: as long as a disk allows": Situation(
        alter=_rename(lambda n: n.rjust(247, "x"), lambda n: n.rjust(247, "x")), trains=True
    ),
    "names: Images/ for images/": Situation(alter=_move("images", "Images"), told="the photos in Images are used"),
    "names: the photos are in input/": Situation(
        alter=_move("images", "input"),
        told="input holds the photos: train with --images input",
        flags=("--images", "input"),
    ),
    "names: two files fit": Situation(
        alter=_two_that_fit,
        told=r"several files fit view_000\.png \(a/view_000\.png, b/view_000\.png\): keep only the right file",
        remedy=lambda s: shutil.rmtree(s / "images/b"),
    ),
    "names: nothing fits": Situation(
        alter=_rename(_same, lambda n: n.replace("view", "IMG")),
        told=r"which holds IMG_000\.png, .* instead: copy them there, rename the files as in images\.bin",
        remedy=lambda s: [f.rename(f.with_name(f.name.replace("IMG", "view"))) for f in (s / "images").iterdir()],
    ),
    # Points
    "points: points3D.ply": Situation(alter=_own_points("sparse/0/points3D.ply", lambda rgb: rgb), told="starts from"),
    "points: points3D.ply, 16 bits": Situation(
        alter=_own_points("sparse/0/points3D.ply", lambda rgb: rgb.astype(np.uint16) * 257), told="starts from"
    ),
    "points: pointcloud.ply beside a transforms.json, float 0..255": Situation(
        alter=_own_points("pointcloud.ply", lambda rgb: rgb.astype(np.float32), transforms=True), told="pointcloud.ply"
    ),
    "points: points3D.ply beside a transforms.json, float 0..1": Situation(
        alter=_own_points("points3D.ply", lambda rgb: rgb.astype(np.float32) / 255, transforms=True),
        told="points3D.ply",
    ),
    "points: a cloud of another name": Situation(
        alter=_own_points("scan.ply", lambda rgb: rgb),
        told=r"scan\.ply is not used: to start from its points, rename it to points3D\.ply",
        remedy=_move("scan.ply", "points3D.ply"),
    ),
    # Pixels
    "pixels: grey, 12 of 16 bits": Situation(
        alter=_grey(lambda f, g: Image.fromarray((g.astype(np.uint32) * 4095 // 255).astype(np.uint16)).save(f)),
        like=GREY,
        told="12 bits",
        levels=1.0,
    ),
    "pixels: grey, float 0..1": Situation(
        alter=_tiff(lambda grey: grey.astype(np.float32) / 255), like=GREY, told="float", levels=1.0
    ),
    "pixels: grey, 32 bits": Situation(alter=_tiff(lambda grey: grey.astype(np.int32)), like=GREY, told="8 bits"),
    "pixels: 16-bit planes": Situation(
        alter=_each_photo(_planar),
        told=r"8 files .* share this fault: .*TIFF whose planes .*: store the photos again as 8-bit PNG",
        remedy=_as_png,
    ),
    "pixels: HEIC": Situation(alter=_each_photo(_heic), told="spelled otherwise", trains=True),
    "pixels: WebP": Situation(
        alter=_each_photo(lambda f, p: Image.fromarray(p).save(f.with_suffix(".webp"), lossless=True)), levels=0.5
    ),
    "pixels: JPEG": Situation(
        alter=_each_photo(lambda f, p: Image.fromarray(p).save(f.with_suffix(".jpg"), quality=97, subsampling=0)),
        trains=True,
    ),
    "pixels: a camera model of COLMAP 4": Situation(
        alter=_division_camera,
        told="undistort the photos with `colmap image_undistorter",
        remedy=_undistort,
        trains=True,
    ),
}
NEEDS = {"pixels: HEIC": "pillow_heif", "pixels: a camera model of COLMAP 4": "pycolmap"}
