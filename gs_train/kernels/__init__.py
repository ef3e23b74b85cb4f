"""The Numba kernels' common ground: compilation, SIMD values, buffers, and the fused loss."""
