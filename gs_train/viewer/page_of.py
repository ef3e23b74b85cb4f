"""The page of a splat: the cameras of its run, and the point and the axis that the view turns about."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.formats.clean import CleanConfig, clean
from gs_train.formats.html import Page, PageCamera, default_page, page_html, sog_for_page
from gs_train.run.folder import RunFolder
from gs_train.run.open import OpenedSplat

_MOST_CAMERAS = 40
"""On a page; more buttons than that are no help."""
_LEAST_AGREEMENT = 0.5


def page_of_splat(opened: OpenedSplat, notify: Callable[[str], None]) -> str:
    """The HTML of a page for a splat, without Gaussians that are far away from all others.

    Args:
        opened: the splat.
        notify: takes a sentence about Gaussians that are left out.

    Raises:
        UserError: no Gaussian is finite, or the page is too large for a browser.
    """
    whole = opened.splat()
    finite = whole.keep(whole.is_finite())
    if len(finite) == 0:
        raise UserError(f"{opened.path} has no Gaussians without NaN or infinite values: name another splat.")
    data, _ = clean(finite, CleanConfig(drop_outliers=True))
    if len(data) < len(whole):
        notify(f"The page leaves out {len(whole) - len(data):,} of {len(whole):,} Gaussians that are far away.")
    page = page_of(opened, np.eye(3), 1.0, (0.0, 0.0, 0.0)) or default_page(data, opened.path.name)
    return page_html(page, sog_for_page(data, opened.path))


def page_of(opened: OpenedSplat, rotation: NDArray[np.float64], scale: float, shift: tuple[float, ...]) -> Page | None:
    """What a page shows beside the splat of a run; None for a splat whose cameras are unknown.

    Args:
        opened: the splat.
        rotation: [3, 3] of the placement of the splat.
        scale: of the placement.
        shift: [3] of the placement.
    """
    run = RunFolder.holding(opened.path)
    if run is None or not run.cameras.is_file():
        return None
    try:
        entries = json.loads(run.cameras.read_text(encoding="utf-8"))
        eyes = np.array([entry["position"] for entry in entries], dtype=np.float64).reshape(-1, 3)
        turns = np.array([entry["rotation"] for entry in entries], dtype=np.float64).reshape(-1, 3, 3).mT
        chosen = np.unique(np.linspace(0, len(entries) - 1, min(len(entries), _MOST_CAMERAS)).round().astype(int))
        eyes, turns = scale * eyes @ rotation.T + np.array(shift), turns @ rotation.T
        cameras = tuple(_camera(entries[index], eyes[index], turns[index]) for index in chosen)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if not cameras or not (np.isfinite(eyes).all() and np.isfinite(turns).all()):
        return None
    up, focus = up_axis(turns), focus_of(eyes, turns)
    return Page(
        title=run.path.absolute().name,
        cameras=cameras,
        up=tuple(up.tolist()),
        focus=tuple(focus.tolist()),
        distance=float(np.median(np.linalg.norm(eyes - focus, axis=1))) or 1.0,
        background=tuple(opened.background().tolist()),
    )


def up_axis(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3] the mean upward direction of cameras, or that of the first if they do not agree.

    Args:
        turns: [V, 3, 3] world -> camera, OpenCV axes.
    """
    mean = -turns[:, 1].mean(axis=0)
    length = float(np.linalg.norm(mean))
    return mean / length if length > _LEAST_AGREEMENT else -turns[0, 1]


def focus_of(eyes: NDArray[np.float64], turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3] the point nearest to all optical axes, by least squares.

    Args:
        eyes: [V, 3] camera centres.
        turns: [V, 3, 3] world -> camera, OpenCV axes.
    """
    forward = turns[:, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None]
    # Parallel axes have no such point: the small term then holds the mean of the centres.
    held = 1e-6 * len(eyes) * np.eye(3)
    right = (across @ eyes[:, :, None])[:, :, 0].sum(axis=0) + held @ eyes.mean(axis=0)
    focus: NDArray[np.float64] = np.linalg.solve(across.sum(axis=0) + held, right)
    return focus


def _camera(entry: dict[str, Any], eye: NDArray[np.float64], turn: NDArray[np.float64]) -> PageCamera:
    width, height = int(entry["width"]), int(entry["height"])
    return PageCamera(
        name=str(entry["img_name"]),
        eye=tuple(eye.tolist()),
        turn=tuple(turn.ravel().tolist()),
        width=width,
        height=height,
        fx=float(entry["fx"]),
        fy=float(entry["fy"]),
        cx=width / 2,
        cy=height / 2,
    )
