"""Checkpoints: a training state in a file, written atomically, found and checked again.

The state itself is in ``training/state.py``; here it is a dict. A checkpoint that loads continues its run exactly.
Checkpoints of another scene, of an older format or of a newer program are refused; a damaged checkpoint is skipped for
the one before it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch

from gs_train import __version__
from gs_train.atomic_write import atomic_write, clear_leftovers
from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError
from gs_train.model.gaussians import check_model_state, describe_non_finite
from gs_train.options import names_where
from gs_train.run.checkpoint_file import NotIntact, read_content, write_content
from gs_train.run.structure import Anything, DictOf, check_like
from gs_train.scene.frame import Frame
from gs_train.scene.types import Scene

FORMAT = 3
"""Number of the file format. Raise it when older or newer programs could not read the other's checkpoints."""

_NAME = re.compile(r"iteration_(\d+)\.pt")
_HEAD = {
    "format": FORMAT,
    "versions": {"gs_train": "", "torch": ""},
    "scene_fingerprint": "",
    "frame": {"offset": [0.0, 0.0, 0.0], "scale": 1.0},
    "config": DictOf(Anything()),
    "state": DictOf(Anything()),
}
"""Structure of the content. The parts of the state that every command reads are checked in ``_check_parts``, all other
parts at a resume, by ``TrainState.load_state_dict``."""


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
        ValueError: the state has a value that a checkpoint cannot hold; see ``check_plain``.
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
    clear_leftovers(folder)
    path = folder / f"iteration_{iteration:06d}.pt"
    atomic_write(path, lambda file: write_content(content, file))
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
        content, has_checksum = read_content(path)
        if type(content) is dict and type(content.get("format")) is int:
            _check_format(path, content["format"])
        if not has_checksum:
            raise DamagedCheckpoint(f"{path} has no checksum")
        check_like(content, _HEAD, "content")
        _check_parts(content["state"], content["config"])
        x, y, z = content["frame"]["offset"]
        return Checkpoint(
            path=path,
            state=content["state"],
            config=content["config"],
            scene_fingerprint=content["scene_fingerprint"],
            versions=content["versions"],
            frame=Frame(offset=(x, y, z), scale=content["frame"]["scale"]),
        )
    except (NotIntact, ValueError) as error:
        raise DamagedCheckpoint(f"{path}: {error}") from error


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


def _check_format(path: Path, written_as: int) -> None:
    if written_as == FORMAT:
        return
    age, remedy = ("a newer", "update gs-train") if written_as > FORMAT else ("an older", "use that version")
    raise UserError(
        f"{path} was written by {age} gs-train (checkpoint format {written_as}, this version reads format {FORMAT}): "
        f"{remedy}, or start again with {_start_again(path.parent)}."
    )


def _check_parts(state: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Check the parts of a checkpoint that are read without a resume. Raises ValueError."""
    read = {"iteration": 0, "density_controller": "", "model": DictOf(Anything()), "background": DictOf(Anything())}
    check_like({name: state.get(name) for name in read}, read)
    check_like(state["background"].get("eval_color"), torch.zeros(3), "state.background.eval_color")
    if not 0 <= state["iteration"] < 2**31:
        raise ValueError(f"state.iteration is {state['iteration']}")
    check_model_state(state["model"])
    settings = asdict(TrainConfig())
    for name in ("antialiased", *names_where(TrainConfig, "shapes_state")):
        saved = lookup(config, name)
        if type(saved) is not type(lookup(settings, name)):
            raise ValueError(f"config.{name} is {saved!r}")


def lookup(table: Any, name: str) -> Any:
    """The value of a dotted name in nested dicts. Raises ValueError if there is none."""
    for part in name.split("."):
        if type(table) is not dict or part not in table:
            raise ValueError(f"there is no {name}")
        table = table[part]
    return table


def _start_again(checkpoints: Path) -> str:
    return f"gs-train train SCENE --out {quote(str(checkpoints.parent))} --overwrite"


def _number(path: Path) -> str:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return match[1]
