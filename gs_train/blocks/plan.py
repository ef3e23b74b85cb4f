"""The plan of a city: its ``plan.json`` and one folder for each block. Every command of ``blocks`` starts here.

``CITY/plan.json``, ``plan.svg``, ``settings.toml`` (of the whole), and for each block ``CITY/blocks/N/part.json`` (a
scene) and two ordinary run folders with their presets: ``run`` and ``settings.toml`` of its training, ``finish`` and
``finish.toml`` of its finish, the last steps together with the Gaussians of its neighbours.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from gs_train.atomic_write import atomic_write_text
from gs_train.errors import UserError
from gs_train.run.folder import RunFolder
from gs_train.scene.part import PART, Part, Region, read_part

_FORMAT = 1
BYTES_PER_GAUSSIAN = 3000
"""Memory of a training per Gaussian: parameters, gradients, Adam moments and the buffers of a render."""


@dataclass(frozen=True, kw_only=True)
class PlannedBlock:
    """A block of a plan."""

    number: int
    """From 0; the name of its folder."""
    photos: int
    """Number of training views."""
    points: int
    """Number of the scene's points in the box."""
    iterations: int
    """Steps of its training."""
    finish_iterations: int
    """Steps of its finish, after the training."""
    max_gaussians: int
    """Upper limit of its training. A part of its Gaussians ends outside the box."""
    expected_gaussians: int
    """Upper limit of the Gaussians that end in the box."""
    memory_bytes: int
    """Estimate for its training, photos included. The finish needs no more."""

    @property
    def steps(self) -> int:
        """Steps of the training and the finish."""
        return self.iterations + self.finish_iterations


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The content of a ``plan.json``."""

    path: Path
    """The folder of the city."""
    scene: Path
    """The whole scene."""
    fingerprint: str
    """``scene_fingerprint`` of the whole scene."""
    offset: tuple[float, float, float]
    """Offset of the merged splat: scene coordinates = offset + positions. Zeros for a scene near the origin."""
    test_views: int
    """Number of held-out views of the whole scene."""
    blocks: tuple[PlannedBlock, ...]
    """At least one, by number."""

    @property
    def settings(self) -> Path:
        """The settings of the whole."""
        return self.path / "settings.toml"

    @property
    def picture(self) -> Path:
        """The drawing of the plan."""
        return self.path / "plan.svg"

    def folder(self, block: PlannedBlock) -> Path:
        """The folder of a block, which is a scene, too."""
        return self.path / "blocks" / str(block.number)

    def run(self, block: PlannedBlock) -> RunFolder:
        """The run of a block's training."""
        return RunFolder(self.folder(block) / "run")

    def block_settings(self, block: PlannedBlock) -> Path:
        """The preset of a block's training."""
        return self.folder(block) / "settings.toml"

    def finish(self, block: PlannedBlock) -> RunFolder:
        """The run of a block's finish."""
        return RunFolder(self.folder(block) / "finish")

    def finish_settings(self, block: PlannedBlock) -> Path:
        """The preset of a block's finish."""
        return self.folder(block) / "finish.toml"

    def part(self, block: PlannedBlock) -> Part:
        """The photos and the region of a block; raises UserError if its file is missing or damaged."""
        part = read_part(self.folder(block))
        if part is None:
            raise UserError(f"{self.folder(block) / PART} is missing: plan the blocks again.")
        return part

    def region(self, block: PlannedBlock) -> Region:
        """The box of a block, scene coordinates."""
        return self.part(block).region

    def start(self, block: PlannedBlock) -> Path:
        """The splat that a block's finish starts from; it exists during the finish only."""
        return self.folder(block) / "start.ply"

    def trained(self, block: PlannedBlock) -> Path | None:
        """The splat at the end of a block's training; None before."""
        path = self.run(block).point_cloud(block.iterations)
        return path if path.is_file() else None

    def finished(self, block: PlannedBlock) -> Path | None:
        """The splat at the end of a block's finish; None before."""
        path = self.finish(block).point_cloud(block.finish_iterations)
        return path if path.is_file() else None

    def splat(self, block: PlannedBlock) -> Path | None:
        """The last splat of a block; None before the end of its training."""
        return self.finished(block) or self.trained(block)

    def write(self) -> None:
        """Write ``plan.json``; raises OSError."""
        content = {"format": _FORMAT} | asdict(self)
        del content["path"]
        content["scene"] = str(self.scene)
        atomic_write_text(self.path / "plan.json", json.dumps(content, indent=1) + "\n")


def read_plan(city: Path) -> Plan:
    """The plan of a city.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = city / "plan.json"
    if not path.is_file():
        raise UserError(f"{city} holds no plan.json: write one with gs-train blocks plan SCENE --out {city}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']}, and this version knows {_FORMAT}")
        x, y, z = map(float, content["offset"])
        plan = Plan(
            path=city,
            scene=Path(content["scene"]),
            fingerprint=str(content["fingerprint"]),
            offset=(x, y, z),
            test_views=int(content["test_views"]),
            blocks=tuple(PlannedBlock(**entry) for entry in content["blocks"]),
        )
        counts = [value for block in plan.blocks for value in asdict(block).values()]
        if not plan.blocks or not all(isinstance(value, int) and value >= 0 for value in counts):
            raise ValueError("its blocks are no counts")
        if [block.number for block in plan.blocks] != list(range(len(plan.blocks))) or not all(
            map(math.isfinite, plan.offset)
        ):
            raise ValueError("its numbers do not fit")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): plan the blocks again.") from None
    return plan
