"""GaussianModel: shapes, activations, the setup of its optimizer, saving and loading."""

from __future__ import annotations

import copy
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gs_train.formats.splat_data import SplatData
from gs_train.model import optimizer as door
from gs_train.model.gaussians import PARAMETER_NAMES, GaussianModel
from gs_train.model.schedule import OptimizerConfig

CONFIG = OptimizerConfig(
    xyz_lr_max_steps=100, xyz_lr_init=1.6e-4, xyz_lr_final=1.6e-6, f_rest_lr=0.000125, opacity_lr=0.025,
    scaling_lr=0.005, rotation_lr=0.001, late_lr_factor=1.0,
)  # fmt: skip


def random_tensors(rows: int, *, degree: int = 1, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rest = (degree + 1) ** 2 - 1
    shapes = {"xyz": (3,), "f_dc": (1, 3), "f_rest": (rest, 3), "opacity": (1,), "scaling": (3,), "rotation": (4,)}
    return {name: torch.randn(rows, *shape, generator=generator) for name, shape in shapes.items()}


def stepped_model(rows: int, steps: int) -> GaussianModel:
    model = GaussianModel(random_tensors(rows), spatial_lr_scale=3.0)
    model.training_setup(CONFIG)
    step(model, steps)
    return model


def step(model: GaussianModel, steps: int) -> None:
    assert model.optimizer is not None
    for i in range(steps):
        model.update_learning_rate(i)
        for name, grad in random_tensors(len(model), seed=50 + i).items():
            model.parameters[name].grad = grad
        model.optimizer.step()


# ---- parameters and activations ----


def test_activations() -> None:
    tensors = random_tensors(4)
    model = GaussianModel(tensors)
    assert torch.equal(model.scales(), tensors["scaling"].exp())
    assert torch.equal(model.opacities(), 1 / (1 + (-tensors["opacity"][:, 0]).exp()))
    assert torch.allclose(model.quaternions().norm(dim=1), torch.ones(4))
    assert torch.allclose(model.quaternions() * tensors["rotation"].norm(dim=1, keepdim=True), tensors["rotation"])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_sh_degrees_go_up_to_the_highest(degree: int) -> None:
    model = GaussianModel(random_tensors(2, degree=degree))
    assert model.max_sh_degree == degree
    seen = []
    for _ in range(5):
        seen.append(model.active_sh_degree)
        model.oneup_sh_degree()
    assert seen == [min(i, degree) for i in range(5)]


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("xyz", torch.zeros(3, 2), r"xyz: expected shape \[3, 3\], got \[3, 2\]"),
        ("f_dc", torch.zeros(3, 3), r"f_dc: expected shape \[3, 1, 3\], got \[3, 3\]"),
        ("f_rest", torch.zeros(3, 4, 3), "f_rest: 4 coefficients"),
        ("opacity", torch.zeros(2, 1), r"opacity: expected shape \[3, 1\], got \[2, 1\]"),
        ("scaling", torch.zeros(3, 3, dtype=torch.float64), "scaling: expected the floating dtype"),
        ("rotation", torch.zeros(()), r"rotation: expected shape \[3, 4\], got \[\]"),
        ("colour", torch.zeros(3, 3), "unknown: .*colour"),
    ],
)
def test_wrong_tensors_are_refused(name: str, tensor: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianModel({**random_tensors(3), name: tensor})


def test_an_active_degree_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="active_sh_degree: expected 0 to 1, got 2"):
        GaussianModel(random_tensors(3), active_sh_degree=2)


# ---- training ----


def test_training_setup_builds_the_originals_adam() -> None:
    model = GaussianModel(random_tensors(3), spatial_lr_scale=2.0)
    model.training_setup(CONFIG)
    adam = model.optimizer
    assert type(adam) is torch.optim.Adam
    assert adam.defaults["lr"] == 0.0 and adam.defaults["eps"] == 1e-15 and adam.defaults["betas"] == (0.9, 0.999)
    rates = {group["name"]: group["lr"] for group in adam.param_groups}
    assert list(rates) == list(PARAMETER_NAMES)
    assert rates == {
        "xyz": 3.2e-4,
        "f_dc": 0.0025,
        "f_rest": 0.000125,
        "opacity": 0.025,
        "scaling": 0.005,
        "rotation": 0.001,
    }
    assert all(len(group["params"]) == 1 and group["eps"] == 1e-15 for group in adam.param_groups)


def test_update_learning_rate_sets_only_xyz() -> None:
    model = GaussianModel(random_tensors(3), spatial_lr_scale=2.0)
    model.training_setup(CONFIG)
    assert model.optimizer is not None
    before = {group["name"]: group["lr"] for group in model.optimizer.param_groups}
    rate = model.update_learning_rate(50)
    after = {group["name"]: group["lr"] for group in model.optimizer.param_groups}
    assert rate == after.pop("xyz") == pytest.approx(2.0 * 1.6e-5)
    before.pop("xyz")
    assert after == before
    assert model.update_learning_rate(100) == pytest.approx(2.0 * 1.6e-6)


def test_the_late_decay_moves_all_rates_but_that_of_the_positions() -> None:
    constant, late = (GaussianModel(random_tensors(3), spatial_lr_scale=2.0) for _ in range(2))
    constant.training_setup(CONFIG)
    late.training_setup(replace(CONFIG, late_lr_factor=0.2))
    assert constant.optimizer is not None and late.optimizer is not None
    # Constant for 60 of the 100 steps, half-way at 80, and constant again after the last.
    for iteration, factor in ((1, 1.0), (60, 1.0), (80, 0.6), (100, 0.2), (150, 0.2), (30, 1.0)):
        assert late.update_learning_rate(iteration) == constant.update_learning_rate(iteration)
        for one, two in zip(constant.optimizer.param_groups, late.optimizer.param_groups, strict=True):
            assert two["lr"] == pytest.approx(one["lr"] * (1.0 if one["name"] == "xyz" else factor))


def test_the_batch_rule_follows_the_batch_and_returns() -> None:
    plain, scaled = (GaussianModel(random_tensors(3), spatial_lr_scale=2.0) for _ in range(2))
    plain.training_setup(CONFIG)
    scaled.training_setup(replace(CONFIG, batch_rule="sqrt"))
    assert plain.optimizer is not None and scaled.optimizer is not None
    for batch in (4, 1, 9, 1):
        assert scaled.update_learning_rate(50, batch) == pytest.approx(
            batch**0.5 * plain.update_learning_rate(50, batch)
        )
        for one, two in zip(plain.optimizer.param_groups, scaled.optimizer.param_groups, strict=True):
            assert (one["betas"], one["eps"]) == ((0.9, 0.999), 1e-15)
            assert two["lr"] == pytest.approx(batch**0.5 * one["lr"])
            assert two["betas"] == pytest.approx((0.9**batch, 0.999**batch))
            # The gradients of a batch are summed. Of their mean, epsilon would be divided by the root of the batch.
            assert two["eps"] / batch == pytest.approx(1e-15 / batch**0.5)


def test_training_needs_a_setup_with_whole_iterations() -> None:
    model = GaussianModel(random_tensors(3))
    with pytest.raises(ValueError, match="training_setup"):
        model.update_learning_rate(1)
    with pytest.raises(ValueError, match=r"xyz_lr_max_steps is the fraction 1\.0"):
        model.training_setup(OptimizerConfig())
    assert model.optimizer is None


def test_reset_opacity_lowers_only_higher_opacities() -> None:
    tensors = {**random_tensors(3), "opacity": torch.tensor([[-7.123], [-4.0], [5.0]])}
    model = GaussianModel(tensors)
    model.reset_opacity(0.01)
    assert torch.equal(model.opacity[0], tensors["opacity"][0])
    assert model.opacities()[1:].tolist() == pytest.approx([0.01, 0.01])
    assert model.opacity.requires_grad


# ---- saving and loading ----


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_loaded_model_continues_training_bit_for_bit(steps_before: int) -> None:
    straight = stepped_model(4, steps_before)
    straight.oneup_sh_degree()
    assert straight.optimizer is not None
    door.set_lr(straight.optimizer, "opacity", 0.125)
    buffer = io.BytesIO()
    torch.save(straight.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    resumed = GaussianModel(random_tensors(7, seed=3))
    resumed.training_setup(CONFIG)
    step(resumed, 3)
    resumed.load_state_dict(state)
    assert (resumed.active_sh_degree, resumed.spatial_lr_scale) == (1, 3.0)
    step(straight, 3)
    step(resumed, 3)
    for name in PARAMETER_NAMES:
        assert torch.equal(resumed.parameters[name], straight.parameters[name]), name
    assert resumed.optimizer is not None and len(resumed.optimizer.state) == 6


def test_a_loaded_state_is_not_shared() -> None:
    model = stepped_model(4, 1)
    state = copy.deepcopy(model.state_dict())
    other = GaussianModel(random_tensors(1))
    other.training_setup(CONFIG)
    other.load_state_dict(state)
    step(other, 1)
    assert torch.equal(state["parameters"]["xyz"], model.xyz)
    assert float(state["optimizer"]["xyz"]["state"]["step"]) == 1.0


def test_loading_without_optimizers() -> None:
    bare = GaussianModel(random_tensors(4, seed=8))
    model = stepped_model(3, 2)
    model.load_state_dict(bare.state_dict())
    assert len(model) == 4 and model.optimizer is not None and not model.optimizer.state
    step(model, 1)
    again = GaussianModel.from_state_dict(model.state_dict())
    assert again.optimizer is None and torch.equal(again.xyz, model.xyz)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    model = stepped_model(3, 2)
    state = copy.deepcopy(stepped_model(4, 1).state_dict())
    state["optimizer"]["rotation"]["state"]["exp_avg"] = torch.zeros(3, 4)
    before = copy.deepcopy(model.state_dict())
    objects = model.parameters
    with pytest.raises(ValueError, match=r"rotation: exp_avg has shape \[3, 4\], the parameter \[4, 4\]"):
        model.load_state_dict(state)
    assert all(model.parameters[name] is parameter for name, parameter in objects.items())
    after = model.state_dict()
    for name in PARAMETER_NAMES:
        assert after["optimizer"][name]["lr"] == before["optimizer"][name]["lr"]
        for key, value in before["optimizer"][name]["state"].items():
            assert torch.equal(after["optimizer"][name]["state"][key], value)


def test_splat_data_round_trip_copies_the_arrays() -> None:
    model = GaussianModel(random_tensors(5, degree=2))
    data = model.to_splat_data()
    assert isinstance(data, SplatData) and data.sh_degree == 2 and data.f_rest.dtype == np.float32
    back = GaussianModel.from_splat_data(data)
    assert back.active_sh_degree == 2
    assert all(torch.equal(back.parameters[name], model.parameters[name]) for name in PARAMETER_NAMES)
    data.xyz[0, 0] = 99.0
    assert model.xyz[0, 0] != 99.0 and back.xyz[0, 0] != 99.0


def test_only_the_optimizer_module_touches_optimizer_state() -> None:
    package = Path(__file__).parent.parent / "gs_train"
    users = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r"optimizer\.state\b", path.read_text(encoding="utf-8"))
    ]
    assert users == ["optimizer.py"]
