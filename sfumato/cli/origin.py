"""What a new run starts from: a preset, a run to be fine-tuned, or a base to be trained upon."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sfumato.cli.choose import pick_preset
from sfumato.cli.flags import value_of
from sfumato.cli.parse import nearest
from sfumato.cli.runs import described, find_run
from sfumato.engine.plan import choose_device
from sfumato.errors import UserError
from sfumato.recipe import Paper, Training, config_from, paper

__all__ = ["Origin", "refuse_without_base", "starting_point"]


@dataclass(frozen=True)
class Origin:
    """The model to begin with, before anything typed of it; `before` is what the run of --from says of itself."""

    preset: str
    config: Any
    training: Training
    before: dict[str, Any]
    upon: bool = False  # that run is a base: it is not itself trained further


def starting_point(args: list[str], found: Paper) -> Origin:
    """From --preset, --stage and --from. Raises UserError."""
    typed, asked = value_of(args, "--from"), value_of(args, "--preset")
    if asked and asked not in found.presets:
        hint = nearest(asked, list(found.presets), f" it has {', '.join(found.presets)}.")
        raise UserError(f"{found.name} has no preset '{asked}':{hint}")
    before = described(find_run(typed, f"train {found.name} DATA --from")) if typed else {}
    own = str(before.get("preset") or "")
    name = asked or (own if own in found.presets else "") or pick_preset(found, choose_device(_device(args)))
    chosen = found.presets[name]
    config = _at_stage(found, chosen.config, value_of(args, "--stage"))
    if not before:
        return Origin(name, config, chosen.training, before)
    if before["paper"] in found.recipe.base(config):
        base = config_from(paper(before["paper"]).config, before["config"])
        return Origin(name, found.recipe.upon(config, base), chosen.training, before, upon=True)
    _refuse_other(found, config, before["paper"], typed)
    if asked not in ("", own):
        raise UserError(
            f"--preset {asked} does not go with --from, where the model is the run's: leave it out, and set --steps, "
            "--lr, --batch or --training.FIELD for another training."
        )
    training = (found.presets.get(own) or next(iter(found.presets.values()))).training
    return Origin(own, config_from(found.config, before["config"]), training, before)


def _device(args: list[str]) -> str:
    return value_of(args, "--device") or "auto"


def _at_stage(found: Paper, config: Any, stage: str) -> Any:
    """The preset's config for that stage. Raises UserError."""
    stages = found.recipe.stages
    if stage and stage not in stages:
        having = f"it has {', '.join(stages)}" if len(stages) > 1 else "it trains in one: leave --stage out"
        raise UserError(f"{found.name} has no stage '{stage}': {having}.")
    return replace(config, stage=stage) if stage and hasattr(config, "stage") else config


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


def refuse_without_base(found: Paper, config: Any, start: Origin) -> None:
    """Raises UserError where a base is needed and none was given, before anything is computed."""
    bases = found.recipe.base(config)
    if not bases or start.upon:
        return
    alone = [name for name, preset in found.presets.items() if not found.recipe.base(preset.config)]
    stage = getattr(config, "stage", "")
    what = f"the stage {stage} of {found.name}" if stage else f"{found.name} with this preset"
    other = "leave out --stage" if stage else f"take --preset {' or '.join(alone)}, which need none"
    raise UserError(
        f"{what} is trained upon a run of {' or '.join(bases)}: give one with --from RUN"
        + (f", or {other}." if stage or alone else ".")
    )
