"""The limits of a CPU, measured, and the work of a training iteration, counted. For bench_cpu.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

FLOATS = 59  # per Gaussian at degree 3


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def fma_peak_gflops(threads: int) -> float:
    """Measured peak of float32 multiply-adds: twelve independent vectors, all in registers."""
    import numba
    import numpy as np

    from gs_train.kernels.jit import parallel_kernel
    from gs_train.kernels.simd import LANES, store, zero_floats

    rounds, vectors = 2_000_000, 12

    def burn(out: Any) -> None:
        for item in numba.prange(out.shape[0] // LANES):
            x, y, a = np.float32(0.999), np.float32(0.001), zero_floats()
            # Different start values, or the compiler would merge the vectors.
            b, c, d, e, f, g = a + 1.0, a + 2.0, a + 3.0, a + 4.0, a + 5.0, a + 6.0
            h, i, j, k, m = a + 7.0, a + 8.0, a + 9.0, a + 10.0, a + 11.0
            for _ in range(rounds):
                a, b, c, d, e, f = a * x + y, b * x + y, c * x + y, d * x + y, e * x + y, f * x + y
                g, h, i, j, k, m = g * x + y, h * x + y, i * x + y, j * x + y, k * x + y, m * x + y
            store(out, np.uint64(item * LANES), a + b + c + d + e + f + g + h + i + j + k + m)

    kernel = parallel_kernel(burn)
    numba.set_num_threads(threads)
    out = np.empty(LANES * threads, np.float32)
    kernel(out)
    return max(2e-9 * LANES * vectors * rounds * threads / seconds(lambda: kernel(out)) for _ in range(5))


def copy_bandwidth_gbs(threads: int) -> float:
    """Measured bytes read and written per second by a large copy."""
    import torch

    torch.set_num_threads(threads)
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source).copy_(source)
    return max(2e-9 * 4 * source.numel() / seconds(lambda: target.copy_(source)) for _ in range(5))


def least_megabytes(gaussians: int, visible: int, pixels: int) -> dict[str, float]:
    """Lower bounds of the memory traffic of the parts that memory limits."""
    floats = {
        "projection": 11 * gaussians + visible * (48 + 16) + 5 * gaussians,
        "projection backward": visible * (FLOATS + 16 + 16) + gaussians * (FLOATS + 2),
        "Adam": 7 * FLOATS * gaussians,
        "loss": (3 + 3 + 9 + 9 + 3 + 3 + 3) * pixels,
    }
    return {name: 4e-6 * count for name, count in floats.items()}


def workload(render: Any) -> dict[str, int]:
    """The work of a render: visible Gaussians, Gaussian-tile pairs, evaluated and blended Gaussian-pixel pairs."""
    # The autograd node of the rasterizer keeps its buffers for the backward pass.
    records, _, _, (tile_start, tile_stop, pairs, patches), _ = render.alpha.grad_fn.kept
    evaluated, blended = pair_counter()(records, tile_start, tile_stop, pairs, patches, *render.alpha.shape)
    visible = int((render.radii[:, 0] > 0).sum())
    return {"visible": visible, "pairs": len(pairs), "evaluated": evaluated, "blended": blended}


def pair_counter() -> Any:
    """A Numba function that counts the evaluated and the blended pairs of a Gaussian and a pixel."""
    import numba
    import numpy as np

    from gs_train.kernels.simd import LANES
    from gs_train.render.cpu import projection as p
    from gs_train.render.cpu.patches import PATCHES
    from gs_train.render.cpu.tiles import TILE_HEIGHT, TILE_WIDTH, gaussian_of

    def count(
        records: Any, tile_start: Any, tile_stop: Any, pairs: Any, patches: Any, height: int, width: int
    ) -> tuple[int, int]:
        evaluated, blended = 0, 0
        tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
        for tile in range(tile_stop.shape[0]):
            x0, y0 = (tile % tiles_x) * TILE_WIDTH, (tile // tiles_x) * TILE_HEIGHT
            transmittance = np.ones((TILE_HEIGHT, TILE_WIDTH))
            for at in range(tile_start[tile], tile_stop[tile]):
                r = records[gaussian_of(pairs[at])]
                for patch in range(PATCHES):
                    evaluated += LANES * ((patches[at] >> np.uint64(patch)) & np.uint64(1))
                for row in range(TILE_HEIGHT):
                    dy = r[p.MEAN_Y] + r[p.MEAN_Y_FRACTION] - (y0 + row + 0.5)
                    for x in range(TILE_WIDTH):
                        u = r[p.MEAN_X] + r[p.MEAN_X_FRACTION] - (x0 + x + 0.5) + r[p.SHEAR] * dy
                        alpha = min(2.0 ** (r[p.LOG2_OPACITY] - r[p.HALF_C] * dy * dy - r[p.HALF_A] * u * u), 0.999)
                        if alpha >= 1 / 255 and x0 + x < width and y0 + row < height:
                            transmittance[row, x] *= 1.0 - alpha
                            blended += transmittance[row, x] > 1e-4
        return evaluated, blended

    return numba.njit(count)
