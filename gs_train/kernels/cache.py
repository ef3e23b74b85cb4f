"""The cache of compiled kernels on disk, keyed by content: every installation of the same sources shares it.

Numba's own cache is keyed by the path of the source file, so each clone and each virtual environment compiles anew, and
it needs a folder that can be written even if it holds all kernels. The processor is part of Numba's key of each entry.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import caching


@functools.cache
def cache_folder() -> Path | None:
    """The folder for compiled kernels, in NUMBA_CACHE_DIR or the user's cache folder, with a hash of their content.

    The hash covers all sources: a kernel also contains functions and constants from other files than its own. None if
    the user has no home folder, as in some containers.
    """
    digest = hashlib.sha256(repr((numba.__version__, llvmlite.__version__, platform.machine())).encode())
    kernels = Path(__file__).parent
    for source in sorted([*kernels.glob("*.py"), *(kernels.parent / "render" / "cpu").glob("*.py")]):
        digest.update(source.name.encode() + source.read_bytes())
    try:
        return _cache_root() / "gs_train" / f"kernels-{digest.hexdigest()[:12]}"
    except RuntimeError:
        return None


def why_not_kept() -> str | None:
    """Why compiled kernels are not kept, as a phrase that ends with the remedy; None if they are."""
    folder = cache_folder()
    remedy = "set NUMBA_CACHE_DIR to a folder that stays, in a container to one that is mounted from outside"
    if folder is None:
        return f"the user has no home folder: {remedy}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder} cannot be written to ({error.strerror or error}): {remedy}"


def _cache_root() -> Path:
    """Raises RuntimeError if the user has no home folder."""
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


class _Locator(caching._CacheLocator):  # type: ignore[misc]
    """Puts a kernel in ``cache_folder``, whose name says all about its source."""

    def __init__(self, function: Any, file: str, folder: Path) -> None:
        self._py_file, self._folder = file, folder
        self._name = f"{Path(file).parent.name}-{function.__code__.co_firstlineno}"

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator | None:
        """The locator of a kernel; None without a cache folder. The folder may be missing or read-only."""
        folder = cache_folder()
        return None if folder is None else cls(py_func, py_file, folder)

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return self._folder.name

    def get_disambiguator(self) -> str:
        return self._name


class _Implementation(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)


class KernelCache(caching.FunctionCache):  # type: ignore[misc]
    """The cache entries of one kernel. A cache that cannot be read or written only costs a compilation."""

    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            # No permission, or damaged: pickle raises errors of many types. An empty index lets the next save succeed.
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)
