"""Checks of several processes before they train together: a view for each, and the same files and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gs_train import __version__
from gs_train.config.settings import TrainConfig
from gs_train.distributed.processes import Processes
from gs_train.errors import UserError
from gs_train.run.checkpoint import scene_fingerprint
from gs_train.scene.types import Scene
from gs_train.training.state import TrainState


def check_batch(config: TrainConfig, processes: Processes, notify: Callable[[str], None]) -> None:
    """Check that every process has a view in a step, and tell if some of them idle at first.

    Raises:
        UserError: a batch has fewer views than there are processes.
    """
    count, size = processes.count, config.batch_size
    if size < count:
        raise UserError(
            f"--batch-size is {size} but {count} processes train: give --batch-size {count} or a multiple of it, or "
            "start fewer processes."
        )
    if count > 1 and config.batch_from > 1:
        notify(
            f"{count - 1} of {count} processes idle until iteration {config.batch_from}, because steps have one view "
            "before --batch-from: --batch-from 0 uses all from the start."
        )


def replica_facts(scene: Scene, config: TrainConfig, state: TrainState) -> Mapping[str, str]:
    """Everything that must be equal in all processes: name -> a version, a number or a short hash."""
    views = [*scene.train_views, *scene.test_views]
    files = [view.image_path for view in views] + [view.mask.path for view in views if view.mask is not None]
    points = (scene.points.xyz, scene.points.rgb, np.zeros(0) if scene.points.ids is None else scene.points.ids)
    return {
        "versions": f"gs-train {__version__}, torch {torch.__version__}, numpy {metadata.version('numpy')}",
        "settings": _hash([repr(config)]),
        "photos": _hash(_content(path) for path in files),
        "cameras": _hash([scene_fingerprint(scene)]),
        "points": _hash(array.tobytes() for array in points),
        "checkpoints": f"iteration {state.iteration}",
        "Gaussians": _hash(_flat(state.state_dict() | {"elapsed_s": 0.0})),
    }


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _flat(value: Any) -> Iterable[str | bytes]:
    """The numbers of a state in a fixed order."""
    if isinstance(value, torch.Tensor):
        yield value.detach().cpu().numpy().tobytes()
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _flat(each)
    else:
        yield repr(value)


def _hash(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
    return digest.hexdigest()[:12]
