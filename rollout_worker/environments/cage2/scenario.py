"""The options of an environment and of an episode: names as people type them, numbers for the kernel."""

from collections.abc import Mapping
from dataclasses import dataclass
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


def true_or_false(option: str, value: object) -> bool:
    """Return the value if it is either. Raises ValueError, naming the option, if not."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{option} is {value!r}; it must be true or false")
    return bool(value)


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
            true_or_false("green", chosen["green"]),
            one_of("rules", chosen["rules"], tables.RULES) == "leaderboard",
            0,
            episode_length(chosen["episode_length"], defaults["episode_length"]),
        ],
        np.int64,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cage2Options:
    """What an environment is built with, the embedded one and the real one.

    A scenario may name red_agent, episode_length (at most `max_steps`), rules and green; what it leaves out
    is as given here.

    Raises:
        ValueError: an option is unknown; the sentence names the allowed ones.
    """

    rules: str = "current"
    green: bool = False
    observation: str = "bits"
    """A name of `options`: "bits" are the 52 numbers of the challenge, "history" is that of `defender_view`,
    "state" shows the true state beside the history (see `full_view`)."""
    actions: str = "full"
    """A name of `options`: "full" are the challenge's 145 actions, "compact" the 37 of `defender_view`. Where
    they are masked, the last entries of an observation tell which are legal."""
    max_steps: int = 100
    red_agent: str = "b_line"

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        observation_named(self.observation)
        actions_named(self.actions)
        episode_length(self.max_steps, LONGEST_EPISODE_STEPS, "max_steps")
        settings_of({}, self.scenario)

    @property
    def scenario(self) -> dict[str, Any]:
        """Return the scenario that tickets fall back on."""
        return {
            "red_agent": self.red_agent,
            "episode_length": self.max_steps,
            "rules": self.rules,
            "green": self.green,
        }


DEFAULTS: Final = Cage2Options()
