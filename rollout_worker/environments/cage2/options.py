"""The named observations and action sets of CAGE-2, known without importing numba.

A test holds the sizes here together with those of `defender_view` and `full_view`, which compute them.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from rollout_worker.environments.cage2.tables import BLUE_ACTIONS, OBSERVATION_SIZE

HISTORY_PARTS: Final[Mapping[str, int]] = {
    "bits": OBSERVATION_SIZE,
    "scans": 39,
    "decoys": 42,
    "activities": 57,
    "actions": 77,
    "ages": 78,
    "repeats": 18,
}
"""Parts of the history and their widths, in the order of its columns."""
HISTORY_SIZE: Final = sum(HISTORY_PARTS.values())
STATE_SIZE: Final = 404
COMPACT_ACTIONS: Final = 37


class ActionSet(NamedTuple):
    """The actions that a policy chooses from."""

    compact: bool
    """They are compact ones (see `defender_view`), else the challenge's own 145."""
    offered: tuple[int, ...]
    """Which of them, in the order of the policy's own numbers."""
    masked: bool
    """Those that could do nothing are masked."""


_COMPACT, _FULL = tuple(range(COMPACT_ACTIONS)), tuple(range(BLUE_ACTIONS))
ACTION_SETS: Final[Mapping[str, ActionSet]] = {
    "compact": ActionSet(True, _COMPACT, True),
    "compact-unmasked": ActionSet(True, _COMPACT, False),
    "compact-without-analyse": ActionSet(True, (0, *range(10, COMPACT_ACTIONS)), True),
    "full": ActionSet(False, _FULL, False),
    "full-masked": ActionSet(False, _FULL, True),
}


class Observation(NamedTuple):
    """What a policy sees."""

    parts: tuple[str, ...]
    """Of the history, in the order of HISTORY_PARTS."""
    state: bool
    """The true state is shown as well."""

    @property
    def name(self) -> str:
        """Return the one name by which this observation is kept."""
        if self.state:
            return "state"
        return "history" if self.parts == tuple(HISTORY_PARTS) else "+".join(self.parts)

    @property
    def width(self) -> int:
        """Return how many numbers it has."""
        return sum(HISTORY_PARTS[part] for part in self.parts) + self.state * STATE_SIZE


def observation_named(name: object) -> Observation:
    """Return what an observation's name means. Raises ValueError, naming those that exist, if nothing."""
    if name in ("history", "state"):
        return Observation(tuple(HISTORY_PARTS), name == "state")
    parts = str(name).split("+")
    if len(set(parts)) < len(parts) or not set(parts) <= HISTORY_PARTS.keys():
        raise ValueError(
            f"observation is {name!r}; it must be history, bits, state, "
            f"or parts of the history joined by +: {'+'.join(HISTORY_PARTS)}"
        )
    return Observation(tuple(part for part in HISTORY_PARTS if part in parts), False)


def actions_named(name: object) -> ActionSet:
    """Return the set of actions of this name. Raises ValueError, naming those that exist, if it is none."""
    if not isinstance(name, str) or name not in ACTION_SETS:
        raise ValueError(f"actions is {name!r}; it must be one of {', '.join(ACTION_SETS)}")
    return ACTION_SETS[name]


def refuse_state(observation: str) -> None:
    """Raise ValueError for an observation that only the embedded simulator can show."""
    if observation_named(observation).state:
        raise ValueError("observation state is of the embedded simulator alone: CybORG tells no true state")
