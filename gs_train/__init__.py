"""gs_train: photos with known cameras in, a 3D Gaussian splat out.

The names in ``__all__`` are public; every other name is private and may change. A name is imported from its module on
first use, so that ``gs-train --help`` does not wait for torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gs_train.cameras.camera import Camera
    from gs_train.config.settings import TrainConfig
    from gs_train.config.toml import load_preset
    from gs_train.density.config import DensityConfig
    from gs_train.density.types import DensityController, DensityPlan, DensitySetup
    from gs_train.errors import UserError
    from gs_train.formats.registry import read_splat, write_splat
    from gs_train.formats.splat_data import SplatData
    from gs_train.model.gaussians import GaussianModel
    from gs_train.model.schedule import OptimizerConfig
    from gs_train.render.cpu import rasterization
    from gs_train.render.select import select_rasterizer
    from gs_train.render.types import RenderOutput
    from gs_train.run.open import OpenedSplat, open_splat
    from gs_train.scene.load import SceneConfig, load_scene
    from gs_train.scene.types import Scene, View
    from gs_train.training.loop import train
    from gs_train.training.state import TrainState

# torch's idle threads spin for milliseconds after each parallel loop, on the cores that the rasterizer's threads need
# next: a CPU iteration takes a quarter longer. OpenMP reads the variable when torch is imported. A value that the user
# has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_MODULES = {
    "Camera": "gs_train.cameras.camera",
    "DensityConfig": "gs_train.density.config",
    "DensityController": "gs_train.density.types",
    "DensityPlan": "gs_train.density.types",
    "DensitySetup": "gs_train.density.types",
    "GaussianModel": "gs_train.model.gaussians",
    "OpenedSplat": "gs_train.run.open",
    "OptimizerConfig": "gs_train.model.schedule",
    "RenderOutput": "gs_train.render.types",
    "Scene": "gs_train.scene.types",
    "SceneConfig": "gs_train.scene.load",
    "SplatData": "gs_train.formats.splat_data",
    "TrainConfig": "gs_train.config.settings",
    "TrainState": "gs_train.training.state",
    "UserError": "gs_train.errors",
    "View": "gs_train.scene.types",
    "load_preset": "gs_train.config.toml",
    "load_scene": "gs_train.scene.load",
    "open_splat": "gs_train.run.open",
    "rasterization": "gs_train.render.cpu",
    "read_splat": "gs_train.formats.registry",
    "select_rasterizer": "gs_train.render.select",
    "train": "gs_train.training.loop",
    "write_splat": "gs_train.formats.registry",
}
"""Public name -> its module."""

__all__ = [
    "Camera",
    "DensityConfig",
    "DensityController",
    "DensityPlan",
    "DensitySetup",
    "GaussianModel",
    "OpenedSplat",
    "OptimizerConfig",
    "RenderOutput",
    "Scene",
    "SceneConfig",
    "SplatData",
    "TrainConfig",
    "TrainState",
    "UserError",
    "View",
    "__version__",
    "load_preset",
    "load_scene",
    "open_splat",
    "rasterization",
    "read_splat",
    "select_rasterizer",
    "train",
    "write_splat",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value
