"""How operations of torch's core set that move numbers about are written; rules as ``rules.py`` has them."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from airlam.errors import SpecError
from airlam.export.rules import Like, Rules, aten, registrar
from airlam.export.values import Value, Writer, dtype_of

RULES: Rules = {}
rule = registrar(RULES)


@rule(aten.alias, aten.clone, aten.detach, aten._to_copy)
def _same(writer: Writer[Any], like: Like, x: Any, **_: Any) -> Any:
    return writer.value(x, dtype_of(like))


@rule(aten.view, aten._unsafe_view, aten.unsqueeze, aten.squeeze)
def _reshaped(writer: Writer[Any], like: Like, x: Any, *_: Any) -> Any:
    return writer.each(like, x, lambda part: writer.ops.reshape(part, tuple(like.shape)))


@rule(aten.expand)
def _expanded(writer: Writer[Any], like: Like, x: Any, *_: Any, **__: Any) -> Any:
    own = writer.value(x)
    aligned = (1,) * (like.ndim - len(own.shape)) + own.shape

    def spread(part: Any) -> Any:
        return writer.ops.broadcast(writer.ops.reshape(part, aligned), tuple(like.shape))

    return writer.each(like, own, spread)


@rule(aten.permute)
def _permuted(writer: Writer[Any], like: Like, x: Any, axes: Sequence[int]) -> Any:
    order = [axis % like.ndim for axis in axes]
    return writer.each(like, x, lambda part: writer.ops.transpose(part, order))


@rule(aten.slice)
def _sliced(
    writer: Writer[Any],
    like: Like,
    x: Any,
    axis: int = 0,
    start: int | None = None,
    stop: int | None = None,
    step: int = 1,
) -> Any:
    first, last, _ = slice(start, stop).indices(x.shape[axis])
    return writer.each(like, x, lambda part: writer.ops.cut(part, axis % like.ndim, first, last, step))


@rule(aten.split_with_sizes)
def _split(writer: Writer[Any], likes: Sequence[Like], x: Any, sizes: Sequence[int], axis: int = 0) -> Any:
    ends = list(itertools.accumulate(sizes))
    bounds = zip(likes, [0, *ends[:-1]], ends, strict=True)
    return [_sliced(writer, like, x, axis, first, last) for like, first, last in bounds]


@rule(aten.slice_scatter)
def _put(
    writer: Writer[Any],
    like: Like,
    x: Any,
    source: Any,
    axis: int = 0,
    start: int | None = None,
    stop: int | None = None,
    step: int = 1,
) -> Any:
    """A copy of ``x`` with a piece of it replaced."""
    if step != 1:
        raise SpecError(f"writing every {step}th row has no form in the exported formats")
    place, size = axis % like.ndim, like.shape[axis]
    first, last, _ = slice(start, stop).indices(size)
    pieces = [(x, 0, first), (source, 0, last - first), (x, last, size)]
    cuts = [
        writer.each(like, whole, lambda part, a=a, b=b: writer.ops.cut(part, place, a, b, 1))  # type: ignore[misc]
        for whole, a, b in pieces
        if a < b
    ]
    return _joined(writer, like, cuts, place)


@rule(aten.select)
def _selected(writer: Writer[Any], like: Like, x: Any, axis: int, index: int) -> Any:
    place, first = axis % len(x.shape), index % x.shape[axis]

    def taken(part: Any) -> Any:
        return writer.ops.reshape(writer.ops.cut(part, place, first, first + 1, 1), tuple(like.shape))

    return writer.each(like, x, taken)


@rule(aten.cat)
def _joined(writer: Writer[Any], like: Like, parts: Sequence[Any], axis: int = 0) -> Any:
    values = [writer.value(part, dtype_of(like)) for part in parts]
    place = axis % like.ndim
    real = writer.ops.concat([value.real for value in values], place)
    imag = writer.ops.concat([writer.imag_of(v) for v in values], place) if like.is_complex() else None
    return Value(real, imag, dtype_of(like), tuple(like.shape))


@rule(aten.constant_pad_nd)
def _padded(writer: Writer[Any], like: Like, x: Any, widths: Sequence[int], value: float = 0) -> Any:
    if value:
        raise SpecError(f"padding with {value} has no form in the exported formats; expected zeros")
    before, after = [0] * like.ndim, [0] * like.ndim
    for place in range(len(widths) // 2):  # torch counts from the last axis
        before[-1 - place], after[-1 - place] = widths[2 * place], widths[2 * place + 1]
    return writer.each(like, x, lambda part: writer.ops.pad(part, before, after))


@rule(aten.full_like)
def _filled(writer: Writer[Any], like: Like, x: Any, value: float, **_: Any) -> Any:
    return torch.full(tuple(like.shape), value, dtype=like.dtype)


@rule(aten.view_as_real)
def _stacked(writer: Writer[Any], like: Like, x: Any) -> Any:
    return Value(writer.stacked(x), None, x.dtype, tuple(like.shape))


@rule(aten.view_as_complex)
def _unstacked(writer: Writer[Any], like: Like, x: Any) -> Any:
    return writer.unstacked(x.real, like)


@rule(aten._conj)
def _conjugate(writer: Writer[Any], like: Like, x: Any) -> Any:
    imag = None if x.imag is None else writer.ops.binary("mul", x.imag, writer.value(-1.0, x.dtype).real)
    return Value(x.real, imag, x.dtype, x.shape)


@rule(aten.real)
def _real(writer: Writer[Any], like: Like, x: Any) -> Any:
    return Value(x.real, None, x.dtype, x.shape)


@rule(aten.imag)
def _imag(writer: Writer[Any], like: Like, x: Any) -> Any:
    return Value(writer.imag_of(x), None, x.dtype, x.shape)
