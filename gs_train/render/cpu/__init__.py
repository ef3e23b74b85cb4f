"""Our CPU rasterizer: Numba kernels that compute gsplat's function. Only ``rasterization`` is public."""

from gs_train.render.cpu.gsplat_api import rasterization

__all__ = ["rasterization"]
