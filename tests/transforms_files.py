"""Writes small transforms.json and Blender scenes for tests, intact or broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from plyfile import PlyElement

SIZE = (40, 30)


def look_at(position: tuple[float, float, float]) -> NDArray[np.float64]:
    """[4, 4] OpenGL camera-to-world of a camera that looks at the origin with z up: x right, y up, z backward."""
    backward = np.array(position) / np.linalg.norm(position)
    right = np.cross((0.0, 0.0, 1.0), backward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(backward, right), backward], axis=1)
    pose[:3, 3] = position
    return pose


def ring(count: int) -> list[NDArray[np.float64]]:
    """OpenGL camera-to-world poses on a circle of radius 4 at height 1, looking at the origin."""
    angles = 2 * np.pi * np.arange(count) / count + 0.1
    return [look_at((4 * float(np.cos(angle)), 4 * float(np.sin(angle)), 1.0)) for angle in angles]


def document(count: int = 5, folder: str = "images", ending: str = ".png", **changes: Any) -> dict[str, Any]:
    """The content of a transforms file with ``count`` frames. ``changes`` replace keys; None removes a key."""
    frames = [
        {"file_path": f"{folder}/{i}{ending}", "transform_matrix": pose.tolist()} for i, pose in enumerate(ring(count))
    ]
    whole = {
        "fl_x": 42.0,
        "fl_y": 43.0,
        "cx": 21.0,
        "cy": 14.0,
        "w": SIZE[0],
        "h": SIZE[1],
        "frames": frames,
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not None}


def write(scene: Path, content: Any, name: str = "transforms.json", photos: bool = True) -> Path:
    """Write the file, and a photo for every frame; returns the file's path."""
    scene.mkdir(parents=True, exist_ok=True)
    (scene / name).write_text(json.dumps(content))
    if photos:
        for frame in content["frames"]:
            photo = scene / frame["file_path"]
            photo = photo if photo.suffix else photo.with_suffix(".png")
            photo.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE, (90, 120, 150)).save(photo)
    return scene / name


def write_blender(scene: Path, parts: dict[str, int]) -> Path:
    """Write transforms_<part>.json with its photos (RGB) in a folder for each part; returns the scene folder."""
    for part, count in parts.items():
        content = document(
            count, f"./{part}", ending="", fl_x=None, fl_y=None, cx=None, cy=None, w=None, h=None, camera_angle_x=0.8
        )
        write(scene, content, f"transforms_{part}.json")
    return scene


def ply_vertices(
    xyz: list[tuple[float, ...]], colours: tuple[str, list[tuple[float, ...]]] | None = None
) -> PlyElement:
    """Vertices for a PLY file. ``colours`` is the NumPy type and the red, green, blue of each vertex."""
    kinds = [(axis, "f4") for axis in "xyz"]
    if colours is not None:
        kinds += [(name, colours[0]) for name in ("red", "green", "blue")]
    rows = [(*position, *(colours[1][i] if colours else ())) for i, position in enumerate(xyz)]
    return PlyElement.describe(np.array(rows, dtype=kinds), "vertex")
