"""gs_train: photos with known cameras in, a splat out.

The package imports nothing until a name is asked for, so that ``gs-train --help`` does not wait for torch. Everything that is not named in
``__all__`` is private.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gs_train.config.settings import TrainConfig
    from gs_train.model.gaussians import GaussianModel
    from gs_train.scene.load import SceneConfig, load_scene
    from gs_train.training.loop import train

# torch's idle threads spin for milliseconds after each of its parallel loops, on the very cores that the rasterizer's threads are given
# next: a CPU iteration takes a quarter longer. OpenMP reads this when torch is imported; whoever has set it, or has imported torch, keeps
# what there is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

__all__ = ["GaussianModel", "SceneConfig", "TrainConfig", "__version__", "load_scene", "train"]

_HOMES = {
    "GaussianModel": "gs_train.model.gaussians",
    "SceneConfig": "gs_train.scene.load",
    "TrainConfig": "gs_train.config.settings",
    "load_scene": "gs_train.scene.load",
    "train": "gs_train.training.loop",
}


def __getattr__(name: str) -> Any:
    """Import a public name from where it lives, on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
