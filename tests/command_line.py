"""Runs ``gs-train`` as a person does: in a process of its own, seen only through its output, its exit code and its
files."""

from __future__ import annotations

import ast
import inspect
import io
import os
import subprocess
import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """The environment of a child: this checkout first, and no colours or terminal width of the machine the tests run
    on."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}


def command(*arguments: object) -> list[str]:
    """The command line of ``gs-train`` with arguments."""
    return [sys.executable, "-m", "gs_train", *map(str, arguments)]


def gs_train(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``gs-train`` to its end; keywords go to ``subprocess.run``."""
    settings: dict[str, Any] = {"capture_output": True, "text": True, "env": environment(), "timeout": 300, **options}
    return subprocess.run(command(*arguments), check=False, **settings)


def exit_code(*arguments: object) -> object:
    """Run ``gs-train`` in this process, which saves the seconds that imports take; returns its exit code."""
    from gs_train import cli

    with pytest.raises(SystemExit) as done:
        cli.main([str(argument) for argument in arguments])
    return done.value.code


def gs_train_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As ``gs_train``, in this process. For tests of results, not of processes."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = exit_code(*arguments)
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())  # type: ignore[call-overload]


def documented_fields(kind: type) -> list[str]:
    """Names of the fields of a dataclass that have a docstring below them; the docstring becomes the help of the
    flag."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    pairs = zip(definition.body, definition.body[1:], strict=False)
    return [
        entry.target.id
        for entry, below in pairs
        if isinstance(entry, ast.AnnAssign)
        and isinstance(entry.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and str(below.value.value).strip()
    ]
