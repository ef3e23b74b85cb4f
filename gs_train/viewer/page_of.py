"""The page of a splat: the cameras and the background of its run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.formats.clean import CleanConfig, clean
from gs_train.formats.html import Page, PageCamera, default_page, page_html, sog_for_page
from gs_train.formats.splat_data import SplatData
from gs_train.run.folder import RunFolder
from gs_train.run.open import OpenedSplat
from gs_train.viewer.paths import focus_of, up_axis
from gs_train.viewer.shots import Shot, eyes_and_turns, shots_of_run

_MOST_CAMERAS = 40
"""On a page; more buttons than that are no help."""


def page_of_splat(opened: OpenedSplat, notify: Callable[[str], None]) -> str:
    """The HTML of a page for a splat, with the splat in it.

    Raises:
        UserError: as ``page_and_splat`` does, or the page is too large for a browser.
    """
    page, data = page_and_splat(opened, notify)
    return page_html(page, sog_for_page(data, opened.path))


def page_and_splat(opened: OpenedSplat, notify: Callable[[str], None]) -> tuple[Page, SplatData]:
    """A page for a splat, and the splat without Gaussians that are far away from all others.

    Args:
        opened: the splat.
        notify: takes a sentence about Gaussians that are left out.

    Raises:
        UserError: no Gaussian is finite.
    """
    whole = opened.splat()
    finite = whole.keep(whole.is_finite())
    if len(finite) == 0:
        raise UserError(f"{opened.path} has no Gaussians without NaN or infinite values: name another splat.")
    data, _ = clean(finite, CleanConfig(drop_outliers=True))
    if len(data) < len(whole):
        notify(f"The page leaves out {len(whole) - len(data):,} of {len(whole):,} Gaussians that are far away.")
    return page_of(opened, np.eye(3), 1.0, (0.0, 0.0, 0.0)) or default_page(data, opened.path.name), data


def page_of(opened: OpenedSplat, rotation: NDArray[np.float64], scale: float, shift: tuple[float, ...]) -> Page | None:
    """The cameras and texts of the page of a run; None for a splat whose cameras are unknown.

    Args:
        opened: the splat.
        rotation: [3, 3] of the placement of the splat.
        scale: of the placement.
        shift: [3] of the placement.
    """
    run, shots = RunFolder.holding(opened.path), shots_of_run(opened)
    if run is None or shots is None:
        return None
    eyes, turns = eyes_and_turns(shots)
    eyes, turns = scale * eyes @ rotation.T + np.array(shift), turns @ rotation.T
    chosen = np.unique(np.linspace(0, len(shots) - 1, min(len(shots), _MOST_CAMERAS)).round().astype(int))
    cameras = tuple(_camera(shots[index], eyes[index], turns[index]) for index in chosen)
    if not np.isfinite(eyes).all():
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


def _camera(shot: Shot, eye: NDArray[np.float64], turn: NDArray[np.float64]) -> PageCamera:
    camera = shot.camera
    return PageCamera(
        name=shot.name,
        eye=tuple(eye.tolist()),
        turn=tuple(turn.ravel().tolist()),
        width=camera.width,
        height=camera.height,
        fx=camera.fx,
        fy=camera.fy,
        cx=camera.cx,
        cy=camera.cy,
    )
