"""Vectors of floats as one value in Numba kernels: what is written as arithmetic on them is compiled to packed instructions.

LLVM's own vectoriser gives up silently: over possible overlap between arrays, signed indices, several results per loop. Here every
operation is emitted on LLVM's vector type, which each target lowers to what it has, so nothing is left to luck. ``Floats`` holds LANES
float32, ``Doubles`` half as many float64; a tile row of sixteen pixels is one vector of floats where the processor has 512-bit registers
and two where it has not.

Not here: any rasterization. The invariant: an operation does the same to every lane, except for ``store_sums``, which adds the lanes of
each vector in a fixed tree. Addresses are in elements, from the start of a contiguous one-dimensional array, and are not checked.
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
"""Floats in a vector: with half of the registers, half of the lanes, or the sums of blending would not fit into them."""
DOUBLES = LANES // 2
"""Doubles in a vector."""

_INT = ir.IntType(32)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(_INT, LANES)


# ---- the types ----


class _Vector(types.Type):
    """Several numbers of one kind."""

    def __init__(self, element: types.Float, lanes: int) -> None:
        super().__init__(name=f"{element.name}x{lanes}")
        self.element, self.lanes = element, lanes
        self.ir = ir.VectorType(ir.FloatType() if element == types.float32 else ir.DoubleType(), lanes)


class _Mask(types.Type):
    """Several booleans."""

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


def _common(kinds: tuple[Any, ...]) -> Any:
    """The one kind of vector among vectors and numbers; None if there is none or more than one, or something else."""
    vectors = {kind for kind in kinds if isinstance(kind, _Vector)}
    others = [kind for kind in kinds if not isinstance(kind, _Vector | types.Float)]
    return vectors.pop() if len(vectors) == 1 and not others else None


def _widened(context: Any, builder: Any, value: Any, kind: Any, vector: Any) -> Any:
    """The value itself if it is a vector, else the number in every lane of one."""
    if isinstance(kind, _Vector):
        return value
    number = context.cast(builder, value, kind, vector.element)
    first = builder.insert_element(ir.Constant(vector.ir, ir.Undefined), number, ir.Constant(_INT, 0))
    return _shuffle(builder, first, first, [0] * vector.lanes)


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


# ---- operators ----


def _define(function: Any, emit: Callable[..., Any], *, gives_mask: bool = False) -> None:
    """Give an operator a meaning for two vectors, or for a vector and a number."""

    @infer_global(function)
    class _Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            vector = _common(args) if len(args) == 2 else None
            return None if vector is None else signature(_Mask(vector.lanes) if gives_mask else vector, *args)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = _common(sig.args)
        return emit(
            builder,
            *(_widened(context, builder, value, kind, vector) for value, kind in zip(args, sig.args, strict=True)),
        )

    for kinds in ((_Vector, _Vector), (_Vector, types.Float), (types.Float, _Vector)):
        lower_builtin(function, *kinds)(lower)


def _comparing(sign: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.fcmp_ordered(sign, a, b)


for _function in (operator.add, operator.iadd):
    _define(_function, lambda builder, a, b: builder.fadd(a, b))
for _function in (operator.sub, operator.isub):
    _define(_function, lambda builder, a, b: builder.fsub(a, b))
for _function in (operator.mul, operator.imul):
    _define(_function, lambda builder, a, b: builder.fmul(a, b))
_define(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))
for _function, _sign in ((operator.gt, ">"), (operator.ge, ">="), (operator.lt, "<"), (operator.le, "<=")):
    _define(_function, _comparing(_sign), gives_mask=True)


@infer_global(operator.and_)
class _And(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        return (
            signature(args[0], *args) if len(args) == 2 and isinstance(args[0], _Mask) and args[0] == args[1] else None
        )


lower_builtin(operator.and_, _Mask, _Mask)(lambda context, builder, sig, args: builder.and_(*args))


# ---- functions ----


def _typed(emit: Callable[..., Any], *kinds: Any) -> Any:
    """What an intrinsic of vectors and numbers (after masks) answers: numbers are put into every lane, the result is a vector like them."""
    vector = _common(tuple(kind for kind in kinds if not isinstance(kind, _Mask)))
    if vector is None:
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pairs = zip(args, sig.args, strict=True)
        return emit(
            builder,
            *(v if isinstance(kind, _Mask) else _widened(context, builder, v, kind, vector) for v, kind in pairs),
        )

    return vector(*kinds), generate


def _calling(name: str) -> Callable[..., Any]:
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
    """Lane by lane ``a if condition else b``."""
    return _typed(lambda builder, c, a, b: builder.select(c, a, b), condition, a, b)


@intrinsic  # type: ignore[untyped-decorator]
def minimum(typing_context: Any, a: Any, b: Any) -> Any:
    """The smaller of the two, ``b`` where one is not a number."""
    return _typed(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b), a, b)


@intrinsic  # type: ignore[untyped-decorator]
def maximum(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of the two, ``b`` where one is not a number."""
    return _typed(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b), a, b)


@intrinsic  # type: ignore[untyped-decorator]
def sqrt(typing_context: Any, a: Any) -> Any:
    """Square root."""
    return _typed(_calling("sqrt"), a)


@intrinsic  # type: ignore[untyped-decorator]
def ceil(typing_context: Any, a: Any) -> Any:
    """The next whole number upwards."""
    return _typed(_calling("ceil"), a)


@intrinsic  # type: ignore[untyped-decorator]
def floor(typing_context: Any, a: Any) -> Any:
    """The next whole number downwards."""
    return _typed(_calling("floor"), a)


@intrinsic  # type: ignore[untyped-decorator]
def absolute(typing_context: Any, a: Any) -> Any:
    """Without the sign."""
    return _typed(_calling("fabs"), a)


@intrinsic  # type: ignore[untyped-decorator]
def bits(typing_context: Any, condition: Any) -> Any:
    """The mask as a uint64, lane 0 in the lowest bit."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], ir.IntType(sig.args[0].lanes)), ir.IntType(64))

    return types.uint64(condition), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(typing_context: Any, number: Any) -> Any:
    """Position of the lowest bit that is set; the number must not be 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(number), generate


@intrinsic  # type: ignore[untyped-decorator]
def _scaled_by_low_bits(typing_context: Any, a: Any, whole: Any) -> Any:
    """Floats a * 2**n, n being what the lowest bits of ``whole`` hold: added to the exponent, so a must be a normal number and stay one."""

    def emit(builder: Any, a: Any, whole: Any) -> Any:
        exponent = builder.shl(builder.bitcast(whole, _INTS), ir.Constant(_INTS, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(a, _INTS), exponent), _FLOATS)

    return _typed(emit, a, whole)


_ROUNDING = np.float32(
    1.5 * 2**23
)  # Adding it leaves no bits behind the point, and the whole number in the lowest bits.
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


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any, vector: Any) -> Any:
    """The address of array[at] as one of as many of the array's numbers as the vector has."""
    stored = ir.VectorType(context.get_value_type(kind.dtype), vector.lanes)
    return builder.bitcast(_address(context, builder, kind, array, at), stored.as_pointer())


def _loading(vector: Any, array: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, at = args
        loaded = builder.load(_place(context, builder, sig.args[0], array, at, vector))
        loaded.align = 4
        return builder.fpext(loaded, vector.ir) if loaded.type != vector.ir else loaded

    return vector(array, at), generate


@intrinsic  # type: ignore[untyped-decorator]
def load(typing_context: Any, array: Any, at: Any) -> Any:
    """LANES floats from array[at] on; the array is float32."""
    return _loading(floats, array, at)


@intrinsic  # type: ignore[untyped-decorator]
def load_doubles(typing_context: Any, array: Any, at: Any) -> Any:
    """DOUBLES doubles from array[at] on; the array is float64 or float32."""
    return _loading(doubles, array, at)


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    """Write the vector to array[at] on; doubles go into float32 arrays, too."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, at, value = args
        place = _place(context, builder, sig.args[0], array, at, sig.args[2])
        builder.store(
            value if value.type == place.type.pointee else builder.fptrunc(value, place.type.pointee), place
        ).align = 4
        return context.get_dummy_value()

    return types.void(array, at, value), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line of array[at] to be fetched."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.bitcast(_address(context, builder, sig.args[0], *args), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, _INT, _INT, _INT])
        # For reading, into all caches, as data.
        choices = [ir.Constant(_INT, value) for value in (0, 3, 1)]
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [address, *choices])
        return context.get_dummy_value()

    return types.void(array, at), generate


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
