"""The text of ``gs-train COMMAND --help``: flags grouped by task, the most used group first.

The texts are the docstrings of the fields of the command classes and settings classes. The group of a flag is declared
beside its field (``options.setting``); groups appear in the order of ``options.GROUPS``.
"""

from __future__ import annotations

import ast
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
_OTHER_OPTIONS = "Options"


@dataclass(frozen=True, kw_only=True)
class Option:
    """One argument of a command, as the help shows it."""

    names: str
    """Flag or flags with the placeholder of the value, such as ``--out RUN``; the placeholder alone if positional."""
    text: str
    """Help text, with the default."""
    group: str
    """Title of the group; empty for a positional argument."""


def help_text(name: str, kind: type[Any], defaults: Any = None) -> str:
    """The help of a subcommand.

    Args:
        name: of the subcommand.
        kind: its command class.
        defaults: an instance whose values are shown as defaults; the defaults of the class if not given.
    """
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    options = list(_options(kind, defaults))
    positional = [option for option in options if not option.group]
    usage = " ".join(["usage: gs-train", name, "[OPTIONS]", *(option.names for option in positional)])
    lines = [usage, "", *textwrap.wrap(inspect.getdoc(kind) or "", width), ""]
    help_flag = Option(names="-h, --help", text="Show this help.", group=_OTHER_OPTIONS)
    groups: dict[str, list[Option]] = {"Arguments": positional} | {title: [] for title in GROUPS}
    for option in (*(option for option in options if option.group), help_flag):
        groups.setdefault(option.group, []).append(option)
    for title, members in ((title, members) for title, members in groups.items() if members):
        lines.append(f"{title}:")
        for option in members:
            lines.append(f"  {option.names}")
            lines += textwrap.wrap(
                option.text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _options(kind: type[Any], defaults: Any, prefix: str = "") -> Iterator[Option]:
    """All arguments of a command class or settings class, nested settings included, in order."""
    hints, texts = get_type_hints(kind, include_extras=True), _field_docstrings(kind)
    for entry in fields(kind):
        hint = hints[entry.name]
        plain, markers = (hint.__origin__, hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())
        default = getattr(defaults, entry.name) if defaults is not None else _default_of(entry)
        if is_dataclass(plain):
            flat = any(getattr(marker, "name", None) == "" for marker in markers)
            yield from _options(plain, default, prefix if flat else f"{prefix}{entry.name}.")  # type: ignore[arg-type]
            continue
        metavar = next((found for marker in markers if (found := getattr(marker, "metavar", None))), _metavar(plain))
        if tyro.conf.Positional in markers:
            yield Option(names=metavar, text=texts[entry.name], group="")
            continue
        flag = flag_name(entry.name, prefix)
        if plain is bool:
            paired = tyro.conf.FlagCreatePairsOff not in markers
            names = f"{flag}, {flag_name('no_' + entry.name, prefix)}" if paired else flag
        else:
            names = f"{flag} {metavar}"
        shown = "" if default is None or default == "" or default is MISSING else f" (default: {_shown(default)})"
        yield Option(names=names, text=texts[entry.name] + shown, group=rules_of(entry).group or _OTHER_OPTIONS)


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
