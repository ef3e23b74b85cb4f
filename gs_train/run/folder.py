"""RunFolder: where a run keeps what, and the files it writes besides checkpoints.

The layout of ``point_cloud/`` and ``cameras.json`` is the original trainer's, so that viewers made for it open a run. The invariant: a
run's files are replaced only when that was asked for, and files that are not a run's are never touched.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gs_train.atomic_write import atomic_write_text
from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError
from gs_train.formats.ply import write_ply
from gs_train.scene.types import Scene, View

if TYPE_CHECKING:
    # The command line looks at run folders before it loads torch.
    from gs_train.model.gaussians import GaussianModel
    from gs_train.training.poses import PoseRefinement

# config.toml makes the folder a run, so it goes last: a run that is cleared halfway can be cleared again.
_FILES = ("metrics.jsonl", "cameras.json", "cameras_refined.json", "results.json", "per_view.json", "config.toml")
_FOLDERS = ("checkpoints", "point_cloud", "renders")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path
    """The folder given as --out."""

    @property
    def config(self) -> Path:
        """The resolved config and the scene's path."""
        return self.path / "config.toml"

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
        """The same with the training views' poses as pose refinement left them."""
        return self.path / "cameras_refined.json"

    def point_cloud(self, iteration: int) -> Path:
        """The splat after ``iteration`` steps."""
        return self.path / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply"

    def nearest_existing(self) -> Path:
        """The folder, or where it is not there yet the nearest one above it that is: on the disk that the run is written to."""
        return next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())

    def is_run(self) -> bool:
        """Whether a run lives here."""
        return self.config.is_file()

    def check_run(self) -> None:
        """Raise UserError unless a run lives here."""
        if not self.is_run():
            raise UserError(f"{self.path} is not a run (it has no config.toml): name the --out folder of a training.")

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a folder that a new run may not be written to.

        Raises:
            UserError: it is a file; it cannot be made or written; it holds a run and ``overwrite`` is off; it holds anything else.
        """
        try:
            self._refuse_taken(overwrite=overwrite)
            # Tried out rather than asked for: permissions do not tell of read-only disks. Nothing of it stays.
            with tempfile.TemporaryDirectory(dir=self.nearest_existing()):
                pass
        except OSError as error:
            raise UserError(
                f"--out {self.path} cannot be written ({error.strerror or error}): choose another folder."
            ) from error

    def _refuse_taken(self, *, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file: name a folder.")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not self.is_run():
            raise UserError(f"--out {self.path} is not empty and not a run: name another folder.")
        if not overwrite:
            raise UserError(
                f"--out {self.path} already holds a run: go on with --resume {self.path}, replace it with --overwrite, "
                "or name another folder."
            )

    def clear(self, *, overwrite: bool) -> None:
        """Make room for a new run: an old run's own files go, others stay. Raises as ``check_free`` does."""
        self.check_free(overwrite=overwrite)
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    def check_config(self, config: TrainConfig, scene: Scene) -> None:
        """Raise UserError where ``write_config`` would fail: some file systems allow names that are no text."""
        try:
            config.to_toml(scene.path.resolve()).encode()
        except UnicodeEncodeError:
            named = f"{scene.path.resolve()}{f' or --init-from {config.init_from}' if config.init_from else ''}"
            raise UserError(
                f"{named} has a name that is not UTF-8, which {self.config} cannot hold: rename it."
            ) from None

    def write_config(self, config: TrainConfig, scene: Scene) -> None:
        """Write the resolved config, so that a resume needs nothing but this folder."""
        atomic_write_text(self.config, config.to_toml(scene.path.resolve()))

    def write_results(
        self,
        model: GaussianModel,
        scene: Scene,
        iteration: int,
        *,
        antialiased: bool,
        poses: PoseRefinement | None = None,
    ) -> None:
        """Write the splat and the cameras at the end of training, and the cameras as they were refined, where they were."""
        write_ply(self.point_cloud(iteration), model.to_splat_data(antialiased=antialiased))
        _write_cameras(self.cameras, (*scene.test_views, *scene.train_views))
        if poses is not None:
            refined = [
                replace(view, world_to_camera=poses.refined_array(view.world_to_camera, index))
                for index, view in enumerate(scene.train_views)
            ]
            _write_cameras(self.cameras_refined, (*scene.test_views, *refined))


def _write_cameras(path: Path, views: Sequence[View]) -> None:
    cameras = [_camera_entry(number, view) for number, view in enumerate(views)]
    atomic_write_text(path, json.dumps(cameras, indent=1) + "\n")


def _camera_entry(number: int, view: View) -> dict[str, Any]:
    """One view as the original's cameras.json has it: position and rotation are camera-to-world, OpenCV axes."""
    camera_to_world = np.linalg.inv(view.world_to_camera)
    return {
        "id": number,
        "img_name": view.name,
        "width": view.camera.width,
        "height": view.camera.height,
        "position": camera_to_world[:3, 3].tolist(),
        "rotation": camera_to_world[:3, :3].tolist(),
        "fx": view.camera.fx,
        "fy": view.camera.fy,
    }
