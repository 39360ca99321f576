"""What a new run starts from: a preset, a run to be fine-tuned, or a base to be trained upon."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from sfumato.cli.choose import pick_preset
from sfumato.cli.flags import value_of
from sfumato.cli.parse import nearest
from sfumato.cli.runs import described, find_run
from sfumato.engine.plan import choose_device
from sfumato.errors import UserError
from sfumato.recipe import Preset, Training, latents
from sfumato.registry import Paper, config_from, paper

__all__ = ["Origin", "refuse_latents", "refuse_without_base", "starting_point"]


@dataclass(frozen=True)
class Origin:
    """The model to begin with, before anything typed of it; `before` is what the run of --from says of itself."""

    preset: str
    config: Any
    training: Training
    before: dict[str, Any]
    base: Any = None  # the config of that run, where it is a base and not itself trained further


def starting_point(args: list[str], found: Paper) -> Origin:
    """From --preset, --stage and --from. Raises UserError."""
    typed, asked = value_of(args, "--from"), value_of(args, "--preset")
    if asked and asked not in found.presets:
        hint = nearest(asked, list(found.presets), f" it has {', '.join(found.presets)}.")
        raise UserError(f"{found.name} has no preset '{asked}':{hint}")
    before = described(find_run(typed, f"train {found.name} DATA --from")) if typed else {}
    own = str(before.get("preset") or "")
    name = asked or (own if own in found.presets else "") or pick_preset(found, choose_device(_device(args)))
    chosen, stage = found.presets[name], value_of(args, "--stage")
    config = _at_stage(found, chosen.config, stage)
    training = _trains(chosen, config)
    if not before:
        return Origin(name, config, training, before)
    if before["paper"] in found.recipe.base(config):
        base = config_from(paper(before["paper"]).config, before["config"])
        return Origin(name, found.recipe.upon(config, base), training, before, base)
    _refuse_other(found, config, before["paper"], typed)
    if asked not in ("", own):
        raise UserError(
            f"--preset {asked} does not go with --from, where the model is the run's: leave it out, and set --steps, "
            "--lr, --batch or --training.FIELD for another training."
        )
    chosen = found.presets.get(own) or next(iter(found.presets.values()))
    config = _at_stage(found, config_from(found.config, before["config"]), stage)
    return Origin(own, config, _trains(chosen, config), before)


def _device(args: list[str]) -> str:
    return value_of(args, "--device") or "auto"


def _at_stage(found: Paper, config: Any, stage: str) -> Any:
    """The preset's config for that stage. Raises UserError."""
    stages = found.recipe.stages
    if stage and stage not in stages:
        having = f"it has {', '.join(stages)}" if len(stages) > 1 else "it trains in one: leave --stage out"
        raise UserError(f"{found.name} has no stage '{stage}': {having}.")
    return replace(config, stage=stage) if stage and hasattr(config, "stage") else config


def _trains(preset: Preset, config: Any) -> Training:
    """How the preset trains the stage of that config."""
    return preset.stages.get(getattr(config, "stage", ""), preset.training)


def _refuse_other(found: Paper, config: Any, other: str, typed: str) -> None:
    if other == found.name:
        return
    bases = found.recipe.base(config)
    what = (
        f"{found.name} is trained upon a run of {' or '.join(bases)}"
        if bases
        else f"fine-tune it with `sfumato train {other} DATA --from {typed}`"
    )
    raise UserError(f"that run was trained with the paper '{other}': {what}.")


def refuse_latents(found: Paper, *configs: Any, ask: str = "") -> None:
    """Raises UserError for a model, or a base, of latents, which pictures of four channels would pass for. `ask`: what
    to do about it, by default to take another preset."""
    if why := next(filter(None, map(latents, configs)), ""):
        able = next(name for name, preset in found.presets.items() if not latents(preset.config))
        ask = ask or f"take --preset {able} or another that is of pictures"
        raise UserError(f"no pictures can train {found.name} so, since {why}: {ask}.")


def refuse_without_base(found: Paper, config: Any, start: Origin) -> None:
    """Raises UserError where a base is needed and none was given, or another than the model is made for, before
    anything is computed."""
    bases = found.recipe.base(config)
    if start.base is not None:
        _refuse_apart(found, config, start)
    if not bases or start.base is not None:
        return
    alone = [name for name, preset in found.presets.items() if not found.recipe.base(preset.config)]
    stage = getattr(config, "stage", "")
    what = f"the stage {stage} of {found.name}" if stage else f"{found.name} with this preset"
    upon = f"{what} is trained upon a run of {' or '.join(bases)}"
    if start.before and stage:
        raise UserError(
            f"the run of --from is of the stage {stage}: say --stage {stage} to train upon it, or --stage "
            f"{found.recipe.stages[0]} to fine-tune it."
        )
    if start.before:
        raise UserError(f"{upon}, and --from gives one of {found.name}: give its own base, or go on with --resume.")
    other = "leave out --stage" if stage else f"take --preset {' or '.join(alone)}, which need none"
    raise UserError(f"{upon}: give one with --from RUN" + (f", or {other}." if stage or alone else "."))


def _refuse_apart(found: Paper, config: Any, start: Origin) -> None:
    """Raises UserError for a model that is not of its base's shape, classes, network, ..."""
    if not (name := found.recipe.apart(config, start.base)):
        return
    ours, theirs = getattr(config, name), getattr(found.recipe.upon(config, start.base), name)
    values = "" if is_dataclass(ours) else f", {_shown(theirs)}, and not {_shown(ours)}"
    ask = ASKED.get(name, f"leave out --config.{name}")
    raise UserError(f"the {name} must be that of the run with --from{values}: {ask}.")


ASKED = {"shape": "leave out --size and --channels", "classes": "give the data and --labels that it had"}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        joined = " x " if value and isinstance(value[0], int) else ", "
        return joined.join(map(str, value[:8])) + (f" and {len(value) - 8} more" if value[8:] else "") or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
