"""Code that the Numba kernels share: compilation, SIMD vectors, buffers, and the fused photometric loss."""
