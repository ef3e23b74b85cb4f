"""The arguments of a command, and the text of ``gs-train COMMAND --help``: flags grouped by task.

The texts are the docstrings of the fields of the command classes and settings classes. The group of a flag is declared
beside its field (``options.setting``); groups appear in the order of ``options.GROUPS``.
"""

from __future__ import annotations

import ast
import functools
import inspect
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from gs_train.options import GROUPS, flag_name, rules_of

_WIDEST = 100
_POSITIONAL = "Arguments"
_OTHER_OPTIONS = "Options"


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of a command."""

    owner: type[Any]
    """The command class or settings class that declares it."""
    name: str
    """Name of the field."""
    flags: tuple[str, ...]
    """Its long flags; a switch has two (``--x`` and ``--no-x``), a positional argument none."""
    metavar: str
    """Placeholder of the value, such as ``RUN``; empty for a switch."""
    default: Any
    """Default value; MISSING without one."""
    group: str
    """Title of the help group; empty for the title of all other options."""


def arguments_of(kind: type[Any], defaults: Any = None, prefix: str = "") -> Iterator[Argument]:
    """All arguments of a command class or settings class, nested settings included, in order.

    Args:
        kind: the class.
        defaults: an instance that gives the defaults; the defaults of the class if not given.
        prefix: words before the flags, such as ``density.``.
    """
    hints = get_type_hints(kind, include_extras=True)
    for entry in fields(kind):
        hint = hints[entry.name]
        plain, markers = (hint.__origin__, hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())
        default = getattr(defaults, entry.name) if defaults is not None else _default_of(entry)
        if is_dataclass(plain):
            # A group named "" puts no name before its flags.
            flat = any(getattr(marker, "name", None) == "" for marker in markers)
            nested = prefix if flat else f"{prefix}{entry.name}."
            yield from arguments_of(plain, default, nested)  # type: ignore[arg-type]
            continue
        metavar = next((found for marker in markers if (found := getattr(marker, "metavar", None))), _metavar(plain))
        flags: tuple[str, ...] = (flag_name(entry.name, prefix),)
        if tyro.conf.Positional in markers:
            flags = ()
        elif plain is bool:
            metavar = ""
            if tyro.conf.FlagCreatePairsOff not in markers:
                flags = (*flags, flag_name(f"no_{entry.name}", prefix))
        group = rules_of(entry).group
        yield Argument(owner=kind, name=entry.name, flags=flags, metavar=metavar, default=default, group=group)


def help_text(name: str, kind: type[Any], defaults: Any = None) -> str:
    """The help of a subcommand.

    Args:
        name: of the subcommand.
        kind: its command class.
        defaults: an instance whose values are shown as defaults; the defaults of the class if not given.
    """
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    arguments = list(arguments_of(kind, defaults))
    positional = [argument for argument in arguments if not argument.flags]
    usage = " ".join(["usage: gs-train", name, "[OPTIONS]", *(argument.metavar for argument in positional)])
    entries: dict[str, list[tuple[str, str]]] = {title: [] for title in (_POSITIONAL, *GROUPS, _OTHER_OPTIONS)}
    for argument in arguments:
        title = (argument.group or _OTHER_OPTIONS) if argument.flags else _POSITIONAL
        entries.setdefault(title, []).append((_invocation(argument), _explanation(argument)))
    entries[_OTHER_OPTIONS].append(("-h, --help", "Show this help."))
    lines = [usage, "", *textwrap.wrap(inspect.getdoc(kind) or "", width), ""]
    for title, members in entries.items():
        lines += [f"{title}:"] if members else []
        for invocation, text in members:
            lines.append(f"  {invocation}")
            lines += textwrap.wrap(
                text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
            )
        lines += [""] if members else []
    return "\n".join(lines).rstrip() + "\n"


def _invocation(argument: Argument) -> str:
    """The flags and the placeholder of the value, as a user types them."""
    return " ".join(part for part in (", ".join(argument.flags), argument.metavar) if part)


def _explanation(argument: Argument) -> str:
    """The docstring of the field, and the default of an option."""
    text, default = _field_docstrings(argument.owner)[argument.name], argument.default  # type: ignore[arg-type]
    if not argument.flags or default is None or default == "" or default is MISSING:
        return text
    return f"{text} (default: {_shown(default)})"


def _default_of(entry: Any) -> Any:
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return entry.default


def _shown(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _metavar(hint: Any) -> str:
    """The placeholder of a value by its type."""
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    names = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
    return "|".join(names.get(kind, getattr(kind, "__name__", str(kind)).upper()) for kind in kinds)


@functools.cache
def _field_docstrings(kind: type[Any]) -> dict[str, str]:
    """The text below each field of a dataclass, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        is_text = (
            isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
        )
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = " ".join(text.value.value.split())  # type: ignore[attr-defined]
    return found
