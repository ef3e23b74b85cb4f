"""The objects of the sample scene and their textures."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gs_train.sample.raycast import Array, Box, Frustum, Solid, Sphere, Texture

Colour = tuple[float, float, float]
"""sRGB in 0..1."""


def still_life(rng: np.random.Generator) -> tuple[Solid, ...]:
    """The solids on their table, under even light; ``bake`` adds the shadows."""
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


def _mix(low: Colour, high: Colour, share: Array) -> Array:
    a, b = np.array(low, np.float32), np.array(high, np.float32)
    return np.asarray(a + (b - a) * share[:, None], np.float32)


def _step(x: Array, sharpness: float) -> Array:
    """A step from 0 to 1 where x changes sign, as soft as pixels and splats can show."""
    return np.asarray(0.5 + 0.5 * np.tanh(x * np.float32(sharpness)), np.float32)


def _waves(rng: np.random.Generator, count: int, lowest: float, highest: float) -> Callable[[Array], Array]:
    """Smooth noise of about unit variance: a sum of plane waves of ``lowest`` to ``highest`` rad per world unit."""
    directions = rng.standard_normal((count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = (directions * np.geomspace(lowest, highest, count)[:, None]).astype(np.float32)
    phases = rng.uniform(0, 2 * math.pi, count).astype(np.float32)
    gains = (np.geomspace(1.0, 0.5, count) * math.sqrt(2 / count)).astype(np.float32)

    def noise(position: Array) -> Array:
        total = np.zeros(len(position), np.float32)
        for wave, phase, gain in zip(waves, phases, gains, strict=True):
            total += gain * np.sin(
                position[:, 0] * wave[0] + position[:, 1] * wave[1] + position[:, 2] * wave[2] + phase
            )
        return total

    return noise


def _table(rng: np.random.Generator) -> Texture:
    """A wooden board with a checked field, a dark line around it and a plain rim."""
    wood = _wood(rng, (0.64, 0.47, 0.32), (0.76, 0.59, 0.42))
    pale, dark = (0.90, 0.85, 0.75), (0.45, 0.55, 0.52)
    cloud = _waves(rng, 8, 3.0, 14.0)

    def texture(position: Array) -> Array:
        x, y = position[:, 0], position[:, 1]
        pitch = np.float32(math.pi / 0.46)
        checks = _mix(dark, pale, _step(np.sin(x * pitch) * np.sin(y * pitch), 8.0)) + 0.025 * cloud(position)[:, None]
        across = np.hypot(x, y)
        inlay = _step(across - 1.72, 30.0)[:, None]
        line = np.exp(-(((across - 1.82) / 0.045) ** 2))[:, None]
        grain = wood(position)
        board = checks * (1 - inlay) + grain * inlay
        return np.clip(board * (1 - 0.65 * line), 0, 1)

    return texture


def _wood(rng: np.random.Generator, dark: Colour, light: Colour) -> Texture:
    bend = _waves(rng, 8, 1.0, 5.0)
    return lambda position: _mix(dark, light, 0.5 + 0.5 * np.sin(26 * position[:, 1] + 2.2 * bend(position)))


def _marble(rng: np.random.Generator, ground: Colour, vein: Colour) -> Texture:
    bend = _waves(rng, 10, 2.5, 9.0)
    return lambda position: _mix(
        vein, ground, _veins(5.5 * position[:, 0] + 3.0 * position[:, 2] + 1.5 * bend(position))
    )


def _veins(phase: Array) -> Array:
    """0 in the veins, 1 between them."""
    return np.asarray(1 - 0.9 * np.exp(-5 * np.sin(phase) ** 2), np.float32)


def _mottled(rng: np.random.Generator, one: Colour, other: Colour) -> Texture:
    noise = _waves(rng, 10, 8.0, 22.0)
    return lambda position: _mix(one, other, _step(noise(position), 1.2))


def _stripes(one: Colour, other: Colour, pitch: float) -> Texture:
    return lambda position: _mix(one, other, _step(np.sin(np.float32(pitch) * position[:, 2] + np.float32(0.6)), 4.0))


def _spiral(one: Colour, other: Colour) -> Texture:
    return lambda position: _mix(
        one, other, _step(np.sin(2 * np.arctan2(position[:, 1], position[:, 0]) + 11 * position[:, 2]), 3.0)
    )


def _checked_ball(one: Colour, other: Colour) -> Texture:
    def texture(position: Array) -> Array:
        longitude = np.arctan2(position[:, 1], position[:, 0])
        latitude = np.arctan2(position[:, 2], np.hypot(position[:, 0], position[:, 1]))
        # Near the poles the fields become too thin to see, so the pattern fades into one colour.
        return _mix(one, other, _step(np.sin(4 * longitude) * np.sin(4 * latitude) * np.cos(latitude), 4.0))

    return texture


def _die(half: float, ground: Colour, pip: Colour) -> Texture:
    """A die: 1, 2, 3 pips on the faces towards +x, +y, +z, and 7 minus that number on the opposite faces."""
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

    def texture(position: Array) -> Array:
        scaled = position / np.float32(half)
        axis = np.abs(scaled).argmax(axis=1)
        positive = scaled[np.arange(len(position)), axis] > 0
        share = np.zeros(len(position), np.float32)
        for index in range(3):
            a, b = scaled[:, (index + 1) % 3], scaled[:, (index + 2) % 3]
            for value, facing in ((index + 1, positive), (6 - index, ~positive)):
                rows = (axis == index) & facing
                for u, v in faces[value]:
                    away = np.hypot(a[rows] - np.float32(0.5 * u), b[rows] - np.float32(0.5 * v))
                    share[rows] = np.maximum(share[rows], _step(0.2 - away, 12.0))
        return _mix(ground, pip, share)

    return texture
