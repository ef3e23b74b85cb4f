"""The kinds of density control that ``--density.kind`` offers.

A kind is one module with a controller class (``types.DensityController``) and one line here. The names are text, so
that the command line can list them without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

CONTROLLERS: dict[str, str] = {
    "classic": "gs_train.density.classic:ClassicDensity",
    "absgrad": "gs_train.density.classic:AbsgradDensity",
    "mcmc": "gs_train.density.mcmc:McmcDensity",
    "multiview": "gs_train.density.multiview:MultiviewDensity",
}
"""Kind -> ``module:class``."""


def controller_class(kind: str) -> type[Any]:
    """Import the controller class of a kind in ``CONTROLLERS``, a ``types.DensityController``."""
    module, name = CONTROLLERS[kind].split(":")
    found: type[Any] = getattr(import_module(module), name)
    return found
