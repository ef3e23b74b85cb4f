"""The live view of a training: pictures are drawn in the training thread, between two steps.

So no picture sees a model in the middle of a step, and no second thread runs kernels. ``window.py`` shows the pictures
in the browser, ``wishes.py`` decides which one is next, ``pictures.py`` draws it. Drawing changes neither the model nor
any random generator, so a training gives the same bits with and without a view.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gs_train.model.gaussians import GaussianModel
from gs_train.viewer.pictures import Look, Painter
from gs_train.viewer.wishes import Budget, Due, Slot

_TELL_EVERY_S = 1.0
_POLL_S = 0.1
_MOST_POINTS = 400


@dataclass(eq=False)
class Curves:
    """Loss and PSNR over the iterations, at most some hundred points."""

    iterations: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    _last: tuple[float, float] | None = None
    _stride: int = 1
    _seen: int = 0

    def add(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Add a point, unless the figures are unknown or equal to the last point."""
        if "loss" not in figures or "psnr" not in figures:
            return
        point = figures["loss"], figures["psnr"]
        if point == self._last:
            return
        self._last = point
        self._seen += 1
        if self._seen % self._stride:
            return
        self.iterations.append(iteration)
        self.loss.append(point[0])
        self.psnr.append(point[1])
        if len(self.iterations) >= _MOST_POINTS:
            self._stride *= 2
            del self.iterations[::2], self.loss[::2], self.psnr[::2]


class Window(Protocol):
    """The browser's side of a live view. All methods are called from the training thread."""

    slot: Slot
    """Wishes of the clients."""

    def look(self) -> Look:
        """The content of pictures."""
        ...

    def share(self) -> float:
        """Share of the time that pictures may take while the training runs, 0 to 1."""
        ...

    def is_paused(self) -> bool:
        """Whether the user wants the training to wait."""
        ...

    def show(self, due: Due, picture: NDArray[np.uint8]) -> None:
        """Send a picture to its client."""
        ...

    def tell(self, iteration: int, gaussians: int, curves: Curves) -> None:
        """Show the state of the training."""
        ...

    def answer(self) -> None:
        """Do other work that clients have asked for."""
        ...

    def end(self, iteration: int, gaussians: int) -> None:
        """Show that the training has ended; ``tell`` is not called any more."""
        ...


class LiveView:
    """Draws the wishes of a window's clients between the steps of a training."""

    def __init__(self, window: Window, painter: Painter, *, notify: Callable[[str], None]) -> None:
        """``notify`` takes notes for the user."""
        self._window, self._painter, self._notify = window, painter, notify
        self._budget, self._curves, self._told_s = Budget(), Curves(), -math.inf

    def after_step(
        self,
        model: GaussianModel,
        iteration: int,
        background: Callable[[], Tensor],
        figures: Mapping[str, float],
        should_stop: Callable[[], bool],
    ) -> None:
        """Draw a picture if a client wants one and the budget allows it; wait while the user pauses the training.

        Args:
            model: as the step has left it; not changed.
            iteration: number of steps taken.
            background: gives the [3] RGB colour behind the Gaussians.
            figures: running means ``loss`` and ``psnr`` (dB), if there are any yet.
            should_stop: ends a pause.
        """
        self._curves.add(iteration, figures)
        window = self._window
        if window.slot.is_watched() and self._budget.allows(time.monotonic()):
            self._draw(model, iteration, background)
        if window.is_paused():
            self._notify("The page pauses the training. Ctrl-C saves a checkpoint and stops.")
            while window.is_paused() and not should_stop():
                if not self._draw(model, iteration, background):
                    window.slot.wait(_POLL_S)

    def serve(self, model: GaussianModel, iteration: int, background: Callable[[], Tensor]) -> None:
        """Draw pictures of a model that does not change any more, until KeyboardInterrupt."""
        self._told_s = math.inf
        self._window.tell(iteration, len(model), self._curves)
        self._window.end(iteration, len(model))
        while True:
            if not self._draw(model, iteration, background):
                self._window.slot.wait(_POLL_S)

    def _draw(self, model: GaussianModel, iteration: int, background: Callable[[], Tensor]) -> bool:
        """Draw the next picture that is due; returns whether there was one."""
        window, began_s = self._window, time.monotonic()
        if began_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = began_s
            window.tell(iteration, len(model), self._curves)
        window.answer()
        look = window.look()
        due = window.slot.next_due(iteration, look, began_s)
        if due is None:
            return False
        scale = due.scale * look.resolution
        # A training with NaN ends with a message on its next logging step.
        with suppress(FloatingPointError):
            picture = self._painter.paint(model, due.wish, look, background, scale)
            if picture is not None:
                window.show(due, picture)
        ended_s = time.monotonic()
        window.slot.finish(due, iteration, look, ended_s)
        self._budget.spend(began_s, ended_s, window.share())
        return True
