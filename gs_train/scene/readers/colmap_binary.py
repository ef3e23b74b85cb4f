"""The binary format of COLMAP models: cameras.bin, images.bin and points3D.bin.

The readers check every count against the file size before they allocate memory for it.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from gs_train.cameras.camera import Camera
from gs_train.errors import UserError
from gs_train.scene.readers.colmap_records import AGAIN, CAMERA_MODELS, make_camera, make_image, unknown_model
from gs_train.scene.readers.reconstruction import NO_POINTS, RegisteredImage, read_bytes
from gs_train.scene.types import PointCloud

_CAMERA_HEAD = struct.Struct("<IiQQ")
_IMAGE_HEAD = struct.Struct("<I7dI")
_COUNT = struct.Struct("<Q")
_OBSERVATION = np.dtype([("x", "<f8"), ("y", "<f8"), ("point_id", "<i8")])
_TRACK_ELEMENT_BYTES = 8
_POINT_HEAD = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track_length", "<u8")])


class _Bytes:
    """The bytes of a file and the position of the next record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_bytes(path)
        self.offset = 0

    def where(self) -> str:
        return f"{self.path} (byte {self.offset})"

    def left(self) -> int:
        return len(self.data) - self.offset

    def need(self, size: int) -> None:
        if size > self.left():
            reason = f"the next record takes {size} bytes, but the file has {self.left()} more"
            raise UserError(f"{self.where()} is truncated or corrupt, because {reason}: {AGAIN}.")

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        self.need(layout.size)
        fields = layout.unpack_from(self.data, self.offset)
        self.offset += layout.size
        return fields

    def skip(self, size: int) -> None:
        self.need(size)
        self.offset += size

    def take_count(self, records: str, smallest_record: int) -> int:
        """A count of records, checked against the bytes that follow."""
        where = self.where()
        count = int(self.take(_COUNT)[0])
        if count * smallest_record > self.left():
            reason = f"the file announces {count} {records}, but only {self.left()} bytes follow"
            raise UserError(f"{where} is truncated or corrupt, because {reason}: {AGAIN}.")
        return count

    def end(self) -> None:
        if self.left():
            raise UserError(f"{self.where()} is corrupt, because {self.left()} bytes follow the last record: {AGAIN}.")


def read_cameras(path: Path) -> dict[int, Camera]:
    """Cameras by id.

    Raises:
        UserError: the file is truncated or corrupt.
    """
    source = _Bytes(path)
    cameras: dict[int, Camera] = {}
    for _ in range(source.take_count("cameras", _CAMERA_HEAD.size)):
        where = source.where()
        camera_id, model_id, width, height = source.take(_CAMERA_HEAD)
        if model_id not in CAMERA_MODELS:
            raise unknown_model(where, path.parent, model_id)
        model, count = CAMERA_MODELS[model_id]
        cameras[camera_id] = make_camera(
            where, path.parent, model, width, height, source.take(struct.Struct(f"<{count}d"))
        )
    source.end()
    return cameras


def read_images(path: Path) -> tuple[RegisteredImage, ...]:
    """Images in the file's order.

    Raises:
        UserError: the file is truncated or corrupt.
    """
    source = _Bytes(path)
    images = []
    for _ in range(source.take_count("images", _IMAGE_HEAD.size + 1 + _COUNT.size)):
        where = source.where()
        fields = source.take(_IMAGE_HEAD)
        name_end = source.data.find(b"\0", source.offset)
        if name_end < 0:
            raise UserError(f"{source.where()} is truncated or corrupt, because an image name has no end: {AGAIN}.")
        name = source.data[source.offset : name_end].decode(errors="surrogateescape")
        source.skip(name_end + 1 - source.offset)
        count = source.take_count("observations", _OBSERVATION.itemsize)
        point_ids = np.frombuffer(source.data, _OBSERVATION, count, source.offset)["point_id"].astype(np.int64)
        source.skip(count * _OBSERVATION.itemsize)
        images.append(make_image(where, fields[1:5], fields[5:8], fields[8], name, point_ids))
    source.end()
    return tuple(images)


def read_image_names(path: Path) -> list[str]:
    """Image names in the file's order, without the observations in between; fewer names if the file is damaged.

    Raises:
        UserError: the file cannot be read.
    """
    names: list[str] = []
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < _COUNT.size:
                return names
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions and the disk.") from error
    offset = _COUNT.size
    for _ in range(_COUNT.unpack_from(data)[0]):
        start = min(offset + _IMAGE_HEAD.size, len(data))
        end = data.find(b"\0", start)
        if end < 0 or end + 1 + _COUNT.size > len(data):
            break
        names.append(data[start:end].decode(errors="surrogateescape"))
        offset = end + 1 + _COUNT.size + _COUNT.unpack_from(data, end + 1)[0] * _OBSERVATION.itemsize
    return names


def read_points(path: Path) -> PointCloud:
    """Sparse points with their ids; may hold NaN or infinity.

    Raises:
        UserError: the file is truncated or corrupt.
    """
    source = _Bytes(path)
    head = _POINT_HEAD.itemsize
    count = source.take_count("points", head)
    data, size, offset = source.data, len(source.data), source.offset
    # The length of a record depends on its track, so this loop finds where each record begins.
    offsets = []
    track_length = _COUNT.unpack_from
    track_length_at = head - _COUNT.size
    for _ in range(count):
        if offset + head > size:
            break
        offsets.append(offset)
        offset += head + _TRACK_ELEMENT_BYTES * track_length(data, offset + track_length_at)[0]
    if len(offsets) < count or offset > size:
        last = offsets[-1] if offsets and offset > size else offset
        reason = f"point {len(offsets)} of {count} runs past the end of the file"
        raise UserError(f"{path} (byte {last}) is truncated or corrupt, because {reason}: {AGAIN}.")
    source.skip(offset - source.offset)
    source.end()
    if count == 0:
        return NO_POINTS
    # This view has a record at every byte. Indexing it with the offsets gathers all records in one call.
    at_every_byte = np.ndarray((size - head + 1,), _POINT_HEAD, buffer=data, strides=(1,))
    heads = at_every_byte[np.array(offsets)]
    xyz, rgb = np.ascontiguousarray(heads["xyz"], np.float64), np.ascontiguousarray(heads["rgb"])
    return PointCloud(xyz=xyz, rgb=rgb, ids=heads["id"].astype(np.int64))
