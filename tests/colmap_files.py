"""Writes small COLMAP models for tests, intact or broken, in both formats. It shares no code with the reader."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

CameraRow = tuple[int, int, int, int, tuple[float, ...]]  # id, model id, width, height, params
ImageRow = tuple[int, tuple[float, ...], tuple[float, ...], int, str]  # id, wxyz, translation, camera id, name
PointRow = tuple[tuple[float, ...], tuple[int, int, int], int]  # xyz, rgb, track length

MODEL_NAMES = {0: "SIMPLE_PINHOLE", 1: "PINHOLE", 2: "SIMPLE_RADIAL", 4: "OPENCV"}


def _cameras() -> list[CameraRow]:
    return [(1, 1, 40, 30, (42.0, 43.0, 21.0, 14.0)), (7, 0, 20, 30, (33.0, 10.5, 15.5))]


def _images() -> list[ImageRow]:
    quaternions = ((1.0, 0, 0, 0), (0.5, 0.5, -0.5, 0.5), (0.9, 0.1, -0.2, 0.3), (-0.2, 0.4, 0.1, 1.9))
    names = ("b.png", "a.png", "sub/c d.png", "e.png")
    rows = enumerate(zip(quaternions, names, strict=True))
    return [(i + 3, wxyz, (0.5 * i, -1.0, 2.0 + i), 7 if i == 1 else 1, name) for i, (wxyz, name) in rows]


def _points() -> list[PointRow]:
    return [((0.1 * i, -2.0 * i, 5.0 + i), (i, 255 - i, 7), i % 4) for i in range(9)]


@dataclass
class Model:
    """Records of a sparse model; tests change them to break it."""

    cameras: list[CameraRow] = field(default_factory=_cameras)
    images: list[ImageRow] = field(default_factory=_images)
    points: list[PointRow] = field(default_factory=_points)

    def write_binary(self, folder: Path) -> None:
        """Write cameras.bin, images.bin and points3D.bin."""
        folder.mkdir(parents=True, exist_ok=True)
        out = struct.pack("<Q", len(self.cameras))
        for camera_id, model, width, height, params in self.cameras:
            out += struct.pack(f"<iiQQ{len(params)}d", camera_id, model, width, height, *params)
        (folder / "cameras.bin").write_bytes(out)
        out = struct.pack("<Q", len(self.images))
        for image_id, wxyz, translation, camera_id, name in self.images:
            out += struct.pack("<i4d3di", image_id, *wxyz, *translation, camera_id) + name.encode() + b"\0"
            out += struct.pack("<Q", 2) + struct.pack("<2dq", 1.5, 2.5, -1) + struct.pack("<2dq", 3.5, 4.5, 1)
        (folder / "images.bin").write_bytes(out)
        out = struct.pack("<Q", len(self.points))
        for point_id, (xyz, rgb, track) in enumerate(self.points, 1):
            out += struct.pack("<Q3d3BdQ", point_id, *xyz, *rgb, 0.7, track) + struct.pack(
                f"<{2 * track}i", *range(2 * track)
            )
        (folder / "points3D.bin").write_bytes(out)

    def write_text(self, folder: Path) -> None:
        """Write cameras.txt, images.txt and points3D.txt with COLMAP's header comments."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            "# Camera list",
            "#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]",
            f"# Number of cameras: {len(self.cameras)}",
        ]
        lines += [f"{i} {MODEL_NAMES[m]} {w} {h} {' '.join(map(repr, params))}" for i, m, w, h, params in self.cameras]
        (folder / "cameras.txt").write_text("\n".join(lines) + "\n")
        lines = ["# Image list", f"# Number of images: {len(self.images)}, mean observations per image: 1"]
        for row, (i, wxyz, translation, camera_id, name) in enumerate(self.images):
            lines += [
                f"{i} {' '.join(map(repr, (*wxyz, *translation)))} {camera_id} {name}",
                "1.5 2.5 -1 3.5 4.5 1" if row % 2 else "",
            ]
        (folder / "images.txt").write_text("\n".join(lines) + "\n")
        lines = ["# 3D point list", f"# Number of points: {len(self.points)}, mean track length: 2"]
        for i, (xyz, rgb, track) in enumerate(self.points, 1):
            lines.append(" ".join([str(i), *map(repr, xyz), *map(str, rgb), "0.7", *map(str, range(2 * track))]))
        (folder / "points3D.txt").write_text("\n".join(lines) + "\n")

    def write_photos(self, folder: Path, divided_by: int = 1) -> None:
        """Write a grey PNG per image, of its camera's size divided by ``divided_by``."""
        sizes = {
            camera_id: (width // divided_by, height // divided_by) for camera_id, _, width, height, _ in self.cameras
        }
        for _, _, _, camera_id, name in self.images:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", sizes[camera_id], (90, 120, 150)).save(folder / name)


def read_observations(folder: Path) -> dict[str, list[tuple[float, float, int]]]:
    """Image name -> (x, y, row of the point in points3D.bin), parsed independently with struct."""
    data = (folder / "points3D.bin").read_bytes()
    offset, rows = 8, {}
    for row in range(struct.unpack_from("<Q", data)[0]):
        rows[struct.unpack_from("<q", data, offset)[0]] = row
        offset += 51 + 8 * struct.unpack_from("<Q", data, offset + 43)[0]
    data = (folder / "images.bin").read_bytes()
    offset, found = 8, {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        end = data.index(b"\0", offset + 64)
        count = struct.unpack_from("<Q", data, end + 1)[0]
        triples = struct.iter_unpack("<ddq", data[end + 9 : end + 9 + 24 * count])
        found[data[offset + 64 : end].decode()] = [(x, y, rows[point]) for x, y, point in triples if point >= 0]
        offset = end + 9 + 24 * count
    return found
