"""The inner loops of blending and SSIM are compiled to packed multiply-adds: LLVM stops vectorising silently, at a cost of 5x to 8x."""

from __future__ import annotations

import platform
import re

import pytest
from numba import types

from gs_train import losses_cpu
from gs_train.render.cpu import blending

PACKED_MULTIPLY_ADD = {
    "x86_64": r"\bvfn?m(?:add|sub)\w*ps\s.*%[yz]mm",
    "AMD64": r"\bvfn?m(?:add|sub)\w*ps\s.*%[yz]mm",
    "aarch64": r"\bfmla\s+v\d+\.4s|\bfmla\s+z\d+\.s",
    "arm64": r"\bfmla\.4s\s|\bfmla\s+v\d+\.4s",
}
FLOATS, TABLE, INDEX = types.float32[::1], types.float32[:, ::1], types.uint64

LOOPS = {
    # name: (function, signature, packed multiply-adds that one pass of the loop needs at least)
    "forward": (blending._forward_rgb, (FLOATS, INDEX), 8),
    "forward with depth": (blending._forward_rgbd, (FLOATS, INDEX), 8),
    "backward": (blending._backward_rgb, (FLOATS, INDEX, TABLE, types.int32), 12),
    "backward with depth": (blending._backward_full, (FLOATS, INDEX, TABLE, types.int32), 14),
    "blur of rows": (losses_cpu._blur_across, (FLOATS, INDEX, INDEX), 4),
    "blur of products": (losses_cpu._blur_product_across, (FLOATS, INDEX, INDEX, INDEX), 4),
    "blur of columns": (losses_cpu._blur_down, (FLOATS, INDEX), 4),
}


@pytest.mark.parametrize("name", LOOPS)
def test_inner_loop_is_vectorised(name: str) -> None:
    pattern = PACKED_MULTIPLY_ADD.get(platform.machine())
    if pattern is None:
        pytest.skip(f"no pattern of packed multiply-adds for {platform.machine()}")
    function, signature, least = LOOPS[name]
    function.compile(signature)
    assembly = function.inspect_asm(function.signatures[-1])
    assert len(re.findall(pattern, assembly)) >= least, f"{name}: the loop over pixels is not vectorised"


def test_the_pattern_tells_packed_from_scalar() -> None:
    packed = PACKED_MULTIPLY_ADD["x86_64"]
    assert re.search(packed, "\tvfmadd231ps\t%zmm1, %zmm2, %zmm3")
    assert not re.search(packed, "\tvfmadd231ss\t%xmm1, %xmm2, %xmm3")
