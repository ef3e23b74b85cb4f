"""Line plots as inline SVG. Their colours are in ``page/style.css``, so that they follow the reader's dark mode."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 340, 205
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 330, 8, 182
"""Edges of the plotted area, px of the view box."""
_MOST_POINTS = 400
_TICKS = 5
_SMOOTHED = 0.04
"""Width of the running mean, as a share of the points."""
_EQUAL = 1e-9
"""Values that differ by a smaller share are drawn as equal: floats have no round values between them."""
COLOURS = 8
"""Number of line colours in the style sheet; further lines repeat them."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a plot."""

    name: str
    """Of the run or of the quantity."""
    x: NDArray[np.float64]
    """[P] iterations, ascending."""
    y: NDArray[np.float64]
    """[P] finite values."""
    colour: int = 0
    """Index of its colour."""


def plot(title: str, series: Sequence[Series], *, logarithmic: bool = False, smooth: bool = False) -> str:
    """A <figure> with a plot against iterations; empty without points.

    Args:
        title: quantity and unit.
        series: the lines.
        logarithmic: whether the axis of y is logarithmic; values of 0 and less are left out.
        smooth: whether a running mean is drawn over the faint values.
    """
    if logarithmic:
        series = [_picked(each, each.y > 0) for each in series]
    series = [each for each in series if each.x.size]
    if not series:
        return ""
    x_axis = _Axis.of(series, "x", _LEFT, _RIGHT, logarithmic=False)
    y_axis = _Axis.of(series, "y", _BOTTOM, _TOP, logarithmic=logarithmic)
    parts = []
    for value in y_axis.ticks:
        at = y_axis.place(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in x_axis.ticks:
        at = x_axis.place(value)
        parts.append(f'<text x="{at:.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{_short(value)}</text>')
    for each in series:
        parts += _lines(each, x_axis, y_axis, smooth=smooth and each.x.size > 1 / _SMOOTHED)
    said = "; ".join(
        f"{each.name} from {each.y[0]:.4g} to {each.y[-1]:.4g} at iteration {each.x[-1]:.0f}" for each in series
    )
    label = html.escape(f"{title} against iterations: {said}")
    return (
        f'<figure class="plot"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def _lines(series: Series, x_axis: _Axis, y_axis: _Axis, *, smooth: bool) -> list[str]:
    colour = f"line{series.colour % COLOURS}"
    if series.x.size == 1:
        at = f'cx="{x_axis.place(series.x[0]):.1f}" cy="{y_axis.place(series.y[0]):.1f}"'
        return [f'<circle class="{colour}" {at} r="2.5"/>']
    lines = [(f"{colour} faint", series), (colour, _running_mean(series))] if smooth else [(colour, series)]
    texts = []
    for classes, each in lines:
        thinned = _thinned(each)
        points = " ".join(
            f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in zip(thinned.x, thinned.y, strict=True)
        )
        texts.append(f'<polyline class="{classes}" points="{points}"/>')
    return texts


def _thinned(series: Series) -> Series:
    """At most ``_MOST_POINTS`` of the points: the least and the largest of each bucket, so that spikes stay."""
    count = series.x.size
    if count <= _MOST_POINTS:
        return series
    edges = np.linspace(0, count, _MOST_POINTS // 2 + 1).astype(int)
    kept = [
        start + extreme
        for start, end in pairwise(edges.tolist())
        for extreme in sorted((int(series.y[start:end].argmin()), int(series.y[start:end].argmax())))
    ]
    return _picked(series, np.array(kept))


def _running_mean(series: Series) -> Series:
    """The mean of the values within half a window on either side; the window is cut at the ends."""
    half = max(1, round(series.x.size * _SMOOTHED / 2))
    sums = np.concatenate([[0.0], np.cumsum(series.y)])
    index = np.arange(series.x.size)
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, series.x.size)
    means = (sums[last] - sums[first]) / (last - first)
    return Series(name=series.name, x=series.x, y=means, colour=series.colour)


def _picked(series: Series, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Series:
    return Series(name=series.name, x=series.x[rows], y=series.y[rows], colour=series.colour)


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Values on a straight line of the picture."""

    low: float
    high: float
    start: float
    """Place of ``low``, px."""
    end: float
    """Place of ``high``, px."""
    logarithmic: bool
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, series: Sequence[Series], name: str, start: float, end: float, *, logarithmic: bool) -> _Axis:
        """The axis that holds all values ``x`` or ``y`` of some lines."""
        values = np.concatenate([getattr(each, name) for each in series])
        low, high = float(values.min()), float(values.max())
        if high - low <= _EQUAL * max(abs(low), abs(high)):
            low, high = (low / 2, high * 2) if logarithmic else (low - (abs(low) or 1.0), high + (abs(high) or 1.0))
        ticks = _decades(low, high) if logarithmic else ()
        return cls(
            low=low,
            high=high,
            start=start,
            end=end,
            logarithmic=logarithmic,
            ticks=ticks if len(ticks) > 1 else _round_values(low, high),
        )

    def place(self, value: float) -> float:
        """The place of a value, px."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _round_values(low: float, high: float) -> tuple[float, ...]:
    """About ``_TICKS`` multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return tuple(number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1))


def _decades(low: float, high: float) -> tuple[float, ...]:
    """The powers of ten, over a small range also 2 and 5 times them."""
    few = math.log10(high / low) < 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if few else (1,))]
    return tuple(value for value in values if low <= value <= high)


def _short(value: float) -> str:
    """A tick's label: 30k rather than 30000, 2e-5 rather than 0.00002."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    text = f"{value:.4g}"
    return f"{value:.0e}".replace("e-0", "e-") if "e-" in text or 0 < abs(value) < 1e-3 else text
