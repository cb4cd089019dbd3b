"""What numba lacks for bitmaps: instructions on 64 rows at a time, and on the bits of a number.

numba keeps compiled loops until their own file changes: after a change here, touch ``kernels.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

__all__ = [
    "INSTRUCTIONS",
    "add_products",
    "count_bits",
    "first_bit",
    "may_reach",
    "prefetch",
    "reaching",
]

_BIT, _BYTE, _SHORT, _INT = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32)
_LONG = ir.IntType(64)
_MASK, _BYTES = ir.VectorType(_BIT, 64), ir.VectorType(_BYTE, 64)
_SHORTS, _INTS, _LONGS = (
    ir.VectorType(_SHORT, 32),
    ir.VectorType(_INT, 16),
    ir.VectorType(_LONG, 8),
)
_SCORES = ir.VectorType(_INT, 64)
_POINTER = _BYTE.as_pointer()


def _instructions() -> str:
    """Return by which instructions the processor can spread packed bytes over set bits, or "".

    AMD's first two Zens have those of ``bmi2``, but run them in microcode, slowly.
    """
    config: Any = numba.config  # has more attributes than its source says
    features, name = config.CPU_FEATURES, config.CPU_NAME
    if features is None:
        features = get_host_cpu_features()  # numba's own: without AVX where its settings say so
        name = llvmlite.binding.get_host_cpu_name()
    known = features.split(",")
    if "+avx512vbmi2" in known and "+avx512vnni" in known:
        return "avx512"
    return "bmi2" if "+bmi2" in known and name not in ("znver1", "znver2") else ""


INSTRUCTIONS = _instructions()


def _instruction(define: Callable[..., Any]) -> Any:
    """Return what compiled loops call, without the types of the definition."""
    return intrinsic(define)


@_instruction
def add_products(typing: Any, bits: Any, impacts: Any, weights: Any, sums: Any) -> Any:
    """Add the products of four terms to the scores of 64 rows; needs `INSTRUCTIONS`.

    The first three arguments have a number for each term. The rows of a term are those
    whose bits are set; ``impacts`` are addresses of 64 bytes, the first of them of these rows, and
    ``sums`` that of 64 int32. Weights are from 0 to 32,767. Bit 4 i + j is of row 16 j + i: so the
    bytes j of 16 numbers of four bytes are of rows that follow each other.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        terms = []
        for term in range(4):
            bits, impacts, weight = (builder.extract_value(each, term) for each in arguments[:3])
            terms.append((_spread(builder, bits, impacts), weight))
        add = _add_shorts if INSTRUCTIONS == "avx512" else _add_bytes
        add(builder, terms, arguments[3])
        return context.get_dummy_value()

    kinds = types.uint64, types.uintp, types.int32
    arguments = *(types.UniTuple(kind, 4) for kind in kinds), types.uintp
    return types.void(*arguments), generate


def _spread(builder: Any, bits: Any, impacts: Any) -> Any:
    """Return 64 bytes, those of set bits from memory, the others 0."""
    if INSTRUCTIONS == "avx512":
        load = _function(builder, "llvm.masked.expandload.v64i8", _BYTES, _POINTER, _MASK, _BYTES)
        packed, mask = builder.inttoptr(impacts, _POINTER), builder.bitcast(bits, _MASK)
        return builder.call(load, [packed, mask, _BYTES(None)])
    deposit = _function(builder, "llvm.x86.bmi.pdep.64", _LONG, _LONG, _LONG)
    spread = _LONGS(ir.Undefined)
    for eight in range(8):
        own = builder.and_(builder.lshr(bits, _LONG(8 * eight)), _LONG(0xFF))
        ones = builder.call(deposit, [own, _LONG(0x0101010101010101)])
        whole = builder.sub(builder.shl(ones, _LONG(8)), ones)  # of each byte, all bits or none
        packed = builder.load(builder.inttoptr(impacts, _LONG.as_pointer()), align=1)
        spread = builder.insert_element(spread, builder.call(deposit, [packed, whole]), _INT(eight))
        impacts = builder.add(impacts, builder.ctpop(own))
    return builder.bitcast(spread, _BYTES)


def _add_shorts(builder: Any, terms: Any, sums: Any) -> None:
    """Add weights times bytes to 64 scores, by products of pairs of 16-bit numbers."""
    multiply = _function(builder, "llvm.x86.avx512.vpdpwssd.512", _INTS, _INTS, _INTS, _INTS)
    halves, factors = [], []
    for spread, weight in terms:
        shorts = builder.bitcast(spread, _SHORTS)
        even = builder.and_(shorts, _SHORTS([0xFF] * _SHORTS.count))
        odd = builder.lshr(shorts, _SHORTS([8] * _SHORTS.count))
        halves.append([builder.bitcast(half, _INTS) for half in (even, odd)])
        low = _everywhere(builder, weight)
        factors.append((low, builder.shl(low, _INTS([16] * _INTS.count))))
    for quarter, place in enumerate(_quarters(builder, sums)):
        scores = builder.load(place, align=4)
        for half, factor in zip(halves, factors, strict=True):
            scores = builder.call(multiply, [scores, half[quarter % 2], factor[quarter // 2]])
        builder.store(scores, place, align=4)


def _add_bytes(builder: Any, terms: Any, sums: Any) -> None:
    """Add weights times bytes to 64 scores, on any processor."""
    for quarter, place in enumerate(_quarters(builder, sums)):
        scores = builder.load(place, align=4)
        for spread, weight in terms:
            numbers = builder.bitcast(spread, _INTS)
            numbers = builder.lshr(numbers, _INTS([8 * quarter] * _INTS.count))
            numbers = builder.and_(numbers, _INTS([0xFF] * _INTS.count))
            # Told that weights have 15 bits, LLVM multiplies numbers of 16.
            factor = _everywhere(builder, builder.and_(weight, _INT(0x7FFF)))
            scores = builder.add(scores, builder.mul(numbers, factor))
        builder.store(scores, place, align=4)


def _quarters(builder: Any, sums: Any) -> list[Any]:
    """Return pointers to each 16 of 64 scores."""
    places = (builder.add(sums, sums.type(64 * quarter)) for quarter in range(4))
    return [builder.inttoptr(place, _INTS.as_pointer()) for place in places]


@_instruction
def reaching(typing: Any, sums: Any, floor: Any) -> Any:
    """Return which of 64 int32 numbers are not below a floor, as bits; ``sums`` is an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _SCORES.as_pointer())
        numbers = builder.load(place, align=4)
        above = builder.icmp_signed(">=", numbers, _everywhere(builder, arguments[1], _SCORES))
        return builder.bitcast(above, ir.IntType(64))

    return types.uint64(types.uintp, types.int32), generate


@_instruction
def may_reach(typing: Any, sums: Any, needed: Any) -> Any:
    """Tell whether one of 64 int32 numbers is not below what is needed.

    Both are addresses; each 16 of the numbers need the same, so that there are 4 needed int32.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        needed, reached = builder.inttoptr(arguments[1], _INT.as_pointer()), None
        for group, place in enumerate(_quarters(builder, arguments[0])):
            own = builder.load(builder.gep(needed, [_INT(group)]), align=4)
            scores = builder.load(place, align=4)
            above = builder.icmp_signed(">=", scores, _everywhere(builder, own))
            reached = above if reached is None else builder.or_(reached, above)
        return builder.icmp_signed("!=", builder.bitcast(reached, _SHORT), _SHORT(0))

    return types.boolean(types.uintp, types.uintp), generate


@_instruction
def first_bit(typing: Any, bits: Any) -> Any:
    """Return the place of the lowest set bit, of 64; there must be one."""
    return types.int64(types.uint64), lambda _, builder, __, arguments: builder.cttz(
        arguments[0], _BIT(1)
    )


@_instruction
def count_bits(typing: Any, bits: Any) -> Any:
    """Return how many bits are set, of 64."""
    return types.int64(types.uint64), lambda _, builder, __, arguments: builder.ctpop(arguments[0])


@_instruction
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for the 64 bytes around an address, without waiting; any address will do."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT, _INT, _INT])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.inttoptr(arguments[0], _BYTE.as_pointer())
        builder.call(call, [place, _INT(0), _INT(3), _INT(1)])  # to read, into the nearest cache
        return context.get_dummy_value()

    return types.void(types.uintp), generate


def _function(builder: Any, name: str, returned: Any, *arguments: Any) -> Any:
    return cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(returned, arguments), name
    )


def _everywhere(builder: Any, number: Any, kind: Any = _INTS) -> Any:
    first = builder.insert_element(kind(ir.Undefined), number, _INT(0))
    return builder.shuffle_vector(first, kind(ir.Undefined), ir.VectorType(_INT, kind.count)(None))
