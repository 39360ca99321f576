"""sfumato: the diffusion-model literature as software.

    import sfumato
    recipe = sfumato.load("runs/letters")
    for state in recipe.sample(sfumato.Ask(n=16), rng=sfumato.Seeds(0)):
        picture = recipe.picture(state)                 # (16, C, H, W) in [0, 1]

Names are imported on first use, so that `import sfumato` costs next to nothing and `sfumato --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_HOME = {
    "Ancestral": "samplers.ancestral",
    "Ask": "recipe",
    "At": "recipe",
    "Cond": "core.cond",
    "Cosine": "core.schedules",
    "DDIM": "samplers.ancestral",
    "DataOptions": "data",
    "DiT": "networks.dit",
    "DiTConfig": "networks.dit",
    "Discrete": "core.schedules",
    "Estimate": "core.estimate",
    "NeuralDenoiser": "core.denoiser",
    "Options": "engine.options",
    "Recipe": "recipe",
    "Seeds": "core.random",
    "Training": "recipe",
    "UNet": "networks",
    "UNetConfig": "networks",
    "VP": "core.schedules",
    "build": "registry",
    "classifier_free": "core.guidance",
    "colorize": "edits",
    "decode": "encodings",
    "encode": "encodings",
    "evaluate_run": "apps.evaluation",
    "fresh": "engine.train",
    "deblur": "edits",
    "enlarge": "edits",
    "inpaint": "edits",
    "interpolate": "encodings",
    "load": "engine.state",
    "open_data": "data",
    "paper": "registry",
    "redraw": "edits",
    "steps": "engine.train",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from sfumato.apps.evaluation import evaluate_run as evaluate_run
    from sfumato.core.cond import Cond as Cond
    from sfumato.core.denoiser import NeuralDenoiser as NeuralDenoiser
    from sfumato.core.estimate import Estimate as Estimate
    from sfumato.core.guidance import classifier_free as classifier_free
    from sfumato.core.random import Seeds as Seeds
    from sfumato.core.schedules import VP as VP
    from sfumato.core.schedules import Cosine as Cosine
    from sfumato.core.schedules import Discrete as Discrete
    from sfumato.data import DataOptions as DataOptions
    from sfumato.data import open_data as open_data
    from sfumato.edits import colorize as colorize
    from sfumato.edits import deblur as deblur
    from sfumato.edits import enlarge as enlarge
    from sfumato.edits import inpaint as inpaint
    from sfumato.edits import redraw as redraw
    from sfumato.encodings import decode as decode
    from sfumato.encodings import encode as encode
    from sfumato.encodings import interpolate as interpolate
    from sfumato.engine.options import Options as Options
    from sfumato.engine.state import load as load
    from sfumato.engine.train import fresh as fresh
    from sfumato.engine.train import steps as steps
    from sfumato.networks import UNet as UNet
    from sfumato.networks import UNetConfig as UNetConfig
    from sfumato.networks.dit import DiT as DiT
    from sfumato.networks.dit import DiTConfig as DiTConfig
    from sfumato.recipe import Ask as Ask
    from sfumato.recipe import At as At
    from sfumato.recipe import Recipe as Recipe
    from sfumato.recipe import Training as Training
    from sfumato.registry import build as build
    from sfumato.registry import paper as paper
    from sfumato.samplers.ancestral import DDIM as DDIM
    from sfumato.samplers.ancestral import Ancestral as Ancestral


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sfumato' has no attribute '{name}'")
    return getattr(importlib.import_module(f"sfumato.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
