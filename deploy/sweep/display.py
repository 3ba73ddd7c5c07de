"""How a sweep shows its trials: live on a terminal, else a line for each that begins or ends."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.screen import Screen
from deploy.sweep.plan import Plan
from deploy.sweep.results import describe, spelled
from deploy.sweep.trial import RunningTrial

_LINE_SECONDS = 30.0


class SweepDisplay(Screen):
    """Shows the trials that run and tells of each that ended, between `__enter__` and `__exit__`."""

    def __init__(self, plan: Plan, console: Console) -> None:
        super().__init__(console, _LINE_SECONDS)
        self._plan = plan
        self._told: set[int] = set()
        self._ended = 0
        self._best: FrozenTrial | None = None

    def note(self, ended: Sequence[FrozenTrial]) -> None:
        """Know of trials that ended before."""
        for trial in ended:
            self._count(trial)

    def tell(self, trial: FrozenTrial) -> None:
        """Print a line of a trial that has ended."""
        self._count(trial)
        best = " (the best so far)" if self._best is trial else ""
        self.say(f"trial {trial.number} {describe(trial)}{best}")

    def show(self, running: Sequence[RunningTrial]) -> None:
        """Take a new state; cheap enough to be called at any rate."""
        for one in running:
            if one.trial.number not in self._told:
                self._told.add(one.trial.number)
                self.say(f"trial {one.trial.number} begins: {_values(one.values)}")
        if running:
            self.renew(
                lambda: self._picture(running), lambda: "; ".join(self._progress(one) for one in running)
            )

    def _picture(self, running: Sequence[RunningTrial]) -> RenderableType:
        search = self._plan.search
        best = f", best {self._best.value:.3f} of trial {self._best.number}" if self._best else ""
        title = Text.assemble(
            (self._plan.folder.name, "bold"), f"  {self._ended} of {search.trials} trials ended{best}"
        )
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("trial", "seed", "evaluated", "latest score", "time", "values"):
            table.add_column(heading, no_wrap=heading != "values")
        for one in running:
            latest = "" if one.latest is None else f"{one.latest:.3f}"
            minutes, seconds = divmod(round(time.monotonic() - one.began), 60)
            seed = f"{min(len(one.scores) + 1, search.seeds)} of {search.seeds}"
            progress = f"{one.rung} of {search.rungs}"
            table.add_row(
                str(one.trial.number), seed, progress, latest, f"{minutes}:{seconds:02}", _values(one.values)
            )
        return Group(title, table)

    def _progress(self, one: RunningTrial) -> str:
        search = self._plan.search
        seed = (
            f", seed {min(len(one.scores) + 1, search.seeds)} of {search.seeds}" if search.seeds > 1 else ""
        )
        latest = "" if one.latest is None else f", latest score {one.latest:.3f}"
        return f"trial {one.trial.number}{seed}: {one.rung} of {search.rungs} evaluations{latest}"

    def _count(self, trial: FrozenTrial) -> None:
        self._ended += 1
        complete = trial.state == TrialState.COMPLETE and trial.value is not None
        if complete and (self._best is None or (trial.value or 0.0) > (self._best.value or 0.0)):
            self._best = trial


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {spelled(value)}" for name, value in values.items())
