"""Which picture a live view draws next, and when: wishes of the clients, and a budget of time.

Request threads leave wishes in a ``Slot``; the thread that owns the model takes them out between two training steps.
This module draws nothing and knows no browser.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera

SMALLEST_PX, LARGEST_PX = 16, 2048
LARGEST_NUMBER = 1e9
"""In a pose or a lens; the rasterizers compute in float32."""
_NARROWEST_DEG, _WIDEST_DEG = 5.0, 150.0
_REST_S = 0.2
"""Without a movement for this long, a camera is at rest."""
_REFRESH_ITERATIONS, _REFRESH_S = 20, 1.0
"""A camera at rest gets a new picture if the training is this many iterations further, or this much time has passed."""
MOVING_SCALE, MOVING_QUALITY, QUALITY = 0.5, 70, 88
"""While a camera moves: factor on the size, and quality of the JPEG file; then the quality at rest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Wish:
    """A view that a client wants to see."""

    world_to_camera: NDArray[np.float64]
    """[4, 4] pose, OpenCV axes."""
    lens: Camera
    """The camera of a picture of the size of the client's canvas."""

    def camera(self, scale: float) -> Camera:
        """The camera of a picture of ``scale`` times the canvas; no side is smaller or larger than the limits."""
        lens = self.lens
        factor = min(scale, LARGEST_PX / max(lens.width, lens.height))
        width, height = (max(SMALLEST_PX, round(factor * side)) for side in (lens.width, lens.height))
        return lens.resized(width, height)


def lens_of(fov_deg: float, width: int, height: int) -> Camera:
    """The camera of a canvas, px, with a vertical field of view; impossible values are clamped."""
    width, height = max(1, width), max(1, height)
    fov = math.radians(min(max(fov_deg, _NARROWEST_DEG), _WIDEST_DEG))
    focal = height / (2 * math.tan(fov / 2))
    return Camera(width=width, height=height, fx=focal, fy=focal, cx=width / 2, cy=height / 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Due:
    """The picture to draw next."""

    client: int
    """Whose wish it is."""
    wish: Wish
    """The content of the picture."""
    at_rest: bool
    """Whether the camera is at rest: draw in full size and quality."""

    @property
    def scale(self) -> float:
        """Factor on the size of the canvas."""
        return 1.0 if self.at_rest else MOVING_SCALE

    @property
    def jpeg_quality(self) -> int:
        """Of the JPEG file."""
        return QUALITY if self.at_rest else MOVING_QUALITY


@dataclass(kw_only=True, eq=False)
class _Client:
    wish: Wish
    moved_s: float
    drawn: Due | None = None
    drawn_s: float = -math.inf
    iteration: int = -1
    look: object = None

    def move(self, wish: Wish) -> None:
        self.wish, self.moved_s = wish, time.monotonic()

    def finish(self, due: Due, iteration: int, look: object, now_s: float) -> None:
        self.drawn, self.drawn_s, self.iteration, self.look = due, now_s, iteration, look

    def due(self, client: int, iteration: int, look: object, now_s: float) -> Due | None:
        at_rest = now_s - self.moved_s > _REST_S
        due = Due(client=client, wish=self.wish, at_rest=at_rest)
        if self.drawn is None or self.drawn.wish is not self.wish or self.look != look:
            return due
        if not self.drawn.at_rest:
            return due if at_rest else None
        newer = iteration - self.iteration
        refresh = newer >= _REFRESH_ITERATIONS or (newer > 0 and now_s - self.drawn_s >= _REFRESH_S)
        return due if refresh else None


@dataclass(eq=False)
class Slot:
    """The newest wish of each client; thread-safe. A newer wish replaces an older one that is not drawn yet."""

    _clients: dict[int, _Client] = field(default_factory=dict, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)

    def ask(self, client: int, wish: Wish) -> None:
        """Replace the wish of a client, whose camera has moved. Never waits for a picture."""
        with self._changed:
            known = self._clients.get(client)
            if known is None:
                # The first picture has the full size: the camera stands still.
                self._clients[client] = _Client(wish=wish, moved_s=-math.inf)
            else:
                known.move(wish)
            self._changed.notify_all()

    def forget(self, client: int) -> None:
        """Remove a client that has gone."""
        with self._changed:
            self._clients.pop(client, None)

    def wake(self) -> None:
        """End a ``wait``: a setting has changed."""
        with self._changed:
            self._changed.notify_all()

    def is_watched(self) -> bool:
        """Whether there is any client."""
        return bool(self._clients)

    def next_due(self, iteration: int, look: object, now_s: float) -> Due | None:
        """The picture to draw now, of the client that has waited longest; None if all clients are up to date.

        Args:
            iteration: of the model.
            look: settings of the pictures; unequal settings make every picture out of date.
            now_s: ``time.monotonic()``.
        """
        with self._changed:
            found = [
                (each.drawn_s, due)
                for client, each in self._clients.items()
                if (due := each.due(client, iteration, look, now_s)) is not None
            ]
        return min(found, key=lambda pair: pair[0])[1] if found else None

    def finish(self, due: Due, iteration: int, look: object, now_s: float) -> None:
        """Record that a picture is drawn; arguments as in ``next_due``."""
        with self._changed:
            if (client := self._clients.get(due.client)) is not None:
                client.finish(due, iteration, look, now_s)

    def wait(self, timeout_s: float) -> None:
        """Wait for the next change."""
        with self._changed:
            self._changed.wait(timeout_s)


class Budget:
    """Limits pictures to a share of the time."""

    def __init__(self) -> None:
        """Start with time for a picture."""
        self._next_s = -math.inf

    def allows(self, now_s: float) -> bool:
        """Whether the next picture may begin."""
        return now_s >= self._next_s

    def spend(self, began_s: float, ended_s: float, share: float) -> None:
        """Record a picture: the next one waits until both together took at most ``share`` (0 to 1) of the time."""
        self._next_s = ended_s + (ended_s - began_s) * (1 / share - 1)
