"""Training views with arbitrary photos, grey Gaussians in front of them, and the setup of a density controller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from gs_train.cameras.camera import Camera
from gs_train.density.config import DensityConfig
from gs_train.density.types import DensitySetup, Views
from gs_train.model.gaussians import GaussianModel
from gs_train.render.cpu.rasterizer import CpuRasterizer
from gs_train.render.types import RenderOutput

CAMERA = Camera(width=40, height=30, fx=40.0, fy=40.0, cx=20.0, cy=15.0)


BLACK = torch.zeros(3)


class StagedViews:
    """Views with arbitrary photos, from cameras 0.1 apart along x."""

    def __init__(self, photos: list[Tensor], weight: Tensor | None = None) -> None:
        self.photos, self.weight = photos, weight

    def __len__(self) -> int:
        return len(self.photos)

    def photo(self, index: int, background: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.photos[index], self.weight

    def render(self, model: GaussianModel, index: int, background: Tensor) -> RenderOutput:
        pose = torch.eye(4)
        pose[0, 3] = -0.1 * index
        return CpuRasterizer().render(model, CAMERA, pose, background)

    def exposed(self, image: Tensor, index: int) -> Tensor:
        return image

    def map(self, function: Callable[[int], Tensor], indices: Iterable[int]) -> Iterator[Tensor]:
        return map(function, indices)


def grey_model(rows: list[tuple[float, float, float, float]], *, scale: float = 0.05) -> GaussianModel:
    """One grey Gaussian for each row (x, y, z, opacity)."""
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


def density_setup(
    config: DensityConfig,
    *,
    views: Views | None = None,
    gaussians: int = 1,
    max_gaussians: int = 1000,
    extent: float = 10.0,
    photo_pixels: int = 10**6,
    white_background: bool = False,
    seed: int = 0,
) -> DensitySetup:
    """The setup of a controller on the CPU. Without ``views``, it has one view with a white photo."""
    return DensitySetup(
        config=config,
        max_gaussians=max_gaussians,
        extent=extent,
        gaussians=gaussians,
        photo_pixels=photo_pixels,
        white_background=white_background,
        views=StagedViews([torch.ones(CAMERA.height, CAMERA.width, 3)]) if views is None else views,
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
    )
