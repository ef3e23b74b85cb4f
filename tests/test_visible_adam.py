"""Adam on the visible rows only, against torch's own Adam run for each row's own steps; and its way through the door."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError
from gs_train.model.gaussians import PARAMETER_NAMES, GaussianModel
from gs_train.model.schedule import OptimizerConfig
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.training.loop import train

CONFIG = OptimizerConfig(xyz_lr_max_steps=100, visible_only=True)
TAILS = {"xyz": (3,), "f_dc": (1, 3), "f_rest": (3, 3), "opacity": (1,), "scaling": (3,), "rotation": (4,)}


def make_tensors(rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, *tail, generator=generator) for name, tail in TAILS.items()}


def take_step(model: GaussianModel, visible: list[bool], gradients: dict[str, Tensor], iteration: int = 1) -> None:
    for name, parameter in model.parameters.items():
        parameter.grad = gradients[name].clone()
    model.step(iteration, torch.tensor(visible))


def test_each_row_steps_as_if_it_were_alone() -> None:
    start = make_tensors(3)
    model = GaussianModel(start)
    model.training_setup(CONFIG)
    seen = [[True, False, True], [True, True, False], [False, False, False], [True, False, True]]
    gradients = [make_tensors(3, seed) for seed in range(1, 5)]
    for visible, gradient in zip(seen, gradients, strict=True):
        take_step(model, visible, gradient)
    for row in range(3):
        alone = GaussianModel({name: tensor[row : row + 1] for name, tensor in start.items()})
        alone.training_setup(OptimizerConfig(xyz_lr_max_steps=100))
        for visible, gradient in zip(seen, gradients, strict=True):
            if visible[row]:
                take_step(alone, [True], {name: tensor[row : row + 1] for name, tensor in gradient.items()})
        for name in PARAMETER_NAMES:
            torch.testing.assert_close(model.parameters[name][row], alone.parameters[name][0], atol=1e-6, rtol=1e-5)


def test_moments_and_steps_go_with_their_rows() -> None:
    model = GaussianModel(make_tensors(3))
    model.training_setup(CONFIG)
    take_step(model, [True, False, True], make_tensors(3, 1))
    take_step(model, [True, False, False], make_tensors(3, 2))
    model.cat_tensors_to_optimizer(make_tensors(1, 5))
    model.prune_optimizer(torch.tensor([True, True, False, True]))
    model.reorder_optimizer(torch.tensor([2, 0, 1]))
    assert model.optimizer is not None
    for parameter in model.parameters.values():
        state = model.optimizer.state[parameter]
        assert state["steps"].flatten().tolist() == [0.0, 2.0, 0.0]
        assert not state["exp_avg"][0].any() and bool(state["exp_avg"][1].any())
    copy = GaussianModel(make_tensors(2))
    copy.training_setup(CONFIG)
    copy.load_state_dict(model.state_dict())
    for each in (model, copy):
        take_step(each, [True, True, False], make_tensors(3, 7))
    for name in PARAMETER_NAMES:
        assert torch.equal(model.parameters[name], copy.parameters[name])


@pytest.mark.parametrize("visible_only", [False, True])
def test_the_view_dependent_colour_is_stepped_when_it_is_due(visible_only: bool) -> None:
    model = GaussianModel(make_tensors(2))
    model.training_setup(OptimizerConfig(xyz_lr_max_steps=100, f_rest_interval=3, visible_only=visible_only))
    for iteration in range(1, 7):
        before = {name: parameter.detach().clone() for name, parameter in model.parameters.items()}
        take_step(model, [True, True], make_tensors(2, iteration), iteration)
        assert torch.equal(before["f_rest"], model.f_rest) == (iteration % 3 != 0)
        assert not torch.equal(before["f_dc"], model.f_dc)


def test_an_interval_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="f-rest-interval is 0"):
        OptimizerConfig(f_rest_interval=0)


def test_training_with_it_learns(tiny_scene: Path, tmp_path: Path) -> None:
    scene = load_scene(tiny_scene, SceneConfig())
    losses = []
    for visible_only in (False, True):
        optimizer = OptimizerConfig(visible_only=visible_only)
        config = TrainConfig(iterations=60, device="cpu", max_gaussians=600, log_every=1, optimizer=optimizer)
        losses.append(train(scene, config, tmp_path / str(visible_only)).smoothed["loss"])
    assert losses[1] < 1.2 * losses[0]
