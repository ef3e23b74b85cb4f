"""``gs-train sample``: writes a procedural scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gs_train.errors import UserError

_LEAST = {"seed": 0, "views": 2, "width": 16, "height": 16, "points": 0}


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Write a small procedural scene, with photos, cameras and points, for a first try."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder to write the scene to. It must be new or empty."""
    seed: int = 0
    """Seed of the textures, the cameras and the points. Another seed gives another scene."""
    views: int = 40
    """Number of photos, taken on two rings around the table. 20 trains faster."""
    width: int = 320
    """Width of each photo, px."""
    height: int = 240
    """Height of each photo, px."""
    points: int = 8000
    """Approximate number of points to start the training from."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}: it must be at least {least}.")

    def run(self) -> int:
        """Write the scene."""
        from gs_train.sample.scene import write_sample_scene

        write_sample_scene(
            self.folder, seed=self.seed, views=self.views, width=self.width, height=self.height, points=self.points
        )
        print(f"Wrote {self.views} photos, cameras and points to {self.folder}.\nNext: gs-train train {self.folder}")
        return 0
