"""Changes to the rows of parameters together with their Adam moments: append, keep, sort, replace, save, load.

This is the only module that touches ``optimizer.state``. It does not know about Gaussians: it works on named tensors
with the same number of rows, and on an Adam whose groups have the same names and one tensor each, or on no optimizer at
all. A call either succeeds, or raises and leaves the optimizer unchanged, because it checks and builds everything
before it swaps the first tensor in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from gs_train.model.row_sets import RowSets

Parameters = Mapping[str, Parameter]
_Built = dict[str, tuple[Parameter, dict[str, Any] | None]]


# ---- groups by name ----


def group_by_name(optimizer: Optimizer, name: str) -> dict[str, Any]:
    """The parameter group with the name ``name``.

    Raises:
        ValueError: no group has this name.
    """
    for group in optimizer.param_groups:
        if group.get("name") == name:
            return group
    known = ", ".join(str(group.get("name")) for group in optimizer.param_groups)
    raise ValueError(f"{name}: no such parameter group; there are {known}")


def get_lr(optimizer: Optimizer, name: str) -> float:
    """The learning rate of the group ``name``. Raises ValueError if no group has this name."""
    return float(group_by_name(optimizer, name)["lr"])


def set_lr(optimizer: Optimizer, name: str, lr: float) -> None:
    """Set the learning rate of the group ``name``. Raises ValueError if no group has this name."""
    group_by_name(optimizer, name)["lr"] = lr


def set_rates(optimizer: Optimizer, rates: Mapping[str, float], *, betas: tuple[float, float], eps: float) -> None:
    """Set the learning rates of groups by name, and the decay rates and epsilon of these groups."""
    for name, lr in rates.items():
        group_by_name(optimizer, name).update(lr=lr, betas=betas, eps=eps)


# ---- steps ----


def step(optimizer: Optimizer, shared: Mapping[str, RowSets]) -> None:
    """Take one step of a fused Adam, to the same bits as ``optimizer.step()``, and free the gradients.

    The rows of each set of ``shared`` (sets of equal rows by group name) take one step along the sum of their
    gradients, so they stay equal.

    torch's own method calls the same operators. For six groups its bookkeeping takes six times as long as the calls,
    and a GPU waits for it.
    """
    steps: list[Tensor] = []
    updates = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = _zero_moments(parameter, fused=True)
            steps.append(optimizer.state[parameter]["step"])
            updates.append((group, parameter, optimizer.state[parameter]))
    if not updates:
        return
    with torch.no_grad():
        torch._foreach_add_(steps, 1.0)
        for group, parameter, state in updates:
            sets, gradient = shared.get(group.get("name", "")), parameter.grad
            whole = [parameter, state["exp_avg"], state["exp_avg_sq"]]
            stepped = whole if sets is None else [tensor.index_select(0, sets.first) for tensor in whole]
            torch._fused_adam_(
                [stepped[0]],
                [gradient if sets is None else sets.sums(gradient)],
                [stepped[1]],
                [stepped[2]],
                [],
                [state["step"]],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=0.0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
            if sets is not None:
                for values, tensor in zip(stepped, whole, strict=True):
                    sets.spread(values, tensor)
            parameter.grad = None


# ---- rows ----


def append_rows(
    parameters: Parameters, optimizer: Optimizer | None, tensors: Mapping[str, Tensor]
) -> dict[str, Parameter]:
    """Append rows to every parameter. The moments of new rows are zero; existing moments and ``step`` stay.

    Args:
        parameters: the current parameters by name, N rows each.
        optimizer: their Adam, or None.
        tensors: M >= 0 new rows for each name.

    Returns:
        The new parameters, N + M rows each, without gradients.

    Raises:
        ValueError: a name is missing or unknown, or a tensor has the wrong shape, dtype or device.
    """
    _check_names(parameters, tensors)
    added = next((len(tensor) for tensor in tensors.values() if tensor.dim() > 0), 0)
    for name, tensor in tensors.items():
        _check_fit(name, parameters[name], tensor, rows=added)

    def with_zeros(moment: Tensor) -> Tensor:
        return torch.cat([moment, moment.new_zeros(added, *moment.shape[1:])])

    built: _Built = {}
    for name, old in parameters.items():
        built[name] = _build(optimizer, old, torch.cat([old.detach(), tensors[name].detach()]), with_zeros)
    return _swap(parameters, optimizer, built)


def keep_rows(
    parameters: Parameters, optimizer: Optimizer | None, keep_mask: Tensor, count: int | None = None
) -> dict[str, Parameter]:
    """Keep the rows of parameters and moments where ``keep_mask`` ([N] bool) is true.

    A mask that is false everywhere is allowed. Callers must prevent it if they need at least one row. ``count`` is the
    number of rows to keep; without it, the program waits for a GPU to count them.

    Raises:
        ValueError: the mask is not a bool tensor of shape [N].
    """
    rows = _rows(parameters)
    if keep_mask.dtype != torch.bool or keep_mask.shape != (rows,):
        raise ValueError(
            f"keep_mask: expected torch.bool of shape [{rows}], got {keep_mask.dtype} of shape {list(keep_mask.shape)}"
        )
    kept = keep_mask.nonzero() if count is None else keep_mask.nonzero_static(size=count)
    return _select(parameters, optimizer, kept.squeeze(1))


def sort_rows(parameters: Parameters, optimizer: Optimizer | None, keys: Tensor) -> dict[str, Parameter]:
    """Sort the rows of parameters and moments by ``keys`` ([N] int64, ascending). Rows of equal keys keep their order.

    Raises:
        ValueError: the keys are not an int64 tensor of shape [N].
    """
    rows = _rows(parameters)
    if keys.dtype != torch.int64 or keys.shape != (rows,):
        raise ValueError(f"keys: expected torch.int64 of shape [{rows}], got {keys.dtype} of shape {list(keys.shape)}")
    return _select(parameters, optimizer, keys.argsort(stable=True))


def replace(parameters: Parameters, optimizer: Optimizer | None, name: str, tensor: Tensor) -> dict[str, Parameter]:
    """Replace the parameter ``name`` by a copy of ``tensor`` and zero its moments; ``step`` stays.

    Returns:
        All current parameters. The other parameters are the same objects as before.

    Raises:
        ValueError: the name is unknown, or the tensor's shape, dtype or device differs from the parameter's.
    """
    if name not in parameters:
        raise ValueError(f"{name}: no such parameter; there are {', '.join(parameters)}")
    old = parameters[name]
    _check_fit(name, old, tensor, rows=len(old))
    values = tensor.detach().clone(memory_format=torch.contiguous_format)
    built = {name: _build(optimizer, old, values, torch.zeros_like)}
    return {**parameters, **_swap({name: old}, optimizer, built)}


def merge_rows(parameters: Parameters, optimizer: Optimizer | None, name: str, sets: RowSets, values: Tensor) -> None:
    """Give all rows of each set of the parameter ``name`` the set's row of ``values`` ([K, ...]).

    The moments of a set are the sums of its rows' moments: those of the sum of independent gradients.
    """
    parameter = parameters[name]
    with torch.no_grad():
        sets.spread(values.to(parameter), parameter)
        state = {} if optimizer is None else optimizer.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state:
                sets.spread(sets.sums(state[key]), state[key])


# ---- saving and loading ----


def start_moments(optimizer: Optimizer) -> None:
    """Create the zero moments and step counts that Adam creates at its first step.

    The state before the first step then has the structure of every later state, so a saved state can be checked
    against it.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = _zero_moments(parameter, fused=bool(group["fused"]))


def _zero_moments(parameter: Parameter, *, fused: bool) -> dict[str, Tensor]:
    # A fused Adam needs ``step`` on the device of the parameter.
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu"),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def dump_moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """Step counts [P] and moments [P, ...] of an Adam over P parameters of one shape, as copies.

    Needs ``start_moments``. Settings of the Adam, such as its rate, are not saved: their owner sets them.
    """
    states = [optimizer.state[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return {name: torch.stack([state[name] for state in states]) for name in ("step", "exp_avg", "exp_avg_sq")}


def load_moments(optimizer: Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Restore copies of the result of ``dump_moments`` for the same number of parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, saved in moments.items():
        for parameter, values in zip(parameters, saved, strict=True):
            optimizer.state[parameter][name].copy_(values)


def dump_state(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """``lr`` and ``state`` of each group, by name.

    ``state`` holds the moments and ``step``, and is empty before the first step. Its tensors are the optimizer's own,
    not copies.
    """
    groups = optimizer.param_groups
    return {
        group["name"]: {"lr": float(group["lr"]), "state": dict(optimizer.state.get(group["params"][0], {}))}
        for group in groups
    }


def load_state(
    parameters: Parameters, optimizer: Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Any]]
) -> dict[str, Parameter]:
    """Replace all parameters by copies of ``tensors``, and their learning rates and Adam state by copies of ``state``.

    Args:
        parameters: the current parameters by name.
        optimizer: their Adam.
        tensors: the new values by the same names, with any number of rows.
        state: the result of ``dump_state`` for ``tensors``.

    Returns:
        The new parameters.

    Raises:
        ValueError: names are missing or unknown, or a moment's shape differs from its parameter's.
    """
    _check_names(parameters, tensors)
    _check_names(parameters, state)
    built: _Built = {}
    for name, tensor in tensors.items():
        loaded = {
            key: value.detach().clone() if isinstance(value, Tensor) else value
            for key, value in state[name]["state"].items()
        }
        for key, value in loaded.items():
            if not isinstance(value, Tensor):
                continue
            if key != "step" and value.shape != tensor.shape:
                raise ValueError(f"{name}: {key} has shape {list(value.shape)}, the parameter {list(tensor.shape)}")
            # A fused Adam needs ``step`` on the device of the parameter, too.
            loaded[key] = value.to(tensor.device)
        built[name] = (Parameter(tensor.detach().clone()), loaded)
    rates = {name: float(state[name]["lr"]) for name in built}
    swapped = _swap(parameters, optimizer, built)
    for name, rate in rates.items():
        set_lr(optimizer, name, rate)
    return swapped


# ---- parts ----


def _rows(parameters: Parameters) -> int:
    return len(next(iter(parameters.values())))


def _check_names(parameters: Parameters, given: Mapping[str, Any]) -> None:
    unknown = [name for name in given if name not in parameters]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such parameter; there are {', '.join(parameters)}")
    missing = [name for name in parameters if name not in given]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing; all of {', '.join(parameters)} are needed")


def _check_fit(name: str, old: Tensor, new: Tensor, *, rows: int) -> None:
    expected = [rows, *old.shape[1:]]
    if list(new.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {list(new.shape)}")
    if new.dtype != old.dtype or new.device != old.device:
        raise ValueError(f"{name}: expected {old.dtype} on {old.device}, got {new.dtype} on {new.device}")


def _select(parameters: Parameters, optimizer: Optimizer | None, rows: Tensor) -> dict[str, Parameter]:
    rows = rows.to(next(iter(parameters.values())).device)
    built = {
        name: _build(optimizer, old, old.detach().index_select(0, rows), lambda moment: moment.index_select(0, rows))
        for name, old in parameters.items()
    }
    return _swap(parameters, optimizer, built)


def _build(
    optimizer: Optimizer | None, old: Parameter, values: Tensor, on_moment: Callable[[Tensor], Tensor]
) -> tuple[Parameter, dict[str, Any] | None]:
    """The new parameter and its Adam state. ``on_moment`` maps each moment to the new rows; ``step`` is not copied."""
    state = None if optimizer is None else optimizer.state.get(old)
    if state is not None:
        state = {
            key: value if key == "step" or not isinstance(value, Tensor) else on_moment(value)
            for key, value in state.items()
        }
    return Parameter(values), state


def _swap(parameters: Parameters, optimizer: Optimizer | None, built: _Built) -> dict[str, Parameter]:
    """Swap the built parameters in.

    All checks come before the first change, so an error leaves the optimizer unchanged.
    """
    if optimizer is not None:
        groups = {name: group_by_name(optimizer, name) for name in built}
        for name, group in groups.items():
            if len(group["params"]) != 1 or group["params"][0] is not parameters[name]:
                raise ValueError(f"{name}: the optimizer's group does not hold the parameter in use")
        for name, (new, state) in built.items():
            optimizer.state.pop(parameters[name], None)
            groups[name]["params"][0] = new
            if state:
                optimizer.state[new] = state
    return {name: new for name, (new, _) in built.items()}
