"""`F.linear` by the fastest exact way: in float32 on AMD processors oneDNN multiplies up to twice as fast as MKL.

MKL takes a slow path on processors that are not Intel's. oneDNN computes the same sums in another order: both are as
near to the truth (3e-7 of the greatest number). Which of the two is chosen depends on the processor and the types
alone, so that a run gives the same bits every time."""

import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["dense", "dense_gelu"]

LEAST = 64  # rows from which on the detour pays


@cache
def _slow_mkl() -> bool:
    """Whether float32 products of torch go through an MKL that thinks little of this processor."""
    maker = platform.processor()
    with suppress(OSError):
        maker += Path("/proc/cpuinfo").read_text()[:4096]
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return mkl and "AuthenticAMD" in maker and _multiply() is not None


@cache
def _multiply() -> Any:
    """oneDNN's product (x (M, I), weight (O, I), bias (O,) | None, "none", [], "") -> (M, O); None where torch was
    built without it."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if there else None


class _Product(torch.autograd.Function):
    """x w^T + b with both gradients by oneDNN, too; differentiable as often as one likes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        out: Tensor = _multiply()(x, weight, bias, "none", [], "")
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t(), None) if want_x else None,
            _product(grad.t(), x.t(), None) if want_weight else None,
            grad.sum(0) if want_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


def dense(x: Tensor, layer: nn.Linear) -> Tensor:
    """layer(x) for x (..., inputs)."""
    if not _detour(x, layer.weight, torch.float32):
        return F.linear(x, layer.weight, layer.bias)
    return _product(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias).reshape(*x.shape[:-1], -1)


def dense_gelu(x: Tensor, layer: nn.Linear) -> Tensor:
    """gelu(layer(x)), by the approximation with tanh; where no gradient is wanted, in one pass over the result."""
    if torch.is_grad_enabled() or not _detour(x, layer.weight, x.dtype):
        return F.gelu(dense(x, layer), approximate="tanh")
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _multiply()(rows, layer.weight, layer.bias, "gelu", [], "tanh")
    return out.reshape(*x.shape[:-1], -1)


def _detour(x: Tensor, weight: Tensor, kind: torch.dtype) -> bool:
    """Whether oneDNN is called by its own name, for numbers of that kind."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == kind
        and kind in (torch.float32, torch.bfloat16)
        and x.numel() >= LEAST * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _slow_mkl()
    )
