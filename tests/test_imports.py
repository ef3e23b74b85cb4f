"""The import rules: the packages that each package may import, and the libraries that ``gs-train --help`` leaves out.

The tests parse the source, including imports inside functions and type-checking blocks, so the modules need not be
importable. Each rule is also tested on a source that breaks it.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gs_train"

# Each package's own modules, gs_train.errors, atomic_write, machine, options, progress and __version__ are always
# allowed. An entry allows a module and its submodules.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "atomic_write": (),
    "machine": (),
    "options": (),
    "progress": (),
    "cameras": (),
    "kernels": (),
    "formats": (),
    "scene": ("cameras", "formats.ply_vertices"),
    "prepare": ("scene", "cameras"),
    "sample": ("scene", "cameras"),
    "triton_loss": (),
    "losses": ("kernels", "triton_loss"),
    "model": ("scene.types", "cameras", "formats.splat_data"),
    "render": ("model", "cameras", "kernels"),
    "alignment": ("scene", "cameras"),
    "density": ("model", "render", "losses"),
    # TrainConfig contains the settings classes of these modules.
    "config": ("scene.load", "model.schedule", "density.config"),
    "run": ("config", "scene", "cameras", "model", "render", "formats"),
    "distributed": ("model", "render"),
    "training": tuple(
        "config scene cameras model render losses alignment density run distributed".split()
        + "formats.splat_data formats.palette".split()
    ),
    "evaluate": ("scene", "cameras", "model", "render", "losses", "alignment", "formats", "run"),
    "blocks": tuple("config scene cameras model render losses formats run evaluate".split()),
    "viewer": ("scene", "cameras", "model", "render", "losses", "formats", "run"),
    "commands": tuple(
        "viewer cameras kernels formats scene prepare sample losses model render".split()
        + "density config run distributed training evaluate console blocks".split()
    ),
    "console": (),
    "help": (),
    "flags": ("commands", "help"),
    "cli": ("commands", "flags", "console"),
}
# gs_train/__init__.py names the public entry points, __main__.py starts the command line.
UNRESTRICTED = {"__main__", "__init__"}
# Packages with limited third-party imports.
OUTSIDE: dict[str, set[str]] = {
    "errors": set(),
    "formats": {"numpy", "plyfile", "PIL", "zstandard"},
    "losses": {"torch"},
    "triton_loss": {"torch", "triton"},
}


def imports_of(source: str, module: str, is_package: bool) -> set[str]:
    """Full dotted names that a module's source imports. ``from a import b`` gives ``a.b``, and relative imports are
    resolved."""
    found: set[str] = set()
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{prefix}.{alias.name}" for alias in node.names)
    return found


def broken_arrows(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of ``module`` that the tables above do not allow."""
    owner = module.split(".")[1] if "." in module else "__init__"
    if owner in UNRESTRICTED:
        return []
    allowed = [
        f"gs_train.{name}"
        for name in (
            owner,
            "errors",
            "atomic_write",
            "machine",
            "options",
            "progress",
            "__version__",
            *MAY_IMPORT.get(owner, ()),
        )
    ]
    broken = []
    for name in sorted(imports_of(source, module, is_package)):
        if name == "gs_train" or name.startswith("gs_train."):
            if not any(name == entry or name.startswith(f"{entry}.") for entry in allowed):
                broken.append(name)
        elif owner in OUTSIDE and name.split(".")[0] not in OUTSIDE[owner] | sys.stdlib_module_names:
            broken.append(name)
    return broken


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    broken = broken_arrows(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py")
    assert not broken, (
        f"{path.relative_to(ROOT)} imports {', '.join(broken)}, which the table of import arrows does not allow"
    )


def test_every_package_has_a_rule() -> None:
    owners = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert owners <= MAY_IMPORT.keys() | UNRESTRICTED


def circle_in(arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """The names on one import cycle; empty if there is no cycle."""
    sorter = graphlib.TopologicalSorter(arrows)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def owner_of(name: str) -> str:
    return ".".join(name.split(".")[:2])


def test_no_import_cycle_of_packages_or_modules() -> None:
    """Every import counts, also imports inside functions and type-checking blocks."""
    known = {module_name(path): path for path in modules()}
    arrows: dict[str, set[str]] = {}
    for module, path in known.items():
        if module in ("gs_train", "gs_train.__main__"):
            continue
        names = imports_of(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
        # ``from a import b`` gives ``a.b``, where b is a module or a name in the module a.
        targets = {name if name in known else name.rpartition(".")[0] for name in names}
        arrows[module] = {target for target in targets if target in known and target not in (module, "gs_train")}
    packages: dict[str, set[str]] = {}
    for module, targets in arrows.items():
        own = owner_of(module)
        packages.setdefault(own, set()).update(owner_of(target) for target in targets if owner_of(target) != own)
    assert circle_in(packages) == []
    assert circle_in(arrows) == []


def test_a_cycle_is_detected() -> None:
    assert set(circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert circle_in({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gs_train.scene.load", "from gs_train.model.gaussians import GaussianModel"),
        ("gs_train.scene.load", "def f():\n    import gs_train.losses"),
        ("gs_train.scene.load", "from ..config import TrainConfig"),
        ("gs_train.formats.ply", "import torch"),
        ("gs_train.formats.ply", "from scipy.spatial import cKDTree"),
        ("gs_train.losses", "import numpy as np"),
        ("gs_train.model.gaussians", "from gs_train.scene.load import load_scene"),
        ("gs_train.model.gaussians", "from gs_train.formats import ply"),
        ("gs_train.density.classic", "from gs_train.training.state import TrainState"),
        ("gs_train.training.loop", "from gs_train.evaluate.evaluate import evaluate"),
        ("gs_train.training.loop", "from gs_train.commands.train import TrainCommand"),
        ("gs_train.training.loop", "from gs_train import TrainConfig"),
        ("gs_train.evaluate.evaluate", "from gs_train.training.state import TrainState"),
        ("gs_train.config.toml", "from gs_train.cli import main"),
        ("gs_train.run.open", "from gs_train.evaluate.evaluate import evaluate"),
        ("gs_train.formats.registry", "from gs_train.run.open import open_splat"),
        ("gs_train.console", "from gs_train.commands.registry import COMMANDS"),
        ("gs_train.flags", "from gs_train.training.loop import train"),
        ("gs_train.cli", "from gs_train.training.loop import train"),
    ],
)
def test_a_forbidden_import_is_detected(module: str, source: str) -> None:
    assert len(broken_arrows(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "gs_train.scene.load",
            "from gs_train.errors import UserError\nfrom gs_train.scene import colmap\nimport numpy",
        ),
        ("gs_train.scene.load", "from .types import Scene"),
        ("gs_train.model.initialise", "from gs_train.scene.types import PointCloud"),
        ("gs_train.losses", "import torch.nn.functional as F\nfrom torch import Tensor\nimport math"),
        ("gs_train.commands.train", "from gs_train.training.loop import train"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert broken_arrows(source, module) == []


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]], ids=" ".join)
def test_the_command_line_loads_no_heavy_library(arguments: list[str]) -> None:
    heavy = ("torch", "numba", "scipy", "gsplat", "gs_train.training.loop")
    program = "\n".join((
        "import sys",
        "from gs_train.cli import main",
        "try:",
        f"    main({arguments!r})",
        "except SystemExit as done:",
        "    assert not done.code",
        f"print([name for name in {heavy!r} if name in sys.modules])",
    ))  # fmt: skip
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
