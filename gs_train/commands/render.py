"""``gs-train render``: films of a splat."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gs_train.atomic_write import clear_leftovers
from gs_train.console import end_at_once, notify, show
from gs_train.errors import UserError
from gs_train.options import DEVICES, check_device

PATHS = ("auto", "test", "train", "orbit", "spiral", "interpolate")
_STILLS = ("test", "train")
_SMALLEST_PX, _LARGEST_PX = 16, 8192
_MOST_FPS, _MOST_SECONDS = 240, 3600


@dataclass(frozen=True, kw_only=True)
class RenderCommand:
    """Render a film of a splat along a camera path, as .mp4 or as PNG frames."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_SPLAT")]
    """Run folder (its newest intact checkpoint counts), checkpoint (.pt) or splat file (.ply, .compressed.ply, .sog,
    .spz, .splat, .glb, city.json)."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """OUT.mp4 for a film, which needs the extra video or ffmpeg; a folder for PNG frames."""
    path: Annotated[str, tyro.conf.arg(metavar="{auto,test,train,orbit,spiral,interpolate,FILE.json}")] = "auto"
    """Camera path. auto chooses a path along sides that the photos show. test and train show each held-out or training
    view once. interpolate flies from photo to photo. A .json file lists the frames, in the axes of the splat's .ply:
    {"frameRate": 30, "frames": [{"position": [x, y, z], "target": [x, y, z], "up": [x, y, z], "fov": 50}, ...]}."""
    what: Literal["colour", "depth", "alpha"] = "colour"
    """Picture to render. depth is white for near and black for far; alpha is white where the splat is opaque."""
    frames: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Also write the frames of an .mp4 as PNG files to this folder."""
    depth: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Also write the depth of each frame to this folder, as 32-bit .tif files in world units: distance along the
    optical axis, 0 where the splat is transparent."""
    width: int | None = None
    """Width of the frames, px; from the photos if not given. Odd sizes are rounded up to even ones."""
    height: int | None = None
    """Height of the frames, px; from the photos if not given."""
    fps: float | None = None
    """Frames per second: 30 if not given, 2 for --path test and train, the frameRate of a .json file."""
    seconds: float | None = None
    """Length of the film: 5 if not given. It does not apply to test, train and FILE.json, which have one frame per
    camera."""
    scene: Annotated[Path | None, tyro.conf.arg(metavar="SCENE")] = None
    """Scene folder or transforms .json. Name it if the scene has moved since the training."""
    device: Annotated[str | None, tyro.conf.arg(metavar=DEVICES)] = None
    """Device to render on; the device of the training if not given. cpu leaves a GPU to other work."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        if self.path not in PATHS and not self.path.endswith(".json"):
            raise UserError(f"--path is {self.path}: give one of {', '.join(PATHS)}, or a .json file.")
        for name, pixels in (("width", self.width), ("height", self.height)):
            if pixels is not None and not _SMALLEST_PX <= pixels <= _LARGEST_PX:
                raise UserError(f"--{name} is {pixels}: give a whole number from {_SMALLEST_PX} to {_LARGEST_PX}.")
        for name, value, most in (("fps", self.fps, _MOST_FPS), ("seconds", self.seconds, _MOST_SECONDS)):
            if value is not None and not 0 < value <= most:
                raise UserError(f"--{name} is {value:g}: give a number above 0 and of at most {most}.")
        if self.seconds is not None and (self.path in _STILLS or self.path not in PATHS):
            raise UserError(
                f"--seconds does not apply to --path {self.path}, which has one frame per camera: give --fps."
            )
        if self.device is not None:
            check_device(self.device)

    def run(self) -> int:
        """Write the film or the frames."""
        from gs_train.progress import Progress
        from gs_train.run.open import open_splat
        from gs_train.viewer.film import Subject, film_of, frames_of, sized
        from gs_train.viewer.video import also_written, check_folder, depth_writer, find_ffmpeg, write_frames, write_mp4

        is_film = self._is_film()
        if self.frames is not None and not is_film:
            raise UserError("--frames goes with OUT.mp4, and OUT is a folder of frames already: leave it out.")
        for folder, pattern in ((self.frames, "frame_*.png"), (self.depth, "depth_*.tif")):
            if folder is not None:
                check_folder(folder, pattern)
        if not is_film:
            check_folder(self.target, "frame_*.png")
        ffmpeg = find_ffmpeg() if is_film else ""
        opened = open_splat(self.source, notify)
        subject = Subject.of(opened)
        film = film_of(subject, self.path, fps=self.fps, seconds=self.seconds, scene=self.scene, notify=notify)
        # The PNG frames of photos' views keep the sizes of the photos.
        shots = sized(film.shots, self.width, self.height, one_size=is_film or self.path not in _STILLS)
        with end_at_once():
            selection = opened.select_rasterizer(self.device, notify)
        clear_leftovers(self.target.parent, self.target.name)
        with Progress("render", len(shots), unit="frame") as progress:
            on_depth = None if self.depth is None else depth_writer(self.depth)
            after_frame = progress.update
            frames = frames_of(subject, shots, selection, self.what, on_depth=on_depth, after_frame=after_frame)
            if self.frames is not None:
                frames = also_written(self.frames, frames)
            if is_film:
                size = {"width": shots[0].camera.width, "height": shots[0].camera.height}
                write_mp4(self.target, frames, ffmpeg=ffmpeg, fps=film.fps, **size)
            else:
                write_frames(self.target, frames)
        if is_film:
            seconds = len(shots) / film.fps
            show(f"Wrote {len(shots)} frames ({seconds:.3g} s, {size['width']}x{size['height']}) to {self.target}.")
        else:
            show(f"Wrote {len(shots)} frames to {self.target}/frame_00001.png and so on.")
        return 0

    def _is_film(self) -> bool:
        """Whether OUT is a film; raises UserError for a target that cannot be written."""
        if self.target.is_dir():
            return False
        if self.target.suffix.lower() == ".mp4":
            return True
        if re.fullmatch(r"\.[a-zA-Z]\w*", self.target.suffix):
            raise UserError(
                f"{self.target} is neither .mp4 nor a folder: name it .mp4, or without an ending for frames."
            )
        if self.target.exists():
            raise UserError(f"{self.target} is a file: name an .mp4 file, or a new folder for frames.")
        return False
