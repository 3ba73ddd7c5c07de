"""A policy as a folder that CAGE Challenge 2 can play: an agent class, arrays, and nothing of the fleet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from deploy.config import CAGE2_ENVIRONMENTS
from deploy.playable import Playable
from protocol.errors import UserError

_HERE = Path(__file__).parent
_PROGRAMS = ("blue_agent.py", "run_evaluation.py")


def export(playable: Playable, folder: Path, name: str) -> None:
    """Write a policy to a new folder. Raises UserError where the challenge cannot show what it sees."""
    settings = _settings(playable)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already: give a folder that is new or empty")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for program in _PROGRAMS:
            shutil.copyfile(_HERE / program, folder / program)
        arrays = {array: playable.arrays[array] for array in playable.policy.shapes()}
        np.savez(folder / "policy.npz", allow_pickle=False, settings=np.array(json.dumps(settings)), **arrays)
        (folder / "README.md").write_text(_readme(playable, name), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def _settings(playable: Playable) -> dict[str, Any]:
    """Return what the agent must know beside the arrays."""
    from rollout_worker.environments.cage2.options import actions_named, observation_named, refuse_state
    from rollout_worker.environments.registry import CAGE2_DEFAULTS

    spec, policy = playable.environment, playable.policy
    if spec.name not in CAGE2_ENVIRONMENTS:
        raise UserError(f"it plays {spec.name}: only what plays CAGE-2 can be exported as its agent")
    options = {**CAGE2_DEFAULTS, **spec.options}
    try:
        refuse_state(options["observation"])
    except ValueError as error:
        raise UserError(f"it cannot be exported: {error}") from error
    actions = actions_named(options["actions"])
    return {
        "parts": list(observation_named(options["observation"]).parts),
        "compact": actions.compact,
        "offered": list(actions.offered),
        "masked": policy.masked,
        "hidden_layers": len(policy.hidden),
        "activation": policy.activation,
    }


def _readme(playable: Playable, name: str) -> str:
    from rollout_worker.environments.cage2.cyborg_package import COMMITS

    rules = str(playable.environment.options.get("rules", "current"))
    reds = dict.fromkeys(str(scenario["red_agent"]) for scenario in playable.environment.train_scenarios)
    provenance = (
        f"It is version {playable.version} of {name}, trained with seed {playable.seed} "
        f"against {' and '.join(reds)}."
    )
    text = (_HERE / "README.md").read_text(encoding="utf-8")
    return text.format(provenance=provenance, rules=rules, commit=COMMITS[rules])
