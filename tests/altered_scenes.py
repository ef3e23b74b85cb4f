"""Alters the scene of ``gs-train sample`` as other software would: other coordinates, other files, other names."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement

from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import camera_centre, camera_to_world, pose_at, rotation_to_quaternion
from gs_train.scene.readers.colmap import read_model

Array = NDArray[np.float64]


@dataclass
class Content:
    """A scene's model, ready to change and write."""

    camera: Camera
    poses: dict[str, Array]
    """Image name -> [4, 4] world-to-camera, OpenCV axes."""
    xyz: Array
    rgb: NDArray[np.uint8]

    @staticmethod
    def of(scene: Path) -> Content:
        """The content of a scene of ``gs-train sample``, whose photos share one camera."""
        model = read_model(scene / "sparse" / "0")
        (camera,) = model.cameras.values()
        return Content(camera, {i.name: i.world_to_camera for i in model.images}, model.points.xyz, model.points.rgb)

    def move(self, *, scale: float = 1.0, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Content:
        """Move every point X to scale * X + offset, and the cameras with them."""
        for name, pose in self.poses.items():
            self.poses[name] = pose_at(scale * camera_centre(pose) + offset, pose[:3, :3])
        self.xyz = scale * self.xyz + offset
        return self

    def rename(self, change: Callable[[str], str]) -> Content:
        """Change the names of the images."""
        self.poses = {change(name): pose for name, pose in self.poses.items()}
        return self

    def keep(self, images: int, points: int) -> Content:
        """Keep the first images and points alone."""
        self.poses = dict(list(self.poses.items())[:images])
        self.xyz, self.rgb = self.xyz[:points], self.rgb[:points]
        return self

    def write_binary(self, folder: Path, *, encoding: str = "utf-8", points: bool = True) -> None:
        """Write a COLMAP binary model without observations into ``folder``, in place of the model there."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        c = self.camera
        camera = struct.pack("<IiQQ4d", 1, 1, c.width, c.height, c.fx, c.fy, c.cx, c.cy)
        (folder / "cameras.bin").write_bytes(struct.pack("<Q", 1) + camera)
        images = struct.pack("<Q", len(self.poses))
        for number, (name, pose) in enumerate(self.poses.items(), 1):
            images += struct.pack("<I7dI", number, *rotation_to_quaternion(pose[:3, :3]), *pose[:3, 3], 1)
            images += name.encode(encoding) + b"\0" + struct.pack("<Q", 0)
        (folder / "images.bin").write_bytes(images)
        if points:
            rows = zip(self.xyz.tolist(), self.rgb.tolist(), strict=True)
            data = b"".join(struct.pack("<Q3d3BdQ", i, *xyz, *rgb, 0.5, 0) for i, (xyz, rgb) in enumerate(rows, 1))
            (folder / "points3D.bin").write_bytes(struct.pack("<Q", len(self.xyz)) + data)

    def write_text(self, folder: Path, *, encoding: str = "utf-8", points: bool = True) -> None:
        """Write a COLMAP text model into ``folder``, in place of the model there."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        c = self.camera
        params = f"{c.fx!r} {c.fy!r} {c.cx!r} {c.cy!r}"
        (folder / "cameras.txt").write_text(f"1 PINHOLE {c.width} {c.height} {params}\n")
        lines = []
        for number, (name, pose) in enumerate(self.poses.items(), 1):
            numbers = (*rotation_to_quaternion(pose[:3, :3]).tolist(), *pose[:3, 3].tolist())
            lines += [f"{number} {' '.join(map(repr, numbers))} 1 {name}", ""]
        (folder / "images.txt").write_text("\n".join(lines) + "\n", encoding=encoding)
        if not points:
            return
        rows = zip(self.xyz.tolist(), self.rgb.tolist(), strict=True)
        written = [f"{i} {' '.join(map(repr, (*xyz, *rgb)))} 0.5" for i, (xyz, rgb) in enumerate(rows, 1)]
        (folder / "points3D.txt").write_text("\n".join(written) + "\n")

    def write_transforms(self, file: Path, *, points: str | None = "sparse_pc.ply", **more: Any) -> dict[str, Any]:
        """Write a transforms.json with OpenGL camera axes, and its points beside it; returns the document."""
        c = self.camera
        frames = [
            {
                "file_path": f"images/{name}",
                "transform_matrix": (camera_to_world(pose) * (1.0, -1.0, -1.0, 1.0)).tolist(),
            }
            for name, pose in self.poses.items()
        ]
        document = {"w": c.width, "h": c.height, "fl_x": c.fx, "fl_y": c.fy, "cx": c.cx, "cy": c.cy, **more}
        document["frames"] = frames
        if points is not None:
            write_points(file.parent / points, self.xyz, self.rgb)
            document["ply_file_path"] = points
        file.write_text(json.dumps(document))
        return document


def write_points(path: Path, xyz: Array, rgb: NDArray[Any]) -> None:
    """Write a PLY file of points with float32 positions; the type of the colours is that of ``rgb``."""
    kind = rgb.dtype.str[1:]
    rows = np.empty(len(xyz), [*((a, "f4") for a in "xyz"), *((c, kind) for c in ("red", "green", "blue"))])
    for column, values in zip(rows.dtype.names or (), (*xyz.T, *rgb.T), strict=True):
        rows[column] = values
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(path))
