"""The sample scene: a still life, its photos, cameras and points, written as a COLMAP scene like any other.

Not a test double: ``load_scene`` reads it from disk by the same way as a scene of photos. The invariant: the same arguments give the same
bytes in every file.
"""

from __future__ import annotations

import math
import struct
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_train.errors import UserError
from gs_train.sample.raycast import (
    Array,
    Box,
    Frustum,
    Solid,
    Sphere,
    Texture,
    backdrop_distance,
    bake,
    cast,
    colours,
    contrasts,
)

_RING_RADII = (4.8, 4.4)
_RING_HEIGHTS = (1.55, 3.1)
_LOOK_AT = (0.0, 0.0, 0.28)
_FOCAL_PER_WIDTH = 1.06
# Off the middle, as in a real camera, so that whoever forgets the principal point gets visibly worse results.
_PRINCIPAL_POINT = (0.512, 0.489)
_SUPERSAMPLING = 2
_RAYS_AT_ONCE = 16384
_BACKDROP_SHARE = 0.2
# The share of the views that could see a point in which it is found; all of them where there are few.
_SEEN_SHARE = 0.3
_FEW_VIEWS = 8
_FEWEST_OBSERVATIONS = 2


def write_sample_scene(
    path: Path, *, seed: int = 0, views: int = 40, width: int = 320, height: int = 240, points: int = 8000
) -> None:
    """Write the sample scene: ``images/view_NNN.png`` and a binary model in ``sparse/0``. It appears whole or not at all.

    Args:
        path: a folder that does not exist yet, or an empty one.
        seed: of textures, camera jitter and points.
        views: photos, on two rings around the table, the lower ring first.
        width: of a photo, px.
        height: of a photo, px.
        points: about so many sparse points, most on the solids, some on the backdrop.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    try:
        _write_scene(path, seed, views, _Intrinsics(width, height), points)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): choose another folder.") from error


def _write_scene(path: Path, seed: int, views: int, intrinsics: _Intrinsics, points: int) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty: give a new folder for the sample scene, or delete this one.")
    existed = path.exists()
    beside = path if existed else path.parent
    beside.mkdir(parents=True, exist_ok=True)
    # Made before anything is rendered, so that a place that cannot be written to is known at once.
    with tempfile.TemporaryDirectory(prefix=".gs-train-sample-", dir=beside, ignore_cleanup_errors=True) as temporary:
        # A folder inside it, because the temporary one itself is closed to all other users.
        partial = Path(temporary) / "scene"
        for folder in ("images", "sparse/0"):
            (partial / folder).mkdir(parents=True)
        _render_into(partial, seed, views, intrinsics, points)
        if existed:
            # The folder stays the one it is, be it a link, a mount or where the user stands; the model comes last and makes it a scene.
            for part in ("images", "sparse"):
                (partial / part).rename(path / part)
        else:
            partial.rename(path)


def _render_into(folder: Path, seed: int, views: int, intrinsics: _Intrinsics, points: int) -> None:
    # Independent streams, so that another number of points or views leaves the textures as they are.
    texture_seed, camera_seed, point_seed = np.random.SeedSequence(seed).spawn(3)
    solids = bake(still_life(np.random.default_rng(texture_seed)), seed)
    poses = _ring_poses(np.random.default_rng(camera_seed), views)
    with ThreadPoolExecutor() as pool:
        photos = list(pool.map(lambda pose: _photo(solids, intrinsics, pose), poses))
    cloud = _surface_points(solids, intrinsics, poses, photos, points, np.random.default_rng(point_seed))
    names = [f"view_{index:03d}.png" for index in range(views)]
    for name, photo in zip(names, photos, strict=True):
        Image.fromarray(photo).save(folder / "images" / name)
    _write_model(folder / "sparse" / "0", intrinsics, poses, names, cloud)


# ---- the still life


def still_life(rng: np.random.Generator) -> tuple[Solid, ...]:
    """The solids on their table, lit evenly; see ``bake`` for shadows."""
    cream, teal, deep = (0.93, 0.89, 0.80), (0.16, 0.52, 0.54), (0.10, 0.27, 0.34)
    umber, walnut = (0.38, 0.24, 0.16), (0.52, 0.35, 0.23)
    brick, amber, rose = (0.74, 0.26, 0.19), (0.91, 0.63, 0.20), (0.87, 0.48, 0.46)
    return (
        Solid(shape=Frustum(2.05, 2.05, 0.06), centre=(0, 0, -0.06), texture=_table(rng), gloss=0.05),
        Solid(shape=Frustum(0.66, 0.62, 0.08), centre=(0, 0.1, 0.08), texture=_wood(rng, umber, walnut), gloss=0.15),
        Solid(shape=Sphere(0.52), centre=(0, 0.1, 0.68), texture=_marble(rng, cream, teal), gloss=0.6),
        Solid(shape=Sphere(0.32), centre=(1.12, -0.5, 0.32), texture=_checked_ball(brick, cream), gloss=0.5),
        Solid(
            shape=Box((0.31, 0.31, 0.45)),
            centre=(-1.12, 0.5, 0.45),
            yaw=0.5,
            texture=_stripes(amber, deep, 14.0),
            gloss=0.12,
        ),
        Solid(
            shape=Box((0.22, 0.22, 0.22)),
            centre=(-0.62, -0.92, 0.22),
            yaw=0.95,
            texture=_die(0.22, cream, brick),
            gloss=0.35,
        ),
        Solid(shape=Frustum(0.25, 0.25, 0.48), centre=(0.92, 0.9, 0.48), texture=_spiral(rose, cream), gloss=0.4),
        Solid(shape=Frustum(0.36, 0.03, 0.4), centre=(0.3, -1.28, 0.4), texture=_stripes(teal, cream, 22.0), gloss=0.2),
        Solid(shape=Frustum(0.19, 0.34, 0.3), centre=(-0.4, 1.35, 0.3), texture=_marble(rng, deep, teal), gloss=0.5),
        Solid(shape=Sphere(0.18), centre=(-1.42, -0.5, 0.18), texture=_mottled(rng, teal, deep), gloss=0.6),
        Solid(shape=Sphere(0.15), centre=(1.62, 0.3, 0.15), texture=_mottled(rng, amber, brick), gloss=0.6),
        Solid(shape=Sphere(0.14), centre=(0.45, -0.72, 0.14), texture=_mottled(rng, rose, brick), gloss=0.6),
    )


Colour = tuple[float, float, float]


def _mix(low: Colour, high: Colour, share: Array) -> Array:
    a, b = np.array(low, np.float32), np.array(high, np.float32)
    return np.asarray(a + (b - a) * share[:, None], np.float32)


def _step(x: Array, sharpness: float) -> Array:
    """From 0 to 1 where x changes sign; the edge stays soft, because pixels cannot show, nor splats learn, an edge without a width."""
    return np.asarray(0.5 + 0.5 * np.tanh(x * np.float32(sharpness)), np.float32)


def _waves(rng: np.random.Generator, count: int, lowest: float, highest: float) -> Callable[[Array], Array]:
    """[n, 3] places -> [n] smooth noise of about unit variance: plane waves, none above the frequency ``highest`` (rad per unit)."""
    directions = rng.standard_normal((count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = (directions * np.geomspace(lowest, highest, count)[:, None]).astype(np.float32)
    phases = rng.uniform(0, 2 * math.pi, count).astype(np.float32)
    gains = (np.geomspace(1.0, 0.5, count) * math.sqrt(2 / count)).astype(np.float32)

    def noise(place: Array) -> Array:
        total = np.zeros(len(place), np.float32)
        for wave, phase, gain in zip(waves, phases, gains, strict=True):
            total += gain * np.sin(place[:, 0] * wave[0] + place[:, 1] * wave[1] + place[:, 2] * wave[2] + phase)
        return total

    return noise


def _table(rng: np.random.Generator) -> Texture:
    """A wooden board with a checked field, a line around it and a plain rim."""
    wood = _wood(rng, (0.64, 0.47, 0.32), (0.76, 0.59, 0.42))
    pale, dark = (0.90, 0.85, 0.75), (0.45, 0.55, 0.52)
    cloud = _waves(rng, 8, 3.0, 14.0)

    def texture(place: Array) -> Array:
        x, y = place[:, 0], place[:, 1]
        pitch = np.float32(math.pi / 0.46)
        checks = _mix(dark, pale, _step(np.sin(x * pitch) * np.sin(y * pitch), 8.0)) + 0.025 * cloud(place)[:, None]
        across = np.hypot(x, y)
        inlay = _step(across - 1.72, 30.0)[:, None]
        line = np.exp(-(((across - 1.82) / 0.045) ** 2))[:, None]
        grain = wood(place)
        board = checks * (1 - inlay) + grain * inlay
        return np.clip(board * (1 - 0.65 * line), 0, 1)

    return texture


def _wood(rng: np.random.Generator, dark: Colour, light: Colour) -> Texture:
    bend = _waves(rng, 8, 1.0, 5.0)
    return lambda place: _mix(dark, light, 0.5 + 0.5 * np.sin(26 * place[:, 1] + 2.2 * bend(place)))


def _marble(rng: np.random.Generator, ground: Colour, vein: Colour) -> Texture:
    bend = _waves(rng, 10, 2.5, 9.0)
    return lambda place: _mix(vein, ground, _veins(5.5 * place[:, 0] + 3.0 * place[:, 2] + 1.5 * bend(place)))


def _veins(phase: Array) -> Array:
    """0 in the veins, 1 between them."""
    return np.asarray(1 - 0.9 * np.exp(-5 * np.sin(phase) ** 2), np.float32)


def _mottled(rng: np.random.Generator, one: Colour, other: Colour) -> Texture:
    noise = _waves(rng, 10, 8.0, 22.0)
    return lambda place: _mix(one, other, _step(noise(place), 1.2))


def _stripes(one: Colour, other: Colour, pitch: float) -> Texture:
    return lambda place: _mix(one, other, _step(np.sin(np.float32(pitch) * place[:, 2] + np.float32(0.6)), 4.0))


def _spiral(one: Colour, other: Colour) -> Texture:
    return lambda place: _mix(
        one, other, _step(np.sin(2 * np.arctan2(place[:, 1], place[:, 0]) + 11 * place[:, 2]), 3.0)
    )


def _checked_ball(one: Colour, other: Colour) -> Texture:
    def texture(place: Array) -> Array:
        longitude = np.arctan2(place[:, 1], place[:, 0])
        latitude = np.arctan2(place[:, 2], np.hypot(place[:, 0], place[:, 1]))
        # Towards the poles the fields grow too thin to see: there the pattern fades into one colour.
        return _mix(one, other, _step(np.sin(4 * longitude) * np.sin(4 * latitude) * np.cos(latitude), 4.0))

    return texture


def _die(half: float, ground: Colour, pip: Colour) -> Texture:
    """Pips 1, 2, 3 on the faces along x, y, z and the rest of seven on their backs."""
    corner, middle = ((-1, -1), (1, 1)), ((0, 0),)
    other, side = ((-1, 1), (1, -1)), ((-1, 0), (1, 0))
    faces = {
        1: middle,
        2: corner,
        3: corner + middle,
        4: corner + other,
        5: corner + other + middle,
        6: corner + other + side,
    }

    def texture(place: Array) -> Array:
        scaled = place / np.float32(half)
        axis = np.abs(scaled).argmax(axis=1)
        positive = scaled[np.arange(len(place)), axis] > 0
        share = np.zeros(len(place), np.float32)
        for index in range(3):
            a, b = scaled[:, (index + 1) % 3], scaled[:, (index + 2) % 3]
            for value, facing in ((index + 1, positive), (6 - index, ~positive)):
                rows = (axis == index) & facing
                for u, v in faces[value]:
                    away = np.hypot(a[rows] - np.float32(0.5 * u), b[rows] - np.float32(0.5 * v))
                    share[rows] = np.maximum(share[rows], _step(0.2 - away, 12.0))
        return _mix(ground, pip, share)

    return texture


# ---- cameras and photos


@dataclass(frozen=True)
class _Intrinsics:
    width: int
    height: int

    def matrix(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy in px."""
        focal = _FOCAL_PER_WIDTH * self.width
        return focal, focal, _PRINCIPAL_POINT[0] * self.width, _PRINCIPAL_POINT[1] * self.height

    def rays(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, 3] unit directions in the camera's frame through the pixel positions x, y."""
        fx, fy, cx, cy = self.matrix()
        rays = np.stack(((x - cx) / fx, (y - cy) / fy, np.ones_like(x)), axis=1)
        return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def _ring_poses(rng: np.random.Generator, views: int) -> list[NDArray[np.float64]]:
    """[4, 4] world-to-camera poses on two rings, looking inwards, jittered as if the camera was held by hand."""
    poses = []
    lower = (views + 1) // 2
    for index in range(views):
        ring, place, count = (0, index, lower) if index < lower else (1, index - lower, views - lower)
        angle = 2 * math.pi * (place + 0.5 * ring) / count + rng.normal(0, 0.03)
        radius = _RING_RADII[ring] + rng.normal(0, 0.06)
        centre = np.array(
            (radius * math.cos(angle), radius * math.sin(angle), _RING_HEIGHTS[ring] + rng.normal(0, 0.06))
        )
        forward = np.array(_LOOK_AT) + rng.normal(0, 0.04, 3) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack((right, np.cross(forward, right), forward))
        pose[:3, 3] = -pose[:3, :3] @ centre
        poses.append(pose)
    return poses


def _look(
    solids: tuple[Solid, ...], pose: NDArray[np.float64], rays: NDArray[np.float64]
) -> tuple[Array, NDArray[np.float64], NDArray[np.intp]]:
    """Along camera-frame ``rays``: [n, 3] colours, [n, 3] places in the world, [n] index of the solid (-1: backdrop)."""
    centre = -pose[:3, :3].T @ pose[:3, 3]
    origin = centre[None].astype(np.float32)
    parts = []
    # In portions that stay in the processor's cache: twice as fast as all rays at once.
    for start in range(0, max(1, len(rays)), _RAYS_AT_ONCE):
        direction = (rays[start : start + _RAYS_AT_ONCE] @ pose[:3, :3]).astype(np.float32)
        distance, which = cast(solids, origin, direction)
        reach = np.where(which < 0, backdrop_distance(origin, direction), distance)
        parts.append((colours(solids, origin, direction, distance, which), centre + direction * reach[:, None], which))
    seen, place, hit = (np.concatenate(part) for part in zip(*parts, strict=True))
    return seen, place, hit


def _photo(solids: tuple[Solid, ...], intrinsics: _Intrinsics, pose: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[H, W, 3] uint8: one ray for every pixel, and the mean of several where one does not do."""
    width, height, side = intrinsics.width, intrinsics.height, _SUPERSAMPLING
    y, x = np.divmod(np.arange(width * height), width)
    seen = _look(solids, pose, intrinsics.rays(x + 0.5, y + 0.5))[0]
    rough = np.flatnonzero(contrasts(seen.reshape(height, width, 3)))
    down, across = ((np.mgrid[:side, :side] + 0.5) / side).reshape(2, 1, -1)
    rays = intrinsics.rays((x[rough, None] + across).ravel(), (y[rough, None] + down).ravel())
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
    """[V, P] which view observes which point."""
    xy: NDArray[np.float64]
    """[V, P, 2] where, px; meaningless where not seen."""


def _surface_points(
    solids: tuple[Solid, ...],
    intrinsics: _Intrinsics,
    poses: list[NDArray[np.float64]],
    photos: list[NDArray[np.uint8]],
    count: int,
    rng: np.random.Generator,
) -> _Cloud:
    """What a reconstruction would find: places that pixels look at, a little off, seen by some of the views that could see them."""
    found = []
    # More than asked for: some of them will be seen by too few views.
    drawn = math.ceil(1.3 * count)
    each = math.ceil(3 * drawn / len(poses))
    for pose, photo in zip(poses, photos, strict=True):
        # Every other one where the photo has contrast, as feature detectors do; the rest anywhere.
        pixels = rng.integers(0, photo.shape[0] * photo.shape[1], each)
        edges = np.flatnonzero(contrasts(photo / np.float32(255)))
        if len(edges):
            pixels[::2] = rng.choice(edges, len(pixels[::2]))
        y, x = np.divmod(pixels, intrinsics.width)
        found.append(_look(solids, pose, intrinsics.rays(x + rng.random(each), y + rng.random(each))))
    colour, place, which = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = rng.permutation(len(place))
    backdrop = order[which[order] < 0][: round(_BACKDROP_SHARE * drawn)]
    chosen = rng.permutation(np.concatenate((order[which[order] >= 0][: drawn - len(backdrop)], backdrop)))
    colour, place, which = colour[chosen], place[chosen], which[chosen]

    xy = np.empty((len(poses), len(place), 2))
    seen = rng.random(xy.shape[:2]) < max(_SEEN_SHARE, _FEW_VIEWS / len(poses))
    fx, fy, cx, cy = intrinsics.matrix()
    for index, pose in enumerate(poses):
        local = place @ pose[:3, :3].T + pose[:3, 3]
        depth = np.maximum(local[:, 2], 1e-6)
        xy[index] = np.stack((fx * local[:, 0] / depth + cx, fy * local[:, 1] / depth + cy), axis=1)
        inside = (
            (local[:, 2] > 0)
            & (xy[index] > 0).all(axis=1)
            & (xy[index] < (intrinsics.width, intrinsics.height)).all(axis=1)
        )
        reach = np.linalg.norm(local, axis=1)
        centre = (-pose[:3, :3].T @ pose[:3, 3])[None]
        blocked = (
            cast(solids, centre.astype(np.float32), ((place - centre) / reach[:, None]).astype(np.float32))[0]
            < reach - 0.02
        )
        seen[index] &= inside & ~blocked
    kept = np.flatnonzero(seen.sum(axis=0) >= _FEWEST_OBSERVATIONS)[:count]
    noise = np.where(which < 0, 0.05, 0.004)[:, None] * rng.standard_normal(place.shape)
    rgb = np.clip(np.round(colour * 255 + rng.normal(0, 2.5, colour.shape)), 0, 255).astype(np.uint8)
    return _Cloud(xyz=(place + noise)[kept], rgb=rgb[kept], seen=seen[:, kept], xy=xy[:, kept])


# ---- files


def _write_model(
    folder: Path, intrinsics: _Intrinsics, poses: list[NDArray[np.float64]], names: list[str], cloud: _Cloud
) -> None:
    """cameras.bin, images.bin, points3D.bin; layout: https://colmap.github.io/format.html. Ids start at 1, as COLMAP's do."""
    pinhole = 1
    camera = struct.pack("<IiQQ4d", 1, pinhole, intrinsics.width, intrinsics.height, *intrinsics.matrix())
    (folder / "cameras.bin").write_bytes(struct.pack("<Q", 1) + camera)

    observation = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
    position = np.cumsum(cloud.seen, axis=1) - 1
    images = [struct.pack("<Q", len(poses))]
    for index, (pose, name) in enumerate(zip(poses, names, strict=True)):
        rows = np.flatnonzero(cloud.seen[index])
        observed = np.empty(len(rows), observation)
        observed["xy"], observed["point"] = cloud.xy[index, rows], rows + 1
        head = struct.pack("<I7dI", index + 1, *_quaternion(pose[:3, :3]), *pose[:3, 3], 1)
        images.append(head + name.encode() + b"\0" + struct.pack("<Q", len(rows)) + observed.tobytes())
    (folder / "images.bin").write_bytes(b"".join(images))

    points = [struct.pack("<Q", len(cloud.xyz))]
    for index, (xyz, rgb) in enumerate(zip(cloud.xyz.tolist(), cloud.rgb.tolist(), strict=True)):
        views = np.flatnonzero(cloud.seen[:, index])
        track = np.stack((views + 1, position[views, index]), axis=1).astype("<i4")
        points.append(struct.pack("<Q3d3BdQ", index + 1, *xyz, *rgb, 0.5, len(views)) + track.tobytes())
    (folder / "points3D.bin").write_bytes(b"".join(points))


def _quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """wxyz of a rotation matrix: the eigenvector of Bar-Itzhack's symmetric matrix (2000) for its largest eigenvalue, w >= 0."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    k = np.array(
        (
            (a + e + i, h - f, c - g, d - b),
            (h - f, a - e - i, b + d, c + g),
            (c - g, b + d, e - a - i, f + h),
            (d - b, c + g, f + h, i - a - e),
        )
    )
    wxyz = np.linalg.eigh(k)[1][:, -1]
    return np.asarray(wxyz if wxyz[0] >= 0 else -wxyz)
