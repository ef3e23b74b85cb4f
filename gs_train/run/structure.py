"""The structure of saved values: which types, names, shapes and ranges a checkpoint may hold.

Any program may have written the file. ``check_plain`` holds for every checkpoint: plain values of a size that the file
can hold. ``check_like`` compares a value with a template of the same structure: for the parts that every command reads,
a template in ``checkpoint.py``; for a resume, the state of a new run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LARGEST_INT = 2**63
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
"""The dtypes that torch pickles without further names."""


@dataclass(frozen=True)
class ListOf:
    """Template of a list of any length."""

    entry: Any
    """Template of each entry."""


@dataclass(frozen=True)
class DictOf:
    """Template of a dict with any text as keys."""

    entry: Any
    """Template of each value."""


@dataclass(frozen=True)
class Anything:
    """Template of any plain value."""


def check_plain(content: Any, *, most_values: int, most_bytes: int) -> None:
    """Check that a value consists of tensors, numbers, text, None, lists, tuples and dicts.

    Args:
        content: from a file, or for one.
        most_values: limit on the number of values, each counted as often as it occurs.
        most_bytes: limit on the size of all tensors, each counted as often as it occurs.

    Raises:
        ValueError: it does not. The message names the place.
    """
    count = size = 0
    for where, value in _walk(content, "content"):
        count += 1
        if isinstance(value, Tensor):
            _check_tensor(where, value)
            size += value.numel() * value.element_size()
        elif value is not None and type(value) not in (bool, int, float, str, list, tuple, dict):
            raise ValueError(f"{where} is a {type(value).__name__}")
        elif type(value) is int and not -_LARGEST_INT <= value < _LARGEST_INT:
            raise ValueError(f"{where} does not fit 64 bits")
        if count > most_values or size > most_bytes:
            raise ValueError(f"{where} and the values before it are larger than the file: some occur several times")


def _walk(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """A value and all values in it, each with its place."""
    yield where, value
    if type(value) is dict:
        for key, entry in value.items():
            if type(key) not in (str, int):
                raise ValueError(f"{where} has a key of type {type(key).__name__}")
            yield from _walk(entry, f"{where}.{key}")
    elif type(value) in (list, tuple):
        for number, entry in enumerate(value):
            yield from _walk(entry, f"{where}.{number}")


def _check_tensor(where: str, tensor: Tensor) -> None:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_nested:
        raise ValueError(f"{where} is not a dense tensor")
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{where} has the dtype {tensor.dtype}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{where} repeats its memory")


def check_like(value: Any, template: Any, where: str = "state", rows: tuple[int, int] | None = None) -> None:
    """Check that a value has the structure of a template: types, names, lengths, dtypes and shapes; floats are finite.

    Args:
        value: a plain value (see ``check_plain``).
        template: a value of the same structure. ``ListOf``, ``DictOf`` and ``Anything`` may stand for parts of it.
        where: place of the value, for messages.
        rows: the number of rows in the template and in the value. Where a tensor of the template has the former as its
            first dimension, that of the value must have the latter.

    Raises:
        ValueError: the structures differ. The message names the first place.
    """
    if isinstance(template, Anything):
        return
    template = _repeated(value, template, where)
    _check_type(where, value, type(template))
    if isinstance(template, dict):
        if value.keys() != template.keys():
            names = ", ".join(sorted(map(str, value.keys() ^ template.keys())))
            raise ValueError(f"{where} lacks or has too many: {names}")
        for key in template:
            check_like(value[key], template[key], f"{where}.{key}", rows)
    elif isinstance(template, list | tuple):
        if len(value) != len(template):
            raise ValueError(f"{where} has {len(value)} entries instead of {len(template)}")
        for number, entry in enumerate(template):
            check_like(value[number], entry, f"{where}.{number}", rows)
    elif isinstance(template, Tensor):
        shape = list(template.shape)
        if rows is not None and shape[:1] == [rows[0]]:
            shape[0] = rows[1]
        if list(value.shape) != shape or value.dtype != template.dtype:
            raise ValueError(f"{where} is {value.dtype} {list(value.shape)} instead of {template.dtype} {shape}")
    elif isinstance(template, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}")


def _repeated(value: Any, template: Any, where: str) -> Any:
    """The template with ``ListOf`` and ``DictOf`` replaced by as many entries as ``value`` has."""
    if isinstance(template, ListOf):
        _check_type(where, value, list)
        return [template.entry] * len(value)
    if isinstance(template, DictOf):
        _check_type(where, value, dict)
        for key in value:
            _check_type(f"a key of {where}", key, str)
        return dict.fromkeys(value, template.entry)
    return template


def _check_type(where: str, value: Any, expected: type[Any]) -> None:
    fits = isinstance(value, Tensor) if issubclass(expected, Tensor) else type(value) is expected
    if not fits:
        raise ValueError(f"{where} is a {type(value).__name__} instead of a {expected.__name__}")
