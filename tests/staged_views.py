"""Two cameras side by side whose photos may be anything, and a few grey Gaussians to look at with them."""

from __future__ import annotations

import torch
from torch import Tensor

from gs_train.model.gaussians import GaussianModel
from gs_train.render.cpu.rasterizer import CpuRasterizer
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Camera

CAMERA = Camera(width=40, height=30, fx=40.0, fy=40.0, cx=20.0, cy=15.0)


class StagedViews:
    """Two cameras side by side, and photos that may be anything."""

    def __init__(self, photos: list[Tensor], weight: Tensor | None = None) -> None:
        self.photos, self.weight = photos, weight

    def __len__(self) -> int:
        return len(self.photos)

    def photo(self, index: int) -> tuple[Tensor, Tensor | None]:
        return self.photos[index], self.weight

    def render(self, model: GaussianModel, index: int) -> RenderOutput:
        pose = torch.eye(4)
        pose[0, 3] = -0.1 * index
        return CpuRasterizer().render(model, CAMERA, pose, torch.zeros(3))

    def exposed(self, image: Tensor, index: int) -> Tensor:
        return image


def grey_model(rows: list[tuple[float, float, float, float]], *, scale: float = 0.05) -> GaussianModel:
    """Grey Gaussians at (x, y, z) with an opacity each."""
    count = len(rows)
    return GaussianModel(
        {
            "xyz": torch.tensor([row[:3] for row in rows]),
            "f_dc": torch.zeros(count, 1, 3),
            "f_rest": torch.zeros(count, 3, 3),
            "opacity": torch.tensor([row[3] for row in rows]).logit()[:, None],
            "scaling": torch.full((count, 3), scale).log(),
            "rotation": torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1),
        }
    )
