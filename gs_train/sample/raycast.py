"""Ray caster for the sample scene's textured solids, in NumPy.

It renders nothing else. In the world z points up and the table's top is the plane z = 0. Directions are unit vectors,
colours are sRGB in 0..1. Every colour is a smooth function of surface position and viewing direction, without details
finer than a few pixels of a 320 px wide photo, so that a small splat model can learn it. The same solids give the same
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
"""float32 in practice, for speed. NumPy's annotations cannot express that through mixed arithmetic."""
Texture = Callable[[Array], Array]
"""[n, 3] positions in a solid's own frame -> [n, 3] colours."""

_SUN = np.array((-0.52, 0.38, 0.76), np.float32) / np.float32(math.sqrt(0.52**2 + 0.38**2 + 0.76**2))
_FAR = np.float32(np.inf)
_CONTRAST = 0.06
_TINY = np.float32(1e-7)
_NEAR = np.float32(1e-3)
_BACKDROP_RADIUS = 9.0
_BACKDROP_LOW = np.array((0.80, 0.79, 0.78), np.float32)
_BACKDROP_HIGH = np.array((0.60, 0.70, 0.80), np.float32)
_CLOUDS = np.array(
    ((1.1, 0.5, 1.9, 0.3), (-0.8, 1.3, -1.5, 1.9), (0.6, -1.7, 1.2, 4.0), (1.8, 1.1, -0.9, 5.2)), np.float32
)
_CLOUD_GAIN = 0.014
_SUNLIGHT = np.array((1.05, 0.99, 0.88), np.float32)
_SKYLIGHT = np.array((0.50, 0.55, 0.60), np.float32)
_GAMMA = np.float32(2.2)
_FLAT_MAP_SIDE, _ROUND_MAP_SIDE = 80, 32


class Shape(Protocol):
    """The geometry of a convex solid in its own frame, around its own origin."""

    def radius(self) -> float:
        """Radius of the bounding sphere."""
        ...

    def distance(self, origin: Array, direction: Array) -> Array:
        """[n] distance along each ray to its first hit, infinite for a miss. Origins [n, 3] lie outside the solid."""
        ...

    def normal(self, position: Array) -> Array:
        """[n, 3] outward unit normals at positions on the surface."""
        ...


@dataclass(frozen=True)
class Sphere:
    """A sphere of radius ``r``."""

    r: float

    def radius(self) -> float:
        """Radius of the bounding sphere."""
        return self.r

    def distance(self, origin: Array, direction: Array) -> Array:
        """Distance to the first hit of each ray."""
        half_b = np.einsum("ij,ij->i", origin, direction)
        discriminant = half_b * half_b - np.einsum("ij,ij->i", origin, origin) + np.float32(self.r**2)
        t = -half_b - np.sqrt(np.maximum(discriminant, 0))
        return np.where((discriminant > 0) & (t > _NEAR), t, _FAR)

    def normal(self, position: Array) -> Array:
        """Outward unit normals."""
        return position / np.float32(self.r)


@dataclass(frozen=True)
class Box:
    """A cuboid with half side lengths ``half``."""

    half: tuple[float, float, float]

    def radius(self) -> float:
        """Radius of the bounding sphere."""
        return math.hypot(*self.half)

    def distance(self, origin: Array, direction: Array) -> Array:
        """Distance to the first hit of each ray, by the slab test."""
        half = np.array(self.half, np.float32)
        inverse = 1 / np.where(np.abs(direction) < _TINY, _TINY, direction)
        centre = -origin * inverse
        reach = half * np.abs(inverse)
        near, far = centre - reach, centre + reach
        enter = np.maximum(np.maximum(near[:, 0], near[:, 1]), near[:, 2])
        leave = np.minimum(np.minimum(far[:, 0], far[:, 1]), far[:, 2])
        return np.where((enter < leave) & (enter > _NEAR), enter, _FAR)

    def normal(self, position: Array) -> Array:
        """Outward unit normals."""
        scaled = position / np.array(self.half, np.float32)
        face = np.abs(scaled).argmax(axis=1)
        normals = np.zeros_like(position)
        rows = np.arange(len(position))
        normals[rows, face] = np.sign(scaled[rows, face])
        return normals


@dataclass(frozen=True)
class Frustum:
    """An upright truncated cone, -h <= z <= h, with radii ``low`` and ``high``: a cylinder if they are equal."""

    low: float
    high: float
    h: float

    def radius(self) -> float:
        """Radius of the bounding sphere."""
        return math.hypot(max(self.low, self.high), self.h)

    def distance(self, origin: Array, direction: Array) -> Array:
        """Distance to the first hit of each ray: the nearest hit of the side and the two lids."""
        slope = np.float32((self.high - self.low) / (2 * self.h))
        middle = np.float32((self.high + self.low) / 2)
        (ox, oy, oz), (dx, dy, dz) = origin.T, direction.T
        reach = middle + slope * oz
        a = dx * dx + dy * dy - slope * slope * dz * dz
        a = np.where(np.abs(a) < _TINY, _TINY, a)
        half_b = ox * dx + oy * dy - slope * dz * reach
        root = np.sqrt(np.maximum(half_b * half_b - a * (ox * ox + oy * oy - reach * reach), 0))
        missed = half_b * half_b < a * (ox * ox + oy * oy - reach * reach)
        best = np.full(len(origin), _FAR)
        for sign in (np.float32(-1), np.float32(1)):
            t = (-half_b + sign * root) / a
            z = oz + t * dz
            good = ~missed & (t > _NEAR) & (np.abs(z) <= self.h) & (middle + slope * z >= 0)
            best = np.where(good, np.minimum(best, t), best)
        dz = np.where(np.abs(dz) < _TINY, _TINY, dz)
        for lid, r in ((-self.h, self.low), (self.h, self.high)):
            t = (np.float32(lid) - oz) / dz
            good = (t > _NEAR) & ((ox + t * dx) ** 2 + (oy + t * dy) ** 2 <= r * r)
            best = np.where(good, np.minimum(best, t), best)
        return best

    def normal(self, position: Array) -> Array:
        """Outward unit normals."""
        slope = (self.high - self.low) / (2 * self.h)
        across = np.maximum(np.hypot(position[:, 0], position[:, 1]), _TINY)
        side = np.stack(
            (position[:, 0] / across, position[:, 1] / across, np.full_like(across, -slope)), axis=1
        ) / math.hypot(1, slope)
        on_lid = np.abs(position[:, 2]) > self.h - 1e-4
        lid = np.stack((np.zeros_like(across), np.zeros_like(across), np.sign(position[:, 2])), axis=1)
        return np.where(on_lid[:, None], lid, side).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Solid:
    """One object of the still life."""

    shape: Shape
    centre: tuple[float, float, float]
    texture: Texture
    yaw: float = 0.0
    """Rotation about the vertical axis, rad."""
    gloss: float = 0.0
    """Strength of the highlight, which depends on the viewing direction."""
    light: Array = field(default_factory=lambda: np.ones((2, 2, 2), np.float32))
    """[S, S, 2] baked sunlight and skylight in 0..1, computed by ``bake``."""

    def turn(self) -> Array:
        """[3, 3] rotation from world axes to the solid's own axes."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.array(((c, s, 0), (-s, c, 0), (0, 0, 1)), np.float32)

    def flat(self) -> bool:
        """Whether the solid is a disc. Its light map is a map of its top instead of directions from its centre."""
        return isinstance(self.shape, Frustum) and self.shape.h < 0.25 * self.shape.high


# ---- rays


def cast(solids: Sequence[Solid], origin: Array, direction: Array) -> tuple[Array, NDArray[np.intp]]:
    """First hit of each ray with the solids.

    Args:
        solids: all solids of the scene.
        origin: [n, 3], or [1, 3] shared by all rays.
        direction: [n, 3] unit vectors.

    Returns:
        [n] distances, infinite for a ray without a hit, and [n] indices of the solids hit, -1 without a hit.
    """
    nearest = np.full(len(direction), _FAR)
    hit = np.full(len(direction), -1, np.intp)
    towards = np.einsum("ij,ij->i", np.broadcast_to(origin, direction.shape), direction)
    for index, solid in enumerate(solids):
        centre = np.array(solid.centre, np.float32)
        offset = origin - centre
        # Most rays miss most solids, and the test with the bounding sphere is cheap.
        half_b = towards - direction @ centre
        gap = np.einsum("ij,ij->i", offset, offset) - np.float32(solid.shape.radius() ** 2)
        near = np.flatnonzero((half_b * half_b > gap) & ((half_b < 0) | (gap < 0)))
        if len(near) == 0:
            continue
        turn = solid.turn().T
        own_origin = np.broadcast_to(offset @ turn, direction.shape)[near]
        t = solid.shape.distance(own_origin, direction[near] @ turn)
        closer = t < nearest[near]
        nearest[near[closer]] = t[closer]
        hit[near[closer]] = index
    return nearest, hit


def backdrop_distance(origin: Array, direction: Array) -> Array:
    """[n] distance from inside the backdrop, a sphere around the scene, to its surface."""
    half_b = direction @ origin[0]
    return np.asarray(
        -half_b + np.sqrt(half_b * half_b - origin[0] @ origin[0] + np.float32(_BACKDROP_RADIUS**2)), np.float32
    )


def colours(solids: Sequence[Solid], origin: Array, direction: Array, distance: Array, hit: NDArray[np.intp]) -> Array:
    """[n, 3] colours along rays from one ``origin`` [1, 3], from the distances and indices that ``cast`` returned."""
    seen = np.empty_like(direction)
    missed = np.flatnonzero(hit < 0)
    seen[missed] = _backdrop(origin + direction[missed] * backdrop_distance(origin, direction[missed])[:, None])
    for index, solid in enumerate(solids):
        rows = np.flatnonzero(hit == index)
        if len(rows) == 0:
            continue
        turn = solid.turn().T
        position = (origin + direction[rows] * distance[rows, None] - np.array(solid.centre, np.float32)) @ turn
        normal = solid.shape.normal(position) @ turn.T
        seen[rows] = _shade(solid, position, normal, direction[rows])
    return seen


def _backdrop(wall: Array) -> Array:
    """[n, 3] colours at positions on the backdrop: from light below to blue above, with faint clouds.

    On a backdrop without clouds, splats of any size would fit. They would grow around the cameras and show as fog in
    views outside the training set.
    """
    height = np.clip(wall[:, 2] / np.float32(_BACKDROP_RADIUS) + np.float32(0.55), 0, 1)
    height = height * height * (3 - 2 * height)
    clouds = np.zeros(len(wall), np.float32)
    for x, y, z, phase in _CLOUDS:
        clouds += np.sin(x * wall[:, 0] + y * wall[:, 1] + z * wall[:, 2] + phase)
    colour = (
        _BACKDROP_LOW + (_BACKDROP_HIGH - _BACKDROP_LOW) * height[:, None] + np.float32(_CLOUD_GAIN) * clouds[:, None]
    )
    return np.asarray(colour, np.float32)


def _shade(solid: Solid, position: Array, normal: Array, direction: Array) -> Array:
    """[n, 3] colours: diffuse sun and sky, both scaled by the baked light, plus a Blinn-Phong highlight of the sun."""
    sun, sky = _look_up(solid.light, _to_light_map(solid, position))
    facing = np.maximum(normal @ _SUN, 0)
    upright = np.float32(0.625) + np.float32(0.375) * normal[:, 2]
    light = (sun * facing)[:, None] * _SUNLIGHT + (sky * upright)[:, None] * _SKYLIGHT
    halfway = _SUN - direction
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    highlight = np.float32(solid.gloss) * np.maximum(np.einsum("ij,ij->i", normal, halfway), 0) ** 28 * sun
    linear = solid.texture(position) ** _GAMMA * light + highlight[:, None]
    return np.asarray(np.clip(linear, 1e-6, 1) ** (1 / _GAMMA), np.float32)


# ---- baked light


def bake(solids: Sequence[Solid], seed: int) -> tuple[Solid, ...]:
    """The solids with soft shadows and occlusion in a light map each, which is cheaper than tracing them per pixel."""
    rng = np.random.default_rng(seed)
    sun = _SUN + 0.07 * rng.standard_normal((16, 3)).astype(np.float32)
    sky = rng.standard_normal((24, 3)).astype(np.float32)
    return tuple(replace(solid, light=_light_map(solids, solid, _unit(sun), _unit(sky))) for solid in solids)


def _light_map(solids: Sequence[Solid], solid: Solid, sun: Array, sky: Array) -> Array:
    side = _FLAT_MAP_SIDE if solid.flat() else _ROUND_MAP_SIDE
    row, column = np.divmod(np.arange(side * side, dtype=np.float32), np.float32(side))
    position = _from_light_map(
        solid, (column + np.float32(0.5)) / np.float32(side), (row + np.float32(0.5)) / np.float32(side)
    )
    turn = solid.turn()
    normal = solid.shape.normal(position) @ turn
    origin = position @ turn + np.array(solid.centre, np.float32) + normal * np.float32(4e-3)
    sunlight, skylight = np.zeros(len(position), np.float32), np.zeros(len(position), np.float32)
    weight = np.full(len(position), 1e-6, np.float32)
    for ray in sun:
        direction = np.broadcast_to(ray, position.shape)
        sunlight += np.isinf(cast(solids, origin, direction)[0]) / np.float32(len(sun))
    for ray in sky:
        cosine = normal @ ray
        # Rays that point below the surface are mirrored to the other side, so that every ray counts.
        direction = ray - 2 * np.minimum(cosine, 0)[:, None] * normal
        skylight += np.abs(cosine) * np.isinf(cast(solids, origin, direction)[0])
        weight += np.abs(cosine)
    return np.stack((sunlight, skylight / weight), axis=1).reshape(side, side, 2)


def _to_light_map(solid: Solid, position: Array) -> tuple[Array, Array]:
    """(u, v) in 0..1 on the light map: position on a disc's top, or longitude and latitude on other solids."""
    if solid.flat():
        reach = np.float32(2 * solid.shape.radius())
        return position[:, 0] / reach + np.float32(0.5), position[:, 1] / reach + np.float32(0.5)
    longitude = np.arctan2(position[:, 1], position[:, 0])
    latitude = np.arctan2(position[:, 2], np.hypot(position[:, 0], position[:, 1]))
    return longitude / np.float32(2 * math.pi) + np.float32(0.5), latitude / np.float32(math.pi) + np.float32(0.5)


def _from_light_map(solid: Solid, u: Array, v: Array) -> Array:
    """[n, 3] positions on the solid, in its own frame: the inverse of ``_to_light_map``."""
    if solid.flat() and isinstance(solid.shape, Frustum):
        reach = 2 * solid.shape.radius()
        return np.asarray(
            np.stack(((u - 0.5) * reach, (v - 0.5) * reach, np.full_like(u, solid.shape.h)), axis=1), np.float32
        )
    longitude, latitude = (u - np.float32(0.5)) * np.float32(2 * math.pi), (v - np.float32(0.5)) * np.float32(math.pi)
    outward = np.stack(
        (np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)), axis=1
    )
    # The solids are convex, so a ray from outside towards the centre hits the one position in this direction.
    away = np.float32(2 * solid.shape.radius())
    position = outward * (away - solid.shape.distance(outward * away, -outward))[:, None]
    # The dark undersides are invisible, but interpolation would spread them. Their entries use the foot of the sides.
    under = solid.shape.normal(position)[:, 2] < -0.95
    level = np.stack((np.cos(longitude), np.sin(longitude), np.zeros_like(longitude)), axis=1)[under]
    start = level * away + np.array((0, 0, 0.9), np.float32) * position[under]
    position[under] = start - level * solid.shape.distance(start, -level)[:, None]
    return np.asarray(position)


def _look_up(light: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
    """[n] sun and [n] sky from a light map, by bilinear interpolation; u wraps around."""
    side = len(light)
    u = at[0] * np.float32(side) - np.float32(0.5)
    v = np.clip(at[1] * np.float32(side) - np.float32(0.5), 0, np.float32(side - 1.001))
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    across, down = (u - np.floor(u))[:, None], (v - np.floor(v))[:, None]
    left, right = column % side, (column + 1) % side
    upper = light[row, left] * (1 - across) + light[row, right] * across
    lower = light[row + 1, left] * (1 - across) + light[row + 1, right] * across
    both = upper * (1 - down) + lower * down
    return both[:, 0], both[:, 1]


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def contrasts(seen: Array) -> NDArray[np.bool_]:
    """[H, W] whether a pixel differs clearly from a neighbour, for [H, W, 3] colours in 0..1."""
    found = np.zeros(seen.shape[:2], np.bool_)
    for here, there in (((slice(1, None),), (slice(-1),)), ((slice(None), slice(1, None)), (slice(None), slice(-1)))):
        differs = np.abs(seen[here] - seen[there]).max(axis=-1) > _CONTRAST
        found[here] |= differs
        found[there] |= differs
    return found
