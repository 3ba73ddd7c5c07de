"""What a training is worth to a sweep: one number, more is better."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

Objective = Literal["worst", "mean"]
Returns = Mapping[str, float]
"""Mean greedy return by cell, such as b_line/30; `return` where there is one cell."""

_GOOD_RETURNS = {
    "b_line/30": 3.4,
    "b_line/50": 6.0,
    "b_line/100": 12.5,
    "meander/30": 5.3,
    "meander/50": 8.2,
    "meander/100": 15.5,
}
"""How far below zero good defenders end (CAGE-2, current rules): by these, all cells weigh alike."""


def score(returns: Returns) -> float:
    """Return the mean over cells, each divided by what is good there: -1 is good, -1.1 is 10 % worse.

    A cell that the table does not know counts as it is.
    """
    return float(np.mean([value / _GOOD_RETURNS.get(cell, 1.0) for cell, value in returns.items()]))


def over_seeds(scores: Sequence[float], objective: Objective) -> float:
    """Return what several seeds are worth together."""
    return min(scores) if objective == "worst" else float(np.mean(scores))


def final_returns(run: Path) -> dict[str, float]:
    """Return the greedy cells of the version that a run chose, over episodes that had no part in that."""
    cells = json.loads((run / "evaluation.json").read_text())["returns"]
    return {_cell(cell.get("red", ""), cell.get("steps", 0)): float(cell["mean"]) for cell in cells}


def checkpoint_scores(run: Path) -> dict[int, float]:
    """Return the score of each version that a run has evaluated so far, by its number of updates."""
    try:
        rows = list(csv.DictReader((run / "evaluations.csv").read_text().splitlines()))
    except FileNotFoundError:
        return {}
    versions: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["greedy"] == "True":
            cell = _cell(row["red"], int(row["steps"]))
            versions.setdefault(int(row["update"]), {})[cell] = float(row["mean"])
    return {update: score(returns) for update, returns in versions.items()}


def _cell(red: str, steps: int) -> str:
    return "/".join(part for part in (red, str(steps) if steps else "") if part) or "return"
