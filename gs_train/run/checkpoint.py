"""Checkpoints: a training state in a file, written atomically, found and checked again.

The state itself is in ``training/state.py``; here it is a dict. A checkpoint that loads continues its run exactly.
Checkpoints of another scene, of an older format or of a newer program are refused; a damaged checkpoint is skipped for
the one before it.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from gs_train import __version__
from gs_train.atomic_write import atomic_write
from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError
from gs_train.model.gaussians import PARAMETER_NAMES, describe_non_finite
from gs_train.scene.frame import Frame
from gs_train.scene.types import Scene

FORMAT = 3
"""Number of the file format. Raise it when older or newer programs could not read the other's checkpoints."""

_NAME = re.compile(r"iteration_(\d+)\.pt")
_STATE_KEYS = {
    "iteration",
    "elapsed_s",
    "smoothed",
    "view_order",
    "view_generator",
    "density_generator",
    "model",
    "density",
    "density_controller",
    "background",
    "corrections",
}
_MODEL_KEYS = {"parameters", "active_sh_degree", "spatial_lr_scale", "optimizer"}


class DamagedCheckpoint(Exception):
    """The file is not a complete checkpoint."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The content of a checkpoint file."""

    path: Path
    """The file."""
    state: dict[str, Any]
    """``TrainState.state_dict()``, tensors on the CPU."""
    config: dict[str, Any]
    """The resolved config as nested dicts, for information; a resumed run reads its config.toml."""
    scene_fingerprint: str
    """``scene_fingerprint`` of the training scene."""
    versions: dict[str, str]
    """Versions of gs_train and torch that wrote the file."""
    frame: Frame
    """Coordinates of the model."""

    @property
    def iteration(self) -> int:
        """Number of steps taken before it was saved."""
        return int(self.state["iteration"])


def scene_fingerprint(scene: Scene) -> str:
    """Hash of the views' names, sizes, intrinsics and poses, in order. Numbers are rounded to 1e-6, so that CPUs
    agree."""
    digest = hashlib.sha256()
    for role, views in (("train", scene.train_views), ("test", scene.test_views)):
        for view in views:
            camera = view.camera
            numbers = [camera.fx, camera.fy, camera.cx, camera.cy, *view.world_to_camera.ravel().tolist()]
            rounded = " ".join(f"{value + 0.0:.6f}" for value in np.round(numbers, 6))
            digest.update(f"{role} {view.name} {camera.width}x{camera.height} {rounded}\n".encode())
    return digest.hexdigest()


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files in a folder, newest iteration first."""
    found = [(int(match[1]), path) for path in folder.glob("iteration_*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def save_checkpoint(
    folder: Path, state: Mapping[str, Any], *, config: TrainConfig, fingerprint: str, frame: Frame, keep: int
) -> Path:
    """Write ``iteration_N.pt`` atomically, then remove all but the newest ``keep`` checkpoints.

    Args:
        folder: created if missing.
        state: ``TrainState.state_dict()``.
        config: resolved.
        fingerprint: ``scene_fingerprint`` of the training scene.
        frame: coordinates of the model.
        keep: at least 1.

    Returns:
        The path of the new checkpoint.

    Raises:
        OSError: the disk is full or not writable. Earlier checkpoints are intact then.
        FloatingPointError: a parameter is not finite. In time, its checkpoints would replace all intact checkpoints.
    """
    iteration = state["iteration"]
    content = {
        "format": FORMAT,
        "versions": {"gs_train": __version__, "torch": str(torch.__version__)},
        "scene_fingerprint": fingerprint,
        "frame": {"offset": list(frame.offset), "scale": frame.scale},
        "config": asdict(config),
        "state": dict(state),
    }
    fault = describe_non_finite(state["model"]["parameters"])
    if fault:
        raise FloatingPointError(f"{fault} at iteration {iteration}: not saved")
    folder.mkdir(parents=True, exist_ok=True)
    # A run that was killed while saving leaves its temporary file. There is one writer per run, so it can be removed.
    for leftover in folder.glob(".iteration_*.tmp"):
        leftover.unlink()
    path = folder / f"iteration_{iteration:06d}.pt"
    atomic_write(path, lambda file: _save(content, file))
    # Newer checkpoints are damaged: the resume skipped them. The next resume must not try them first again.
    for other in list_checkpoints(folder):
        if int(_number(other)) > iteration:
            other.unlink()
    for old in list_checkpoints(folder)[keep:]:
        old.unlink()
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint onto the CPU.

    Raises:
        DamagedCheckpoint: the file is truncated, altered, or no checkpoint.
        UserError: the file has the format of an older or a newer gs_train.
    """
    try:
        # torch does not verify the checksums it writes, so it would accept a flipped bit.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise DamagedCheckpoint(f"{path}: the checksum of {broken} does not match")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise DamagedCheckpoint(f"{path} does not contain a dict")
        _check_format(path, int(content["format"]))
        names = ("state", "config", "scene_fingerprint", "versions")
        checkpoint = Checkpoint(path=path, frame=_frame(content), **{name: content[name] for name in names})
        _check_keys(checkpoint)
    except (PermissionError, UserError, DamagedCheckpoint):
        # An unreadable file is not damaged: resuming from an older checkpoint would in time remove it.
        raise
    except (
        Exception
    ) as error:  # zipfile, its decompressors, torch and pickle raise errors of many types on altered bytes
        raise DamagedCheckpoint(f"{path}: {error}") from error
    return checkpoint


def newest_intact(folder: Path, notify: Callable[[str], None]) -> Checkpoint:
    """The newest intact checkpoint of a folder.

    Args:
        folder: the run's ``checkpoints`` folder.
        notify: receives a sentence for each damaged checkpoint that is skipped.

    Raises:
        UserError: there is none, or the newest one has the format of an older or a newer gs_train.
    """
    paths = list_checkpoints(folder)
    for number, path in enumerate(paths, start=1):
        try:
            return read_checkpoint(path)
        except DamagedCheckpoint:
            if number < len(paths):
                notify(f"{path} is damaged: trying the one before.")
    if paths:
        message = f"all {len(paths)} are damaged" if len(paths) > 1 else f"{paths[0].name}, the only one, is damaged"
        raise UserError(f"{folder} has no intact checkpoint ({message}): start again with {_start_again(folder)}.")
    raise UserError(f"{folder} has no checkpoint: start again with {_start_again(folder)}.")


def check_scene(checkpoint: Checkpoint, scene: Scene, frame: Frame) -> None:
    """Check that a checkpoint was trained on this scene.

    Args:
        checkpoint: of any scene.
        scene: in the coordinates of ``frame``.
        frame: coordinates of training.

    Raises:
        UserError: the names, sizes or poses of the views differ.
    """
    if checkpoint.frame != frame or checkpoint.scene_fingerprint != scene_fingerprint(scene):
        raise UserError(
            f"{checkpoint.path} belongs to another scene than {scene.path} (names, sizes or poses of the views "
            "differ): "
            "name the scene it was trained on, or start again in another --out."
        )


def _frame(content: Mapping[str, Any]) -> Frame:
    x, y, z = map(float, content["frame"]["offset"])
    return Frame(offset=(x, y, z), scale=float(content["frame"]["scale"]))


def _check_format(path: Path, written_as: int) -> None:
    if written_as == FORMAT:
        return
    age, remedy = ("a newer", "update gs-train") if written_as > FORMAT else ("an older", "use that version")
    raise UserError(
        f"{path} was written by {age} gs-train (checkpoint format {written_as}, this version reads format {FORMAT}): "
        f"{remedy}, or start again with {_start_again(path.parent)}."
    )


def _check_keys(checkpoint: Checkpoint) -> None:
    """Raise DamagedCheckpoint if a key is missing that resume, eval or info would read later."""
    model = checkpoint.state["model"]
    parameters = model["parameters"]
    for held, needed in (
        (checkpoint.state, _STATE_KEYS),
        (model, _MODEL_KEYS),
        (parameters, PARAMETER_NAMES),
        (checkpoint.versions, ("gs_train", "torch")),
    ):
        missing = sorted(set(needed) - set(held))
        if missing:
            raise DamagedCheckpoint(f"{checkpoint.path} lacks {', '.join(missing)}")
    if checkpoint.iteration < 0 or len({len(parameters[name]) for name in PARAMETER_NAMES}) != 1:
        raise DamagedCheckpoint(f"{checkpoint.path} is inconsistent")


def _start_again(checkpoints: Path) -> str:
    return f"gs-train train SCENE --out {checkpoints.parent} --overwrite"


def _number(path: Path) -> str:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return match[1]


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    """``torch.save`` that raises the OSError of a full disk; torch itself reports a RuntimeError about file
    positions."""
    watched = _WatchedFile(file)
    try:
        torch.save(content, watched)  # type: ignore[arg-type]
    except RuntimeError:
        if watched.fault is not None:
            raise watched.fault from None
        raise


class _WatchedFile:
    """The part of a file that ``torch.save`` needs; it remembers the error of a failed write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.fault = error
            raise

    def flush(self) -> None:
        self._file.flush()
