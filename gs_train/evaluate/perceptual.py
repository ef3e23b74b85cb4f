"""LPIPS and FLIP through the packages ``lpips`` and ``flip-evaluator``, where they are installed.

A metric that cannot be measured is None in every file, and ``missing`` has the reason. The metrics that need no other
package are in ``metrics.py``.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gs_train.scene.types import View

NAMES = ("lpips", "flip")
"""The perceptual metrics, in the order of the files."""
LPIPS_NET = "alex"
"""Trunk of LPIPS, as gsplat and nerfstudio report it. The original trainer reports VGG."""
LPIPS_INPUT = "-1..1"
"""Range of the pixels that LPIPS gets. The original trainer gives 0..1."""
FLIP_PIXELS_PER_DEGREE = 67.02064514160156
"""Of FLIP's default viewing conditions: 0.7 m from a display 0.7 m and 3840 pixels wide."""
_WEIGHTS = "alexnet-owt-7be5be79.pth"
"""The trunk, by its name in the cache of torch.hub."""
_SMALLEST_PX = 31
"""The trunk reduces smaller pictures to nothing."""
_TIMEOUT_S = 30.0

Lpips = Callable[["Tensor", "Tensor"], float]
"""``measure(image, target)`` of two [H, W, 3] tensors in 0..1."""
Flip = Callable[["Tensor", "Tensor"], tuple[float, NDArray[np.uint8]]]
"""``measure(image, target)`` of two [H, W, 3] tensors in 0..1: the mean, and the error map [H, W, 3] in magma."""


@dataclass(frozen=True, kw_only=True)
class Perceptual:
    """The perceptual metrics that can be measured."""

    lpips: Lpips | None = None
    flip: Flip | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """The reason, one sentence, for each name of ``NAMES`` that cannot be measured."""


NO_PERCEPTUAL = Perceptual()
"""Measures neither."""


class _Missing(Exception):
    """A metric cannot be measured; the message is the reason."""


def find_perceptual(
    names: Sequence[str], device: torch.device | str, *, smallest_px: int, download: bool = False
) -> Perceptual:
    """The metrics of ``names`` whose packages and weights this machine has.

    Args:
        names: of ``NAMES``; the others are left out.
        device: device of LPIPS.
        smallest_px: the shortest side of all pictures.
        download: whether missing weights of LPIPS are downloaded. Without it, nothing is.
    """
    found: dict[str, Any] = {}
    missing = {
        name: f"{name.upper()} is not measured because --metrics leaves it out." for name in NAMES if name not in names
    }
    for name in names:
        try:
            found[name] = _lpips(device, smallest_px, download) if name == "lpips" else _flip()
        except _Missing as reason:
            missing[name] = f"{name.upper()} is not measured because {reason}."
    return Perceptual(**found, missing=missing)


def perceptual_for(
    views: Sequence[View],
    names: Sequence[str],
    device: torch.device | str,
    notify: Callable[[str], None],
    *,
    download: bool = False,
) -> Perceptual:
    """As ``find_perceptual`` for the renders of some views; each of ``names`` that is missing is told once."""
    smallest = min(min(view.camera.width, view.camera.height) for view in views)
    found = find_perceptual(names, device, smallest_px=smallest, download=download)
    for name in names:
        if name in found.missing:
            notify(found.missing[name])
    return found


def _flip() -> Flip:
    try:
        from flip_evaluator import evaluate
    except ImportError as error:
        raise _Missing(_absent("flip_evaluator", error, "pip install flip-evaluator")) from None

    def measure(image: Tensor, target: Tensor) -> tuple[float, NDArray[np.uint8]]:
        pictures = [np.ascontiguousarray(each.float().cpu().numpy()) for each in (target, image)]
        error_map, mean, _ = evaluate(*pictures, "LDR", parameters={"ppd": FLIP_PIXELS_PER_DEGREE})
        return float(mean), (np.clip(error_map, 0.0, 1.0) * 255.0).round().astype(np.uint8)

    return measure


def _lpips(device: torch.device | str, smallest_px: int, download: bool) -> Lpips:
    if smallest_px < _SMALLEST_PX:
        raise _Missing(f"it needs pictures of at least {_SMALLEST_PX} px, and a side has {smallest_px}")
    try:
        # A torchvision that does not fit torch raises RuntimeError.
        import lpips
    except (ImportError, RuntimeError, OSError) as error:
        remedy = "install torchvision for this torch as pytorch.org shows, then pip install --no-deps lpips"
        raise _Missing(_absent("lpips", error, remedy)) from None
    import torch

    weights = Path(torch.hub.get_dir()) / "checkpoints" / _WEIGHTS
    if not weights.is_file() and not download:
        raise _Missing(f"{_WEIGHTS} is not in {weights.parent}: put it there, or add --download-weights")
    try:
        with _quiet_and_bounded():
            network = lpips.LPIPS(net=LPIPS_NET, verbose=False).to(device)
    except Exception as error:  # torch.load raises errors of many kinds for a damaged file
        remedy = f"remove {weights} and add --download-weights" if weights.is_file() else f"put it in {weights.parent}"
        raise _Missing(f"{_WEIGHTS} cannot be loaded ({' '.join(str(error).split())}): {remedy}") from None

    def measure(image: Tensor, target: Tensor) -> float:
        # [H, W, 3] in 0..1 -> [1, 3, H, W] in -1..1
        pictures = [2.0 * each.float().permute(2, 0, 1)[None] - 1.0 for each in (image, target)]
        with torch.no_grad():
            return float(network(*pictures))

    return measure


def _absent(package: str, error: Exception, remedy: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return f"the package {package} is not installed: {remedy}"
    return f"the package {package} does not work ({' '.join(str(error).split())}): {remedy}"


@contextmanager
def _quiet_and_bounded() -> Iterator[None]:
    """No warnings of torchvision about arguments of lpips, and no download that waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(before)
