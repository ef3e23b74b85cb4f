"""The kinds of density control that ``--density.kind`` offers.

A kind is one module with a controller class (``types.DensityController``) and one line here. The names are text, so
that the command line can list them without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gs_train.density.types import DensityController

CONTROLLERS: dict[str, str] = {
    "classic": "gs_train.density.classic:ClassicDensity",
    "absgrad": "gs_train.density.classic:AbsgradDensity",
    "mcmc": "gs_train.density.mcmc:McmcDensity",
    "multiview": "gs_train.density.multiview:MultiviewDensity",
}
"""Kind -> ``module:class``."""


def controller_class(kind: str) -> type[DensityController]:
    """Import the controller class of a kind in ``CONTROLLERS``."""
    module, name = CONTROLLERS[kind].split(":")
    found: type[DensityController] = getattr(import_module(module), name)
    return found
