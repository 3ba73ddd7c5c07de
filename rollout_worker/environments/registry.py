"""Environments by name: the embedded CAGE-2, the adapter to the real CybORG, and whatever Gymnasium knows."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import gymnasium

from protocol.errors import UserError
from protocol.specs import EnvironmentSpec, Spaces
from rollout_worker.environments import delays, gymnasium_slots
from rollout_worker.environments.cage2.options import refuse_state
from rollout_worker.environments.cage2.scenario import Cage2Options
from rollout_worker.environments.cage2.spaces import spaces
from rollout_worker.environments.delayed_slots import DelayedSlots
from rollout_worker.environments.slots import SlotEnvironments

Options = Mapping[str, Any]

CAGE2_DEFAULTS: Options = {"observation": "history", "actions": "compact"}
"""Of options that a description leaves out."""


def allow(modules: Iterable[str]) -> None:
    """Import modules that register Gymnasium environments: only those that the user of this host names."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module of the user's does
            raise UserError(f"--allow-env {module} cannot be imported: {error}") from error


def describe(name: str, options: Options, episode_length: int = 0) -> Spaces:
    """Return what an environment shows and accepts; compiles nothing.

    `episode_length` in steps truncates episodes; 0 takes the environment's own limit.
    UserError for an unknown name or option, or an environment without a place here.
    """
    return _family(name)[0](name, options, episode_length)


def build(spec: EnvironmentSpec, slots: int) -> SlotEnvironments:
    """Build the slots that a learner asks for.

    UserError as in `describe`, for a malformed delay, and where the environment shows or accepts something
    else than the one that is asked for, as that of another release may.
    """
    slow = delays.parse(spec.step_delay) if spec.step_delay else None
    environments = _family(spec.name)[1](spec.name, slots, spec.options, spec.spaces.max_episode_steps)
    for name in ("observation_size", "actions", "masked"):
        wanted, found = getattr(spec.spaces, name), getattr(environments, name)
        if wanted != found:
            raise UserError(
                f"environment {spec.name} has {name} {found} here, {wanted} where the policy was trained: "
                "use the release and the options that it was trained with"
            )
    return DelayedSlots(environments, slow) if slow else environments


def _cage2_options(name: str, options: Options, episode_length: int) -> Cage2Options:
    known = [field.name for field in fields(Cage2Options) if field.name != "max_steps"]
    for option in options.keys() - known:
        raise UserError(f"environment {name} has no option {option!r}; it has {', '.join(known)}")
    chosen = {**CAGE2_DEFAULTS, **options}
    if episode_length:
        chosen["max_steps"] = episode_length
    try:
        if name != "cage2":
            refuse_state(str(chosen["observation"]))
        return Cage2Options(**chosen)
    except ValueError as error:
        raise UserError(f"environment {name}: {error}") from error


def _describe_cage2(name: str, options: Options, episode_length: int) -> Spaces:
    return spaces(_cage2_options(name, options, episode_length))


def _build_cage2(name: str, slots: int, options: Options, episode_length: int) -> SlotEnvironments:
    from rollout_worker.environments.cage2.slots import Cage2Slots

    return Cage2Slots(slots, _cage2_options(name, options, episode_length))


def _build_cyborg(name: str, slots: int, options: Options, episode_length: int) -> SlotEnvironments:
    from rollout_worker.environments.cage2.cyborg_slots import CyborgSlots

    return CyborgSlots(slots, _cage2_options(name, options, episode_length))


_Describe = Callable[[str, Options, int], Spaces]
_Build = Callable[[str, int, Options, int], SlotEnvironments]
_EMBEDDED: dict[str, tuple[_Describe, _Build]] = {
    "cage2": (_describe_cage2, _build_cage2),
    "cyborg": (_describe_cage2, _build_cyborg),
}


def _family(name: str) -> tuple[_Describe, _Build]:
    if name in _EMBEDDED:
        return _EMBEDDED[name]
    if name in gymnasium.registry:
        return gymnasium_slots.describe, gymnasium_slots.GymnasiumSlots
    near = difflib.get_close_matches(name, [*_EMBEDDED, *gymnasium.registry], n=3)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(_EMBEDDED)} and Gymnasium's"
    )
    raise UserError(f"environment {name!r} is unknown: {hint} (a module of yours needs --allow-env MODULE)")
