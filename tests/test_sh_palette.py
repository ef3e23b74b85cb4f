"""Gaussians that share sets of SH coefficients: the sets, Adam's step on them, a training with few sets, its .sog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainings import config_of
from splats import in_order_of

from gs_train.formats.palette import distinct_rows
from gs_train.formats.sog import palette_size, read_sog, write_sog
from gs_train.model.gaussians import GaussianModel
from gs_train.model.row_sets import RowSets
from gs_train.model.schedule import OptimizerConfig
from gs_train.run.checkpoint import list_checkpoints
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import Scene
from gs_train.training.loop import train
from gs_train.training.state import TrainState

LABELS = torch.tensor([2, 0, 1, 0, 2, 2, 1])
CONFIG = OptimizerConfig(xyz_lr_max_steps=100)


def model_of(rows: int, seed: int = 0) -> GaussianModel:
    generator = torch.Generator().manual_seed(seed)
    tails = {"xyz": (3,), "f_dc": (1, 3), "f_rest": (15, 3), "opacity": (1,), "scaling": (3,), "rotation": (4,)}
    model = GaussianModel({name: torch.randn(rows, *tail, generator=generator) for name, tail in tails.items()})
    model.training_setup(CONFIG)
    return model


def step(model: GaussianModel, seed: int) -> torch.Tensor:
    """A step with random gradients, and the gradient of f_rest."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    assert model.f_rest.grad is not None
    gradient = model.f_rest.grad.clone()
    model.step()
    return gradient


def moments(model: GaussianModel) -> list[torch.Tensor]:
    assert model.optimizer is not None
    return [model.optimizer.state[model.f_rest][key].clone() for key in ("exp_avg", "exp_avg_sq")]


def sums_by_hand(tensor: torch.Tensor) -> torch.Tensor:
    return torch.stack([tensor[LABELS == number].sum(dim=0) for number in range(3)])


def test_sets_are_summed_and_spread() -> None:
    sets, rows = RowSets.of_labels(LABELS), torch.randn(7, 15, 3)
    assert len(sets) == 3 and sets.first.tolist() == [1, 2, 0]
    torch.testing.assert_close(sets.sums(rows), sums_by_hand(rows))
    sets.spread(values := torch.randn(3, 15, 3), rows)
    assert torch.equal(rows, values[LABELS])


def test_a_shared_step_is_adams_step_on_the_sets() -> None:
    """The reference is a model with one Gaussian per set and the sums of moments and gradients."""
    model, values = model_of(7), torch.randn(3, 15, 3)
    for seed in (1, 2):
        step(model, seed)
    assert model.optimizer is not None
    expected = torch.nn.Parameter(values.clone())
    adam = torch.optim.Adam([expected], lr=CONFIG.f_rest_lr, eps=1e-15)
    first, second = map(sums_by_hand, moments(model))
    adam.state[expected] = {"step": torch.tensor(2.0), "exp_avg": first, "exp_avg_sq": second}
    model.share_f_rest(RowSets.of_labels(LABELS), values)
    for seed in (3, 4):
        expected.grad = sums_by_hand(step(model, seed))
        adam.step()
        torch.testing.assert_close(model.f_rest.detach(), expected.detach()[LABELS], rtol=1e-5, atol=1e-7)
    for found, key in zip(moments(model), ("exp_avg", "exp_avg_sq"), strict=True):
        torch.testing.assert_close(found, adam.state[expected][key][LABELS])
    # Each set is equal to the bit, and the other parameters step as always.
    assert len(distinct_rows(model.f_rest.detach().flatten(1).numpy())[0]) == 3
    other = model_of(7)
    for seed in (1, 2, 3, 4):
        step(other, seed)
    assert torch.equal(model.xyz, other.xyz) and torch.equal(model.opacity, other.opacity)


def test_sets_end_when_rows_change() -> None:
    for change in (
        lambda model: model.prune_optimizer(LABELS > 0),
        lambda model: model.sort_optimizer(LABELS),
        lambda model: model.cat_tensors_to_optimizer({n: t.detach() for n, t in model.parameters.items()}),
        lambda model: model.load_state_dict(model.state_dict()),
    ):
        model = model_of(7)
        model.share_f_rest(RowSets.of_labels(LABELS), torch.randn(3, 15, 3))
        change(model)
        assert model.f_rest_sets is None


@pytest.fixture(scope="module")
def scene(tiny_scene: Path) -> Scene:
    return load_scene(tiny_scene, SceneConfig())


@pytest.mark.parametrize("kind", ["classic", "mcmc"])
def test_a_training_ends_with_few_sets_also_when_resumed(scene: Scene, tmp_path: Path, kind: str) -> None:
    """mcmc still moves and copies Gaussians while they share sets. The stop comes after the sets are made."""
    config = replace(config_of(kind, 120), sh_palette=40, save_every=110)
    if kind == "mcmc":
        density = replace(config.density, interval=4, refine_until_iteration=118)
        config = replace(config, density=density)
    counts: list[int] = []

    def count(state: TrainState) -> None:
        counts.append(len(distinct_rows(state.model.f_rest.detach().flatten(1).numpy())[0]))

    whole = train(scene, config, tmp_path / "whole", after_step=[count], progress=False)
    assert max(counts[:96]) > 40
    assert all(1 < number <= 40 for number in counts[96:])
    train(scene, replace(config, keep=99), tmp_path / "stopped", should_stop=stop_after(111), progress=False)
    assert len(list_checkpoints(tmp_path / "stopped" / "checkpoints")) > 0
    resumed = train(scene, config, tmp_path / "stopped", resume=True, progress=False)
    for name, parameter in whole.model.parameters.items():
        assert torch.equal(parameter, resumed.model.parameters[name]), name


def test_a_training_without_coefficients_has_nothing_to_share(scene: Scene, tmp_path: Path) -> None:
    config = replace(config_of("classic", 10), sh_palette=40, sh_degree=0)
    state = train(scene, config, tmp_path / "run", progress=False)
    assert state.iteration == 10 and state.model.f_rest_sets is None


def stop_after(steps: int) -> Callable[[], bool]:
    """A ``should_stop`` that stops after a number of steps."""
    asked = iter(range(steps + 1))
    return lambda: next(asked) == steps


def test_a_sog_keeps_the_sets_of_a_training(tmp_path: Path) -> None:
    """20,000 Gaussians share 4800 sets. A palette of 4096 sets, or of 512, would lose some of them."""
    rng = np.random.default_rng(1)
    model = model_of(20_000)
    assert palette_size(20_000, "normal") == 4096
    sets = rng.normal(0, 0.05, (4800, 15, 3)).astype(np.float32)[rng.integers(0, 4800, 20_000)]
    splat = replace(model.to_splat_data(), f_rest=sets)
    errors = {}
    for quality in ("normal", "small"):
        write_sog(tmp_path / "a.sog", splat, quality=quality)
        found = in_order_of(read_sog(tmp_path / "a.sog"), splat)
        errors[quality] = float(np.abs(found.f_rest - splat.f_rest).mean())
    assert errors["normal"] < 0.001 and errors["small"] > 0.02, errors
