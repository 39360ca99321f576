"""A sampler that keeps what is known of a picture at the noise level of every step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import like
from sfumato.core.known import Known
from sfumato.core.process import Point, Process
from sfumato.core.random import Seeds
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.sampler import Sampler, State

__all__ = ["Held"]


@dataclass(frozen=True)
class Held(Sampler):
    """After every step of `base` the known part is alpha_s y + sigma_s z, with new noise z (Lugmayr et al. 2022,
    arXiv:2201.09865, eq. 8); at t = 0 it is y. `base` forgets: one-step methods only, and its own `steps` and `spacing`
    are not used.

    By itself it is biased as pasting is: RePaint(base=Held(...)) goes over its steps again (algorithm 1)."""

    known: Known = field(kw_only=True)
    base: Sampler = field(default_factory=Ancestral)

    stochastic = True

    def calls(self) -> int | None:
        return replace(self.base, steps=self.steps).calls()

    def check(self, process: Process) -> None:
        super().check(process)
        self.base.check(process)

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        after = self.base.step(denoiser, state, s, rng)
        values = self.known.values * like(s.alpha, self.known.values)
        if s.sigma != 0.0:
            if rng is None:
                raise ValueError("this sampler adds noise: give it rng=Seeds(seed)")
            z = rng.normal(after.x.shape, dtype=after.x.dtype, device=after.x.device)
            values = values.to(z) + z * like(s.sigma, z)
        return after._replace(x=self.known.put(after.x, values))
