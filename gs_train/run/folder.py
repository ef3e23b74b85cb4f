"""``RunFolder``: the layout of a run's folder, and its files other than checkpoints.

The layout of ``point_cloud/`` and ``cameras.json`` is the original trainer's, so viewers made for it open a run. A
run's files are replaced only on request, and files that do not belong to a run are never touched.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Any

from gs_train import __version__
from gs_train.atomic_write import atomic_write_text, clear_leftovers, is_temporary
from gs_train.cameras.poses import camera_to_world
from gs_train.config.settings import TrainConfig
from gs_train.config.toml import write_toml
from gs_train.errors import UserError
from gs_train.formats.ply import write_ply
from gs_train.formats.splat_data import SplatData
from gs_train.machine import peak_gpu_memory, peak_memory
from gs_train.run.lock import LOCK_NAME
from gs_train.run.splat_frame import moved, write_offset
from gs_train.scene.frame import Frame
from gs_train.scene.split import TEST_LIST
from gs_train.scene.types import Scene, View

# config.toml marks the folder as a run. ``clear`` keeps it until ``write_config`` replaces it, so a run that is killed
# in between can be replaced again.
_FILES = (
    "metrics.jsonl",
    "cameras.json",
    "cameras_refined.json",
    "results.json",
    "per_view.json",
    "report.html",
    "cfg_args",
    "run.json",
)
_FOLDERS = ("checkpoints", "point_cloud", "renders", "error_maps")
_SPLAT_FOLDER = re.compile(r"iteration_(\d+)")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path
    """The folder given as --out."""

    @classmethod
    def holding(cls, path: Path) -> RunFolder | None:
        """The run that ``path`` is, or that its splat or checkpoint is part of; None if there is no such run."""
        path = path.absolute()
        # A run, RUN/checkpoints/x.pt, or RUN/point_cloud/iteration_N/point_cloud.ply.
        return next((cls(each) for each in (path, *path.parents[1:3]) if cls(each).is_run()), None)

    @property
    def config(self) -> Path:
        """The resolved config and the scene's path."""
        return self.path / "config.toml"

    @property
    def scene(self) -> Path:
        """The scene that ``gs-train train`` has made of photos or a video."""
        return self.path / "scene"

    @property
    def metrics(self) -> Path:
        """One JSON line per logging step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def cameras(self) -> Path:
        """Poses and intrinsics of all views."""
        return self.path / "cameras.json"

    @property
    def cameras_refined(self) -> Path:
        """As ``cameras``, with the refined poses of the training views."""
        return self.path / "cameras_refined.json"

    def point_cloud(self, iteration: int) -> Path:
        """The splat after ``iteration`` steps."""
        return self.path / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply"

    def renders(self, iteration: int) -> Path:
        """Folder of the pictures of an evaluation after ``iteration`` steps: each photo beside its render."""
        return self.path / "renders" / f"iteration_{iteration}"

    def error_maps(self, iteration: int) -> Path:
        """Folder of FLIP's error maps of an evaluation after ``iteration`` steps."""
        return self.path / "error_maps" / f"iteration_{iteration}"

    @property
    def report(self) -> Path:
        """The page that ``gs-train eval`` writes."""
        return self.path / "report.html"

    def nearest_existing(self) -> Path:
        """The folder, or its nearest parent that exists: a place on the disk that the run is written to."""
        return next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())

    def newest_splat(self) -> tuple[int, Path] | None:
        """The number of steps and the path of the newest splat; None if the run has not ended."""
        found = [
            (int(match[1]), self.point_cloud(int(match[1])))
            for folder in self.path.glob("point_cloud/*")
            if (match := _SPLAT_FOLDER.fullmatch(folder.name))
        ]
        return max((entry for entry in found if entry[1].is_file()), default=None)

    def is_run(self) -> bool:
        """Whether the folder is a run."""
        return self.config.is_file()

    def check_run(self) -> None:
        """Raise UserError unless the folder is a run."""
        if not self.is_run():
            raise UserError(f"{self.path} is not a run (it has no config.toml): name the --out folder of a training.")

    def check_free(self, *, overwrite: bool) -> None:
        """Check that a new run may be written to the folder.

        Raises:
            UserError: it is a file, it cannot be created or written, it is a run and ``overwrite`` is false, or it
                contains other files.
        """
        try:
            self._refuse_taken(overwrite=overwrite)
            # A write is tried, because permissions do not show read-only disks. The file has no name.
            with tempfile.TemporaryFile(dir=self.nearest_existing()):
                pass
        except OSError as error:
            raise UserError(
                f"--out {self.path} cannot be written ({error.strerror or error}): choose another folder."
            ) from error

    def _refuse_taken(self, *, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file: name a folder.")
        if not self.path.is_dir() or all(_is_leftover(entry) for entry in self.path.iterdir()):
            return
        if not self.is_run():
            raise UserError(f"--out {self.path} is not empty and not a run: name another folder.")
        if not overwrite:
            go_on = f"go on with --resume {quote(str(self.path))}, replace it with --overwrite, or name another folder"
            raise UserError(f"--out {self.path} already holds a run: {go_on}.")

    def clear(self, *, overwrite: bool) -> None:
        """Remove the files of an old run but config.toml, and keep all others. Needs the lock.

        Raises:
            UserError: as ``check_free``.
        """
        try:
            self._refuse_taken(overwrite=overwrite)
        except OSError as error:
            raise UserError(
                f"--out {self.path} cannot be read ({error.strerror or error}): choose another folder."
            ) from error
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    def clear_leftovers(self) -> None:
        """Remove the temporary files of killed processes."""
        clear_leftovers(self.path)
        for name in _FOLDERS:
            for folder, _, _ in os.walk(self.path / name):
                clear_leftovers(Path(folder))

    def check_config(self, config: TrainConfig, scene: Scene) -> None:
        """Raise UserError if ``write_config`` would fail: some file systems allow names that are not text."""
        try:
            write_toml(config, scene.path.resolve()).encode()
        except UnicodeEncodeError:
            named = f"{scene.path.resolve()}{f' or --init-from {config.init_from}' if config.init_from else ''}"
            raise UserError(
                f"{named} has a name that is not UTF-8, which {self.config} cannot hold: rename it."
            ) from None

    def write_config(self, config: TrainConfig, scene: Scene) -> None:
        """Write the resolved config, so that a resume needs only this folder, and cfg_args for the original viewers.

        Removes the temporary files of killed processes.
        """
        self.clear_leftovers()
        # config.toml comes first: after a kill, a folder with other files alone would be no run and not free.
        # The path of the list is relative to the run, which may move; read_config resolves it.
        kept = replace(config.scene, test_list=TEST_LIST if config.scene.test_list else "")
        atomic_write_text(self.config, write_toml(replace(config, scene=kept), scene.path.resolve()))
        if config.scene.test_list:
            atomic_write_text(self.path / TEST_LIST, "".join(f"{view.name}\n" for view in scene.test_views))
        arguments = Namespace(
            sh_degree=config.sh_degree,
            source_path=str(scene.path.resolve()),
            model_path=str(self.path.resolve()),
            images=config.scene.images,
            resolution=config.scene.resolution,
            white_background=config.background == "white",
            data_device="cuda",
            eval=config.scene.test_every > 0,
        )
        atomic_write_text(self.path / "cfg_args", repr(arguments))

    def write_facts(self, *, iteration: int, gaussians: int, loop_s: float, device: str) -> None:
        """Write run.json: time and memory of the training, and the machine.

        Args:
            iteration: number of steps taken.
            gaussians: number of Gaussians.
            loop_s: seconds in the training loop, over all resumes.
            device: device of the Gaussians.
        """
        facts = {
            "iteration": iteration,
            "gaussians": gaussians,
            "loop_s": round(loop_s, 3),
            "peak_memory_bytes": peak_memory(),
            "peak_gpu_memory_bytes": peak_gpu_memory(),
            "device": device,
            "cpu_count": os.cpu_count(),
            "platform": platform.platform(),
            "versions": {
                "gs_train": __version__,
                "python": platform.python_version(),
                "torch": metadata.version("torch"),
                "numpy": metadata.version("numpy"),
            },
        }
        atomic_write_text(self.path / "run.json", json.dumps(facts, indent=2) + "\n")

    def write_results(
        self,
        splat: SplatData,
        scene: Scene,
        frame: Frame,
        iteration: int,
        *,
        refined_views: Sequence[View] | None = None,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Write the splat and the cameras at the end of training, in the coordinates of ``frame.of_files``.

        Args:
            splat: the trained Gaussians, in the coordinates of ``frame``.
            scene: the training scene, in the coordinates of ``frame``.
            frame: the coordinates of training.
            iteration: number of steps taken.
            refined_views: the training views with refined poses, if poses were refined; written to ``cameras_refined``.
            notify: takes a sentence about positions relative to an offset.
        """
        path = self.point_cloud(iteration)
        offset = write_offset(path, frame.of_files)
        write_ply(path, moved(splat, frame, frame.of_files))
        _write_cameras(self.cameras, (*scene.test_views, *scene.train_views), frame)
        if refined_views is not None:
            _write_cameras(self.cameras_refined, (*scene.test_views, *refined_views), frame)
        if offset is not None:
            notify(offset)


def _is_leftover(entry: Path) -> bool:
    """Whether a training that was killed before its config.toml was written leaves this file or folder."""
    if entry.is_dir():
        made_here = entry.name == "scene" and (entry / "prepare.json").is_file()
        return made_here or (entry.name in _FOLDERS and not any(entry.iterdir()))
    return entry.name == LOCK_NAME or is_temporary(entry)


def _write_cameras(path: Path, views: Sequence[View], frame: Frame) -> None:
    """Move ``views`` from the coordinates of ``frame`` to ``frame.of_files``, and write their cameras."""
    cameras = []
    for number, view in enumerate(views):
        pose = frame.of_files.pose_to_training(frame.pose_to_scene(view.world_to_camera))
        cameras.append(_camera_entry(number, replace(view, world_to_camera=pose)))
    atomic_write_text(path, json.dumps(cameras, indent=1) + "\n")


def _camera_entry(number: int, view: View) -> dict[str, Any]:
    """One entry of the original's cameras.json: position and rotation are camera-to-world, OpenCV axes."""
    pose = camera_to_world(view.world_to_camera)
    return {
        "id": number,
        "img_name": view.name,
        "width": view.camera.width,
        "height": view.camera.height,
        "position": pose[:3, 3].tolist(),
        "rotation": pose[:3, :3].tolist(),
        "fx": view.camera.fx,
        "fy": view.camera.fy,
    }
