"""Train with a density controller of your own: split the largest Gaussians that many views see, prune the transparent
ones.

    python examples/02_density_controller.py data/sample runs/controller

`gs_train.DensityController` documents each method. To offer a controller as `--density.kind`, see CONTRIBUTING.md.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gs_train import (
    DensityConfig,
    DensityPlan,
    DensitySetup,
    GaussianModel,
    RenderOutput,
    load_preset,
    load_scene,
    train,
)


class LargestFirst:
    """Every ``interval`` iterations, split the 5 % largest Gaussians among those seen since the last round."""

    needs_absgrad: ClassVar[bool] = False

    def __init__(self, setup: DensitySetup) -> None:
        self._config, self._most = setup.config, setup.max_gaussians
        self._views_seen = torch.zeros(setup.gaussians, device=setup.device)

    def regulariser(self, model: GaussianModel) -> Tensor | None:
        return None

    def measure(self, render: RenderOutput) -> Tensor:
        return render.visible().float()

    def observe(self, measured: Tensor) -> None:
        self._views_seen += measured

    def plan(self, model: GaussianModel, iteration: int, background: Tensor) -> DensityPlan | None:
        if not self._config.is_round(iteration, self._config.until_iteration):
            return None
        transparent = model.opacities() < self._config.min_opacity
        # One Gaussian always stays, because an empty model cannot learn.
        transparent[model.opacities().argmax()] = False
        room = max(0, self._most - len(model))
        size = model.scales().amax(dim=1) * (self._views_seen > 0) * ~transparent
        largest = size.topk(min(room, len(model) // 20)).indices
        plan = DensityPlan(split=largest[size[largest] > 0], drop=transparent.nonzero().squeeze(1))
        self._views_seen = torch.zeros(plan.row_count(len(model)), device=model.device)
        return plan

    def state_dict(self) -> dict[str, Any]:
        return {"views_seen": self._views_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._views_seen = state["views_seen"].to(self._views_seen.device)


def main(scene_path: str, out: str, iterations: str = "300") -> None:
    scene = load_scene(scene_path)
    rounds = DensityConfig(from_iteration=0.1, until_iteration=0.8, interval=20)
    config = replace(load_preset("fast"), iterations=int(iterations), density=rounds)
    state = train(scene, config, Path(out), density=LargestFirst, notify=print)
    print(f"{len(scene.points.xyz):,} points became {len(state.model):,} Gaussians: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
