"""Rasterizers behind one protocol: gsplat's CUDA kernels, our CPU kernels, and a slow float64 reference."""
