"""Edits of Adam's parameters and moments, compared bit for bit with an Adam built by hand from the expected tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from gs_train.model import optimizer as door
from gs_train.model.gaussians import PARAMETER_NAMES, GaussianModel
from gs_train.model.schedule import OptimizerConfig

TAILS = {"xyz": (3,), "f_dc": (1, 3), "f_rest": (3, 3), "opacity": (1,), "scaling": (3,), "rotation": (4,)}
CONFIG = OptimizerConfig(xyz_lr_max_steps=100, xyz_lr_init=1.6e-4, opacity_lr=0.025, scaling_lr=0.005)
Snapshot = dict[str, tuple[Tensor, dict[str, Tensor]]]


def random_tensors(rows: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, *tail, generator=generator) for name, tail in TAILS.items()}


def make_model(rows: int, *, steps: int = 0, seed: int = 0, setup: bool = True) -> GaussianModel:
    model = GaussianModel(random_tensors(rows, seed), spatial_lr_scale=2.0)
    if setup:
        model.training_setup(CONFIG)
        for step in range(steps):
            take_step(model, seed=1000 + step)
    return model


def take_step(model: GaussianModel, seed: int) -> None:
    assert model.optimizer is not None
    for name, grad in random_tensors(len(model), seed).items():
        model.parameters[name].grad = grad
    model.optimizer.step()
    model.optimizer.zero_grad()


def test_a_step_has_the_bits_of_torch() -> None:
    """Also for a parameter without a gradient, and for one that lost its moments."""
    ours, theirs = make_model(7, steps=2), make_model(7, steps=2)
    assert ours.optimizer is not None and theirs.optimizer is not None
    for model in (ours, theirs):
        assert model.optimizer is not None
        model.optimizer.state.pop(model.opacity)
    for seed in range(3):
        for model in (ours, theirs):
            for name, grad in random_tensors(7, seed).items():
                model.parameters[name].grad = None if name == "f_rest" and seed < 2 else grad
        ours.step()
        theirs.optimizer.step()
        assert all(parameter.grad is None for parameter in ours.parameters.values())
        assert_equal(snapshot(ours), snapshot(theirs))


def snapshot(model: GaussianModel) -> Snapshot:
    """Copies of every tensor and its Adam state."""
    result: Snapshot = {}
    for name, parameter in model.parameters.items():
        state = {} if model.optimizer is None else model.optimizer.state.get(parameter, {})
        result[name] = (parameter.detach().clone(), {key: value.clone() for key, value in state.items()})
    return result


def assert_equal(actual: Snapshot, expected: Snapshot) -> None:
    assert list(actual) == list(expected)
    for name in expected:
        assert torch.equal(actual[name][0], expected[name][0]), name
        assert actual[name][1].keys() == expected[name][1].keys(), name
        for key, value in expected[name][1].items():
            assert torch.equal(actual[name][1][key], value), (name, key)


def assert_bound(model: GaussianModel) -> None:
    """Every group holds the model's tensor, a fresh leaf without a gradient. No state belongs to any other tensor."""
    assert model.optimizer is not None
    assert [group["name"] for group in model.optimizer.param_groups] == list(PARAMETER_NAMES)
    for group in model.optimizer.param_groups:
        (held,) = group["params"]
        assert held is model.parameters[group["name"]]
        assert isinstance(held, Parameter) and held.requires_grad and held.is_leaf and held.grad is None
    in_use = {id(parameter) for parameter in model.parameters.values()}
    assert {id(key) for key in model.optimizer.state} <= in_use


def plain_adam(expected: Snapshot, lrs: dict[str, float]) -> dict[str, Parameter]:
    """Build an Adam by hand from ``expected``, step it twice and return its parameters."""
    parameters = {name: Parameter(value.clone()) for name, (value, _) in expected.items()}
    adam = torch.optim.Adam(
        [{"params": [p], "lr": lrs[name]} for name, p in parameters.items()], lr=0.0, eps=1e-15, fused=True
    )
    for name, parameter in parameters.items():
        if expected[name][1]:
            adam.state[parameter] = {key: value.clone() for key, value in expected[name][1].items()}
    rows = len(parameters["xyz"])
    for seed in (77, 78):
        for name, grad in random_tensors(rows, seed).items():
            parameters[name].grad = grad
        adam.step()
    return parameters


def assert_steps_like_plain_adam(model: GaussianModel, expected: Snapshot) -> None:
    """The model holds ``expected``, and two steps give the parameters of ``plain_adam``."""
    assert_equal(snapshot(model), expected)
    assert_bound(model)
    assert model.optimizer is not None
    plain = plain_adam(expected, {name: door.get_lr(model.optimizer, name) for name in PARAMETER_NAMES})
    take_step(model, seed=77)
    take_step(model, seed=78)
    for name, parameter in plain.items():
        assert torch.equal(model.parameters[name], parameter), name


def mapped(
    before: Snapshot, on_value: Callable[[str, Tensor], Tensor], on_moment: Callable[[str, Tensor], Tensor]
) -> Snapshot:
    return {
        name: (on_value(name, value), {k: v if k == "step" else on_moment(name, v) for k, v in state.items()})
        for name, (value, state) in before.items()
    }


# ---- single operations ----


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("added", [0, 1, 4])
def test_growing(steps: int, added: int) -> None:
    model = make_model(5, steps=steps)
    before, new = snapshot(model), random_tensors(added, seed=5)
    returned = model.cat_tensors_to_optimizer(new)
    assert returned["f_rest"] is model.f_rest and len(model) == 5 + added
    expected = mapped(
        before,
        lambda name, value: torch.cat([value, new[name]]),
        lambda name, moment: torch.cat([moment, torch.zeros(added, *TAILS[name])]),
    )
    assert_steps_like_plain_adam(model, expected)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("mask", [[True] * 5, [False] * 5, [True, False, False, True, True]])
@pytest.mark.parametrize("counted", [True, False])
def test_pruning(steps: int, mask: list[bool], counted: bool) -> None:
    model = make_model(5, steps=steps)
    before, keep = snapshot(model), torch.tensor(mask)
    model.prune_optimizer(keep, sum(mask) if counted else None)
    assert len(model) == sum(mask)
    assert_steps_like_plain_adam(model, mapped(before, lambda _, value: value[keep], lambda _, moment: moment[keep]))


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", PARAMETER_NAMES)
def test_replacing(steps: int, name: str) -> None:
    model = make_model(5, steps=steps)
    before, new = snapshot(model), random_tensors(5, seed=9)[name]
    others = {other: parameter for other, parameter in model.parameters.items() if other != name}
    model.replace_tensor_to_optimizer(new, name)
    assert all(model.parameters[other] is parameter for other, parameter in others.items())
    expected = mapped(
        before,
        lambda other, value: new if other == name else value,
        lambda other, moment: torch.zeros_like(moment) if other == name else moment,
    )
    assert_steps_like_plain_adam(model, expected)


@pytest.mark.parametrize("steps", [0, 3])
def test_sorting(steps: int) -> None:
    model = make_model(5, steps=steps)
    before, order = snapshot(model), torch.tensor([3, 0, 4, 1, 2])
    model.sort_optimizer(torch.tensor([-1, 7, 7, -2, 5]))
    assert_steps_like_plain_adam(model, mapped(before, lambda _, value: value[order], lambda _, moment: moment[order]))


def test_replaced_tensor_is_a_copy() -> None:
    model = make_model(2)
    mine = torch.zeros(2, 3)
    model.replace_tensor_to_optimizer(mine, "xyz")
    mine += 1.0
    assert torch.equal(model.xyz, torch.zeros(2, 3))


def test_a_group_without_state_beside_one_with_state() -> None:
    model = make_model(3)
    assert model.optimizer is not None
    model.xyz.grad = torch.ones(3, 3)
    model.optimizer.step()
    for name in ("f_dc", "f_rest", "opacity", "scaling", "rotation"):
        model.optimizer.state.pop(model.parameters[name])
    before = snapshot(model)
    assert before["xyz"][1] and not before["f_dc"][1]
    keep = torch.tensor([False, True, True])
    model.prune_optimizer(keep)
    assert_steps_like_plain_adam(model, mapped(before, lambda _, value: value[keep], lambda _, moment: moment[keep]))


def test_changing_rows_clears_the_gradients() -> None:
    model = make_model(3, steps=1)
    for name, grad in random_tensors(3, seed=4).items():
        model.parameters[name].grad = grad
    model.cat_tensors_to_optimizer(random_tensors(1, seed=5))
    assert all(parameter.grad is None for parameter in model.parameters.values())


# ---- any sequence of operations ----

operations = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.integers(0, 3)),
        st.tuples(st.just("prune"), st.integers(0, 255)),
        st.tuples(st.just("replace"), st.sampled_from(PARAMETER_NAMES)),
        st.tuples(st.just("sort"), st.integers(0, 1000)),
        st.tuples(st.just("step"), st.integers(0, 1000)),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(operations)
def test_any_sequence_of_operations_equals_plain_indexing(sequence: list[tuple[str, Any]]) -> None:
    """After every operation, tensors, moments and step counts equal plain indexing. Later steps equal plain Adam."""
    model = make_model(3, steps=1)
    mirror = snapshot(model)
    for i, (kind, value) in enumerate(sequence):
        rows = len(model)
        if kind == "grow":
            new = random_tensors(value, seed=i)
            model.cat_tensors_to_optimizer(new)
            mirror = mapped(
                mirror, lambda n, v, new=new: torch.cat([v, new[n]]), lambda n, m, new=new: torch.cat([m, 0 * new[n]])
            )
        elif kind == "prune":
            keep = torch.tensor([bool(value >> (row % 8) & 1) for row in range(rows)], dtype=torch.bool)
            model.prune_optimizer(keep)
            mirror = mapped(mirror, lambda _, v, keep=keep: v[keep], lambda _, m, keep=keep: m[keep])
        elif kind == "replace":
            new_value = random_tensors(rows, seed=i)[value]
            model.replace_tensor_to_optimizer(new_value, value)
            mirror[value] = (new_value, {k: v if k == "step" else 0 * v for k, v in mirror[value][1].items()})
        elif kind == "sort":
            keys = torch.randint(3, (rows,), generator=torch.Generator().manual_seed(value))
            order = torch.tensor(sorted(range(rows), key=keys.tolist().__getitem__), dtype=torch.int64)
            model.sort_optimizer(keys)
            mirror = mapped(mirror, lambda _, v, order=order: v[order], lambda _, m, order=order: m[order])
        else:
            take_step(model, seed=value)
            mirror = snapshot(model)
        assert_equal(snapshot(model), mirror)
        assert_bound(model)
    assert_steps_like_plain_adam(model, mirror)


# ---- failed calls change nothing ----


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in random_tensors(2, 1).items() if key != name}


def with_bad(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {**random_tensors(2, 1), name: tensor}


BAD_CALLS: list[tuple[Callable[[GaussianModel], object], str]] = [
    (lambda m: m.cat_tensors_to_optimizer(without("rotation")), "rotation: missing"),
    (lambda m: m.cat_tensors_to_optimizer({}), "missing"),
    (lambda m: m.cat_tensors_to_optimizer(with_bad("colour", torch.zeros(2, 3))), "colour: no such parameter"),
    (
        lambda m: m.cat_tensors_to_optimizer(with_bad("f_rest", torch.zeros(2, 4, 3))),
        r"f_rest: .* \[2, 3, 3\], got \[2, 4, 3\]",
    ),
    (
        lambda m: m.cat_tensors_to_optimizer(with_bad("rotation", torch.zeros(3, 4))),
        r"rotation: expected shape \[2, 4\], got \[3, 4\]",
    ),
    (lambda m: m.cat_tensors_to_optimizer(with_bad("xyz", torch.zeros(()))), r"xyz: expected shape \[2, 3\], got \[\]"),
    (
        lambda m: m.cat_tensors_to_optimizer(with_bad("opacity", torch.zeros(2, 1, dtype=torch.float64))),
        "opacity: expected torch.float32",
    ),
    (
        lambda m: m.prune_optimizer(torch.ones(4, dtype=torch.bool)),
        r"keep_mask: expected torch.bool of shape \[3\].*\[4\]",
    ),
    (lambda m: m.prune_optimizer(torch.ones(3)), "keep_mask: expected torch.bool.*torch.float32"),
    (lambda m: m.replace_tensor_to_optimizer(torch.zeros(3, 3), "colour"), "colour: no such parameter"),
    (lambda m: m.replace_tensor_to_optimizer(torch.zeros(2, 3), "xyz"), r"xyz: expected shape \[3, 3\], got \[2, 3\]"),
    (lambda m: m.sort_optimizer(torch.tensor([0, 1])), r"keys: expected torch.int64 of shape \[3\].*\[2\]"),
    (lambda m: m.sort_optimizer(torch.zeros(3)), r"keys: expected torch.int64 .*torch.float32"),
    (lambda m: m.reset_opacity(1.0), "reset_opacity"),
]


@pytest.mark.parametrize("setup", [True, False])
@pytest.mark.parametrize(("call", "message"), BAD_CALLS)
def test_refused_calls_change_nothing(call: Callable[[GaussianModel], object], message: str, setup: bool) -> None:
    model = make_model(3, steps=2, setup=setup)
    before, objects = snapshot(model), model.parameters
    with pytest.raises(ValueError, match=message):
        call(model)
    assert_equal(snapshot(model), before)
    assert all(model.parameters[name] is parameter for name, parameter in objects.items())
    if setup:
        assert_bound(model)


def test_running_out_of_memory_half_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(3, steps=2)
    before, new, calls = snapshot(model), random_tensors(2, 1), 0
    real_cat = torch.cat

    def failing_cat(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise RuntimeError("out of memory")
        return real_cat(*args, **kwargs)

    monkeypatch.setattr(torch, "cat", failing_cat)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.cat_tensors_to_optimizer(new)
    monkeypatch.undo()
    assert_equal(snapshot(model), before)
    assert_bound(model)


def test_an_optimizer_of_other_tensors_is_refused() -> None:
    model, other = make_model(3, steps=1), make_model(3, steps=1)
    model.optimizer = other.optimizer
    with pytest.raises(ValueError, match="does not hold the parameter in use"):
        model.prune_optimizer(torch.ones(3, dtype=torch.bool))
    assert_bound(other)


def test_all_operations_work_without_an_optimizer() -> None:
    model = make_model(3, setup=False)
    start = snapshot(model)
    model.cat_tensors_to_optimizer(random_tensors(2, seed=5))
    model.sort_optimizer(torch.tensor([4, 3, 2, 1, 0]))
    model.prune_optimizer(torch.tensor([False, False, True, True, True]))
    model.replace_tensor_to_optimizer(torch.ones(3, 1), "opacity")
    assert torch.equal(model.xyz, start["xyz"][0].flip(0)) and torch.equal(model.opacity, torch.ones(3, 1))
    assert model.optimizer is None and model.xyz.requires_grad


# ---- learning rates by name ----


def test_learning_rates_by_name() -> None:
    model = make_model(2)
    assert model.optimizer is not None
    door.set_lr(model.optimizer, "opacity", 0.5)
    assert door.get_lr(model.optimizer, "opacity") == 0.5
    assert door.get_lr(model.optimizer, "f_dc") == CONFIG.f_dc_lr
    with pytest.raises(ValueError, match="colour: no such parameter group; there are xyz, f_dc"):
        door.set_lr(model.optimizer, "colour", 0.5)
