"""``gs-train sample``: writes a procedural scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

import tyro

from gs_train.console import show
from gs_train.options import check, setting


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Write a small procedural scene, with photos, cameras and points, for a first try."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder to write the scene to. It must be new or empty."""
    seed: int = setting(0, at_least=0)
    """Seed of the textures, the cameras and the points. Another seed gives another scene."""
    views: int = setting(40, at_least=2)
    """Number of photos, taken on two rings around the table. 20 trains faster."""
    width: int = setting(320, at_least=16)
    """Width of each photo, px. Larger photos show more detail and train longer; 640 is large."""
    height: int = setting(240, at_least=16)
    """Height of each photo, px."""
    points: int = setting(8000, at_least=0)
    """Approximate number of points to start the training from; 0 tries a start from random points."""

    def __post_init__(self) -> None:
        check(self)

    def run(self) -> int:
        """Write the scene."""
        from gs_train.sample.scene import write_sample_scene

        write_sample_scene(
            self.folder, seed=self.seed, views=self.views, width=self.width, height=self.height, points=self.points
        )
        show(f"Wrote {self.views} photos, cameras and points to {self.folder}.")
        show(f"Next: gs-train train {quote(str(self.folder))}")
        return 0
