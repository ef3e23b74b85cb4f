"""A vector of float32 as one value in Numba kernels: what is written as arithmetic on it is compiled to packed instructions.

LLVM's own vectoriser gives up silently: over possible overlap between arrays, signed indices, several results per loop. Here every
operation is emitted on LLVM's vector type, which each target lowers to what it has, so nothing is left to luck. A tile row of sixteen
pixels is one vector where the processor has 512-bit registers and two where it has not.

Not here: any rasterization. The invariant: an operation does the same to every lane, except for ``sum_each``, which adds the lanes of each
vector in a fixed tree. Addresses are in elements, from the start of a contiguous one-dimensional float32 array, and are not checked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from gs_train.jit import WIDE_VECTORS, helper

LANES = 16 if WIDE_VECTORS else 8
"""Floats in a vector: with half of the registers, half of the lanes, or the sums of blending would not fit into them."""

_INT = ir.IntType(32)
_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)
_BITS = ir.IntType(LANES)
_NO_SIGN = ir.Constant(_INTS, [2**31 - 1] * LANES)


# ---- the two types ----


class _Floats(types.Type):
    """LANES float32."""

    def __init__(self) -> None:
        super().__init__(name=f"floats{LANES}")


class _Mask(types.Type):
    """LANES booleans."""

    def __init__(self) -> None:
        super().__init__(name=f"mask{LANES}")


floats, mask = _Floats(), _Mask()


@register_model(_Floats)
class _FloatsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


@register_model(_Mask)
class _MaskModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.IntType(1), LANES))


def _widened(context: Any, builder: Any, value: Any, kind: Any) -> Any:
    """The value itself if it is a vector, else the number in every lane."""
    if kind is floats:
        return value
    number = context.cast(builder, value, kind, types.float32)
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, ir.Constant(_INT, 0))
    return _shuffle(builder, first, first, [0] * LANES)


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


# ---- operators ----


def _define_binary(function: Any, operand: Any, result: Any, emit: Callable[..., Any]) -> None:
    """Give an operator a meaning for two vectors, or for a vector of floats and a number."""

    @infer_global(function)
    class _Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and operand in args and all(a is operand or (operand is floats and isinstance(a, types.Float)) for a in args):
                return signature(result, *args)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if operand is floats:
            args = [_widened(context, builder, value, kind) for value, kind in zip(args, sig.args, strict=True)]
        return emit(builder, *args)

    kinds = [(operand, operand)] + ([(operand, types.Float), (types.Float, operand)] if operand is floats else [])
    for kind in kinds:
        lower_builtin(function, *kind)(lower)


_define_binary(operator.add, floats, floats, lambda builder, a, b: builder.fadd(a, b))
_define_binary(operator.sub, floats, floats, lambda builder, a, b: builder.fsub(a, b))
_define_binary(operator.mul, floats, floats, lambda builder, a, b: builder.fmul(a, b))
_define_binary(operator.truediv, floats, floats, lambda builder, a, b: builder.fdiv(a, b))
_define_binary(operator.gt, floats, mask, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_define_binary(operator.ge, floats, mask, lambda builder, a, b: builder.fcmp_ordered(">=", a, b))
_define_binary(operator.lt, floats, mask, lambda builder, a, b: builder.fcmp_ordered("<", a, b))
_define_binary(operator.le, floats, mask, lambda builder, a, b: builder.fcmp_ordered("<=", a, b))
_define_binary(operator.and_, mask, mask, lambda builder, a, b: builder.and_(a, b))


# ---- functions ----


def _function(result: Any, emit: Callable[..., Any]) -> Any:
    """An intrinsic of vectors, masks and numbers: numbers are put into every lane before ``emit(builder, *values)``."""

    def typed(typing_context: Any, *kinds: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pairs = zip(args, sig.args, strict=True)
            return emit(builder, *(value if kind is mask else _widened(context, builder, value, kind) for value, kind in pairs))

        return result(*kinds), generate

    return typed


def _call(name: str) -> Callable[..., Any]:
    def emit(builder: Any, a: Any) -> Any:
        declared = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), f"llvm.{name}.v{LANES}f32")
        return builder.call(declared, [a])

    return emit


@intrinsic  # type: ignore[untyped-decorator]
def splat(typing_context: Any, number: Any) -> Any:
    """The number in every lane."""
    return _function(floats, lambda builder, a: a)(typing_context, number)


@intrinsic  # type: ignore[untyped-decorator]
def lane_numbers(typing_context: Any) -> Any:
    """0, 1, 2, ... as floats."""
    return _function(floats, lambda builder: ir.Constant(_FLOATS, [float(lane) for lane in range(LANES)]))(typing_context)


@intrinsic  # type: ignore[untyped-decorator]
def where(typing_context: Any, condition: Any, a: Any, b: Any) -> Any:
    """Lane by lane ``a if condition else b``."""
    return _function(floats, lambda builder, c, a, b: builder.select(c, a, b))(typing_context, condition, a, b)


@intrinsic  # type: ignore[untyped-decorator]
def minimum(typing_context: Any, a: Any, b: Any) -> Any:
    """The smaller of the two, ``b`` where one is not a number."""
    return _function(floats, lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))(typing_context, a, b)


@intrinsic  # type: ignore[untyped-decorator]
def maximum(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of the two, ``b`` where one is not a number."""
    return _function(floats, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))(typing_context, a, b)


@intrinsic  # type: ignore[untyped-decorator]
def sqrt(typing_context: Any, a: Any) -> Any:
    """Square root."""
    return _function(floats, _call("sqrt"))(typing_context, a)


@intrinsic  # type: ignore[untyped-decorator]
def ceil(typing_context: Any, a: Any) -> Any:
    """The next whole number upwards."""
    return _function(floats, _call("ceil"))(typing_context, a)


@intrinsic  # type: ignore[untyped-decorator]
def absolute(typing_context: Any, a: Any) -> Any:
    """Without the sign."""

    def emit(builder: Any, a: Any) -> Any:
        return builder.bitcast(builder.and_(builder.bitcast(a, _INTS), _NO_SIGN), _FLOATS)

    return _function(floats, emit)(typing_context, a)


@intrinsic  # type: ignore[untyped-decorator]
def bits(typing_context: Any, condition: Any) -> Any:
    """The mask as a uint64, lane 0 in the lowest bit."""

    def emit(builder: Any, condition: Any) -> Any:
        return builder.zext(builder.bitcast(condition, _BITS), ir.IntType(64))

    return _function(types.uint64, emit)(typing_context, condition)


@intrinsic  # type: ignore[untyped-decorator]
def _scaled_by_low_bits(typing_context: Any, a: Any, whole: Any) -> Any:
    """a * 2**n, n being what the lowest bits of ``whole`` hold: added to the exponent, so a must be a normal number and stay one."""

    def emit(builder: Any, a: Any, whole: Any) -> Any:
        exponent = builder.shl(builder.bitcast(whole, _INTS), ir.Constant(_INTS, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(a, _INTS), exponent), _FLOATS)

    return _function(floats, emit)(typing_context, a, whole)


_ROUNDING = np.float32(1.5 * 2**23)  # Adding it leaves no bits behind the point, and the whole number in the lowest bits.
_LEAST_POWER = np.float32(-10.0)
# Minimax polynomial of 2**f on [-1/2, 1/2], degree 5; relative error 7.5e-8 before rounding, found by iteratively reweighted least squares.
_C0, _C1, _C2, _C3, _C4, _C5 = (
    np.float32(c) for c in (1.00000007, 6.93146970e-01, 2.40221197e-01, 5.55071326e-02, 9.67554006e-03, 1.32764654e-03)
)


@helper
def exp2_limited(power):  # type: ignore[no-untyped-def]
    """2**power, and 2**-10 for what is below: smaller alphas are under 1/255 all the same. Powers are below 127."""
    limited = maximum(power, _LEAST_POWER)
    whole = limited + _ROUNDING
    f = limited - (whole - _ROUNDING)
    return _scaled_by_low_bits(_C0 + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * _C5)))), whole)


# ---- memory ----


@helper
def aligned_zeros(size):  # type: ignore[no-untyped-def]
    """A scratch array of zeros that begins with a cache line: a vector that crosses lines costs two accesses."""
    s = np.zeros(size + 16, np.float32)
    return s[(64 - s.ctypes.data % 64) % 64 // 4 :]


def _address(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


@intrinsic  # type: ignore[untyped-decorator]
def load(typing_context: Any, array: Any, at: Any) -> Any:
    """LANES floats from array[at] on."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        loaded = builder.load(builder.bitcast(_address(context, builder, sig.args[0], *args), _FLOATS.as_pointer()))
        loaded.align = 4
        return loaded

    return floats(array, at), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    """Write LANES floats to array[at] on."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.bitcast(_address(context, builder, sig.args[0], *args[:2]), _FLOATS.as_pointer())
        builder.store(args[2], address).align = 4
        return context.get_dummy_value()

    return types.void(array, at, value), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line of array[at] to be fetched."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.bitcast(_address(context, builder, sig.args[0], *args), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, _INT, _INT, _INT])
        # Read, into all caches, data.
        choices = [ir.Constant(_INT, value) for value in (0, 3, 1)]
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [address, *choices])
        return context.get_dummy_value()

    return types.void(array, at), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(typing_context: Any, number: Any) -> Any:
    """Position of the lowest bit that is set; the number must not be 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(number), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_sums(typing_context: Any, array: Any, at: Any, vectors: Any) -> Any:
    """Write the sum of the lanes of each vector of a tuple to array[at] on, and zeros up to the next multiple of LANES.

    One tree sums up to LANES vectors at once: in each round two vectors are folded into one that holds half as many partial sums of both.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, at, packed = args
        given = cgutils.unpack_tuple(builder, packed, len(vectors))
        for begin in range(0, len(given), LANES):
            sums = _sum_tree(builder, given[begin : begin + LANES])
            place = builder.add(at, ir.Constant(at.type, begin))
            address = builder.bitcast(_address(context, builder, sig.args[0], array, place), _FLOATS.as_pointer())
            builder.store(sums, address).align = 4
        return context.get_dummy_value()

    return types.void(array, at, vectors), generate


def _sum_tree(builder: Any, vectors: list[Any]) -> Any:
    """One vector with the sum of each of up to LANES vectors in its lane."""
    zero = ir.Constant(_FLOATS, [0.0] * LANES)
    level = [*vectors, *[zero] * (LANES - len(vectors))]
    run = LANES  # lanes that hold partial sums of one and the same vector
    while run > 1:
        run //= 2
        starts = range(0, 2 * LANES, 2 * run)
        low = [start + lane for start in starts for lane in range(run)]
        high = [start + run + lane for start in starts for lane in range(run)]
        level = [
            zero if a is zero else builder.fadd(_shuffle(builder, a, b, low), _shuffle(builder, a, b, high))
            for a, b in zip(level[::2], level[1::2], strict=True)
        ]
    return level[0]
