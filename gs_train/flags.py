"""What the command line accepts: one frozen dataclass per subcommand, and the way from arguments to one of them.

Nothing is run or printed here (but for --help, which tyro prints), and torch is not imported, so that --help answers at once. The
invariant: whatever is wrong with the arguments ends in a UserError of one sentence.
"""

from __future__ import annotations

import io
import operator
import re
import types
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_type_hints

import tyro

from gs_train.config.toml import DEFAULT_PRESET, TrainConfig, load_preset, nearest, read_config
from gs_train.errors import UserError
from gs_train.prepare.pipeline import FEWEST_PHOTOS

RESUME_FLAGS = frozenset(
    {"--resume", "--iterations", "--device", "--image-cache-gb", "--save-every", "--keep", "--log-every"}
)
"""What may be given beside --resume: nothing that would make it another run."""

_RunOrSplat = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_SPLAT")]


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a scene: photos with known cameras in, a splat out."""

    scene: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="SCENE")] = None
    """Scene folder, or a transforms .json file; with --resume only needed where the scene has moved."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder to write the run to; runs/ and the scene's name if not given."""
    preset: str = DEFAULT_PRESET
    """Settings to start from: a name (default, fast, quality, classic, paper, tiny) or a .toml file, which adds to classic. Flags override
    it."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with this run from its newest sound checkpoint, also past its end with a larger --iterations."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the run that --out already holds; other files in the folder stay."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """Settings of the training."""


@dataclass(frozen=True, kw_only=True)
class EvalCommand:
    """Measure PSNR and SSIM of a run on its test views, and write renders beside the photos."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    scene: Annotated[Path | None, tyro.conf.arg(metavar="SCENE")] = None
    """Scene folder or file; only needed where the scene has moved."""
    device: Annotated[Literal["auto", "cuda", "cpu"] | None, tyro.conf.arg(metavar="{auto,cuda,cpu}")] = None
    """Where to render; as in training if not given."""


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write the splat of a run, a checkpoint or a .ply file to a new file."""

    source: _RunOrSplat
    """Folder of a run, a checkpoint or a splat file."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.ply")]
    """File to write."""


@dataclass(frozen=True, kw_only=True)
class PrepareCommand:
    """Make a scene from photos or a video: find out where each was taken from, with pycolmap. Stopped, the same command goes on."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS_OR_VIDEO")]
    """Folder of photos of one thing or place that overlap a good deal, or a video file; left as it is."""
    scene: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCENE")]
    """Folder to write the scene to: new, empty, or begun by the same command. The photos are copied, upright."""
    frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Take about so many frames from a video, each the sharpest of its part; 150 if not given. Not for photos."""

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < FEWEST_PHOTOS:
            raise UserError(f"--frames is {self.frames}: it must be at least {FEWEST_PHOTOS}.")


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Write a small procedural scene, with photos, cameras and points, to try things on."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder to write the scene to; must be new or empty."""
    seed: int = 0
    """Seed of the textures, the cameras and the points."""
    views: int = 40
    """Photos, on two rings around the table."""
    width: int = 320
    """Width of a photo, px."""
    height: int = 240
    """Height of a photo, px."""
    points: int = 8000
    """About so many points to start from."""

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("views", 2), ("width", 16), ("height", 16), ("points", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}: it must be at least {least}.")


@dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Say what a scene, a run, a checkpoint or a splat file holds, and check it."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Scene (a folder or a transforms .json), run folder, checkpoint (.pt) or splat (.ply)."""


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Check this machine: torch, CUDA, gsplat and the CPU kernels; name the one command that mends what is wrong."""


Command = TrainCommand | EvalCommand | ExportCommand | PrepareCommand | SampleCommand | InfoCommand | DoctorCommand

COMMANDS: dict[str, type[Any]] = {
    "train": TrainCommand,
    "eval": EvalCommand,
    "export": ExportCommand,
    "prepare": PrepareCommand,
    "sample": SampleCommand,
    "info": InfoCommand,
    "doctor": DoctorCommand,
}


def parse(arguments: Sequence[str]) -> Command:
    """Turn arguments into a subcommand: defaults < preset < flags, or a run's own config < flags with --resume.

    Raises:
        UserError: an unknown subcommand, flag, preset or key, a value of the wrong kind, or flags that do not go together.
        SystemExit: code 0, after --help.
    """
    arguments = list(arguments) or ["--help"]
    name = arguments[0]
    if name in ("-h", "--help") or name.startswith("--tyro-"):
        return _parse_with_tyro(arguments, {})
    if name not in COMMANDS:
        raise UserError(
            f"there is no subcommand {name}{nearest(name, list(COMMANDS))}: the subcommands are {', '.join(COMMANDS)}."
        )
    given = _given_flags(arguments[1:])
    _refuse_unknown(name, given)
    defaults: dict[str, Any] = {}
    # The config that flags are laid over has to be known before the flags are parsed.
    if name == "train" and (resume := _value_of("--resume", arguments)) is not None:
        _refuse_with_resume(given)
        defaults["train"] = _resumed(Path(resume))
    elif name == "train":
        preset = _value_of("--preset", arguments) or DEFAULT_PRESET
        defaults["train"] = TrainCommand(preset=preset, config=load_preset(preset))
    return _parse_with_tyro(arguments, defaults)


def flags_of(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """All long flags of a command, in order; switches in both forms."""
    hints = get_type_hints(kind, include_extras=True)
    for entry in fields(kind):
        hint = hints[entry.name]
        plain, markers = getattr(hint, "__origin__", hint), getattr(hint, "__metadata__", ())
        if is_dataclass(plain):
            # The training settings and the scene's are flat; optimizer and density keep their names in front.
            flat = entry.name in ("config", "scene")
            yield from flags_of(plain, prefix if flat else f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        elif tyro.conf.Positional not in markers:
            word = entry.name.replace("_", "-")
            yield f"--{prefix}{word}"
            if plain is bool and tyro.conf.FlagCreatePairsOff not in markers:
                yield f"--{prefix}no-{word}"


def _given_flags(arguments: Sequence[str]) -> list[str]:
    """The flags among the arguments, spelled with hyphens, without values."""
    return [argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")]


def _refuse_unknown(command: str, given: Sequence[str]) -> None:
    known = [*flags_of(COMMANDS[command]), "--help"]
    for flag in given:
        if flag not in known:
            raise UserError(f"{command} has no flag {flag}{nearest(flag, known)}: see gs-train {command} --help.")


def _refuse_with_resume(given: Sequence[str]) -> None:
    for flag in given:
        if flag not in RESUME_FLAGS and flag != "--help":
            allowed = ", ".join(sorted(RESUME_FLAGS - {"--resume"}))
            raise UserError(
                f"{flag} does not go with --resume, which keeps the run's own settings: leave it out ({allowed} may change)."
            )


def _resumed(run: Path) -> TrainCommand:
    """The command that a run was started with, in effect: its own config and scene are the defaults."""
    from gs_train.run.folder import RunFolder

    folder = RunFolder(run)
    folder.check_run()
    config, scene = read_config(folder.config)
    return TrainCommand(scene=scene, resume=run, config=config)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value given to a flag, as ``--flag value`` or ``--flag=value``."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == flag:
            value = following
        elif argument.startswith(flag + "="):
            value = argument.partition("=")[2]
    return value


def _parse_with_tyro(arguments: Sequence[str], defaults: dict[str, Any]) -> Command:
    choices: list[Any] = []
    for name, kind in COMMANDS.items():
        marker = tyro.conf.subcommand(name, default=defaults[name]) if name in defaults else tyro.conf.subcommand(name)
        choices.append(Annotated[kind, marker])
    any_of_them: Any = reduce(operator.or_, choices)
    message = io.StringIO()
    try:
        with redirect_stderr(message):
            command, left_over = tyro.cli(
                any_of_them,
                prog="gs-train",
                description="Train a Gaussian splat from photos with known cameras, on any machine. --version tells the version.",
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
        raise UserError(
            f"{arguments[0]} does not know what to do with {left_over[0]}: see gs-train {arguments[0]} --help."
        )
    assert isinstance(command, tuple(COMMANDS.values()))
    return command  # type: ignore[return-value]


def _one_sentence(box: str) -> str:
    """What tyro says in a drawn box, as plain text: the lines from its title to the next rule. In ASCII, a rule follows the title, too."""
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
    """Numbers, with an error message for people. A number with a decimal point or an exponent is a float."""
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
