"""``TrainConfig``: every setting of a training run.

Presets and TOML files are in ``toml.py``. Two equal resolved configs train the same splat from the same scene, so every
choice that changes the result is a field here or in a class held by a field.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from gs_train.density.config import DensityConfig
from gs_train.model.schedule import OptimizerConfig
from gs_train.options import (
    CORRECTIONS,
    DEVICES,
    MODEL,
    MOST_USED,
    OUTPUT,
    SCHEDULE,
    check,
    check_device,
    resolve,
    setting,
)
from gs_train.scene.load import SceneConfig

BackgroundKind = Literal["black", "white", "random", "learned"]
ExposureKind = Literal["none", "affine"]

HIGHEST_TRAINED_SH_DEGREE = 3


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run. The defaults are the preset ``default``.

    A field typed ``int | float`` is a point in the schedule: a whole number is an iteration, a number with a decimal
    point is a fraction of ``iterations``.

    Raises:
        UserError: a value is outside its range; the message names the flag.
    """

    iterations: int = setting(4000, group=MOST_USED, at_least=1, on_resume=True)
    """Optimizer steps. More gives a better picture; 2000 shows a first one."""
    max_gaussians: int = setting(200_000, group=MOST_USED, at_least=1)
    """Upper limit of the number of Gaussians. Lower it for a smaller file, raise it for scenes larger than a room."""
    device: Annotated[str, tyro.conf.arg(metavar=DEVICES)] = setting("auto", group=MOST_USED, on_resume=True)
    """Device to train on. auto uses an NVIDIA GPU if CUDA works, otherwise the CPU. cuda:N uses the GPU with the number
    N of several, from 0."""
    background: BackgroundKind = setting("random", group=MOST_USED, shapes_state=True)
    """Colour behind the Gaussians. random: new colour each step, black at evaluation. learned: optimised. Use white or
    black for pictures of single objects with alpha."""
    sh_degree: int = setting(3, group=MODEL, at_least=0, at_most=HIGHEST_TRAINED_SH_DEGREE, shapes_state=True)
    """Spherical-harmonics degree of the colours, 0 to 3. Lower it for smaller files without reflections."""
    sh_palette: int = setting(0, group=MODEL, at_least=0, at_most=65536)
    """Number of sets of view-dependent colours that the Gaussians share from 0.8 of the training on; 0 leaves each its
    own. 4096 keeps the picture in a small .sog."""
    sh_degree_interval: int | float = setting(0.1, group=SCHEDULE, above=0)
    """Iterations between two raises of the active spherical-harmonics degree; 1000, or 0.1 for a fraction of
    --iterations."""
    lambda_dssim: float = setting(0.2, group=MODEL, at_least=0, at_most=1)
    """Weight w of the structural term in the loss (1 - w) * L1 + w * (1 - SSIM). 0 is a little faster and blurrier."""
    start_downscale: Literal[1, 2, 4, 8] = setting(2, group=SCHEDULE)
    """Train at 1/N of the photos' size at first and double the size until --full-size-from; 2 is faster, 1 always
    trains at full size."""
    full_size_from: int | float = setting(0.15, group=SCHEDULE)
    """Iteration from which photos have their full size; 1000, or 0.15 for a fraction of --iterations."""
    batch_size: int = setting(1, group=SCHEDULE, at_least=1)
    """Views per step after --batch-from (1 before). More reduces noise late in training; cost grows linearly."""
    batch_from: int | float = setting(0.9, group=SCHEDULE)
    """Iteration from which a step has --batch-size views; 27000, or 0.9 for a fraction of --iterations."""
    antialiased: bool = setting(False, group=MODEL)
    """Dim Gaussians smaller than a pixel. Use it for a splat that is shown at other sizes than it was trained at."""
    init_from: str = setting("", group=MOST_USED)
    """Splat file, run or checkpoint to start from instead of the scene's points. Use it to refine a splat."""
    random_points: bool = setting(False, group=MODEL)
    """Start a scene without points from random points, as published methods do, instead of points from its photos."""
    exposure: ExposureKind = setting("none", group=CORRECTIONS, shapes_state=True)
    """affine learns a colour transform per training photo. Use it for photos that differ in exposure or white
    balance."""
    refine_poses: bool = setting(False, group=CORRECTIONS, shapes_state=True)
    """Correct the training cameras' poses and write them to cameras_refined.json. Use it for poses that are slightly
    wrong, by half a degree or so. It keeps poses that the scene's points confirm; otherwise a step takes a third
    longer."""
    corrections_until: int | float = setting(1.0, group=CORRECTIONS, above=0)
    """Iteration at which the learning rate of exposures reaches its final value and poses are final; 4000, or 1.0 for a
    fraction of --iterations."""
    depth_weight: float = setting(0.0, group=CORRECTIONS, at_least=0)
    """Weight of the difference between rendered depth and the depth of a COLMAP scene's points; 0.1 helps flat or
    distant parts that few photos see."""
    seed: int = setting(0, group=OUTPUT, at_least=0, below=2**62)
    """Seed of every random draw. Change it to see how much a result depends on chance."""
    image_cache_gb: float = setting(0.0, group=OUTPUT, at_least=0, below=1e299, on_resume=True)
    """Memory for decoded photos, GB; 0 uses half of the free memory. Photos beyond it are cached decoded on the run's
    disk."""
    save_every: int = setting(1000, group=OUTPUT, at_least=1, on_resume=True)
    """Iterations between two checkpoints. A killed run loses at most this many; lower it if runs may be killed."""
    eval_every: int = setting(0, group=OUTPUT, at_least=0, on_resume=True)
    """Measure the test views every N iterations and write the figures to metrics.jsonl; 0 never does. 1000 shows when a
    longer run stops to pay."""
    keep: int = setting(2, group=OUTPUT, at_least=1, on_resume=True)
    """Number of newest checkpoints to keep. Raise it to go back further; 1000 keeps practically all."""
    log_every: int = setting(10, group=OUTPUT, at_least=1, on_resume=True)
    """Iterations between two lines of metrics.jsonl. 1 plots every step; 100 is enough for long runs."""
    scene: Annotated[SceneConfig, tyro.conf.arg(name="")] = field(default_factory=SceneConfig)
    """How the scene is read."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            xyz_lr_unit="pixel", xyz_lr_init=0.2, xyz_lr_final=0.002, late_lr_factor=0.1
        )
    )
    """Learning rates. By default a training gives the rates of the positions in pixels, and lets the other rates fall
    late."""
    density: DensityConfig = field(default_factory=DensityConfig)
    """Density control: where Gaussians are added and removed."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        check(self)
        check_device(self.device)

    def resolved(self) -> TrainConfig:
        """The same schedule in whole iterations.

        A resolved config has no fractions left, so resolving it again changes nothing, even with another
        ``iterations``.
        """
        return replace(
            resolve(self, self.iterations),
            optimizer=resolve(self.optimizer, self.iterations),
            density=self.density.resolved(self.iterations),
        )
