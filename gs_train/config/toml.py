"""Where a TrainConfig comes from: defaults < preset < flags, and the exact reload of a run's config.toml.

Not the settings themselves (they live beside their owners; the root is ``TrainConfig``). The invariant: a key, a type or a value that is
not understood is refused by name, never dropped.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError

__all__ = ["DEFAULT_PRESET", "TrainConfig", "load_preset", "nearest", "preset_names", "read_config"]

DEFAULT_PRESET = "default"

_Config = TypeVar("_Config")


def load_preset(name: str) -> TrainConfig:
    """A preset by name (``paper``) or by the path of a .toml file, over the defaults of ``TrainConfig``, which are the preset classic.

    A run's config.toml serves as a preset too; its ``scene_path`` is passed over.

    Raises:
        UserError: no such preset, or a key or value in it is not understood.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"--preset {name}: there is no such file; presets by name are {_listed(preset_names())}.")
        return read_config(path)[0]
    if name not in preset_names():
        raise UserError(
            f"--preset {name}: there is no such preset{nearest(name, preset_names())}; presets are {_listed(preset_names())}."
        )
    return read_config(_preset_folder() / f"{name}.toml")[0]


def preset_names() -> list[str]:
    """Names of the presets that come with gs-train, sorted."""
    return sorted(path.stem for path in _preset_folder().glob("*.toml"))


def _preset_folder() -> Path:
    """``configs/`` travels inside the package in a wheel, and stands beside it in a source tree (also when installed as editable)."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def read_config(path: Path) -> tuple[TrainConfig, Path | None]:
    """Read a config file: the TrainConfig over the defaults, and the scene it was trained on where the file says so.

    Raises:
        UserError: the file cannot be read, is not TOML, or holds a key or a value that is not understood.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a file that does.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read as TOML ({error}); mend it or name another file.") from None
    scene_path = table.pop("scene_path", None)
    if scene_path is not None and not isinstance(scene_path, str):
        raise UserError(f"{path}: key scene_path is {scene_path!r}; it must be text.")
    try:
        config = _fill(TrainConfig(), table, path, "")
    except UserError as error:
        # A check of the config names the flag; the file's name is what the user needs besides.
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None
    return config, None if scene_path is None else Path(scene_path)


def _fill(config: _Config, table: dict[str, Any], path: Path, prefix: str) -> _Config:
    """``config`` with the values of a TOML table, nested tables included. Every check of the config classes runs again."""
    hints = get_type_hints(type(config))
    names = [field.name for field in fields(config)]  # type: ignore[arg-type]
    changed: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            raise UserError(f"{path}: unknown key {prefix}{key}{nearest(key, names)}; remove it or mend its name.")
        current = getattr(config, key)
        if not is_dataclass(current):
            changed[key] = _typed(value, hints[key], f"{path}: key {prefix}{key}")
        elif isinstance(value, dict):
            changed[key] = _fill(current, value, path, f"{prefix}{key}.")
        else:
            raise UserError(f"{path}: key {prefix}{key} is {value!r}; it must be a table [{prefix}{key}].")
    return replace(config, **changed)  # type: ignore[type-var]


def _typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` if it has the field's type. A whole number is taken for a float; a truth value is never taken for a number."""
    if get_origin(hint) is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
            return value
        raise UserError(
            f"{where} is {value!r}; it must be one of {_listed(repr(choice) for choice in get_args(hint))}."
        )
    if hint is float and type(value) is int:
        return float(value)
    if type(value) in (get_args(hint) or (hint,)):
        return value
    kind = {bool: "true or false", str: "text", int: "a whole number"}.get(hint, "a number")
    raise UserError(f"{where} is {value!r}; it must be {kind}.")


def nearest(word: str, known: list[str]) -> str:
    """`` (did you mean X?)`` for a mistyped word, or nothing when no known word is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _listed(words: Any) -> str:
    return ", ".join(words)
