"""The embedded simulator beside the original one: the same policy's returns, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

from rich.table import Table

from learner.evaluation import Cell, evaluation_plain

EMBEDDED_EPISODES = 2000
"""Of each cell at least: they take seconds."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One cell in both simulators."""

    embedded: Cell
    real: Cell

    @property
    def difference(self) -> float:
        """Return the original simulator's mean less the embedded one's."""
        return self.real.mean - self.embedded.mean

    @property
    def standard_errors(self) -> float | None:
        """Return the difference in combined standard errors; None where that is unknown or zero."""
        combined = hypot(self.real.se or 0.0, self.embedded.se or 0.0)
        return self.difference / combined if combined and self.real.se is not None else None


def compare(embedded: Sequence[Cell], real: Sequence[Cell]) -> list[Comparison]:
    """Pair the cells of the same red agent, length and way to act."""
    by_place = {(cell.red, cell.steps, cell.greedy): cell for cell in embedded}
    return [Comparison(by_place[cell.red, cell.steps, cell.greedy], cell) for cell in real]


def comparison_table(pairs: Sequence[Comparison], rules: str) -> Table:
    """Return a table to print, a row for each cell."""
    ours, theirs = _counts([pair.embedded for pair in pairs]), _counts([pair.real for pair in pairs])
    table = Table(
        title="Mean return ± standard error",
        caption=f"{rules} rules; {ours} episodes each in the embedded simulator, {theirs} in CybORG",
        caption_justify="left",
    )
    for name in ("red agent", "actions"):
        table.add_column(name)
    for name in ("steps", "embedded", "CybORG", "apart", "in SE"):
        table.add_column(name, justify="right", no_wrap=True)
    for pair in pairs:
        cell, far = pair.real, pair.standard_errors
        table.add_row(
            cell.red.capitalize(),
            "greedy" if cell.greedy else "sampled",
            str(cell.steps),
            str(pair.embedded),
            str(cell),
            f"{pair.difference:+.2f}",
            "" if far is None else f"{far:+.1f}",
        )
    return table


def comparison_plain(pairs: Sequence[Comparison], rules: str) -> dict[str, Any]:
    """Return the JSON form: an evaluation of each simulator, and the differences in the same order."""
    return {
        "rules": rules,
        "embedded": evaluation_plain([pair.embedded for pair in pairs]),
        "cyborg": evaluation_plain([pair.real for pair in pairs]),
        "differences": [
            {"difference": pair.difference, "standard_errors": pair.standard_errors} for pair in pairs
        ],
    }


def _counts(cells: Sequence[Cell]) -> str:
    fewest, most = min(cell.episodes for cell in cells), max(cell.episodes for cell in cells)
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
