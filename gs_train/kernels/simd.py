"""SIMD vectors as values in Numba kernels: arithmetic on them compiles to packed instructions.

LLVM's own vectoriser gives up silently if arrays may overlap, an index is signed, or a loop has several results. Here
every operation is emitted on LLVM's vector type, which each target lowers to its own registers, so the result is always
packed. ``floats`` is the type of LANES float32 numbers, ``doubles`` of half as many float64 numbers. A tile row of
sixteen pixels is one vector of floats on a processor with 512-bit registers, and two vectors elsewhere.

The module knows nothing of rasterization. Every operation treats all lanes alike, except ``store_sums``, which adds the
lanes of each vector in a fixed tree. An address is an element's index in a contiguous one-dimensional array. Addresses
are not checked.
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

from gs_train.kernels.jit import WIDE_VECTORS, helper

LANES = 16 if WIDE_VECTORS else 8
"""Floats per vector: 16 with 512-bit registers, else 8. More would leave too few registers for blending's sums."""
DOUBLES = LANES // 2
"""Doubles per vector."""

_INT = ir.IntType(32)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(_INT, LANES)


# ---- the types ----


class _Vector(types.Type):
    """Numba type of a vector: ``lanes`` numbers of one type."""

    def __init__(self, element: types.Float, lanes: int) -> None:
        super().__init__(name=f"{element.name}x{lanes}")
        self.element, self.lanes = element, lanes
        self.ir = ir.VectorType(ir.FloatType() if element == types.float32 else ir.DoubleType(), lanes)


class _Mask(types.Type):
    """Numba type of a mask: ``lanes`` booleans."""

    def __init__(self, lanes: int) -> None:
        super().__init__(name=f"maskx{lanes}")
        self.lanes = lanes
        self.ir = ir.VectorType(ir.IntType(1), lanes)


@register_model(_Vector)
@register_model(_Mask)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.ir)


floats, doubles = _Vector(types.float32, LANES), _Vector(types.float64, DOUBLES)


def _common_vector(kinds: tuple[Any, ...]) -> Any:
    """The vector type that all vector arguments share; None if there is none, or if an argument is no float."""
    vectors = {kind for kind in kinds if isinstance(kind, _Vector)}
    others = [kind for kind in kinds if not isinstance(kind, _Vector | types.Float)]
    return vectors.pop() if len(vectors) == 1 and not others else None


def _broadcast(context: Any, builder: Any, value: Any, kind: Any, vector: Any) -> Any:
    """``value`` itself if it is a vector, else a vector with the number in every lane."""
    if isinstance(kind, _Vector):
        return value
    number = context.cast(builder, value, kind, vector.element)
    first = builder.insert_element(ir.Constant(vector.ir, ir.Undefined), number, ir.Constant(_INT, 0))
    return _shuffle(builder, first, first, [0] * vector.lanes)


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


# ---- operators ----


def _define(function: Any, emit: Callable[..., Any], *, gives_mask: bool = False) -> None:
    """Define an operator for two vectors, or for a vector and a number."""

    @infer_global(function)
    class _Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            vector = _common_vector(args) if len(args) == 2 else None
            return None if vector is None else signature(_Mask(vector.lanes) if gives_mask else vector, *args)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = _common_vector(sig.args)
        return emit(
            builder,
            *(_broadcast(context, builder, value, kind, vector) for value, kind in zip(args, sig.args, strict=True)),
        )

    for kinds in ((_Vector, _Vector), (_Vector, types.Float), (types.Float, _Vector)):
        lower_builtin(function, *kinds)(lower)


def _comparison(sign: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.fcmp_ordered(sign, a, b)


for _function in (operator.add, operator.iadd):
    _define(_function, lambda builder, a, b: builder.fadd(a, b))
for _function in (operator.sub, operator.isub):
    _define(_function, lambda builder, a, b: builder.fsub(a, b))
for _function in (operator.mul, operator.imul):
    _define(_function, lambda builder, a, b: builder.fmul(a, b))
_define(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))
for _function, _sign in ((operator.gt, ">"), (operator.ge, ">="), (operator.lt, "<"), (operator.le, "<=")):
    _define(_function, _comparison(_sign), gives_mask=True)


@infer_global(operator.and_)
class _And(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        return (
            signature(args[0], *args) if len(args) == 2 and isinstance(args[0], _Mask) and args[0] == args[1] else None
        )


lower_builtin(operator.and_, _Mask, _Mask)(lambda context, builder, sig, args: builder.and_(*args))


# ---- functions ----


def _lanewise(emit: Callable[..., Any], *kinds: Any) -> Any:
    """Type and code of an intrinsic on masks, vectors and numbers: it broadcasts the numbers and returns a vector."""
    vector = _common_vector(tuple(kind for kind in kinds if not isinstance(kind, _Mask)))
    if vector is None:
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pairs = zip(args, sig.args, strict=True)
        return emit(
            builder,
            *(v if isinstance(kind, _Mask) else _broadcast(context, builder, v, kind, vector) for v, kind in pairs),
        )

    return vector(*kinds), generate


def _llvm_call(name: str) -> Callable[..., Any]:
    def emit(builder: Any, a: Any) -> Any:
        suffix = "f32" if a.type == _FLOATS else "f64"
        kind = ir.FunctionType(a.type, [a.type])
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{a.type.count}{suffix}"), [a]
        )

    return emit


def _constant(vector: Any, numbers: list[float]) -> Any:
    return vector(), lambda context, builder, sig, args: ir.Constant(vector.ir, numbers)


@intrinsic  # type: ignore[untyped-decorator]
def zero_floats(typing_context: Any) -> Any:
    """Zeros."""
    return _constant(floats, [0.0] * LANES)


@intrinsic  # type: ignore[untyped-decorator]
def zero_doubles(typing_context: Any) -> Any:
    """Zeros."""
    return _constant(doubles, [0.0] * DOUBLES)


@intrinsic  # type: ignore[untyped-decorator]
def lane_numbers(typing_context: Any) -> Any:
    """0, 1, 2, ... as floats."""
    return _constant(floats, [float(lane) for lane in range(LANES)])


@intrinsic  # type: ignore[untyped-decorator]
def where(typing_context: Any, condition: Any, a: Any, b: Any) -> Any:
    """``a if condition else b``, lane by lane."""
    return _lanewise(lambda builder, c, a, b: builder.select(c, a, b), condition, a, b)


@intrinsic  # type: ignore[untyped-decorator]
def minimum(typing_context: Any, a: Any, b: Any) -> Any:
    """The smaller of the two; ``b`` if one of them is NaN."""
    return _lanewise(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b), a, b)


@intrinsic  # type: ignore[untyped-decorator]
def maximum(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of the two; ``b`` if one of them is NaN."""
    return _lanewise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b), a, b)


@intrinsic  # type: ignore[untyped-decorator]
def sqrt(typing_context: Any, a: Any) -> Any:
    """Square root."""
    return _lanewise(_llvm_call("sqrt"), a)


@intrinsic  # type: ignore[untyped-decorator]
def ceil(typing_context: Any, a: Any) -> Any:
    """The value rounded up to a whole number."""
    return _lanewise(_llvm_call("ceil"), a)


@intrinsic  # type: ignore[untyped-decorator]
def floor(typing_context: Any, a: Any) -> Any:
    """The value rounded down to a whole number."""
    return _lanewise(_llvm_call("floor"), a)


@intrinsic  # type: ignore[untyped-decorator]
def absolute(typing_context: Any, a: Any) -> Any:
    """The absolute value."""
    return _lanewise(_llvm_call("fabs"), a)


@intrinsic  # type: ignore[untyped-decorator]
def bits(typing_context: Any, condition: Any) -> Any:
    """The mask as a uint64; lane 0 is the lowest bit."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], ir.IntType(sig.args[0].lanes)), ir.IntType(64))

    return types.uint64(condition), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(typing_context: Any, number: Any) -> Any:
    """Position of the lowest set bit; the number must not be 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(number), generate


@intrinsic  # type: ignore[untyped-decorator]
def _add_to_exponent(typing_context: Any, a: Any, whole: Any) -> Any:
    """a * 2**n, where n is the integer in the low bits of ``whole``; a and the result must be normal numbers."""

    def emit(builder: Any, a: Any, whole: Any) -> Any:
        exponent = builder.shl(builder.bitcast(whole, _INTS), ir.Constant(_INTS, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(a, _INTS), exponent), _FLOATS)

    return _lanewise(emit, a, whole)


# Adding 1.5 * 2**23 rounds a float to a whole number and leaves that number in the low bits.
_ROUNDING = np.float32(1.5 * 2**23)
# Minimax polynomial of 2**f on [-1/2, 1/2], degree 5, from iteratively reweighted least squares. Relative error 7.5e-8
# before rounding.
_C0, _C1, _C2, _C3, _C4, _C5 = (
    np.float32(c) for c in (1.00000007, 6.93146970e-01, 2.40221197e-01, 5.55071326e-02, 9.67554006e-03, 1.32764654e-03)
)


@helper
def exp2(power):  # type: ignore[no-untyped-def]
    """2**power, for powers between -126 and 127; other powers give any bits."""
    whole = power + _ROUNDING
    f = power - (whole - _ROUNDING)
    return _add_to_exponent(_C0 + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * _C5)))), whole)


# ---- memory ----


@helper
def aligned_zeros(size):  # type: ignore[no-untyped-def]
    """A scratch array of zeros that starts on a cache line, because a vector across two lines costs two accesses."""
    s = np.zeros(size + 16, np.float32)
    return s[(64 - s.ctypes.data % 64) % 64 // 4 :]


def _address(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _vector_pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any, vector: Any) -> Any:
    """Pointer to array[at] as a vector with as many lanes as ``vector``, of the array's element type."""
    stored = ir.VectorType(context.get_value_type(kind.dtype), vector.lanes)
    return builder.bitcast(_address(context, builder, kind, array, at), stored.as_pointer())


def _make_load(vector: Any, array: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, at = args
        loaded = builder.load(_vector_pointer(context, builder, sig.args[0], array, at, vector))
        loaded.align = 4
        return builder.fpext(loaded, vector.ir) if loaded.type != vector.ir else loaded

    return vector(array, at), generate


@intrinsic  # type: ignore[untyped-decorator]
def load(typing_context: Any, array: Any, at: Any) -> Any:
    """LANES floats of a float32 array, starting at array[at]."""
    return _make_load(floats, array, at)


@intrinsic  # type: ignore[untyped-decorator]
def load_doubles(typing_context: Any, array: Any, at: Any) -> Any:
    """DOUBLES doubles of a float64 or float32 array, starting at array[at]."""
    return _make_load(doubles, array, at)


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    """Write the vector, starting at array[at]. Doubles are rounded if the array is float32."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, at, value = args
        place = _vector_pointer(context, builder, sig.args[0], array, at, sig.args[2])
        builder.store(
            value if value.type == place.type.pointee else builder.fptrunc(value, place.type.pointee), place
        ).align = 4
        return context.get_dummy_value()

    return types.void(array, at, value), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    """Prefetch the cache line of array[at]."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.bitcast(_address(context, builder, sig.args[0], *args), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, _INT, _INT, _INT])
        # Read access, into all cache levels, data cache.
        choices = [ir.Constant(_INT, value) for value in (0, 3, 1)]
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [address, *choices])
        return context.get_dummy_value()

    return types.void(array, at), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_sums(typing_context: Any, array: Any, at: Any, vectors: Any) -> Any:
    """Write the lane sum of each vector of a tuple, starting at array[at], then zeros up to a multiple of LANES.

    One tree sums up to LANES vectors at once: each round folds two vectors into one with half as many partial sums of
    each.
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
    """One vector: lane k has the lane sum of vectors[k], and 0 after the last. Takes up to LANES vectors."""
    zero = ir.Constant(_FLOATS, [0.0] * LANES)
    level = [*vectors, *[zero] * (LANES - len(vectors))]
    run = LANES  # neighbouring lanes with partial sums of the same vector
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
