"""The options of an episode: names as people type them, numbers as the kernel reads them."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rollout_worker.environments.cage2 import tables
from rollout_worker.environments.cage2.options import actions_named, observation_named

_RED_AGENTS: Final = {
    "sleep": tables.AGENT_SLEEP, "SleepAgent": tables.AGENT_SLEEP,
    "b_line": tables.AGENT_B_LINE, "B_lineAgent": tables.AGENT_B_LINE,
    "meander": tables.AGENT_MEANDER, "RedMeanderAgent": tables.AGENT_MEANDER,
}  # fmt: skip
LONGEST_EPISODE_STEPS: Final = 30_000  # a host's sessions are counted in 16 bits
_KEYS: Final = ("red_agent", "episode_length", "rules", "green")


def one_of(option: str, value: object, allowed: tuple[str, ...]) -> str:
    """Return the value if it is allowed. Raises ValueError, naming what is, if not."""
    if value not in allowed:
        raise ValueError(f"{option} is {value!r}; it must be one of {', '.join(allowed)}")
    return str(value)


def red_agent_code(name: object) -> int:
    """Return the kernel's number of a red agent, by its short name or CybORG's class name."""
    return _RED_AGENTS[one_of("red_agent", name, tuple(_RED_AGENTS))]


def episode_length(value: object, longest: int, option: str = "episode_length") -> int:
    """Return a number of steps within 1..longest. Raises ValueError, naming the option, otherwise."""
    if not isinstance(value, int | np.integer) or not 1 <= value <= longest:
        raise ValueError(f"{option} is {value!r}; it must be a number of steps in 1..{longest}")
    return int(value)


def settings_of(scenario: Mapping[str, Any], defaults: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return a row's settings [5] for `kernels.reset_rows`; the length in `defaults` is the longest."""
    for key in scenario:
        one_of("a scenario's key", key, _KEYS)
    chosen = {**defaults, **scenario}
    return np.array(
        [
            red_agent_code(chosen["red_agent"]),
            bool(chosen["green"]),
            one_of("rules", chosen["rules"], tables.RULES) == "leaderboard",
            0,
            episode_length(chosen["episode_length"], defaults["episode_length"]),
        ],
        np.int64,
    )


def check_options(
    rules: str, green: bool, observation: str, actions: str, max_steps: int, red_agent: str
) -> dict[str, Any]:
    """Check the options of an environment; returns the scenario that tickets fall back on.

    Raises:
        ValueError: an option is unknown; the sentence names the allowed ones.
    """
    observation_named(observation)
    actions_named(actions)
    defaults = {
        "red_agent": red_agent,
        "episode_length": episode_length(max_steps, LONGEST_EPISODE_STEPS, "max_steps"),
        "rules": rules,
        "green": green,
    }
    settings_of({}, defaults)
    return defaults
