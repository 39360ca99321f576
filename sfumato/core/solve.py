"""Ordinary differential equations: the embedded Runge-Kutta pair 5(4) of Dormand and Prince, one step size per sample.

Every sample of the batch advances at its own time with its own step size; one call of f serves a stage of them all.
Errors are measured within a sample, never across samples or ranks, so that the steps of a sample are its own whatever
else is in the batch. A sample that has arrived waits with step size 0 and stays in the batch: the batch keeps its
shape, and with it the last bits of the others (see `advance`).

Sources: Dormand & Prince 1980, J. Comp. Appl. Math. 6, 19-26 (RK5(4)7M); Hairer, Norsett & Wanner, Solving Ordinary
Differential Equations I, section II.4 (first step, error norm) and IV.2 of volume II (PI control)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["Course", "advance", "begin", "integrate"]

Parts = tuple[Tensor, ...]  # the state of a batch: tensors (B, ...), of any shapes after the first dimension
Slope = Callable[[Tensor, Parts], Parts]  # (t (B,) float64 on the CPU, y) -> dy/dt
Y = TypeVar("Y", Tensor, Parts)

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
ROWS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # order 5; its slope begins the next step
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # order 5 minus order 4

SAFETY, LEAST, MOST = 0.9, 0.2, 10.0
NOW, BEFORE = 0.17, 0.04  # PI control: step x SAFETY now^-0.17 before^0.04


class Course(NamedTuple):
    """Where every sample of a batch is on its way."""

    t: Tensor  # (B,) float64 on the CPU, as all of the control
    y: Parts
    slope: Parts  # dy/dt at (t, y): the last stage of a step is the first of the next
    h: Tensor  # (B,) > 0, the step size to try next
    error: Tensor  # (B,) of the last accepted step, in units of the tolerance
    refused: Tensor  # (B,) bool, the last trial was
    calls: int  # of f, so far


def integrate(
    f: Callable[[Tensor, Y], Y],
    y0: Y,
    t0: float | Tensor,
    t1: float | Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    limit: int = 10_000,
) -> tuple[Y, int]:
    """(y, calls): y at t1 from y0 at t0 under dy/dt = f(t, y), and how often f was called.

    y0 is a tensor (B, ...) or a tuple of them (x and log p, say): f is given and returns the same. t0, t1 are floats
    or (B,), in either order; f's t is (B,) float64 on the CPU. Every sample ends exactly at its t1. Error control as
    in `advance`. Nothing is differentiated here; f may do so inside. Raises ArithmeticError where a step size
    vanishes (f is not finite, or not a function of (t, y) alone) or more than `limit` trial steps are needed."""
    single = isinstance(y0, Tensor)

    def slope(t: Tensor, y: Parts) -> Parts:
        return (f(t, y[0]),) if single else f(t, y)  # type: ignore[arg-type, return-value]

    parts: Parts = (y0,) if single else y0  # type: ignore[assignment]
    end = spread(t1, parts)
    with torch.no_grad():
        course = begin(slope, parts, spread(t0, parts), end, rtol, atol)
        for trial in itertools.count():
            if bool((course.t == end).all()):
                break
            if trial == limit:
                raise ArithmeticError(f"{limit} steps did not reach the end: allow a larger error than rtol {rtol:g}")
            course = advance(slope, course, end, rtol, atol)
    return (course.y[0] if single else course.y), course.calls  # type: ignore[return-value]


def spread(t: float | Tensor, y: Parts) -> Tensor:
    """t as (B,) float64 on the CPU."""
    return torch.as_tensor(t, dtype=torch.float64).cpu().expand(len(y[0])).clone()


def begin(f: Slope, y: Parts, t: Tensor, end: Tensor, rtol: float, atol: float) -> Course:
    """The start of a course from (t, y) towards `end`, with Hairer's first step size: two calls."""
    slope = f(t, y)
    scale = tuple(part.abs().mul_(rtol).add_(atol) for part in y)
    level, speed = _norm(y, scale), _norm(slope, scale)
    tiny = (level < 1e-5) | (speed < 1e-5)
    h = torch.where(tiny, 1e-6, 0.01 * level / torch.where(tiny, 1.0, speed))
    h = torch.minimum(h.nan_to_num(1e-6), (end - t).abs())
    signed = h.copysign(end - t)
    ahead = f(t + signed, _moved(y, [slope], (1.0,), signed))
    bend = _norm(tuple(a - b for a, b in zip(ahead, slope, strict=True)), scale) / h.clamp(min=1e-300)
    most = torch.maximum(speed, bend).nan_to_num(1.0)
    second = torch.where(most <= 1e-15, (h * 1e-3).clamp(min=1e-6), (0.01 / most.clamp(min=1e-300)) ** 0.2)
    size = torch.minimum(100 * h, second)
    return Course(t, y, slope, size, torch.full_like(t, 1e-4), torch.zeros(len(t), dtype=torch.bool), 2)


def advance(f: Slope, course: Course, end: Tensor, rtol: float, atol: float) -> Course:
    """One trial step of every sample that is not yet at its `end`: six calls.

    A sample goes on when the root mean square of error / (atol + rtol max(|y|, |y after|)) over each part of its state
    is at most 1, and tries again from where it was otherwise. Those that have arrived are computed and discarded
    rather than dropped: the others then never see another batch shape, on which a network's last bits depend. The
    price, on a mixture in 16 dimensions, is a quarter of the work at 16 samples and a half at 64 or more, whose slowest
    takes twice the mean. Raises ArithmeticError where the step size of a sample vanishes."""
    gap = end - course.t
    last = course.h >= gap.abs()
    h = torch.where(last, gap, course.h.copysign(gap))
    reached = torch.where(last, end, course.t + h)
    if bool(((reached == course.t) & (gap != 0)).any()):
        where = course.t[(reached == course.t) & (gap != 0)][0]
        raise ArithmeticError(
            f"the step size vanished at t = {float(where):.6g}: the slope is not finite or not smooth"
        )
    slopes, y = [course.slope], course.y
    for node, row in zip(NODES, ROWS, strict=True):
        y = _moved(course.y, slopes, row, h)
        slopes.append(f(reached if node == 1.0 else course.t + node * h, y))
    error = _error(course.y, y, slopes, h, rtol, atol)
    good = error <= 1.0
    size = torch.where(gap == 0, course.h, h.abs() * _factor(error, good, course))
    return Course(
        torch.where(good, reached, course.t),
        _chosen(good, y, course.y),
        _chosen(good, slopes[-1], course.slope),
        size,
        torch.where(good, error.clamp(min=1e-4), course.error),
        ~good,
        course.calls + len(ROWS),
    )


def _factor(error: Tensor, good: Tensor, course: Course) -> Tensor:
    """By how much each step size changes; a NaN error counts as infinite."""
    bounded = error.nan_to_num(nan=torch.inf).clamp(1e-10, 1e10)
    onward = SAFETY * bounded**-NOW * course.error**BEFORE
    onward = torch.minimum(onward.clamp(LEAST, MOST), torch.where(course.refused, 1.0, MOST))
    return torch.where(good, onward, (SAFETY * bounded**-0.2).clamp(LEAST, 1.0))


def _moved(y: Parts, slopes: list[Parts], row: tuple[float, ...], h: Tensor) -> Parts:
    """y + h sum_i row_i slope_i, part by part."""
    out = []
    for part, first, *rest in zip(y, *slopes, strict=True):
        total = first * row[0]
        for weight, slope in zip(row[1:], rest, strict=True):
            if weight:
                total.add_(slope, alpha=weight)
        out.append(torch.addcmul(part, total, _column(h, part)))
    return tuple(out)


def _error(y: Parts, after: Parts, slopes: list[Parts], h: Tensor, rtol: float, atol: float) -> Tensor:
    zero = tuple(torch.zeros_like(part) for part in y)
    scale = tuple(torch.maximum(a.abs(), b.abs()).mul_(rtol).add_(atol) for a, b in zip(y, after, strict=True))
    return _norm(_moved(zero, slopes, ERROR, h), scale)


def _norm(parts: Parts, scale: Parts) -> Tensor:
    """(B,) float64 on the CPU: the root mean square of part / scale within each sample, the largest over the parts."""
    squares = [(p / s).reshape(len(p), -1).square().mean(1) for p, s in zip(parts, scale, strict=True)]
    return torch.stack([square.cpu().double() for square in squares]).amax(0).sqrt()


def _chosen(good: Tensor, new: Parts, old: Parts) -> Parts:
    if bool(good.all()):
        return new
    return tuple(torch.where(_column(good, a), a, b) for a, b in zip(new, old, strict=True))


def _column(c: Tensor, x: Tensor) -> Tensor:
    c = c.to(x.device) if c.dtype is torch.bool else c.to(x.dtype).to(x.device)
    return c.reshape(c.shape + (1,) * (x.ndim - c.ndim))
