"""The valid inputs that ``fuzz.py`` alters: one small input for each reader and each form that it reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image
from plyfile import PlyData, PlyElement

from gs_train.cameras.poses import camera_to_world, rotation_to_quaternion
from gs_train.config.settings import TrainConfig
from gs_train.formats.registry import read_splat, write_splat
from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import Scene
from gs_train.training.loop import train

_ROOT = Path(__file__).resolve().parents[1]
_FORMATS = (
    *(("png", "RGB", {}), ("jpg", "RGB", {}), ("tif", "RGB", {"compression": "tiff_lzw"}), ("bmp", "RGB", {})),
    *(("webp", "RGB", {}), ("gif", "P", {}), ("jp2", "RGB", {}), ("avif", "RGB", {}), ("ppm", "RGB", {})),
    *(("png", "I;16", {}), ("tif", "F", {}), ("tif", "I;16", {}), ("png", "RGBA", {}), ("heic", "RGB", {})),
)
"""Ending, mode and options of the photos."""


@dataclass(frozen=True)
class Target:
    """A kind of input."""

    folder: Path
    """Holds the valid input. Every command finds the folder as it was."""
    files: tuple[Path, ...]
    """Files to alter."""
    commands: tuple[tuple[str, ...], ...]
    """Command lines to run on the altered input."""
    content: bool = False
    """Whether the files are checkpoints whose values are altered."""
    share: int = 10
    """How often the target is chosen, relative to others."""


def make_targets(work: Path) -> dict[str, Target]:
    """Write the valid inputs."""
    base, run = work / "base", work / "run"
    write_sample_scene(base, views=4, width=24, height=24, points=30)
    split = SceneConfig(test_every=2)
    scene = load_scene(base, split)
    (work / "tests.txt").write_text(f"{scene.test_views[0].name}\n")
    settings: dict[str, Any] = {"iterations": 3, "save_every": 2, "log_every": 1, "sh_degree": 1, "device": "cpu"}
    corrected = TrainConfig(**settings, scene=split, exposure="affine", refine_poses=True, background="learned")
    train(scene, corrected, run)
    targets = {}
    makers = {
        "colmap-binary": _as_binary,
        "colmap-text": _as_text,
        "nerfstudio": _as_nerfstudio,
        "instant-ngp": _as_instant_ngp,
        "blender": _as_blender,
        "photos": _with_photos,
    }
    for name, make in makers.items():
        folder = Path(shutil.copytree(base, work / name))
        # The scene is trained as well: not every fault shows when it is read.
        targets[name] = Target(folder, make(folder), (("info", str(folder)), _train(work, folder)))
    presets = Path(shutil.copytree(_ROOT / "configs", work / "presets"))
    run.joinpath("config.toml").rename(presets / "run.toml")
    shutil.copyfile(presets / "run.toml", run / "config.toml")
    preset, (tests,) = tuple(sorted(presets.glob("*.toml"))), (work / "tests.txt",)
    for file in preset:
        with_preset = (_train(work, base, "--preset", str(file)),)
        targets[f"preset-{file.stem}"] = Target(presets, (file,), with_preset, share=2)
    lists = Path(shutil.copytree(base, work / "lists"))
    shutil.move(tests, lists / "test_list.txt")
    targets["test-list"] = Target(lists, (lists / "test_list.txt",), (_train(work, lists),), share=2)
    targets |= _splats(work, base, run) | _runs(work, run) | _unprepared(work, scene)
    return targets


def fake_pycolmap(log: Path) -> dict[str, str]:
    """Environment variables that let ``gs-train prepare`` use the fake pycolmap of the tests."""
    tests = _ROOT / "tests"
    return {
        "FAKE_PYCOLMAP": json.dumps({"log": str(log)}),
        "PYTHONPATH": os.pathsep.join(map(str, (_ROOT, tests, tests / "fake_pycolmap"))),
    }


def _train(work: Path, scene: Path, *flags: str) -> tuple[str, ...]:
    few = ("--iterations", "2", "--sh-degree", "1", "--device", "cpu", "--overwrite")
    return "train", str(scene), "--out", str(work / "new"), *few, *flags


# ---- runs and splats


def _splats(work: Path, base: Path, run: Path) -> dict[str, Target]:
    targets = {}
    original = next(run.glob("point_cloud/*/*.ply"))
    for name in ("binary", "text", "big-endian"):
        folder = work / f"splat-{name}"
        folder.mkdir()
        splat = folder / "splat.ply"
        content = PlyData.read(original)
        content.text, content.byte_order = name == "text", ">" if name == "big-endian" else "<"
        content.write(str(splat))
        (folder / "splat.ply.offset.json").write_text('{"offset": [0.0, 0.0, 0.0]}\n')
        start = _train(work, base, "--init-from", str(splat), "--ignore-pose-check")
        export = ("export", str(splat), str(work / "out.ply"))
        files = tuple(sorted(folder.iterdir()))
        targets[f"splat-{name}"] = Target(folder, files, (("info", str(splat)), export, start), share=4)
    return targets | _compact_splats(work, original)


def _compact_splats(work: Path, original: Path) -> dict[str, Target]:
    """The splat in every format other than .ply, and as an unpacked .sog."""
    targets = {}
    data = read_splat(original)
    for name, version in (("compressed.ply", 3), ("splat", 3), ("spz", 3), ("spz", 4), ("sog", 3), ("glb", 3)):
        folder = work / f"splat-{name}-{version}"
        folder.mkdir()
        splat = folder / f"splat.{name}"
        write_splat(splat, data, **({"spz_version": 4} if version == 4 else {}))
        files = (splat,)
        if name == "sog":
            unpacked = folder / "unpacked"
            shutil.unpack_archive(splat, unpacked, "zip")
            targets["splat-sog-folder"] = _converted(work, unpacked, tuple(sorted(unpacked.iterdir())))
        targets[folder.name] = _converted(work, splat, files)
    return targets


def _converted(work: Path, splat: Path, files: tuple[Path, ...]) -> Target:
    """Commands that read a splat and write it in formats that check its values."""
    exports = (("export", str(splat), str(work / f"out.{name}")) for name in ("ply", "sog", "spz"))
    return Target(splat if splat.is_dir() else splat.parent, files, (("info", str(splat)), *exports), share=8)


def _runs(work: Path, run: Path) -> dict[str, Target]:
    out = str(work / "out.ply")
    # A changed number of iterations in config.toml is no fault.
    look, resume = ("info", str(run)), ("train", "--resume", str(run), "--iterations", "4")
    evaluate, export = ("eval", str(run)), ("export", str(run), out)
    texts = tuple(path for path in sorted(run.iterdir()) if path.is_file())
    checkpoints = tuple(sorted(run.glob("checkpoints/*")))
    one = (("info", str(checkpoints[0])), ("export", str(checkpoints[0]), out))
    old = Path(shutil.copytree(run, work / "old"))
    shutil.rmtree(old / "checkpoints")
    config = (old / "config.toml").read_text()
    (old / "config.toml").write_text(config.replace('background = "learned"', 'background = "black"'))
    offset = next(old.glob("point_cloud/*/*.ply")).with_name("point_cloud.ply.offset.json")
    offset.write_text('{"offset": [500000.0, 4000000.0, 100.0]}\n')
    splats = tuple(path for path in sorted(old.rglob("*")) if path.is_file())
    return {
        "run": Target(run, texts, (look, export, evaluate, resume)),
        "run-without-checkpoints": Target(old, splats, (("info", str(old)), ("eval", str(old)))),
        "checkpoint-bytes": Target(run, checkpoints, (look, *one, evaluate)),
        "checkpoint-content": Target(run, checkpoints, (*one, resume, evaluate), content=True, share=20),
    }


def _unprepared(work: Path, scene: Scene) -> dict[str, Target]:
    """Photos without poses, and a scene that prepare made."""
    folder = work / "photos-alone"
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for number, (view, ending) in enumerate(zip(scene.train_views * 2, ("jpg", "png", "webp", "heic"), strict=True)):
        _save(Image.open(view.image_path).convert("RGB"), photos / f"{number}.{ending}")
    prepare = ("prepare", str(photos), str(folder / "made"))
    again = work / "prepared"
    shutil.copytree(folder, again)
    repeat = ("prepare", str(again / "photos"), str(again / "made"))
    fake = {**os.environ, **fake_pycolmap(work / "pycolmap.log")}
    subprocess.run([sys.executable, "-m", "gs_train", *repeat], env=fake, check=True, capture_output=True)
    record = (again / "made" / "prepare.json", again / "made" / "database.db")
    return {
        "prepare": Target(folder, tuple(sorted(photos.iterdir())), (prepare,), share=1),
        "prepare-again": Target(again, record, (repeat,), share=1),
    }


# ---- scenes


def _as_binary(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.rglob("*.bin")))


def _as_text(folder: Path) -> tuple[Path, ...]:
    """Two distorted cameras, and points in a PLY file."""
    model, scene = folder / "sparse" / "0", _read(folder)
    for path in model.glob("*.bin"):
        path.unlink()
    c = scene.train_views[0].camera
    head, numbers = f"{c.width} {c.height}", f"{c.fx} {c.fy} {c.cx} {c.cy}"
    kinds = ("OPENCV", "0.01 0.001 0.0001 0.0001"), ("OPENCV_FISHEYE", "0.01 0.001 0.0001 0.0001")
    cameras = [f"{i} {kind} {head} {numbers} {lens}\n" for i, (kind, lens) in enumerate(kinds, 1)]
    (model / "cameras.txt").write_text("# comment\n" + "".join(cameras))
    lines = []
    for i, view in enumerate(scene.train_views, 1):
        pose = view.world_to_camera
        values = (*rotation_to_quaternion(pose[:3, :3]), *pose[:3, 3])
        lines.append(f"{i} {' '.join(map(str, values))} {1 + i % 2} {view.name}\n1.5 2.5 -1\n")
    (model / "images.txt").write_text("".join(lines))
    points = [f"{i} {x} {y} {z} 1 2 3 0.5 1 0\n" for i, (x, y, z) in enumerate(scene.points.xyz.tolist())]
    (model / "points3D.txt").write_text("".join(points))
    return tuple(sorted(model.glob("*.txt")))


def _as_nerfstudio(folder: Path) -> tuple[Path, ...]:
    """Masks by ``mask_path``, a split, and points in binary with float colours."""
    scene, frames = _read(folder), _frames(folder)
    _write_masks(folder, scene, "masks/{name}.png", "RGBA")
    names = [frame["file_path"] for frame in frames]
    for frame, view in zip(frames, scene.train_views, strict=True):
        frame["mask_path"] = f"masks/{view.name}.png"
    content = {
        **_intrinsics(scene),
        "camera_model": "OPENCV",
        "k1": 0.01,
        "applied_transform": np.eye(4)[:3].tolist(),
        "ply_file_path": "points.ply",
        "train_filenames": names[1:],
        "test_filenames": names[:1],
        "frames": frames,
    }
    columns = [(name, "f8" if name in "xyz" else "f4") for name in ("x", "y", "z", "red", "green", "blue")]
    points = np.zeros(len(scene.points.xyz), columns)
    for axis, values in zip("xyz", scene.points.xyz.T, strict=True):
        points[axis] = values
    PlyData([PlyElement.describe(points, "vertex")]).write(str(folder / "points.ply"))
    return _write_json(folder / "transforms.json", content), folder / "points.ply"


def _as_instant_ngp(folder: Path) -> tuple[Path, ...]:
    """Intrinsics per frame, a scale, dynamic masks, and points as text with a usual name."""
    scene, frames = _read(folder), _frames(folder)
    _write_masks(folder, scene, "images/dynamic_mask_{stem}.png", "L")
    for frame in frames:
        frame.update(_intrinsics(scene), sharpness=1.0)
    points = "".join(f"{x} {y} {z} 1 2 3\n" for x, y, z in scene.points.xyz.tolist())
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    colours = "".join(f"property uchar {colour}\n" for colour in ("red", "green", "blue"))
    header = f"ply\nformat ascii 1.0\nelement vertex {len(scene.points.xyz)}\n{axes}{colours}end_header\n"
    (folder / "pointcloud.ply").write_text(header + points)
    content = {"aabb_scale": 4, "scale": 0.33, "offset": [0.5, 0.5, 0.5], "frames": frames}
    return _write_json(folder / "transforms.json", content), folder / "pointcloud.ply"


def _as_blender(folder: Path) -> tuple[Path, ...]:
    frames, files = _frames(folder), []
    for kind, some in (("train", frames[:3]), ("test", frames[3:])):
        (folder / kind).mkdir()
        for frame in some:
            photo = folder / frame["file_path"]
            Image.open(photo).convert("RGBA").save(folder / kind / f"{photo.stem}.png")
            frame["file_path"] = f"./{kind}/{photo.stem}"
        content = {"camera_angle_x": 0.8, "frames": some}
        files.append(_write_json(folder / f"transforms_{kind}.json", content))
    shutil.rmtree(folder / "images")
    return tuple(files)


def _with_photos(folder: Path) -> tuple[Path, ...]:
    """Photos of every format with masks of several kinds."""
    shutil.rmtree(folder)
    write_sample_scene(folder, views=len(_FORMATS), width=24, height=24, points=30)
    _write_masks(folder, _read(folder), "masks/{name}.png", "LA")
    photos = sorted((folder / "images").iterdir())
    for photo, (ending, mode, settings) in zip(photos, _FORMATS, strict=True):
        image = Image.open(photo).convert("L" if mode in ("I;16", "F") else "RGB")
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image, np.uint16) * 256)
        elif mode == "F":
            image = Image.fromarray(np.asarray(image, np.float32) / 255)
        else:
            image = image.convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 1
        _save(image, photo.with_suffix(f".{ending}"), **settings, exif=exif)
        if ending != photo.suffix.lstrip("."):
            photo.unlink()
    return (*sorted((folder / "images").iterdir()), *sorted((folder / "masks").iterdir()))


# ---- parts of scenes


def _read(folder: Path) -> Scene:
    return load_scene(folder, SceneConfig(test_every=0))


def _intrinsics(scene: Scene) -> dict[str, float]:
    c = scene.train_views[0].camera
    return {"w": c.width, "h": c.height, "fl_x": c.fx, "fl_y": c.fy, "cx": c.cx, "cy": c.cy}


def _frames(folder: Path) -> list[dict[str, Any]]:
    """The frames of a transforms.json; removes the COLMAP model."""
    scene = _read(folder)
    shutil.rmtree(folder / "sparse")
    axes = np.diag([1.0, -1.0, -1.0, 1.0])
    poses = {view.name: (camera_to_world(view.world_to_camera) @ axes).tolist() for view in scene.train_views}
    return [{"file_path": f"images/{name}", "transform_matrix": pose} for name, pose in poses.items()]


def _write_masks(folder: Path, scene: Scene, place: str, mode: str) -> None:
    for view in scene.train_views:
        mask = folder / place.format(name=view.name, stem=Path(view.name).stem)
        mask.parent.mkdir(exist_ok=True)
        image = Image.new("L", (view.camera.width, view.camera.height), 255)
        image.paste(0, (2, 2, 8, 8))
        image.convert(mode).save(mask)


def _write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def _save(image: Image.Image, path: Path, **settings: Any) -> None:
    if path.suffix == ".heic":
        pillow_heif.from_pillow(image).save(str(path))
    else:
        image.save(path, **settings)
