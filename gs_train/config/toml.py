"""Reads and writes settings as TOML: presets, and a run's config.toml, which reads back to an equal config.

The settings themselves are in ``settings.py`` and beside their owners. Unknown keys and values of the wrong type are
errors.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError, nearest

DEFAULT_PRESET = "default"

_Config = TypeVar("_Config")


# ---- presets


def load_preset(name: str) -> TrainConfig:
    """A preset by name (``paper``) or by the path of a .toml file, laid over the defaults of ``TrainConfig`` (the
    preset default).

    The config.toml of a run is a preset, too; its ``scene_path`` is ignored.

    Raises:
        UserError: there is no such preset, or a key or value in it is not understood.
    """
    known = preset_names()
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"--preset {name}: there is no such file; presets by name are {', '.join(known)}.")
        return read_config(path)[0]
    if name not in known:
        if Path(name).is_file():
            raise UserError(f"--preset {name}: a file of settings must have the ending .toml: rename it.")
        raise UserError(
            f"--preset {name}: there is no such preset{nearest(name, known)}; presets are {', '.join(known)}."
        )
    return read_config(_preset_folder() / f"{name}.toml")[0]


def preset_names() -> list[str]:
    """Names of the presets that come with gs_train, sorted."""
    return sorted(path.stem for path in _preset_folder().glob("*.toml"))


def _preset_folder() -> Path:
    """The folder ``configs``: inside the package in a wheel, beside it in a checkout (editable installs included)."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


# ---- reading


def read_config(path: Path) -> tuple[TrainConfig, Path | None]:
    """Read a config file over the defaults.

    Returns:
        The config, and the path of the scene it was trained on if the file has the key ``scene_path``.

    Raises:
        UserError: the file cannot be read, is not TOML, or has a key or value that is not understood.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a file that exists.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read as TOML ({error}); correct the file or name another one.") from None
    scene_path = table.pop("scene_path", None)
    if scene_path is not None and not isinstance(scene_path, str):
        raise UserError(f"{path}: key scene_path is {scene_path!r}; it must be text.")
    try:
        config = _fill(TrainConfig(), table, path, "")
    except _UnknownKey as error:
        remedy = "remove it or correct its name"
        if scene_path is not None:  # the config.toml of a run
            remedy = "use the version of gs-train that trained the run, or remove the key from the file"
        raise UserError(f"{error}; {remedy}.") from None
    except UserError as error:
        # The range checks name the flag; the message also needs the file.
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None
    if config.scene.test_list:
        # A relative path is relative to the file; a run keeps its list beside its config.
        config = replace(config, scene=replace(config.scene, test_list=str(path.parent / config.scene.test_list)))
    return config, None if scene_path is None else Path(scene_path)


class _UnknownKey(UserError):
    """A key that is no setting; the message lacks its remedy."""


def _fill(config: _Config, table: dict[str, Any], path: Path, prefix: str) -> _Config:
    """``config`` with the values of a TOML table, nested tables included. ``replace`` runs the range checks again."""
    hints = get_type_hints(type(config))
    names = [field.name for field in fields(config)]  # type: ignore[arg-type]
    changed: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            raise _UnknownKey(f"{path}: unknown key {prefix}{key}{nearest(key, names)}")
        current = getattr(config, key)
        if not is_dataclass(current):
            changed[key] = _typed(value, hints[key], f"{path}: key {prefix}{key}")
        elif isinstance(value, dict):
            changed[key] = _fill(current, value, path, f"{prefix}{key}.")
        else:
            raise UserError(f"{path}: key {prefix}{key} is {value!r}; it must be a table [{prefix}{key}].")
    return replace(config, **changed)  # type: ignore[type-var]


def _typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` if it has the field's type. A whole number passes for a float, a boolean never for a number."""
    if get_origin(hint) is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
            return value
        choices: Iterable[str] = (repr(choice) for choice in get_args(hint))
        raise UserError(f"{where} is {value!r}; it must be one of {', '.join(choices)}.")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) in (get_args(hint) or (hint,)):
        return value
    kind = {bool: "true or false", str: "text", int: "a whole number"}.get(hint, "a number")
    raise UserError(f"{where} is {value!r}; it must be {kind}.")


# ---- writing


def write_toml(config: TrainConfig, scene_path: Path | None = None) -> str:
    """TOML text that ``read_config`` reads back to an equal config.

    Args:
        config: the settings.
        scene_path: the scene, written as the key ``scene_path``, so that a run knows its scene.
    """
    head = [] if scene_path is None else [f"scene_path = {_toml_value(str(scene_path))}"]
    tables = []
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            body = [f"{inner.name} = {_toml_value(getattr(value, inner.name))}" for inner in fields(value)]
            tables += ["", f"[{entry.name}]", *body]
        else:
            head.append(f"{entry.name} = {_toml_value(value)}")
    return "\n".join([*head, *tables]) + "\n"


def _toml_value(value: str | bool | int | float) -> str:
    """One TOML value. Python's ``repr`` of a finite float is valid TOML and reads back to the same float."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_toml_character(character) for character in value) + '"'
    return repr(value)


def _toml_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if ord(character) < 0x20 or ord(character) == 0x7F:
        return f"\\u{ord(character):04x}"
    return character
