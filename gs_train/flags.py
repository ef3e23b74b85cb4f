"""Turns the arguments of ``gs-train`` into an instance of a command class from ``commands/``.

The rules here hold for every subcommand: unknown flags, numbers, error texts. The arguments themselves, and the
defaults that depend on other arguments, are declared by the command classes. torch is not imported, so that ``--help``
stays fast.
"""

from __future__ import annotations

import io
import operator
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from functools import reduce
from typing import Annotated, Any, Union

import tyro

from gs_train.commands.registry import Command, GivenFlags, load_commands
from gs_train.errors import UserError, nearest
from gs_train.help import arguments_of, help_text

_DESCRIPTION = "Train a Gaussian splat from photos with known cameras, on any machine. --version prints the version."


def parse(arguments: Sequence[str]) -> Command:
    """Turn arguments into a command. Flags override the defaults of the command.

    Args:
        arguments: the subcommand, then its arguments; none print the help.

    Raises:
        UserError: an unknown subcommand or flag, a value of the wrong kind, or flags that exclude each other.
        SystemExit: code 0, after the help.
    """
    arguments = list(arguments) or ["--help"]
    commands = load_commands()
    arguments = _two_words(arguments, commands)
    name = arguments[0]
    if name in ("-h", "--help") or name.startswith("--tyro-"):
        return _parse_with_tyro(arguments, commands, {})
    if name not in commands:
        raise UserError(
            f"there is no subcommand {name}{nearest(name, list(commands))}: the subcommands are {', '.join(commands)}."
        )
    given = _given_flags(arguments[1:])
    known = [*flags_of(commands[name]), "--help"]
    for flag in given:
        if flag not in known:
            raise UserError(f"{name} has no flag {flag}{nearest(flag, known)}: see gs-train {name} --help.")
    find_defaults = getattr(commands[name], "defaults", None)
    defaults = {} if find_defaults is None else {name: find_defaults(given)}
    if any(argument in ("-h", "--help") for argument in arguments[1:]):
        print(help_text(name, commands[name], defaults.get(name)), end="")
        raise SystemExit(0)
    return _parse_with_tyro(arguments, commands, defaults)


def _two_words(arguments: list[str], commands: Mapping[str, type[Any]]) -> list[str]:
    """The arguments with a subcommand of two words as one argument.

    Raises:
        UserError: the second word is missing or unknown.
        SystemExit: code 0, after the help of the first word.
    """
    first, second = arguments[0], arguments[1] if len(arguments) > 1 else ""
    members = [name.split()[1] for name in commands if name.startswith(f"{first} ")]
    if not members:
        return arguments
    if second in ("-h", "--help"):
        print(f"usage: gs-train {first} {{{','.join(members)}}}\n")
        for member in members:
            print(f"  {member:8}{(commands[f'{first} {member}'].__doc__ or '').splitlines()[0]}")
        raise SystemExit(0)
    if second not in members:
        said = (
            f"there is no subcommand {first} {second}{nearest(second, members)}" if second else f"{first} lacks a word"
        )
        raise UserError(f"{said}: give gs-train {first} with one of {', '.join(members)}.")
    return [f"{first} {second}", *arguments[2:]]


def flags_of(kind: type[Any]) -> Iterator[str]:
    """All long flags of a command class, in order; a switch in both forms (``--x`` and ``--no-x``)."""
    for argument in arguments_of(kind):
        yield from argument.flags


def _given_flags(arguments: Sequence[str]) -> GivenFlags:
    """The flags among the arguments, spelled with hyphens, with their last value (``--flag value`` or ``--flag=value``)
    or None."""
    given: dict[str, str | None] = {}
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            next_value = None if following.startswith("--") else following
            given[flag.replace("_", "-")] = value if equals else next_value
    return given


def _parse_with_tyro(
    arguments: Sequence[str], commands: Mapping[str, type[Any]], defaults: Mapping[str, Any]
) -> Command:
    choices: list[Any] = []
    for name, kind in commands.items():
        marker = tyro.conf.subcommand(name, default=defaults[name]) if name in defaults else tyro.conf.subcommand(name)
        choices.append(Annotated[kind, marker])
    any_command: Any = reduce(operator.or_, choices)
    message = io.StringIO()
    try:
        with redirect_stderr(message):
            command, left_over = tyro.cli(
                any_command,
                prog="gs-train",
                description=_DESCRIPTION,
                args=arguments,
                return_unknown_args=True,
                registry=_numbers,
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise UserError(
            f"{arguments[0]}: {_one_sentence(message.getvalue())}; see gs-train {arguments[0]} --help."
        ) from None
    if left_over:
        raise UserError(f"{arguments[0]} takes no argument {left_over[0]}: see gs-train {arguments[0]} --help.")
    return command  # type: ignore[no-any-return]


def _one_sentence(box: str) -> str:
    """The error that tyro draws in a box, as plain text: the lines from the title to the next rule.

    In ASCII a rule also follows the title.
    """
    words: list[str] = []
    for number, line in enumerate(box.splitlines()):
        text = line.strip(" │|")
        if number == 0:
            continue
        if not text.strip("─-╰╯+"):
            if words:
                break
            continue
        words.append(text)
    sentence = " ".join(words).removeprefix("Error parsing ").rstrip(". ")
    missing = re.match(r"Missing from [^:]*: (\S+)", sentence)
    return f"{missing[1]} is missing" if missing else sentence or "the arguments are not understood"


_numbers = tyro.constructors.ConstructorRegistry()


@_numbers.primitive_rule
def _number_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Numbers with readable error messages. ``int | float`` parses to a float if it has a decimal point or an
    exponent."""
    if info.type is int or info.type == int | None:
        return _number_spec("INT", int, "a whole number")
    if info.type is float:
        return _number_spec("FLOAT", float, "a number")
    if info.type_origin in (Union, types.UnionType) and info.type == int | float:
        return _number_spec("INT|FLOAT", _int_or_float, "a number")
    return None


def _number_spec(metavar: str, convert: Any, kind: str) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    def read(words: list[str]) -> Any:
        try:
            return convert(words[0])
        except ValueError:
            raise ValueError(f"{words[0]} is not {kind}") from None

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [str(value)],
    )


def _int_or_float(word: str) -> int | float:
    try:
        return int(word)
    except ValueError:
        return float(word)
