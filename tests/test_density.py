"""Density control: the statistics, the plan, and the effect of a plan on the model and its Adam state."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from staged_views import BLACK, density_setup
from torch import Tensor

from gs_train.density.apply import apply_plan
from gs_train.density.classic import ClassicDensity
from gs_train.density.config import DensityConfig
from gs_train.density.types import DensityPlan, rows_of_each, spare_one
from gs_train.errors import UserError
from gs_train.model.gaussians import PARAMETER_NAMES, GaussianModel
from gs_train.model.schedule import OptimizerConfig
from gs_train.render.types import RenderOutput

EXTENT = 10.0
SMALL, LARGE, HUGE, GIANT = 0.05, 0.5, 1.2, 2.0
"""Scales around two limits: above 0.01 * extent = 0.1 a Gaussian is split instead of cloned, above 0.1 * extent = 1 it
is huge."""
SOLID, FAINT = 0.5, 0.004
HOT, COLD = 3e-4, 1e-4
PAPER: dict[str, Any] = {
    "kind": "classic",
    "from_iteration": 500,
    "until_iteration": 15_000,
    "refine_until_iteration": 25_000,
    "interval": 100,
    "opacity_reset_interval": 3000,
}


def make_model(scales: list[float], opacities: list[float], *, setup: bool = True) -> GaussianModel:
    rows = len(scales)
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor(opacities).logit()
    model = GaussianModel(
        {
            "xyz": torch.randn(rows, 3, generator=generator),
            "f_dc": torch.randn(rows, 1, 3, generator=generator),
            "f_rest": torch.randn(rows, 3, 3, generator=generator),
            "opacity": logits.reshape(rows, 1),
            # Density control uses the largest of the three scales.
            "scaling": torch.tensor([[0.1 * s, s, 0.01 * s] for s in scales]).reshape(rows, 3).log(),
            "rotation": torch.randn(rows, 4, generator=generator),
        }
    )
    if setup:
        model.training_setup(OptimizerConfig(xyz_lr_max_steps=100))
    return model


def make_density(
    count: int, *, max_gaussians: int = 1000, white_background: bool = False, **changes: Any
) -> ClassicDensity:
    config = DensityConfig(**{**PAPER, **changes})
    return ClassicDensity(
        density_setup(
            config,
            extent=EXTENT,
            max_gaussians=max_gaussians,
            gaussians=count,
            white_background=white_background,
        )
    )


def make_render(gradients_px: list[list[float]], radii: list[list[int]]) -> RenderOutput:
    means2d = torch.zeros(len(gradients_px), 2, requires_grad=True)
    means2d.grad = torch.tensor(gradients_px)
    return RenderOutput(
        image=torch.zeros(100, 200, 3),
        alpha=torch.zeros(100, 200),
        means2d=means2d,
        radii=torch.tensor(radii, dtype=torch.int32),
    )


def with_norms(density: ClassicDensity, norms: list[float]) -> ClassicDensity:
    """Observe one render that shows every Gaussian, with these gradient norms."""
    density.observe(density.measure(make_render([[norm / 100.0, 0.0] for norm in norms], [[1, 1]] * len(norms))))
    return density


def rows(tensor: Tensor) -> list[int]:
    return [int(row) for row in tensor]


def named_rows(plan: DensityPlan | None) -> dict[str, list[int]]:
    assert plan is not None
    return {"clone": rows(plan.clone), "split": rows(plan.split), "drop": rows(plan.drop)}


# ---- statistics ----


def test_statistics_are_means_over_the_views_that_see_a_gaussian() -> None:
    density = make_density(3)
    density.observe(density.measure(make_render([[3.0, 0.0], [math.nan, 0.0], [1.0, 1.0]], [[1, 1], [0, 5], [2, 2]])))
    density.observe(density.measure(make_render([[0.0, 2.0], [3.0, 8.0], [math.inf, 1.0]], [[1, 1], [1, 1], [3, 0]])))
    state = density.state_dict()
    # Gradients are multiplied by half the image size, 100 x 50 px. Rows 1 and 2 are seen once.
    assert state["grad_sum"].tolist() == pytest.approx([300.0 + 100.0, 500.0, math.hypot(100.0, 50.0)])
    assert state["grad_count"].tolist() == [2, 1, 1]


def test_gradients_that_are_not_numbers_count_as_zero() -> None:
    density = make_density(2)
    density.observe(density.measure(make_render([[math.nan, 1.0], [-math.inf, 1.0]], [[1, 1], [1, 1]])))
    assert density.state_dict()["grad_sum"].tolist() == [0.0, 0.0]
    assert density.state_dict()["grad_count"].tolist() == [1, 1]


def test_wrong_row_counts_and_a_missing_gradient_are_refused() -> None:
    density = make_density(2)
    with pytest.raises(ValueError, match="expected 2 rows, got 1"):
        density.observe(density.measure(make_render([[1.0, 1.0]], [[1, 1]])))
    render = make_render([[1.0, 1.0]] * 2, [[1, 1]] * 2)
    render.means2d.grad = None
    with pytest.raises(ValueError, match="after backward"):
        density.observe(density.measure(render))
    with pytest.raises(ValueError, match="expected 2 rows, got 3"):
        density.plan(make_model([SMALL] * 3, [SOLID] * 3), 600, BLACK)


def test_the_statistics_survive_a_save() -> None:
    density = with_norms(make_density(2), [HOT, COLD])
    buffer = io.BytesIO()
    torch.save(density.state_dict(), buffer)
    buffer.seek(0)
    other = make_density(5)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    density.observe(density.measure(make_render([[1.0, 1.0]] * 2, [[1, 1]] * 2)))
    assert other.state_dict()["grad_sum"].tolist() == pytest.approx([HOT, COLD])
    assert named_rows(other.plan(make_model([SMALL] * 2, [SOLID] * 2), 600, BLACK))["clone"] == [0]
    with pytest.raises(ValueError, match=r"\[2\] and \[3\]"):
        other.load_state_dict({"grad_sum": torch.zeros(2), "grad_count": torch.zeros(3, dtype=torch.int64)})


# ---- schedule ----


def test_rounds_and_resets_fall_on_the_originals_iterations() -> None:
    model = make_model([SMALL], [SOLID])
    grows, resets = [], []
    for iteration in range(1, 16_001):
        density = with_norms(make_density(1), [HOT]) if iteration % 50 == 0 else make_density(1)
        plan = density.plan(model, iteration, BLACK)
        if plan is not None and len(plan.clone) > 0:
            grows.append(iteration)
        if plan is not None and plan.reset_opacity:
            resets.append(iteration)
    assert grows == list(range(600, 15_000, 100))
    assert resets == [3000, 6000, 9000, 12_000]


def test_a_white_background_adds_a_reset_at_from_iteration() -> None:
    model = make_model([SMALL], [SOLID])
    assert make_density(1).plan(model, 500, BLACK) is None
    plan = make_density(1, white_background=True).plan(model, 500, BLACK)
    assert plan is not None and plan.reset_opacity and len(plan.clone) == 0


def test_zero_intervals_disable_rounds_and_resets() -> None:
    model = make_model([GIANT], [SOLID])
    density = with_norms(make_density(1, interval=0, opacity_reset_interval=0), [HOT])
    assert all(density.plan(model, iteration, BLACK) is None for iteration in (600, 3000, 6000))


@pytest.mark.parametrize("norm", [HOT, COLD])
def test_a_round_clears_the_statistics_with_and_without_a_plan(norm: float) -> None:
    model = make_model([SMALL, LARGE], [SOLID, SOLID])
    density = with_norms(make_density(2), [norm, norm])
    assert density.plan(model, 599, BLACK) is None
    assert density.state_dict()["grad_count"].tolist() == [1, 1]
    plan = density.plan(model, 600, BLACK)
    assert (plan is None) == (norm == COLD)
    assert density.state_dict()["grad_sum"].tolist() == [0.0] * (2 if norm == COLD else 4)
    assert not density.state_dict()["grad_count"].any()


# ---- clone, split and drop ----


def test_clone_split_and_drop() -> None:
    scales = [SMALL, SMALL, LARGE, LARGE, SMALL, LARGE, HUGE, GIANT, GIANT]
    opacities = [SOLID, SOLID, SOLID, SOLID, FAINT, FAINT, SOLID, SOLID, SOLID]
    norms = [HOT, COLD, HOT, COLD, HOT, HOT, HOT, HOT, COLD]
    model = make_model(scales, opacities)
    early = with_norms(make_density(9), norms).plan(model, 2900, BLACK)
    assert named_rows(early) == {"clone": [0], "split": [2, 6, 7], "drop": [4, 5]}
    # Huge Gaussians are split after the first reset, also without a gradient. The original prunes them, which loses
    # plain backgrounds.
    at_reset = with_norms(make_density(9), norms).plan(model, 3000, BLACK)
    assert named_rows(at_reset) == {"clone": [0], "split": [2, 6, 7], "drop": [4, 5]}
    late = with_norms(make_density(9), norms).plan(model, 3100, BLACK)
    assert named_rows(late) == {"clone": [0], "split": [2, 6, 7, 8], "drop": [4, 5]}


def test_gaussians_that_no_view_saw_do_not_grow() -> None:
    model = make_model([SMALL, LARGE], [SOLID, SOLID])
    assert make_density(2, grad_threshold=0.0).plan(model, 600, BLACK) is None


@pytest.mark.parametrize(
    ("max_gaussians", "clone", "split"),
    [
        (10, [0, 3], [1, 4]),
        (8, [0, 3], [1, 4]),
        (7, [0, 3], [4]),
        (6, [3], [4]),
        (5, [3], []),
        (4, [], []),
        (1, [], []),
    ],
)
def test_the_cap_keeps_the_largest_gradients(max_gaussians: int, clone: list[int], split: list[int]) -> None:
    model = make_model([SMALL, LARGE, SMALL, SMALL, LARGE], [SOLID, SOLID, FAINT, SOLID, SOLID])
    density = with_norms(make_density(5, max_gaussians=max_gaussians), [4e-4, 3e-4, 9e-4, 6e-4, 5e-4])
    plan = density.plan(model, 600, BLACK)
    assert named_rows(plan) == {"clone": clone, "split": split, "drop": [2]}
    assert plan is not None
    apply_plan(plan, model, torch.Generator().manual_seed(0), reset_opacity_to=0.01)
    assert len(model) == len(density.state_dict()["grad_sum"]) == 4 + len(clone) + len(split) <= max(max_gaussians, 4)


def test_ties_at_the_cap_go_to_the_lower_rows() -> None:
    model = make_model([SMALL] * 200, [SOLID] * 200)
    plan = with_norms(make_density(200, max_gaussians=270), [HOT] * 200).plan(model, 600, BLACK)
    assert named_rows(plan)["clone"] == list(range(70))


def test_one_gaussian_always_stays() -> None:
    model = make_model([SMALL] * 4, [FAINT / 4, FAINT / 2, FAINT, FAINT / 3])
    density = with_norms(make_density(4), [COLD] * 4)
    plan = density.plan(model, 600, BLACK)
    assert named_rows(plan) == {"clone": [], "split": [], "drop": [0, 1, 3]}
    assert plan is not None
    apply_plan(plan, model, torch.Generator(), reset_opacity_to=0.01)
    assert len(model) == 1
    again = with_norms(density, [COLD])
    assert again.plan(model, 700, BLACK) is None


def test_rows_of_several_masks() -> None:
    masks = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    assert [rows.tolist() for rows in rows_of_each(*masks)] == [[0, 2], [], [0, 1, 2]]


def test_one_gaussian_is_spared_only_if_all_go() -> None:
    opacities = torch.tensor([0.1, 0.3, 0.3, 0.2])
    for drop in ([True, True, True, False], [False] * 4):
        assert spare_one(torch.tensor(drop), opacities).tolist() == drop
    assert spare_one(torch.ones(4, dtype=torch.bool), opacities).tolist() == [True, False, True, True]
    assert len(spare_one(torch.zeros(0, dtype=torch.bool), opacities[:0])) == 0


def test_unresolved_or_senseless_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="from_iteration, until_iteration, refine_until_iteration: still fractions"):
        ClassicDensity(density_setup(DensityConfig()))
    with pytest.raises(ValueError, match="max_gaussians"):
        make_density(1, max_gaussians=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("interval", -1), ("until_iteration", 1.5), ("from_iteration", math.nan), ("grad_threshold", -1.0),
    ("percent_dense", math.nan),
     ("min_opacity", 0.0), ("reset_opacity_to", 1.0), ("max_world_scale", math.inf)],
)  # fmt: skip
def test_config_names_the_flag(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--density.{name.replace('_', '-')} is"):
        DensityConfig(**{name: value})  # type: ignore[arg-type]


# ---- applying a plan ----


def plan_of(clone: list[int], split: list[int], drop: list[int], *, reset: bool = False) -> DensityPlan:
    def as_rows(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    return DensityPlan(clone=as_rows(clone), split=as_rows(split), drop=as_rows(drop), reset_opacity=reset)


def take_step(model: GaussianModel) -> None:
    """One Adam step with a different gradient for each tensor and row."""
    for name, parameter in model.parameters.items():
        factor = float(PARAMETER_NAMES.index(name) + 1)
        rows = torch.arange(1.0, len(parameter) + 1).reshape(-1, *[1] * (parameter.dim() - 1))
        parameter.grad = torch.full_like(parameter, factor) * rows
    model.step()


def copies(model: GaussianModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.parameters.items()}


def copies_of_moments(model: GaussianModel) -> dict[str, Tensor]:
    assert model.optimizer is not None
    return {name: model.optimizer.state[p]["exp_avg"].clone() for name, p in model.parameters.items()}


@pytest.mark.parametrize("stepped", [False, True])
def test_applying_a_plan_moves_rows_and_moments(stepped: bool) -> None:
    model = make_model([SMALL, SMALL, LARGE, SMALL, SMALL], [SOLID] * 5)
    assert model.optimizer is not None
    if stepped:
        for name, parameter in model.parameters.items():
            parameter.grad = torch.full_like(parameter, float(PARAMETER_NAMES.index(name) + 1)) * torch.arange(
                5.0
            ).reshape(5, *[1] * (parameter.dim() - 1))
        model.optimizer.step()
    before = {name: parameter.detach().clone() for name, parameter in model.parameters.items()}
    moments = {name: model.optimizer.state[p]["exp_avg"].clone() for name, p in model.parameters.items() if stepped}
    apply_plan(plan_of([1], [2], [0]), model, torch.Generator().manual_seed(3), reset_opacity_to=0.01)
    # The model holds the rows 1, 3 and 4, a clone of 1, and two children of 2.
    assert len(model) == 6
    for name in PARAMETER_NAMES:
        now = model.parameters[name].detach()
        assert torch.equal(now[:4], before[name][[1, 3, 4, 1]]), name
        if name not in ("xyz", "scaling"):
            assert torch.equal(now[4:], before[name][[2, 2]]), name
        if stepped:
            moment = model.optimizer.state[model.parameters[name]]["exp_avg"]
            assert torch.equal(moment[:3], moments[name][[1, 3, 4]]) and moments[name][1].any(), name
            assert not moment[3:].any(), name
    assert torch.allclose(model.scales()[4:], before["scaling"][[2, 2]].exp() / 1.6)
    assert not torch.equal(model.xyz[4], model.xyz[5])


def test_children_are_sampled_from_the_parent() -> None:
    """The children's positions have the mean and the covariance R diag(scale^2) R^T of the parent."""
    count = 40_000
    model = make_model([1.0], [SOLID], setup=False)
    parent = GaussianModel({name: p[[0] * count] for name, p in model.parameters.items()})
    w, x, y, z = model.quaternions()[0].tolist()
    rotation = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    expected = rotation @ torch.diag(model.scales()[0] ** 2) @ rotation.T
    apply_plan(plan_of([], list(range(count)), []), parent, torch.Generator().manual_seed(1), reset_opacity_to=0.01)
    assert len(parent) == 2 * count
    offsets = (parent.xyz - model.xyz[0]).detach()
    assert torch.allclose(offsets.T @ offsets / len(offsets), expected.detach(), atol=0.02)
    assert torch.allclose(offsets.mean(dim=0), torch.zeros(3), atol=0.02)


def test_the_same_generator_gives_the_same_children() -> None:
    models = [make_model([LARGE] * 3, [SOLID] * 3) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        apply_plan(plan_of([], [0, 2], []), model, torch.Generator().manual_seed(seed), reset_opacity_to=0.01)
    assert torch.equal(models[0].xyz, models[1].xyz) and not torch.equal(models[0].xyz, models[2].xyz)


def test_a_plan_that_only_resets_touches_opacities_only() -> None:
    model = make_model([SMALL] * 3, [SOLID, 0.006, SOLID])
    before = {name: parameter.detach().clone() for name, parameter in model.parameters.items()}
    apply_plan(plan_of([], [], [], reset=True), model, torch.Generator(), reset_opacity_to=0.01)
    assert model.opacities().tolist() == pytest.approx([0.01, 0.006, 0.01])
    assert all(torch.equal(model.parameters[name], before[name]) for name in PARAMETER_NAMES if name != "opacity")


def test_a_reset_reaches_the_new_rows() -> None:
    model = make_model([SMALL, LARGE], [SOLID, SOLID])
    apply_plan(plan_of([0], [1], [], reset=True), model, torch.Generator(), reset_opacity_to=0.02)
    assert model.opacities().tolist() == pytest.approx([0.02] * 4)


@pytest.mark.parametrize(
    ("plan", "message"),
    [(plan_of([3], [], []), "expected rows from 0 to 2"), (plan_of([1], [1], []), "named more than once")],
)
def test_a_plan_that_does_not_fit_changes_nothing(plan: DensityPlan, message: str) -> None:
    model = make_model([SMALL] * 3, [SOLID] * 3)
    take_step(model)
    before, moments = copies(model), copies_of_moments(model)
    with pytest.raises(ValueError, match=message):
        apply_plan(plan, model, torch.Generator(), reset_opacity_to=0.01)
    for name in PARAMETER_NAMES:
        assert torch.equal(model.parameters[name], before[name]), name
        assert torch.equal(copies_of_moments(model)[name], moments[name]) and moments[name].any(), name
    take_step(model)
    assert not torch.equal(model.xyz, before["xyz"]), "the optimizer no longer steps the model's parameters"
