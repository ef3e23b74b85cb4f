"""Limits of the source: sizes of files, functions and packages, and no assignment to another object's attributes.

Each rule is also tested on a source that breaks it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gs_train"
MOST_LINES_PER_FILE = 400
MOST_LINES_PER_FUNCTION = 60
LARGEST_PACKAGE = 0.2

# A Numba kernel may be longer, because its loops share many local variables.
KERNEL_DECORATORS = {"parallel_kernel", "helper", "inline_once"}

# Objects of other libraries that are configured by setting their attributes.
FOREIGN = {
    "gs_train/console.py": {"sys"},
    "gs_train/kernels/jit.py": {"numba.config", "compiled"},
    "gs_train/kernels/simd.py": {"loaded", "builder.store"},  # llvmlite instructions
    "gs_train/prepare/worker.py": {"pycolmap.logging", "options", "pairing", "verification"},
    "gs_train/scene/photos/files.py": {"Image"},
    # torch passes values to the backward pass as attributes of the context, and gsplat sets the attribute absgrad of
    # means2d.
    "gs_train/render/cpu/autograd.py": {"ctx", "means2d"},
    "gs_train/triton_loss.py": {"ctx"},
    "gs_train/render/triton_colours.py": {"ctx"},
    "gs_train/render/cpu/gsplat_api.py": {"means2d"},
    "gs_train/distributed/group.py": {"parameter"},  # the gradient, which torch accumulates
    # viser's handles and cameras
    "gs_train/viewer/panel.py": {"frame", "self._state", "self._loss", "self._psnr", "self._plots", "handle"},
    "gs_train/viewer/window.py": {"initial", "camera", "server.scene.world_axes"},
    "gs_train/model/optimizer.py": {"parameter"},  # the gradient, which torch accumulates
}


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py"), *(ROOT / "examples").glob("*.py")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def long_functions(source: str) -> list[str]:
    """Functions over the limit, kernels excepted, with their number of lines."""
    long = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kernel = KERNEL_DECORATORS & {ast.unparse(decorator) for decorator in node.decorator_list}
            size = (node.end_lineno or 0) - node.lineno + 1
            if size > MOST_LINES_PER_FUNCTION and not kernel:
                long.append(f"{node.name} ({size})")
    return long


def outside_assignments(source: str) -> Iterator[tuple[int, str]]:
    """Line and object of every assignment to, or deletion of, an attribute of an object other than ``self`` and
    ``cls``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            owner = node.value
            if not (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
                yield node.lineno, ast.unparse(owner)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MOST_LINES_PER_FILE
    assert not long_functions(source)


def test_no_package_is_large() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in PACKAGE.rglob("*.py")}
    total = sum(lines.values())
    for package in {path.parent for path in lines if path.parent != PACKAGE}:
        own = sum(count for path, count in lines.items() if path.parent == package)
        assert own < LARGEST_PACKAGE * total, f"{package} has {own} of {total} lines"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name_of)
def test_nothing_sets_the_attributes_of_another_object(path: Path) -> None:
    allowed = FOREIGN.get(name_of(path), set())
    found = [
        (line, owner)
        for line, owner in outside_assignments(path.read_text(encoding="utf-8"))
        if not any(owner == name or owner.startswith((f"{name}.", f"{name}(")) for name in allowed)
    ]
    assert not found, "give the value to the constructor or to the call instead"


@pytest.mark.parametrize(
    "source",
    [
        "views.exposure = state.exposure",
        "self.views.downscale = 2",
        "state.iteration += 1",
        "views.poses, x = 1, 2",
        "for views.background in colours: pass",
        "with f() as views.background: pass",
        "del state.model",
        "setattr(views, 'poses', poses)",
    ],
)
def test_an_outside_assignment_is_detected(source: str) -> None:
    assert len(list(outside_assignments(source))) == 1


@pytest.mark.parametrize("source", ["self.x = 1", "cls.count += 1", "a = b.c", "a[b.c] = 1", "views.begin_step(3)"])
def test_other_statements_pass(source: str) -> None:
    assert not list(outside_assignments(source))


def test_a_long_function_is_detected() -> None:
    body = "    x = 1\n" * MOST_LINES_PER_FUNCTION
    assert long_functions(f"def f():\n{body}") == [f"f ({MOST_LINES_PER_FUNCTION + 1})"]
    assert long_functions(f"@parallel_kernel\ndef f():\n{body}") == []
