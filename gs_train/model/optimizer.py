"""The one door to Adam: every change of the number, order or value of rows passes through here, parameters and moments together.

It knows nothing of Gaussians: it works on named tensors that share their rows, and on an Adam whose groups carry the same names with one
tensor each (or on no Adam at all). It is the only module that touches ``optimizer.state``. The invariant: a call either does all of its
work or raises and leaves the optimizer as it was. Everything is checked, then everything is built, and only then swapped in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

Parameters = Mapping[str, Parameter]
_Built = dict[str, tuple[Parameter, dict[str, Any] | None]]


# ---- groups by name ----


def group_by_name(optimizer: Optimizer, name: str) -> dict[str, Any]:
    """The parameter group called ``name``.

    Raises:
        ValueError: there is no such group.
    """
    for group in optimizer.param_groups:
        if group.get("name") == name:
            return group
    known = ", ".join(str(group.get("name")) for group in optimizer.param_groups)
    raise ValueError(f"{name}: no such parameter group; there are {known}")


def get_lr(optimizer: Optimizer, name: str) -> float:
    """The learning rate of the group called ``name``; ValueError if there is none."""
    return float(group_by_name(optimizer, name)["lr"])


def set_lr(optimizer: Optimizer, name: str, lr: float) -> None:
    """Set the learning rate of the group called ``name``; ValueError if there is none."""
    group_by_name(optimizer, name)["lr"] = lr


# ---- rows ----


def append_rows(
    parameters: Parameters, optimizer: Optimizer | None, tensors: Mapping[str, Tensor]
) -> dict[str, Parameter]:
    """Append rows to every parameter; the new rows' moments are zero, the kept ones' are untouched, ``step`` stays.

    Args:
        parameters: the tensors in use, by name, with N rows each.
        optimizer: the Adam that steps them, or None.
        tensors: for each of the names, M >= 0 new rows.

    Returns:
        The parameters now in use, N + M rows each, without gradients.

    Raises:
        ValueError: a name is missing or unknown, or a shape, dtype or device does not fit.
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


def keep_rows(parameters: Parameters, optimizer: Optimizer | None, keep_mask: Tensor) -> dict[str, Parameter]:
    """Keep the rows where ``keep_mask`` ([N] bool) is true, parameters and moments alike. Keeping none is allowed: the caller guards.

    Raises:
        ValueError: the mask is not a bool tensor of shape [N].
    """
    rows = _rows(parameters)
    if keep_mask.dtype != torch.bool or keep_mask.shape != (rows,):
        raise ValueError(
            f"keep_mask: expected torch.bool of shape [{rows}], got {keep_mask.dtype} of shape {list(keep_mask.shape)}"
        )
    return _select(parameters, optimizer, keep_mask.nonzero().squeeze(1))


def reorder(parameters: Parameters, optimizer: Optimizer | None, order: Tensor) -> dict[str, Parameter]:
    """Put the rows into ``order`` ([N] int64): row i of the result is row ``order[i]`` of now, parameters and moments alike.

    Raises:
        ValueError: ``order`` is not a permutation of the rows.
    """
    rows = _rows(parameters)
    if order.dtype != torch.int64 or order.shape != (rows,):
        raise ValueError(
            f"order: expected torch.int64 of shape [{rows}], got {order.dtype} of shape {list(order.shape)}"
        )
    if not torch.equal(order.sort().values, torch.arange(rows, device=order.device)):
        raise ValueError(f"order: not a permutation of the {rows} rows")
    return _select(parameters, optimizer, order)


def replace(parameters: Parameters, optimizer: Optimizer | None, name: str, tensor: Tensor) -> dict[str, Parameter]:
    """Put ``tensor`` in the place of the parameter ``name`` and zero that parameter's moments; ``step`` stays.

    Returns:
        All parameters now in use; the others are the same objects as before.

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


# ---- saving and loading ----


def dump_state(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """For each group by name: ``lr`` and ``state`` (moments and step; empty before the first step). The tensors are not copied."""
    groups = optimizer.param_groups
    return {
        group["name"]: {"lr": float(group["lr"]), "state": dict(optimizer.state.get(group["params"][0], {}))}
        for group in groups
    }


def load_state(
    parameters: Parameters, optimizer: Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Any]]
) -> dict[str, Parameter]:
    """Put ``tensors`` (any number of rows) and the dumped ``state`` in the place of everything the optimizer holds.

    Args:
        parameters: the tensors in use, by name.
        optimizer: the Adam that steps them.
        tensors: the new values, by the same names.
        state: what ``dump_state`` gave for them.

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
            # A fused Adam keeps ``step`` beside the parameter, too.
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
    """The new parameter and its Adam state. ``on_moment`` maps each moment to the new rows; ``step`` stays the same object."""
    state = None if optimizer is None else optimizer.state.get(old)
    if state is not None:
        state = {
            key: value if key == "step" or not isinstance(value, Tensor) else on_moment(value)
            for key, value in state.items()
        }
    return Parameter(values), state


def _swap(parameters: Parameters, optimizer: Optimizer | None, built: _Built) -> dict[str, Parameter]:
    """Exchange the old parameters for the built ones. The checks come first; after them nothing can fail."""
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
