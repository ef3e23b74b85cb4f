"""Our CPU rasterizer: Numba kernels that compute gsplat's function. ``rasterization`` is public, the rest is not."""

from gs_train.render.cpu.gsplat_api import rasterization

__all__ = ["rasterization"]
