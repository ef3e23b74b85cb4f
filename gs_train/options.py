"""Rules of settings, declared beside the field they hold for: ranges, schedule points, help groups, flag names.

A settings class is a frozen dataclass whose fields are made by ``setting``. Its ``__post_init__`` calls ``check``,
which reads the rules from the fields. The values themselves live in the settings classes. This module imports no torch,
so that ``gs-train --help`` stays fast.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from gs_train.errors import UserError

MOST_USED = "Most used"
INPUT = "Input"
SCHEDULE = "Schedule"
MODEL = "Model and loss"
CORRECTIONS = "Camera and colour corrections"
DENSITY = "Density control"
LEARNING_RATES = "Learning rates"
OUTPUT = "Output and machine"
CLEANING = "Gaussians to leave out"
PLACEMENT = "Placement"
FORMATS = "Options of single formats"
GROUPS = (
    *(MOST_USED, INPUT, SCHEDULE, MODEL, CORRECTIONS, DENSITY, LEARNING_RATES, OUTPUT),
    *(CLEANING, PLACEMENT, FORMATS),
)
"""Titles of the help groups, in the order of ``--help``. ``MOST_USED`` is for the options that most users need."""
DEVICES = "{auto,cuda,cuda:N,cpu}"
"""The values of ``--device``; ``check_device`` checks them."""
_KEY = "gs_train"
_Config = TypeVar("_Config")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of one setting."""

    at_least: float | None = None
    """Smallest value allowed."""
    above: float | None = None
    """Every value must be larger than this."""
    at_most: float | None = None
    """Largest value allowed."""
    below: float | None = None
    """Every value must be smaller than this."""
    group: str = ""
    """Title under which ``--help`` lists the flag; empty for the title of the settings class."""
    on_resume: bool = False
    """Whether the setting may change when a run resumes."""
    shapes_state: bool = False
    """Whether the setting decides which parts a training state has, so that a checkpoint of another value cannot be
    loaded."""

    def expected(self) -> str:
        """The allowed range as a phrase, such as ``of at least 1``."""
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:g} to {self.at_most:g}"
        if self.above is not None and self.below is not None:
            return f"between {self.above:g} and {self.below:g}"
        bounds = (
            ("of at least", self.at_least),
            ("above", self.above),
            ("of at most", self.at_most),
            ("below", self.below),
        )
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)

    def allow(self, value: float) -> bool:
        """Whether ``value`` is finite and inside the range."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def setting(default: Any, **rules: Any) -> Any:
    """A dataclass field with a default and the rules of ``Rules``."""
    return field(default=default, metadata={_KEY: Rules(**rules)})


def rules_of(entry: Field[Any]) -> Rules:
    """The rules of a dataclass field; no limits if it declares none."""
    rules: Rules = entry.metadata.get(_KEY, Rules())
    return rules


def flag_name(name: str, prefix: str = "") -> str:
    """The command-line flag of a field: ``max_gaussians`` gives ``--max-gaussians``."""
    return f"--{prefix}{name.replace('_', '-')}"


_LARGEST_INT = 2**53
"""Files of settings and checkpoints hold it exactly."""


def check(config: Any, prefix: str = "") -> None:
    """Check every field of a settings object against its type's choices and its rules.

    Args:
        config: an instance of a settings class.
        prefix: words before the flag's name, such as ``density.``.

    Raises:
        UserError: a value is outside its range or not among its choices; the message names the flag.
    """
    for name, hint, rules in _rules_by_name(type(config)):  # type: ignore[arg-type]
        value = getattr(config, name)
        flag = flag_name(name, prefix)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise UserError(f"{flag} is {value}: give one of {', '.join(map(str, get_args(hint)))}.")
        elif hint == int | float:
            _check_schedule_point(flag, value, rules)
        elif hint is int and abs(value) > _LARGEST_INT:
            raise UserError(f"{flag} is {value:.3g}: give a whole number of at most {_LARGEST_INT}.")
        elif hint in (int, float) and not rules.allow(value):
            kind = "a whole number" if hint is int else "a number"
            raise UserError(f"{flag} is {value}: give {kind} {rules.expected()}".rstrip() + ".")


@functools.cache
def _rules_by_name(kind: type[Any]) -> tuple[tuple[str, Any, Rules], ...]:
    """Name, type and rules of each field. Cached, because the resolution of type hints is slow."""
    hints = get_type_hints(kind)
    return tuple((entry.name, hints[entry.name], rules_of(entry)) for entry in fields(kind))


def _check_schedule_point(flag: str, value: float, rules: Rules) -> None:
    zero = "0 or more" if rules.above is None else "1 or more"
    fits = value >= 0 if rules.above is None else value > 0
    if not fits or (isinstance(value, float) and value > 1.0):
        raise UserError(
            f"{flag} is {value}: give {zero} iterations as a whole number, or a fraction of --iterations up to 1.0 "
            "with a decimal point."
        )


def parse_numbers(flag: str, text: str, names: str) -> tuple[float, ...]:
    """The numbers of a text such as ``1,2.5,-3``.

    Args:
        flag: name of the flag.
        text: its value.
        names: what the numbers mean, such as ``x,y,z``.

    Raises:
        UserError: the text holds another number of values, or values that are not finite numbers.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    count = names.count(",") + 1
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UserError(f"{flag} is {text}: give {count} numbers as {names}.")
    return values


# ---- schedule points: fields typed ``int | float``


def schedule_points(config: Any) -> Iterator[str]:
    """Names of the fields that are points in the schedule: a whole number is an iteration, a float a fraction of the
    run."""
    yield from (name for name, hint, _ in _rules_by_name(type(config)) if hint == int | float)  # type: ignore[arg-type]


def resolve(config: _Config, iterations: int) -> _Config:
    """Turn the fractions among the schedule points into iterations.

    A fraction above zero becomes at least iteration 1, because 0 means "never" or "from the start".
    """
    changed: dict[str, Any] = {}
    for name in schedule_points(config):
        value = getattr(config, name)
        if isinstance(value, float):
            changed[name] = max(1, round(value * iterations)) if value > 0 else 0
    return replace(config, **changed)  # type: ignore[type-var]


# ---- fields by rule


def names_where(kind: type[Any], rule: str, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields, nested settings included, whose rule of that name is true.

    ``names_where(TrainConfig, "shapes_state")`` gives ``sh_degree``, ``background``, ..., ``density.kind``.
    """
    for name, hint, rules in _rules_by_name(kind):  # type: ignore[arg-type]
        if is_dataclass(hint):
            yield from names_where(hint, rule, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif getattr(rules, rule):
            yield f"{prefix}{name}"


def check_device(device: str) -> None:
    """Raise UserError if ``device`` is no value of ``--device``. Whether the device exists is not checked."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UserError(
            f"--device {device}: expected auto, cpu, cuda, or cuda:N with the number of a GPU, as in cuda:1."
        )
