"""The sample scene: photos, cameras and sparse points of a still life, written to disk as a COLMAP scene.

``still_life.py`` has the objects, ``raycast.py`` the ray caster. ``load_scene`` reads the result like any scene of
photos. The same arguments give the same bytes in every file.
"""

from __future__ import annotations

import math
import struct
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import camera_centre, look_at, rotation_to_quaternion
from gs_train.errors import UserError
from gs_train.sample.raycast import Array, Solid, backdrop_distance, bake, cast, colours, contrasts
from gs_train.sample.still_life import still_life

_RING_RADII = (4.8, 4.4)
_RING_HEIGHTS = (1.55, 3.1)
_LOOK_AT = (0.0, 0.0, 0.28)
_FOCAL_PER_WIDTH = 1.06
# Off the middle, as in a real camera, so that code that ignores the principal point gives visibly worse results.
_PRINCIPAL_POINT = (0.512, 0.489)
_SUPERSAMPLING = 2
_RAYS_AT_ONCE = 16384
_BACKDROP_FRACTION = 0.2
# Probability that a view observes a point that it can see; _FEW_VIEWS / views if the scene has few views.
_SEEN_FRACTION = 0.3
_FEW_VIEWS = 8
_FEWEST_OBSERVATIONS = 2


def write_sample_scene(
    path: Path, *, seed: int = 0, views: int = 40, width: int = 320, height: int = 240, points: int = 8000
) -> None:
    """Write the sample scene: ``images/view_NNN.png`` and a binary model in ``sparse/0``.

    The scene appears whole or not at all.

    Args:
        path: a new or empty folder.
        seed: seed of textures, camera jitter and points.
        views: number of photos, on two rings around the table, the lower ring first.
        width: width of a photo, px.
        height: height of a photo, px.
        points: approximate number of sparse points. Most lie on the objects, some on the backdrop.

    Raises:
        UserError: the folder is not empty, or cannot be written.
    """
    focal = _FOCAL_PER_WIDTH * width
    cx, cy = _PRINCIPAL_POINT[0] * width, _PRINCIPAL_POINT[1] * height
    camera = Camera(width=width, height=height, fx=focal, fy=focal, cx=cx, cy=cy)
    try:
        _write_scene(path, seed, views, camera, points)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): choose another folder.") from error


def _write_scene(path: Path, seed: int, views: int, camera: Camera, points: int) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty: give a new folder for the sample scene, or delete this one.")
    existed = path.exists()
    beside = path if existed else path.parent
    beside.mkdir(parents=True, exist_ok=True)
    # The folder is created before rendering, so that an unwritable folder fails at once.
    with tempfile.TemporaryDirectory(prefix=".gs-train-sample-", dir=beside, ignore_cleanup_errors=True) as temporary:
        # Other users cannot read the temporary folder itself, so the scene is a folder inside it.
        partial = Path(temporary) / "scene"
        for folder in ("images", "sparse/0"):
            (partial / folder).mkdir(parents=True)
        _render_into(partial, seed, views, camera, points)
        if existed:
            # The folder itself stays, because it may be a link, a mount or the current directory. The model moves last,
            # because it makes the folder a scene.
            for part in ("images", "sparse"):
                (partial / part).rename(path / part)
        else:
            partial.rename(path)


def _render_into(folder: Path, seed: int, views: int, camera: Camera, points: int) -> None:
    # Independent streams, so that the number of points or views does not change the textures.
    texture_seed, camera_seed, point_seed = np.random.SeedSequence(seed).spawn(3)
    solids = bake(still_life(np.random.default_rng(texture_seed)), seed)
    poses = _ring_poses(np.random.default_rng(camera_seed), views)
    write_cast_scene(folder, solids, camera, poses, points, np.random.default_rng(point_seed))


def write_cast_scene(
    folder: Path,
    solids: tuple[Solid, ...],
    camera: Camera,
    poses: list[NDArray[np.float64]],
    points: int,
    rng: np.random.Generator,
) -> None:
    """Write the photos and the model of solids.

    Args:
        folder: has the folders ``images`` and ``sparse/0``.
        solids: from ``bake``.
        camera: of all photos.
        poses: [4, 4] world-to-camera, one per photo.
        points: approximate number of sparse points.
        rng: draws the points.
    """
    with ThreadPoolExecutor() as pool:
        photos = list(pool.map(lambda pose: _photo(solids, camera, pose), poses))
    cloud = _surface_points(solids, camera, poses, photos, points, rng)
    names = [f"view_{index:03d}.png" for index in range(len(poses))]
    for name, photo in zip(names, photos, strict=True):
        Image.fromarray(photo).save(folder / "images" / name)
    _write_model(folder / "sparse" / "0", camera, poses, names, cloud)


# ---- cameras and photos


def _rays(camera: Camera, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 3] unit directions in camera axes through the pixel positions x, y ([n], px)."""
    fx, fy, cx, cy = camera.pinhole_intrinsics()
    rays = np.stack(((x - cx) / fx, (y - cy) / fy, np.ones_like(x)), axis=1)
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def _ring_poses(rng: np.random.Generator, views: int) -> list[NDArray[np.float64]]:
    """[4, 4] world-to-camera poses on two rings that look inwards, jittered like a hand-held camera."""
    poses = []
    lower = (views + 1) // 2
    for index in range(views):
        ring, position, count = (0, index, lower) if index < lower else (1, index - lower, views - lower)
        angle = 2 * math.pi * (position + 0.5 * ring) / count + rng.normal(0, 0.03)
        radius = _RING_RADII[ring] + rng.normal(0, 0.06)
        centre = np.array(
            (radius * math.cos(angle), radius * math.sin(angle), _RING_HEIGHTS[ring] + rng.normal(0, 0.06))
        )
        poses.append(look_at(centre, np.array(_LOOK_AT) + rng.normal(0, 0.04, 3)))
    return poses


def _look(
    solids: tuple[Solid, ...], pose: NDArray[np.float64], rays: NDArray[np.float64]
) -> tuple[Array, NDArray[np.float64], NDArray[np.intp]]:
    """Cast ``rays`` ([n, 3], camera axes).

    Returns:
        [n, 3] colours, [n, 3] world positions, and [n] indices of the solids (-1: backdrop).
    """
    centre = camera_centre(pose)
    origin = centre[None].astype(np.float32)
    parts = []
    # Blocks of rays that fit the processor's cache are twice as fast as all rays at once.
    for start in range(0, max(1, len(rays)), _RAYS_AT_ONCE):
        direction = (rays[start : start + _RAYS_AT_ONCE] @ pose[:3, :3]).astype(np.float32)
        distance, hit = cast(solids, origin, direction)
        reach = np.where(hit < 0, backdrop_distance(origin, direction), distance)
        parts.append((colours(solids, origin, direction, distance, hit), centre + direction * reach[:, None], hit))
    seen, position, hit = (np.concatenate(part) for part in zip(*parts, strict=True))
    return seen, position, hit


def _photo(solids: tuple[Solid, ...], camera: Camera, pose: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[H, W, 3] uint8: one ray for every pixel, and the mean of several at pixels with contrast."""
    width, height, side = camera.width, camera.height, _SUPERSAMPLING
    y, x = np.divmod(np.arange(width * height), width)
    seen = _look(solids, pose, _rays(camera, x + 0.5, y + 0.5))[0]
    rough = np.flatnonzero(contrasts(seen.reshape(height, width, 3)))
    down, across = ((np.mgrid[:side, :side] + 0.5) / side).reshape(2, 1, -1)
    rays = _rays(camera, (x[rough, None] + across).ravel(), (y[rough, None] + down).ravel())
    seen[rough] = _look(solids, pose, rays)[0].reshape(len(rough), -1, 3).mean(axis=1)
    return np.asarray(np.round(seen * 255), np.uint8).reshape(height, width, 3)


# ---- sparse points


@dataclass(frozen=True, kw_only=True)
class _Cloud:
    xyz: NDArray[np.float64]
    """[P, 3]"""
    rgb: NDArray[np.uint8]
    """[P, 3]"""
    seen: NDArray[np.bool_]
    """[V, P] whether the view observes the point."""
    xy: NDArray[np.float64]
    """[V, P, 2] pixel position of the observation, px; undefined without one."""


def _surface_points(
    solids: tuple[Solid, ...],
    camera: Camera,
    poses: list[NDArray[np.float64]],
    photos: list[NDArray[np.uint8]],
    count: int,
    rng: np.random.Generator,
) -> _Cloud:
    """Noisy surface points, as in a reconstruction. Some of the views that can see a point observe it."""
    found = []
    # Some points will have too few observations, so more are drawn than requested.
    drawn = math.ceil(1.3 * count)
    each = math.ceil(3 * drawn / len(poses))
    for pose, photo in zip(poses, photos, strict=True):
        # Half of the points lie at contrasts, as with a feature detector, the rest anywhere.
        pixels = rng.integers(0, photo.shape[0] * photo.shape[1], each)
        edges = np.flatnonzero(contrasts(photo / np.float32(255)))
        if len(edges):
            pixels[::2] = rng.choice(edges, len(pixels[::2]))
        y, x = np.divmod(pixels, camera.width)
        found.append(_look(solids, pose, _rays(camera, x + rng.random(each), y + rng.random(each))))
    colour, position, hit = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = rng.permutation(len(position))
    backdrop = order[hit[order] < 0][: round(_BACKDROP_FRACTION * drawn)]
    chosen = rng.permutation(np.concatenate((order[hit[order] >= 0][: drawn - len(backdrop)], backdrop)))
    colour, position, hit = colour[chosen], position[chosen], hit[chosen]

    xy = np.empty((len(poses), len(position), 2))
    seen = rng.random(xy.shape[:2]) < max(_SEEN_FRACTION, _FEW_VIEWS / len(poses))
    fx, fy, cx, cy = camera.pinhole_intrinsics()
    for index, pose in enumerate(poses):
        local = position @ pose[:3, :3].T + pose[:3, 3]
        depth = np.maximum(local[:, 2], 1e-6)
        xy[index] = np.stack((fx * local[:, 0] / depth + cx, fy * local[:, 1] / depth + cy), axis=1)
        inside = (
            (local[:, 2] > 0) & (xy[index] > 0).all(axis=1) & (xy[index] < (camera.width, camera.height)).all(axis=1)
        )
        reach = np.linalg.norm(local, axis=1)
        centre = camera_centre(pose)[None]
        blocked = (
            cast(solids, centre.astype(np.float32), ((position - centre) / reach[:, None]).astype(np.float32))[0]
            < reach - 0.02
        )
        seen[index] &= inside & ~blocked
    kept = np.flatnonzero(seen.sum(axis=0) >= _FEWEST_OBSERVATIONS)[:count]
    noise = np.where(hit < 0, 0.05, 0.004)[:, None] * rng.standard_normal(position.shape)
    rgb = np.clip(np.round(colour * 255 + rng.normal(0, 2.5, colour.shape)), 0, 255).astype(np.uint8)
    return _Cloud(xyz=(position + noise)[kept], rgb=rgb[kept], seen=seen[:, kept], xy=xy[:, kept])


# ---- files


def _write_model(
    folder: Path, camera: Camera, poses: list[NDArray[np.float64]], names: list[str], cloud: _Cloud
) -> None:
    """Write a binary COLMAP model (https://colmap.github.io/format.html). Ids start at 1, as in COLMAP."""
    pinhole = 1
    record = struct.pack("<IiQQ4d", 1, pinhole, camera.width, camera.height, *camera.pinhole_intrinsics())
    (folder / "cameras.bin").write_bytes(struct.pack("<Q", 1) + record)

    observation = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
    position = np.cumsum(cloud.seen, axis=1) - 1
    images = [struct.pack("<Q", len(poses))]
    for index, (pose, name) in enumerate(zip(poses, names, strict=True)):
        rows = np.flatnonzero(cloud.seen[index])
        observed = np.empty(len(rows), observation)
        observed["xy"], observed["point"] = cloud.xy[index, rows], rows + 1
        head = struct.pack("<I7dI", index + 1, *rotation_to_quaternion(pose[:3, :3]), *pose[:3, 3], 1)
        images.append(head + name.encode() + b"\0" + struct.pack("<Q", len(rows)) + observed.tobytes())
    (folder / "images.bin").write_bytes(b"".join(images))

    points = [struct.pack("<Q", len(cloud.xyz))]
    for index, (xyz, rgb) in enumerate(zip(cloud.xyz.tolist(), cloud.rgb.tolist(), strict=True)):
        views = np.flatnonzero(cloud.seen[:, index])
        track = np.stack((views + 1, position[views, index]), axis=1).astype("<i4")
        points.append(struct.pack("<Q3d3BdQ", index + 1, *xyz, *rgb, 0.5, len(views)) + track.tobytes())
    (folder / "points3D.bin").write_bytes(b"".join(points))
