"""TrainConfig: every setting of a training run, and the TOML text a run keeps of it.

Not the presets and not the reading of TOML files (``gs_train.config.toml``). The invariant: two equal resolved configs train the same splat
from the same scene, so whatever changes the result is a field here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from gs_train.density.config import DensityConfig
from gs_train.errors import UserError
from gs_train.model.schedule import OptimizerConfig
from gs_train.scene.load import SceneConfig
from gs_train.training.schedule import BackgroundKind, ExposureKind

MAX_SH_DEGREE = 3

_Config = TypeVar("_Config")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run. Raises UserError naming the flag when a value makes no sense.

    A field typed ``int | float`` is a point in the schedule: a whole number is an iteration, a number with a decimal point is a fraction
    of ``iterations``.
    """

    iterations: int = 30_000
    """Optimizer steps to take, one view each but for --batch-size."""
    max_gaussians: int = 1_000_000
    """Never hold more Gaussians than this."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to train; auto takes an NVIDIA GPU when CUDA works, else the CPU."""
    background: BackgroundKind = "black"
    """Train and render over this colour; random takes another one each step (and is evaluated over black), learned finds one."""
    sh_degree: int = 3
    """Highest spherical-harmonics degree of the colours, 0 to 3."""
    sh_degree_interval: int | float = 0.0333
    """Raise the active spherical-harmonics degree by one every so often; 1000 is iterations, 0.05 a fraction of --iterations."""
    lambda_dssim: float = 0.2
    """Weight of the structural term in the loss: (1 - w) * L1 + w * (1 - SSIM)."""
    start_downscale: Literal[1, 2, 4, 8] = 1
    """Start at 1/N of the photos' size and double that until --full-size-from; 1 trains at full size throughout."""
    full_size_from: int | float = 0.3
    """Train at full size from this iteration on, or with a decimal point from this fraction of --iterations on."""
    batch_size: int = 1
    """Views a step from --batch-from on; before that, one. Several calm the end of a training, at that many times the time."""
    batch_from: int | float = 0.9
    """Take --batch-size views a step from this iteration on, or with a decimal point from this fraction of --iterations on."""
    antialiased: bool = False
    """Make Gaussians smaller than a pixel fainter, so that the splat looks right at other sizes than it was trained at."""
    init_from: str = ""
    """Start from this splat (a .ply file) instead of the scene's points, to refine it."""
    exposure: ExposureKind = "none"
    """affine gives every training photo a colour transform of its own, for photos that differ in exposure or white balance."""
    refine_poses: bool = False
    """Correct the poses of the training cameras while training; the corrected ones are written to cameras_refined.json. Best with --preset
    classic, whose positions move slowly."""
    depth_weight: float = 0.0
    """Weight in the loss of the difference between rendered depth and that of a COLMAP scene's points; 0 for none, 0.1 is strong."""
    seed: int = 0
    """Seed of every random draw."""
    image_cache_gb: float = 0.0
    """Memory for decoded photos, GB; where they need more, they lie in a file on the run's disk. 0 takes half of the free memory."""
    save_every: int = 1000
    """Save a checkpoint every so many iterations, and at the end."""
    keep: int = 2
    """So many checkpoints are kept, the newest ones."""
    log_every: int = 10
    """Write a line to metrics.jsonl every so many iterations."""
    scene: Annotated[SceneConfig, tyro.conf.arg(name="")] = field(default_factory=SceneConfig)
    """How the scene is read."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Learning rates."""
    density: DensityConfig = field(default_factory=DensityConfig)
    """Where Gaussians are added and removed."""

    def __post_init__(self) -> None:
        for name in ("iterations", "max_gaussians", "batch_size", "seed", "save_every", "keep", "log_every"):
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if value < least:
                raise UserError(f"{_flag(name)} is {value}; it must be at least {least}.")
        if self.seed >= 2**62:
            raise UserError(f"--seed is {self.seed}; it must be below 2**62.")
        if not 0 <= self.sh_degree <= MAX_SH_DEGREE:
            raise UserError(f"--sh-degree is {self.sh_degree}; it must lie in 0 to {MAX_SH_DEGREE}.")
        if not 0 <= self.depth_weight < math.inf:
            raise UserError(f"--depth-weight is {self.depth_weight}; give a number of at least 0.")
        if not 0 <= self.lambda_dssim <= 1:
            raise UserError(f"--lambda-dssim is {self.lambda_dssim}; it must lie in 0 to 1.")
        if self.start_downscale not in (1, 2, 4, 8):
            raise UserError(f"--start-downscale is {self.start_downscale}; give 1, 2, 4 or 8.")
        for name in ("full_size_from", "batch_from"):
            value = getattr(self, name)
            if value < 0 or (isinstance(value, float) and not value <= 1):
                raise UserError(
                    f"{_flag(name)} is {value}; give an iteration, or with a decimal point a fraction of --iterations from 0.0 to 1.0."
                )
        if not 0 <= self.image_cache_gb * 1e9 < math.inf:
            raise UserError(
                f"--image-cache-gb is {self.image_cache_gb}; give a number of gigabytes, or 0 for half of the free memory."
            )
        interval = self.sh_degree_interval
        if not 0 < interval < math.inf or (isinstance(interval, float) and interval > 1):
            raise UserError(
                f"--sh-degree-interval is {interval}; it must be at least 1 iteration, or with a decimal point a fraction of "
                "--iterations up to 1.0."
            )

    def resolved(self) -> TrainConfig:
        """The same schedule in whole iterations. Resolving twice changes nothing, whatever ``iterations`` has become since."""
        return replace(
            _resolve(self, self.iterations),
            optimizer=_resolve(self.optimizer, self.iterations),
            density=_resolve(self.density, self.iterations),
        )

    def to_toml(self, scene_path: Path | None = None) -> str:
        """TOML text that ``gs_train.config.toml.read_config`` reads back to an equal config.

        Args:
            scene_path: the scene folder, written as the key ``scene_path``, so that a run knows what it was trained on.
        """
        head = [] if scene_path is None else [f"scene_path = {_toml_value(str(scene_path))}"]
        tables = []
        for entry in fields(self):
            value = getattr(self, entry.name)
            if is_dataclass(value):
                body = [f"{inner.name} = {_toml_value(getattr(value, inner.name))}" for inner in fields(value)]
                tables += ["", f"[{entry.name}]", *body]
            else:
                head.append(f"{entry.name} = {_toml_value(value)}")
        return "\n".join([*head, *tables]) + "\n"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _schedule_points(config: Any) -> Iterator[tuple[str, int | float]]:
    """Names and values of the fields typed ``int | float``."""
    hints = get_type_hints(type(config))
    for entry in fields(config):
        if hints[entry.name] == int | float:
            yield entry.name, getattr(config, entry.name)


def _resolve(config: _Config, iterations: int) -> _Config:
    """Turn fractions into iterations. A fraction above zero is at least iteration 1, because 0 would mean something else."""
    changed: dict[str, Any] = {}
    for name, value in _schedule_points(config):
        if isinstance(value, float):
            changed[name] = max(1, round(value * iterations)) if value > 0 else 0
    return replace(config, **changed)  # type: ignore[type-var]


def _toml_value(value: str | bool | int | float) -> str:
    """One TOML value. Python's ``repr`` of a finite float is valid TOML and reads back to the same float."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_toml_character(character) for character in value) + '"'
    return repr(value)


def _toml_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if ord(character) < 0x20 or ord(character) == 0x7F:
        return f"\\u{ord(character):04x}"
    return character
