"""Checkpoints: a TrainState in a file, written whole or not at all, and found again.

Not the state itself (``state.py``). The invariant: a checkpoint that loads continues the run it was taken from; one of another scene or
of a newer gs-train is refused, and a damaged one is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable
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
from gs_train.scene.types import Scene
from gs_train.training.state import TrainState

FORMAT = 1
"""Raised when a checkpoint of this version could no longer be read by the version before."""

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
    "background",
}
_MODEL_KEYS = {"parameters", "active_sh_degree", "spatial_lr_scale", "optimizer"}


class DamagedCheckpoint(Exception):
    """The file is not a whole checkpoint."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    """The file."""
    state: dict[str, Any]
    """``TrainState.state_dict()``, tensors on the CPU."""
    config: dict[str, Any]
    """The resolved config as nested dicts, for reading; a run goes on with its config.toml."""
    scene_fingerprint: str
    """``scene_fingerprint`` of the scene trained on."""
    versions: dict[str, str]
    """Versions of gs_train and torch that wrote it."""

    @property
    def iteration(self) -> int:
        """Steps taken when it was saved."""
        return int(self.state["iteration"])


def scene_fingerprint(scene: Scene) -> str:
    """Hash of the views' names, sizes, intrinsics and poses, in order. Poses count to a millionth, so that another CPU agrees."""
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


def save_checkpoint(folder: Path, state: TrainState, *, config: TrainConfig, fingerprint: str, keep: int) -> Path:
    """Write ``iteration_N.pt`` whole, then remove all but the newest ``keep``; returns its path.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are intact then.
        FloatingPointError: a parameter is not finite; saving it would in time push out the sound checkpoints.
    """
    content = {
        "format": FORMAT,
        "versions": {"gs_train": __version__, "torch": str(torch.__version__)},
        "scene_fingerprint": fingerprint,
        "config": asdict(config),
        "state": state.state_dict(),
    }
    fault = describe_non_finite(state.model.parameters)
    if fault:
        raise FloatingPointError(f"{fault} at iteration {state.iteration}: not saved")
    folder.mkdir(parents=True, exist_ok=True)
    # Left over from a run that was killed while saving; there is one writer per run.
    for leftover in folder.glob(".iteration_*.tmp"):
        leftover.unlink()
    path = folder / f"iteration_{state.iteration:06d}.pt"
    atomic_write(path, lambda file: _save(content, file))
    # Newer ones than this can only be damaged ones that a resume passed over; they must not be found first again.
    for other in list_checkpoints(folder):
        if int(_number(other)) > state.iteration:
            other.unlink()
    for old in list_checkpoints(folder)[keep:]:
        old.unlink()
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint onto the CPU.

    Raises:
        DamagedCheckpoint: it is cut short, altered, or no checkpoint at all.
        UserError: a newer gs-train wrote it.
    """
    try:
        # torch does not compare the checksums that it writes, so a flipped bit would pass unseen.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise DamagedCheckpoint(f"{path}: the checksum of {broken} does not match")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise DamagedCheckpoint(f"{path} holds no dict")
        written_as = int(content["format"])
        if written_as > FORMAT:
            raise UserError(
                f"{path} was written by a newer gs-train (checkpoint format {written_as}; this version reads up to {FORMAT}): "
                f"update gs-train, or train afresh with {_afresh(path.parent)}."
            )
        names = ("state", "config", "scene_fingerprint", "versions")
        checkpoint = Checkpoint(path=path, **{name: content[name] for name in names})
        _check_keys(checkpoint)
    except (PermissionError, UserError, DamagedCheckpoint):
        # Unreadable is not damaged: going on from an older one would in time remove this one.
        raise
    except (
        Exception
    ) as error:  # zipfile, its decompressors, torch and pickle each fail in their own ways on altered bytes
        raise DamagedCheckpoint(f"{path}: {error}") from error
    return checkpoint


def newest_intact(folder: Path, notify: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint of a folder that is whole; says aloud which damaged ones it passes over.

    Raises:
        UserError: there is none, or the newest one comes from a newer gs-train.
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
        raise UserError(f"{folder} holds no sound checkpoint ({message}): train afresh with {_afresh(folder)}.")
    raise UserError(f"{folder} holds no checkpoint to go on from: train afresh with {_afresh(folder)}.")


def check_scene(checkpoint: Checkpoint, scene: Scene) -> None:
    """Refuse a checkpoint of another scene.

    Raises:
        UserError: names, sizes or poses of the views differ from those that the checkpoint was trained on.
    """
    if checkpoint.scene_fingerprint != scene_fingerprint(scene):
        raise UserError(
            f"{checkpoint.path} belongs to another scene than {scene.path} (the views' names, sizes or poses differ): "
            "name the scene it was trained on, or train afresh in another --out."
        )


def _check_keys(checkpoint: Checkpoint) -> None:
    """Raise where something is missing that a resume, eval or info would look up later."""
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
        raise DamagedCheckpoint(f"{checkpoint.path} does not fit together")


def _afresh(checkpoints: Path) -> str:
    return f"gs-train train SCENE --out {checkpoints.parent} --overwrite"


def _number(path: Path) -> str:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return match[1]


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    """``torch.save`` that lets an OSError through: torch's own writer reports a full disk as a RuntimeError about positions."""
    watched = _WatchedFile(file)
    try:
        torch.save(content, watched)  # type: ignore[arg-type]
    except RuntimeError:
        if watched.fault is not None:
            raise watched.fault from None
        raise


class _WatchedFile:
    """What ``torch.save`` needs of a file, remembering the fault of a write."""

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
