"""Multi-view density control: the scores of error and contribution, the budget, growth and pruning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from staged_views import BLACK, CAMERA, StagedViews, density_setup, grey_model
from torch import Tensor

from gs_train.density.apply import apply_plan
from gs_train.density.config import DensityConfig
from gs_train.density.multiview import PIXELS_PER_GAUSSIAN, MultiviewDensity, budget
from gs_train.density.scores import score_views
from gs_train.model.gaussians import GaussianModel
from gs_train.render.cpu.rasterizer import CpuRasterizer
from gs_train.render.types import RenderOutput


def make_density(
    views: StagedViews, *, start: int, max_gaussians: int = 100, pixels: int = 10_000, **changes: Any
) -> MultiviewDensity:
    config = DensityConfig(
        kind="multiview",
        from_iteration=100,
        until_iteration=1100,
        refine_until_iteration=1100,
        opacity_reset_interval=0,
        **changes,
    )
    setup = density_setup(config, max_gaussians=max_gaussians, photo_pixels=pixels, gaussians=start, views=views)
    return MultiviewDensity(setup)


def photos_of(model: GaussianModel, count: int = 2) -> list[Tensor]:
    views = StagedViews([torch.zeros(30, 40, 3)] * count)
    return [views.render(model, index, BLACK).image.detach() for index in range(count)]


def test_a_contribution_is_the_sum_of_the_blending_weights() -> None:
    """The front Gaussian contributes its alpha. The back Gaussian contributes its alpha times the transmittance of the
    front Gaussian. The sum is the alpha of the image."""
    model = grey_model([(0.0, 0.0, 2.0, 0.6), (0.0, 0.0, 3.0, 0.9), (50.0, 0.0, 2.0, 0.9)])
    views = StagedViews(photos_of(model))
    scores = score_views(model, views, [0], high_error=0.1, background=BLACK)
    alone = [views.render(grey_model([row]), 0, BLACK).alpha for row in ((0.0, 0.0, 2.0, 0.6), (0.0, 0.0, 3.0, 0.9))]
    assert scores.contribution[0].item() == pytest.approx(alone[0].sum().item(), rel=1e-4)
    assert scores.contribution[1].item() == pytest.approx(((1.0 - alone[0]) * alone[1]).sum().item(), rel=1e-4)
    assert scores.contribution[:2].sum().item() == pytest.approx(
        views.render(model, 0, BLACK).alpha.sum().item(), rel=1e-4
    )
    assert scores.seen.tolist() == [True, True, False] and scores.contribution[2].item() == 0.0
    assert scores.error.tolist() == [0.0, 0.0, 0.0]
    both = score_views(model, views, [0, 1], high_error=0.1, background=BLACK)
    other = score_views(model, views, [1], high_error=0.1, background=BLACK)
    assert torch.equal(both.contribution, torch.maximum(scores.contribution, other.contribution)) and torch.equal(
        both.error, scores.error + other.error
    )


def test_errors_count_for_the_gaussians_that_are_blended_into_the_pixel() -> None:
    model = grey_model([(-0.5, 0.0, 2.0, 0.9), (0.5, 0.0, 2.0, 0.9)])
    photos = photos_of(model)
    wrong = photos[0].clone()
    wrong[:, :20] += 0.3
    wrong[:, 20:] += 0.01
    scores = score_views(model, StagedViews([wrong]), [0], high_error=0.05, background=BLACK)
    assert scores.error[0].item() == pytest.approx(0.3 * scores.contribution[0].item(), rel=1e-3)
    assert scores.error[1].item() == 0.0


def test_the_budget_grows_linearly() -> None:
    config = DensityConfig(
        from_iteration=100, until_iteration=1100, refine_until_iteration=1100, opacity_reset_interval=0
    )
    assert [budget(iteration, 10, 110, config) for iteration in (50, 100, 600, 1100, 2000)] == [10, 10, 60, 110, 110]
    assert budget(600, 500, 100, config) == 100


@pytest.mark.parametrize("limit", [{"max_gaussians": 6}, {"pixels": 7 * PIXELS_PER_GAUSSIAN - 1}])
def test_gaussians_with_the_largest_errors_grow_up_to_the_budget(limit: dict[str, int]) -> None:
    model = grey_model([(x, 0.0, 2.0, 0.9) for x in (-0.6, -0.2, 0.2, 0.6)])
    photos = photos_of(model)
    for photo in photos:
        photo[:, :12] += 0.2
        photo[:, 12:20] += 0.1
    plan = make_density(StagedViews(photos), start=4, **limit).plan(model, 600, BLACK)
    assert plan is not None
    assert plan.clone.tolist() == [0] and len(plan.split) == 0 and len(plan.drop) == 0
    plan = make_density(StagedViews(photos), start=4, percent_dense=0.001, **limit).plan(model, 1000, BLACK)
    assert plan is not None
    assert plan.split.tolist() == [0, 1] and len(plan.clone) == 0
    apply_plan(plan, model, torch.Generator().manual_seed(0), reset_opacity_to=0.01)
    assert len(model) == 6


def test_gaussians_that_no_view_needs_are_dropped_after_growth() -> None:
    model = grey_model([(0.0, 0.0, 2.0, 0.99), (0.0, 0.0, 2.5, 0.006), (0.5, 0.3, 2.0, 0.9), (0.5, 0.0, 2.0, 0.001)])
    views = StagedViews(photos_of(model))
    plan = make_density(views, start=4).plan(model, 600, BLACK)
    assert plan is not None
    assert plan.drop.tolist() == [3] and len(plan.clone) == 0, "while it grows, only the transparent go"
    plan = make_density(views, start=4).plan(model, 1100, BLACK)
    assert plan is not None
    assert plan.drop.tolist() == [1, 3] and len(plan.clone) == 0
    assert make_density(views, start=4).plan(model, 1200, BLACK) is None
    assert make_density(views, start=4).plan(model, 650, BLACK) is None


def test_one_gaussian_always_stays() -> None:
    model = grey_model([(0.0, 0.0, 2.0, 0.001), (0.0, 0.0, 3.0, 0.002)])
    plan = make_density(StagedViews(photos_of(model)), start=2).plan(model, 600, BLACK)
    assert plan is not None
    assert plan.drop.tolist() == [0]


def test_pixels_of_weight_zero_add_no_error() -> None:
    model = grey_model([(-0.5, 0.0, 2.0, 0.9), (0.5, 0.0, 2.0, 0.9)])
    wrong = photos_of(model)[0] + 0.3
    weight = torch.ones(30, 40, 1)
    weight[:, :20] = 0.0
    scores = score_views(model, StagedViews([wrong], weight), [0], high_error=0.05, background=BLACK)
    assert scores.error[0].item() == 0.0
    assert scores.error[1].item() == pytest.approx(0.3 * scores.contribution[1].item(), rel=1e-3)


def test_the_initial_number_of_gaussians_is_saved() -> None:
    density = make_density(StagedViews([]), start=30)
    assert density.state_dict() == {"start": 30}
    density.load_state_dict({"start": 7})
    assert density.state_dict() == {"start": 7}


def test_scores_leave_no_gradient_on_what_the_views_learn() -> None:
    """A gradient on a learned pose would enter its next step, but a resumed run would not have it."""

    class MovingViews(StagedViews):
        shift = torch.zeros(1, requires_grad=True)

        def render(self, model: GaussianModel, index: int, background: Tensor) -> RenderOutput:
            pose = torch.eye(4)
            pose[:1, 3] = self.shift
            return CpuRasterizer().render(model, CAMERA, pose, background)

    model = grey_model([(0.0, 0.0, 2.0, 0.5), (0.1, 0.1, 3.0, 0.9)])
    views = MovingViews([torch.ones(30, 40, 3)] * 2)
    scores = score_views(model, views, [0, 1], 0.05, BLACK)
    assert bool((scores.error > 0).all()) and bool((scores.contribution > 0).all())
    assert views.shift.grad is None and all(tensor.grad is None for tensor in model.parameters.values())
