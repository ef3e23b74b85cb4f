"""MCMC density control: relocation of transparent Gaussians, growth up to the cap, noise, and the regulariser."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from staged_views import BLACK, StagedViews, density_setup, grey_model

from gs_train.density.apply import apply_plan, relocated
from gs_train.density.config import DensityConfig
from gs_train.density.mcmc import McmcDensity
from gs_train.density.types import DensityPlan
from gs_train.model.gaussians import PARAMETER_NAMES, GaussianModel
from gs_train.model.optimizer import group_by_name
from gs_train.model.quaternions import rotate, rotate_back
from gs_train.model.schedule import OptimizerConfig


def make_model(opacities: list[float], *, stepped: bool = True) -> GaussianModel:
    rows = len(opacities)
    generator = torch.Generator().manual_seed(3)
    model = GaussianModel(
        {
            "xyz": torch.randn(rows, 3, generator=generator),
            "f_dc": torch.randn(rows, 1, 3, generator=generator),
            "f_rest": torch.randn(rows, 3, 3, generator=generator),
            "opacity": torch.tensor(opacities).logit()[:, None],
            "scaling": torch.randn(rows, 3, generator=generator) - 2.0,
            "rotation": torch.randn(rows, 4, generator=generator),
        }
    )
    model.training_setup(OptimizerConfig(xyz_lr_max_steps=100))
    if stepped:
        assert model.optimizer is not None
        sum(parameter.sum() for parameter in model.parameters.values()).backward()  # type: ignore[union-attr]
        model.optimizer.step()
        model.optimizer.zero_grad()
    return model


def make_density(
    *, max_gaussians: int = 1000, seed: int = 0, views: StagedViews | None = None, **changes: Any
) -> McmcDensity:
    config = DensityConfig(
        kind="mcmc",
        from_iteration=500,
        until_iteration=900,
        refine_until_iteration=1000,
        opacity_reset_interval=0,
        **changes,
    )
    views = StagedViews([torch.zeros(30, 40, 3)] * 2) if views is None else views
    return McmcDensity(density_setup(config, max_gaussians=max_gaussians, views=views, seed=seed))


@pytest.mark.parametrize("opacity", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("parts", [1, 2, 5, 51])
def test_relocated_copies_look_like_the_original(opacity: float, parts: int) -> None:
    """The opacity at the centre and its integral along a line stay the same (3DGS-MCMC, equation 9)."""
    part, factor = relocated(torch.tensor([opacity]), torch.tensor([parts]))
    assert 1.0 - (1.0 - part.item()) ** parts == pytest.approx(opacity, rel=1e-6)
    x = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64)
    whole = opacity * torch.exp(-0.5 * x**2)
    blended = 1.0 - (1.0 - part * torch.exp(-0.5 * (x / factor) ** 2)) ** parts
    assert torch.trapezoid(blended, x).item() == pytest.approx(torch.trapezoid(whole, x).item(), rel=1e-5)
    assert factor.item() == pytest.approx(1.0) if parts == 1 else factor.item() < 1.0


def test_more_copies_than_the_formula_supports_are_finite() -> None:
    part, factor = relocated(torch.tensor([0.999999, 1.0]), torch.tensor([400, 2]))
    assert bool(part.isfinite().all()) and bool((factor > 0).all()) and bool(factor.isfinite().all())


def test_relocating_moves_rows_and_moments() -> None:
    model = make_model([0.5, 0.9, 0.3, 0.7])
    before = {name: tensor.detach().clone() for name, tensor in model.parameters.items()}
    plan = DensityPlan(relocate=torch.tensor([1]), relocate_into=torch.tensor([3]), drop=torch.tensor([2]))
    assert plan.row_count(4) == 5
    apply_plan(plan, model, torch.Generator(), reset_opacity_to=0.01)
    part, factor = relocated(before["opacity"][1].sigmoid(), torch.tensor([3]))
    assert len(model) == 5
    assert model.optimizer is not None
    for name in PARAMETER_NAMES:
        expected = before[name][[0, 1, 3, 1, 1]]
        if name == "opacity":
            expected[[1, 3, 4]] = part.logit().float()
        if name == "scaling":
            expected[[1, 3, 4]] += factor.log().float()
        if name == "xyz":
            # Each copy lies at a position of its own within the Gaussian that stays.
            away = (model.xyz[3:].detach() - expected[3:]).norm(dim=1)
            assert (
                bool((away > 0).all())
                and float(away.max()) < 5 * float(model.scales()[1].detach().max())
                and away[0] != away[1]
            )
            expected[3:] = model.xyz[3:].detach()
        torch.testing.assert_close(model.parameters[name].detach(), expected)
        moments = model.optimizer.state[group_by_name(model.optimizer, name)["params"][0]]["exp_avg"]
        assert bool((moments[:3] != 0).all()) and bool((moments[3:] == 0).all())


def test_transparent_gaussians_are_relocated_to_opaque_gaussians() -> None:
    model = make_model([0.001, 0.9, 0.002, 0.8, 0.004], stepped=False)
    plan = make_density(growth=0.0).plan(model, 600, BLACK)
    assert plan is not None
    assert plan.drop.tolist() == [0, 2, 4]
    assert set(plan.relocate.tolist()) <= {1, 3}
    assert plan.row_count(5) == 5
    apply_plan(plan, model, torch.Generator(), reset_opacity_to=0.01)
    assert len(model) == 5


def test_transparent_gaussians_are_relocated_to_the_one_with_the_largest_error() -> None:
    """Gaussians 0 and 1 are equally opaque, but only 0 agrees with the photo. Gaussian 2 is transparent."""
    model = grey_model([(-0.5, 0.0, 2.0, 0.9), (0.5, 0.0, 2.0, 0.9), (0.0, 0.0, 2.0, 0.001)])
    model.training_setup(OptimizerConfig(xyz_lr_max_steps=100))
    photo = StagedViews([torch.zeros(30, 40, 3)]).render(model, 0, BLACK).image.detach()
    photo[:, 20:] = 0.0
    plan = make_density(views=StagedViews([photo]), growth=0.0).plan(model, 600, BLACK)
    assert plan is not None
    assert plan.relocate.tolist() == [1] and plan.relocate_into.tolist() == [2] and plan.drop.tolist() == [2]


def test_without_errors_the_opacity_decides() -> None:
    model = grey_model([(-0.5, 0.0, 2.0, 0.9), (0.5, 0.0, 2.0, 0.9), (0.0, 0.0, 2.0, 0.001)])
    model.training_setup(OptimizerConfig(xyz_lr_max_steps=100))
    right = StagedViews([torch.zeros(30, 40, 3)]).render(model, 0, BLACK).image.detach()
    plan = make_density(views=StagedViews([right]), growth=0.0).plan(model, 600, BLACK)
    assert plan is not None and plan.drop.tolist() == [2] and set(plan.relocate.tolist()) <= {0, 1}


def test_the_model_grows_by_a_fraction_up_to_the_cap() -> None:
    model = make_model([0.5] * 100, stepped=False)
    density = make_density(max_gaussians=107, growth=0.05)
    counts = []
    for iteration in range(600, 1000, 100):
        plan = density.plan(model, iteration, BLACK)
        assert plan is not None
        apply_plan(plan, model, torch.Generator(), reset_opacity_to=0.01)
        counts.append(len(model))
    assert counts == [105, 107, 107, 107]


@pytest.mark.parametrize("iteration", [100, 500, 650, 1050, 1100])
def test_between_rounds_there_is_only_noise(iteration: int) -> None:
    plan = make_density().plan(make_model([0.001, 0.5]), iteration, BLACK)
    assert plan is not None and not plan.changes_rows() and plan.shift is not None


def test_nothing_is_relocated_if_all_gaussians_are_transparent() -> None:
    plan = make_density().plan(make_model([0.001] * 3), 600, BLACK)
    assert plan is not None and not plan.changes_rows()


def test_noise_moves_transparent_gaussians_along_their_longest_axis() -> None:
    model = make_model([0.0001, 0.1, 0.24, 0.9], stepped=False)
    model.update_learning_rate(1)
    with torch.no_grad():
        model.scaling[:] = torch.tensor([0.0, -20.0, -20.0])
    density = make_density(noise_lr=5e3)
    shifts = torch.stack(
        [plan.shift for _ in range(400) if (plan := density.plan(model, 1, BLACK)) and plan.shift is not None]
    )
    along = rotate_back(model.quaternions().detach().repeat(400, 1), shifts.reshape(-1, 3)).reshape(400, 4, 3)
    rate = model.optimizer.param_groups[0]["lr"] if model.optimizer else 0.0
    expected = rate * 5e3 / (1.0 + math.exp(-100.0 * (0.005 - 0.0001)))
    assert along[:, 0, 0].std().item() == pytest.approx(expected, rel=0.1)
    assert float(along[:, 0, 1:].abs().max()) < 1e-6 * expected
    assert 0.0 < along[:, 1, 0].std().item() < 1e-3 * expected
    assert float(shifts[:, 3].abs().max()) == 0.0


def test_the_same_generator_state_gives_the_same_plan() -> None:
    plans = [make_density(seed=5).plan(make_model([0.001, 0.2, 0.9, 0.5]), 600, BLACK) for _ in range(2)]
    first, second = plans
    assert first is not None and second is not None and first.shift is not None and second.shift is not None
    assert torch.equal(first.shift, second.shift) and torch.equal(first.relocate, second.relocate)


def test_the_regulariser_penalises_opacity_and_scale() -> None:
    model = make_model([0.2, 0.6], stepped=False)
    regulariser = make_density(opacity_reg=2.0, scale_reg=3.0).regulariser(model)
    assert regulariser is not None
    assert regulariser.item() == pytest.approx(2.0 * 0.4 + 3.0 * model.scales().mean().item(), rel=1e-6)
    regulariser.backward()
    assert model.opacity.grad is not None and model.scaling.grad is not None and model.xyz.grad is None


def test_rotating_back_undoes_rotating() -> None:
    generator = torch.Generator().manual_seed(0)
    quaternions = torch.nn.functional.normalize(torch.randn(9, 4, generator=generator), dim=1)
    vectors = torch.randn(9, 3, generator=generator)
    torch.testing.assert_close(rotate_back(quaternions, rotate(quaternions, vectors)), vectors)


def test_the_last_round_prunes_the_gaussians_that_no_view_sees() -> None:
    rows = [(0.0, 0.0, 2.0, 0.5), (0.0, 0.0, -2.0, 0.5), (50.0, 0.0, 2.0, 0.5), (0.1, 0.0, 3.0, 0.9)]
    model = grey_model(rows)
    model.training_setup(OptimizerConfig(xyz_lr_max_steps=100))
    plan = make_density().plan(model, 1000, BLACK)
    assert plan is not None and plan.drop.tolist() == [1, 2]
    assert not plan.relocate.numel() and plan.shift is not None
    hidden = grey_model(rows[1:3])
    hidden.training_setup(OptimizerConfig(xyz_lr_max_steps=100))
    plan = make_density().plan(hidden, 1000, BLACK)
    assert plan is not None and len(plan.drop) == 1  # An empty model cannot learn any more.


def test_gaussians_far_outside_the_scene_are_relocated() -> None:
    model = grey_model([(0.0, 0.0, 2.0, 0.5), (0.0, 1e5, 2.0, 0.5)])
    model.training_setup(OptimizerConfig(xyz_lr_max_steps=100))
    plan = make_density().plan(model, 600, BLACK)
    assert plan is not None and plan.drop.tolist() == [1] and plan.relocate.tolist() == [0]


def test_noise_moves_a_gaussian_by_at_most_the_extent() -> None:
    """The noise grows with the square of the scale, so a huge Gaussian would leap out of the scene."""
    model = grey_model([(0.0, 0.0, 2.0, 0.001)] * 50, scale=1000.0)
    model.training_setup(OptimizerConfig(xyz_lr_max_steps=100))
    plan = make_density(noise_lr=1e9).plan(model, 550, BLACK)
    assert plan is not None and plan.shift is not None
    assert 9.0 < plan.shift.abs().max().item() <= 10.01  # the extent
