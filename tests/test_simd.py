"""The inner loops of blending and SSIM compile to packed, full-width multiply-adds. Narrower code is
up to 8x slower."""

from __future__ import annotations

import platform
import re

import pytest
from numba import types

from gs_train.kernels import ssim
from gs_train.kernels.jit import WIDE_VECTORS
from gs_train.render.cpu import blending, blending_backward, patches

X86 = r"\bvfn?m(?:add|sub)\w*ps\s.*%" + ("zmm" if WIDE_VECTORS else "ymm")
PACKED_MULTIPLY_ADD = {
    "x86_64": X86,
    "AMD64": X86,
    "aarch64": r"\bfmla\s+v\d+\.4s|\bfmla\s+z\d+\.s",
    "arm64": r"\bfmla\.4s\s|\bfmla\s+v\d+\.4s",
}
SCALAR_MULTIPLY_ADD = r"\bvfn?m(?:add|sub)\w*ss\s"
FLOATS, INDEX, FLOAT = types.float32[::1], types.uint64, types.float32

WORDS = types.uint64[::1]
ONE_GAUSSIAN = (FLOATS, FLOATS, INDEX, FLOAT, FLOAT, INDEX, FLOATS, INDEX)
LOOPS = {
    # name: (function, signature, least number of packed multiply-adds in its loops)
    "forward": (blending.batch_rgb, (FLOATS, WORDS), 10),
    "forward with depth": (blending.batch_rgbd, (FLOATS, WORDS), 11),
    "backward": (blending_backward.one_rgb, ONE_GAUSSIAN, 16),
    "backward with depth": (blending_backward.one_full, ONE_GAUSSIAN, 17),
    "patches that an ellipse reaches": (
        patches.find_reached,
        (FLOATS, types.UniTuple(INDEX, 6), INDEX, INDEX, WORDS),
        10,
    ),
    "SSIM's blur of rows": (ssim._blur_row_across, (FLOATS, INDEX), 30),
}


@pytest.mark.parametrize("name", LOOPS)
def test_inner_loop_is_vectorised(name: str) -> None:
    pattern = PACKED_MULTIPLY_ADD.get(platform.machine())
    if pattern is None:
        pytest.skip(f"no pattern of packed multiply-adds for {platform.machine()}")
    function, signature, least = LOOPS[name]
    function.compile(signature)
    assembly = function.inspect_asm(function.signatures[-1])
    packed = len(re.findall(pattern, assembly))
    assert packed >= least, f"{name}: the loop over pixels is not vectorised"
    assert len(re.findall(SCALAR_MULTIPLY_ADD, assembly)) < packed, f"{name}: most of the work is scalar"


def test_the_pattern_tells_packed_from_scalar() -> None:
    register = "zmm" if WIDE_VECTORS else "ymm"
    assert re.search(X86, f"\tvfmadd231ps\t%{register}1, %{register}2, %{register}3")
    assert not re.search(X86, "\tvfmadd231ss\t%xmm1, %xmm2, %xmm3")
    assert not re.search(X86, "\tvfmadd231ps\t%xmm1, %xmm2, %xmm3")
    assert re.search(SCALAR_MULTIPLY_ADD, "\tvfmadd231ss\t%xmm1, %xmm2, %xmm3")
