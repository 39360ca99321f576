"""A denoiser is a callable (x_t, t) -> Estimate that knows its process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sfumato.core.cond import Cond
from sfumato.core.estimate import Estimate, Row, Scalar, like
from sfumato.core.phase import PhaseEstimate, PhasePoint
from sfumato.core.process import Point, Process

__all__ = ["Denoiser", "Given", "NeuralDenoiser"]


class Denoiser(Protocol):
    """What samplers walk and guidance turns into another of its kind."""

    @property
    def process(self) -> Process: ...

    def __call__(self, xt: Tensor, t: Point | Tensor | float) -> Estimate:
        """The split of x_t (B, C, *S) at t, a Point, a float or (B,) in [0, 1]."""
        ...


class Prediction(Protocol):
    """What a parametrisation says of a point: `Coefficients`, or those of the phase space."""

    @property
    def inp(self) -> Scalar: ...
    @property
    def time(self) -> Scalar: ...
    def rows(self, point: Any) -> tuple[Row, Row]: ...


Predict = Callable[[Any, Any], Prediction]  # (process, point): a Parametrisation, or one of the phase space


class Plan(NamedTuple):
    """What a parametrisation makes of a point: the network's time (1,) or (B,) float32, its input's scale, both rows,
    and the kind of Estimate that they belong to."""

    parametrisation: Predict
    time: Tensor
    inp: Scalar | None  # None: 1
    row_x0: Row
    row_eps: Row
    kind: Callable[..., Estimate] = Estimate

    @classmethod
    def of(cls, parametrisation: Predict, process: Process, point: Point, device: torch.device) -> Plan:
        c = parametrisation(process, point)
        time = torch.as_tensor(c.time, dtype=torch.float32).to(device).reshape(-1)
        unscaled = not isinstance(c.inp, Tensor) and c.inp == 1.0
        plan = cls(parametrisation, time, None if unscaled else c.inp, *c.rows(point))
        if not isinstance(point, PhasePoint):
            return plan
        if plan.inp is not None:
            raise ValueError("no network of the phase space has its input scaled: predict eps, x0, score or mixed")
        return plan._replace(row_x0=point.lift(plan.row_x0), row_eps=point.lift(plan.row_eps), kind=PhaseEstimate)


class NeuralDenoiser(nn.Module):
    """A network, the process it was trained on, and what its output means.

    network(x (B, C, *S), time (1,) or (B,), **cond) -> (B, C, *S). Its answer is taken in x_t's dtype, whatever
    autocast does. With `learn_variance` the network gives 2 C channels: the last C are o, and nu = (o + 1) / 2 (Nichol
    & Dhariwal 2021, eq. 15, the code). Raises ValueError for a process without signal at t = 1 and a parametrisation
    that cannot say x0 there."""

    def __init__(
        self, network: nn.Module, process: Process, parametrisation: Predict, *, learn_variance: bool = False
    ) -> None:
        super().__init__()
        end = process.at(1.0)
        if end.alpha == 0.0 and parametrisation(process, end).rows(end)[0][-1] == 0.0:
            raise ValueError("alpha(1) = 0: at t = 1 the noise says nothing of x0; predict x0 or v instead of eps")
        self.network, self.process, self.parametrisation = network, process, parametrisation
        self.learn_variance = learn_variance

    def forward(self, xt: Tensor, t: Point | Tensor | float, cond: Cond | None = None) -> Estimate:
        point = self.process.at(t)
        plan: Plan | None = point.plan
        if plan is None or plan.parametrisation is not self.parametrisation or plan.time.device != xt.device:
            plan = point.plan = Plan.of(self.parametrisation, self.process, point, xt.device)
        x = xt if plan.inp is None else xt * like(plan.inp, xt)
        network: Any = self._modules["network"]  # self.network goes through a search that costs half an addition
        out = network(x, plan.time) if cond is None else network(x, plan.time, **cond.items())
        if out.dtype is not xt.dtype:
            out = out.to(xt.dtype)
        if not self.learn_variance:
            return plan.kind(self.process, point, xt, out, plan.row_x0, plan.row_eps, xt)
        out, o = out.chunk(2, dim=1)
        return plan.kind(self.process, point, xt, out, plan.row_x0, plan.row_eps, xt, (o + 1) / 2)

    def given(self, cond: Cond) -> Given:
        """The same denoiser, told `cond`."""
        return Given(self, cond)


class Given:
    """A neural denoiser with its condition; kept apart so that guidance can batch two of one network."""

    __slots__ = ("cond", "denoiser")

    def __init__(self, denoiser: NeuralDenoiser, cond: Cond) -> None:
        self.denoiser, self.cond = denoiser, cond

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, xt: Tensor, t: Point | Tensor | float) -> Estimate:
        estimate: Estimate = self.denoiser(xt, t, self.cond)
        return estimate
