"""``gs-train prepare``: makes a scene from photos or a video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import tyro

from gs_train.console import notify, show, step_progress
from gs_train.errors import UserError, first_few
from gs_train.prepare.pipeline import FEWEST_PHOTOS
from gs_train.prepare.worker import MANY_AGREEING

if TYPE_CHECKING:
    from gs_train.prepare.pipeline import Prepared

_MANY_REGISTERED = 0.8
"""Below this fraction of registered photos the command gives advice."""


@dataclass(frozen=True, kw_only=True)
class PrepareCommand:
    """Make a scene from photos or a video: pycolmap computes the camera poses. After a stop, run it again."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS_OR_VIDEO")]
    """Folder of overlapping photos of one object or place, or a video file. It stays unchanged."""
    scene: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCENE")]
    """Folder to write the scene to: new, empty, or begun by the same command. It gets upright copies of the photos."""
    frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """About how many frames to take from a video, 150 if not given; each is the sharpest of its part. Take more,
    for example 300, for a long walk. Not for photos."""

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < FEWEST_PHOTOS:
            raise UserError(f"--frames is {self.frames}: give a whole number of at least {FEWEST_PHOTOS}.")

    def run(self) -> int:
        """Make the scene."""
        report(make_scene(self.source, self.scene, frames=self.frames), show)
        show(f"Scene: {self.scene}")
        show(f"Next:  gs-train train {quote(str(self.scene))}")
        return 0


def make_scene(source: Path, scene: Path, *, frames: int | None = None) -> Prepared:
    """Make a scene with progress on stderr; arguments and errors are those of ``prepare_scene``."""
    from gs_train.prepare.pipeline import prepare_scene

    try:
        with step_progress() as progress:
            return prepare_scene(source, scene, frames=frames, progress=progress, notify=notify)
    except KeyboardInterrupt:
        notify("Stopped. The same command goes on from here.")
        raise


def report(prepared: Prepared, write: Callable[[str], None]) -> None:
    """Tell how a scene has become: facts go to ``write``, advice to stderr."""
    error_px, length = prepared.reprojection_error_px, prepared.track_length
    write(
        f"Registered {prepared.registered} of {prepared.photos} photos: {prepared.points:,} points, "
        f"mean reprojection error {error_px:.2f} px, mean track length {length:.1f}, "
        f"{prepared.agreeing_matches:.0%} of the matches agree with the poses."
    )
    if prepared.unregistered:
        write(f"Not registered: {first_few(prepared.unregistered)}")
    if prepared.registered < _MANY_REGISTERED * prepared.photos:
        notify(_advice(prepared))
    if prepared.global_mapping:
        write("Global mapping gave the poses, because incremental mapping contradicted the matches.")
    if prepared.agreeing_matches < MANY_AGREEING:
        share = f"Only {prepared.agreeing_matches:.0%} of the matches between photos agree with the poses"
        remedy = "give the photos at full size, take more of them with a large overlap, and leave out places that"
        notify(f"{share} (95% is usual), so the poses are probably wrong in parts: {remedy} look alike.")


def _advice(prepared: Prepared) -> str:
    parts = ""
    if prepared.models > 1:
        parts = f" (COLMAP found {prepared.models} disconnected models; this is the largest)"
    return (
        f"Few photos were registered{parts}: take more photos between the registered and the other photos, with a "
        "large overlap. Blurred photos, bare walls, mirrors and moving objects do not help."
    )
