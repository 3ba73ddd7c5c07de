"""What a policy is worth: the mean return of many fresh episodes, one cell for each scenario."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from protocol.specs import Scenario
from protocol.wording import counted


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario's undiscounted return: its mean and standard error over so many episodes."""

    environment: str
    red: str
    """CAGE-2's red agent; empty in environments without one."""
    steps: int
    """Episode length; 0 where the scenario does not say."""
    mean: float
    se: float | None
    """None of a single episode."""
    episodes: int
    greedy: bool = False
    """Whether the most probable action was taken instead of a sampled one."""

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.se is None else f"{self.mean:.2f} ± {self.se:.2f}"

    def to_plain(self) -> dict[str, Any]:
        """Return {"red", "steps", "mean", "se", "episodes", "greedy"}; without red, {"environment", ...}."""
        who: dict[str, Any] = {"red": self.red} if self.red else {"environment": self.environment}
        length = {"steps": self.steps} if self.steps else {}
        found = {"mean": self.mean, "se": self.se, "episodes": self.episodes, "greedy": self.greedy}
        return who | length | found


def evaluation_cells(environment: str, episodes: Iterable[tuple[Scenario, float]]) -> list[Cell]:
    """Gather (scenario, return) of episodes into cells, in the order in which scenarios first appear."""
    groups: dict[tuple[str, int, bool], list[float]] = {}
    for scenario, value in episodes:
        red, steps = str(scenario.get("red_agent", "")), int(scenario.get("episode_length", 0))
        groups.setdefault((red, steps, bool(scenario.get("greedy"))), []).append(value)
    return [
        Cell(environment, red, steps, float(np.mean(values)), _standard_error(values), len(values), greedy)
        for (red, steps, greedy), values in groups.items()
    ]


def evaluation_plain(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the JSON form of a whole evaluation: `returns`, and `sampled_returns` beside greedy ones."""
    greedy = [cell for cell in cells if cell.greedy]
    sampled = [cell for cell in cells if not cell.greedy]
    plain = {"returns": [cell.to_plain() for cell in greedy or sampled]}
    return plain | ({"sampled_returns": [cell.to_plain() for cell in sampled]} if greedy and sampled else {})


def evaluation_table(cells: Sequence[Cell]) -> Table:
    """Return the cells as a table to print: a row for each red agent and way to act, a column a length."""
    episodes = sorted({cell.episodes for cell in cells})
    fewest = f"{episodes[0]:,} to " if len(episodes) > 1 else ""
    table = Table(
        title="Mean return ± standard error",
        caption=f"{fewest}{counted(episodes[-1], 'episode')} each",
        caption_justify="left",
    )
    lengths = sorted({cell.steps for cell in cells})
    table.add_column("red agent" if any(cell.red for cell in cells) else "environment")
    table.add_column("actions")
    for steps in lengths:
        table.add_column(f"{steps} steps" if steps else "return", justify="right")
    by_place = {(cell.red, cell.greedy, cell.steps): cell for cell in cells}
    for red, greedy in dict.fromkeys((cell.red, cell.greedy) for cell in cells):
        row = [str(by_place.get((red, greedy, steps), "")) for steps in lengths]
        name, how = red.capitalize() or cells[0].environment, "greedy" if greedy else "sampled"
        table.add_row(name, how, *row)
    return table


def _standard_error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
