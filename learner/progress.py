"""What a run can tell its user at any moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RATE_SECONDS = 10.0
"""The rates shown are those of about this long."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A snapshot of a training run, for the display."""

    phase: str
    """`waiting for workers`, `paused`, `training`, `selecting`, `evaluating`, `done`."""
    episodes: int
    """Received for training and not discarded."""
    total_episodes: int
    update: int
    """Updates done; also the policy version."""
    updates: int
    update_seconds: float
    """Of the last update."""
    episodes_per_second: float
    steps_per_second: float
    returns: Mapping[str, float] = field(default_factory=dict)
    """Mean undiscounted return in the last batch, by scenario."""
    lag_mean: float = 0.0
    lag_max: int = 0
    workers: int = 0
    """Ready."""
    slots: int = 0
    processes: frozenset[int] = frozenset()
    """Ids of the ready workers, each on its own host; one that dies without a word stays for a while."""
    drained: frozenset[tuple[str, int]] = frozenset()
    """Host and process of the workers that an operator wants gone."""
    waiting_for: str = ""
    """What binds now: workers, pause, credit, ticket or update."""
    evaluated: int = 0
    to_evaluate: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Return what an operator is told of the run, as MessagePack values."""
        rates = ("episodes_per_second", "steps_per_second")
        names = ("phase", "episodes", "total_episodes", *rates, "evaluated", "to_evaluate")
        return {name: getattr(self, name) for name in names} | {"returns": dict(self.returns)}


def mean_returns(returns: Mapping[str, float]) -> str:
    """Return the mean returns of scenarios in words, those of one red agent in the order of its lengths."""
    agents: dict[str, list[str]] = {}
    for label, value in returns.items():
        agents.setdefault(label.partition("/")[0], []).append(f"{value:.1f}")
    spelled = ", ".join(f"{agent} {' / '.join(values)}" for agent, values in agents.items())
    return f"mean return {spelled}" if spelled else ""


class Rates:
    """Episodes and steps per second over the last updates that took about RATE_SECONDS."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._marks = [(self._began, 0, 0)]
        self.episodes = self.steps = self.elapsed = 0.0

    def note(self, episodes: int, steps: int) -> None:
        """Count one update's."""
        now = time.monotonic()
        _, last_episodes, last_steps = self._marks[-1]
        self._marks.append((now, last_episodes + episodes, last_steps + steps))
        while len(self._marks) > 2 and now - self._marks[1][0] > RATE_SECONDS:
            del self._marks[0]
        since, first_episodes, first_steps = self._marks[0]
        self.episodes = (self._marks[-1][1] - first_episodes) / (now - since)
        self.steps = (self._marks[-1][2] - first_steps) / (now - since)
        self.elapsed = now - self._began
