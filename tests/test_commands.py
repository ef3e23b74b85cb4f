"""The table of subcommands: a new one is one new module and one line of the table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from command_line import documented_fields, exit_code

from gs_train.commands import registry
from gs_train.commands.registry import COMMANDS, load_commands
from gs_train.errors import UserError
from gs_train.flags import flags_of, parse

TOY = '''
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gs_train.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ToyCommand:
    """Count the letters of a word."""

    word: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORD")]
    """The word."""
    times: int = 1
    """Factor of the count. 2 counts each letter twice."""

    @classmethod
    def defaults(cls, given):
        return cls(word="", times=10 if given.get("--like") == "tens" else 1)

    like: str = "ones"
    """Name of the default of --times."""

    def run(self) -> int:
        if self.word == "bad":
            raise UserError("bad is no word: name another.")
        print(self.times * len(self.word))
        return 7
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subcommand as a contributor adds it: one new file, and one line of the table."""
    (tmp_path / "toy_command.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.COMMANDS, "toy", "toy_command:ToyCommand")


@pytest.mark.usefixtures("toy")
def test_a_new_subcommand_runs_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("toy", "five5", "--times", "3") == 7
    assert capsys.readouterr().out == "15\n"
    assert exit_code("--help") == 0
    assert "Count the letters of a word." in capsys.readouterr().out
    assert exit_code("toy", "--help") == 0
    shown = capsys.readouterr().out
    assert "WORD" in shown and "--times INT" in shown and "Factor of the count." in shown


@pytest.mark.usefixtures("toy")
def test_a_new_subcommand_gets_the_shared_rules(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (("toyy",), "did you mean toy?"),
        (("toy", "word", "--tims", "3"), "toy has no flag --tims (did you mean --times?)"),
        (("toy", "word", "--times", "x"), "--times: x is not a whole number"),
        (("toy", "bad"), "bad is no word"),
    ):
        assert exit_code(*arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("arguments", "times"), [("", 1), ("--like tens", 10), ("--like=tens", 10), ("--like tens --times 4", 4)]
)
def test_defaults_may_depend_on_other_flags_and_flags_override_them(arguments: str, times: int) -> None:
    command = parse(["toy", "word", *arguments.split()])
    assert command.times == times  # type: ignore[attr-defined]


def with_nested(kind: type[Any]) -> Iterator[type[Any]]:
    """A command class and the settings classes in it."""
    yield kind
    for hint in get_type_hints(kind).values():
        if is_dataclass(hint):
            yield from with_nested(hint)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_documented(name: str) -> None:
    command = load_commands()[name]
    assert command.__doc__ and not command.__doc__.startswith(f"{command.__name__}(")  # dataclass writes one itself
    for kind in with_nested(command):
        assert documented_fields(kind) == [entry.name for entry in fields(kind)], kind


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(name, "--help") == 0
    shown = capsys.readouterr().out.replace(",", " ").split()
    assert [flag for flag in flags_of(load_commands()[name]) if flag not in shown] == []


def test_help_shows_the_values_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for preset, iterations in (("tiny", 300), ("paper", 30_000)):
        assert exit_code("train", "--preset", preset, "--help") == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert re.findall(r"--iterations INT .*?\(default: (\S+)\)", shown) == [str(iterations)]


def test_an_unknown_subcommand_names_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        parse(["xyzzy"])
    assert all(name in str(caught.value) for name in COMMANDS)
