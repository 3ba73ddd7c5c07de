"""How a run shows its progress: a live display on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.screen import Screen
from learner.progress import Progress, mean_returns

_LINE_SECONDS = 5.0
_EVALUATIONS = ("selecting", "evaluating")


class ProgressDisplay(Screen):
    """Shows the last `Progress` it was given, between `__enter__` and `__exit__`."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        self._name, self._phase = name, ""
        super().__init__(console or Console(stderr=True), _LINE_SECONDS, stays=True)

    def show(self, progress: Progress) -> None:
        """Take a new state; cheap enough to be called at any rate."""
        entered, self._phase = progress.phase != self._phase, progress.phase
        self.renew(lambda: picture(self._name, progress), lambda: line(progress), at_once=entered)


class EvaluationDisplay(Screen):
    """Shows how far an evaluation is, its rate and the time left, between `__enter__` and `__exit__`."""

    def __init__(self, name: str, episodes: int, steps: int, console: Console | None = None) -> None:
        self._name, self._episodes, self._steps = name, episodes, steps
        self._episodes_done = self._steps_done = 0
        super().__init__(console or Console(stderr=True), _LINE_SECONDS)
        self._began = 0.0
        self._steps_before = 0
        """Of the episode with whose end the clock starts: what comes before it is building."""

    def ended(self, steps: int) -> None:
        """Count an episode; cheap enough for thousands a second."""
        self._episodes_done += 1
        self._steps_done += steps
        if self._episodes_done == 1:
            self._began = self._shown_at = time.monotonic()
            self._steps_before = steps
        else:
            self.renew(self._picture, self._line)

    def _picture(self) -> RenderableType:
        return Group(ProgressBar(total=self._steps, completed=self._steps_done), self._line())

    def _line(self) -> str:
        return self.line(time.monotonic() - self._began)

    def line(self, seconds: float) -> str:
        """Return what is shown so many seconds after the first episode."""
        rate = (self._steps_done - self._steps_before) / seconds
        return (
            f"{self._name}: {self._episodes_done:,} of {self._episodes:,} episodes, {rate:,.0f} steps/s, "
            f"{_duration((self._steps - self._steps_done) / rate) if rate else '?'} left"
        )


def picture(name: str, progress: Progress) -> RenderableType:
    """Return the live display: a title, a bar, and what matters beneath it."""
    title = Text.assemble((name, "bold"), f"  {progress.phase}", (f"  {_waiting(progress)}", "dim"))
    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(ratio=1)
    done, wanted = progress.episodes, progress.total_episodes
    speed = [f"{progress.episodes_per_second:,.0f}/s", f"{remaining(progress)} left"]
    if progress.phase in _EVALUATIONS:
        done, wanted, speed = progress.evaluated, progress.to_evaluate, []
    bar.add_row(ProgressBar(total=max(wanted, 1), completed=done), f"{done:,} of {wanted:,} episodes", *speed)
    facts = Table.grid(padding=(0, 3))
    facts.add_row(_update(progress), mean_returns(progress.returns))
    facts.add_row(f"version {progress.update}, {_staleness(progress)}", _fleet(progress))
    return Group(title, bar, facts)


def line(progress: Progress) -> str:
    """Return what matters most in one line."""
    if progress.phase in _EVALUATIONS:
        return f"{progress.phase}: {progress.evaluated:,} of {progress.to_evaluate:,} episodes"
    rate = f"{progress.episodes_per_second:,.0f}/s, {remaining(progress)} left"
    parts = [f"{progress.phase}: {progress.episodes:,} of {progress.total_episodes:,} episodes, {rate}"]
    parts += [f"update {progress.update:,}", mean_returns(progress.returns)]
    parts += [f"lag {progress.lag_mean:.1f}", _fleet(progress)]
    return "; ".join(part for part in parts if part)


def remaining(progress: Progress) -> str:
    """Return the time to the last update at the present rate, as M:SS or H:MM:SS."""
    if not progress.episodes_per_second:
        return "?"
    return _duration((progress.total_episodes - progress.episodes) / progress.episodes_per_second)


def _duration(exact_seconds: float) -> str:
    seconds = round(exact_seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


def _update(progress: Progress) -> str:
    took = f" in {progress.update_seconds:.2f} s" if progress.update else ""
    return f"update {progress.update:,} of {progress.updates:,}{took}"


def _staleness(progress: Progress) -> str:
    return f"staleness {progress.lag_mean:.1f} (most {progress.lag_max})"


def _fleet(progress: Progress) -> str:
    return f"{_count(progress.workers, 'worker')}, {_count(progress.slots, 'slot')}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _waiting(progress: Progress) -> str:
    told = not progress.waiting_for or progress.phase != "training"
    return "" if told else f"waiting for {progress.waiting_for}"
