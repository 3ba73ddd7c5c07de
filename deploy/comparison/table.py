"""A comparison as Markdown and as JSON, from the figures of its runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.comparison.figures import Figures, Mode, Work, mean, predict

MODES: tuple[Mode, ...] = ("async", "sync")
AGREEMENT = 0.05
"""Scheduled and blocking delays agree where their efficiencies differ by no more."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The figures of all runs of both modes, repetition by repetition."""

    title: str
    """What was run, in one line."""
    work: Work
    runs: Mapping[Mode, Sequence[Figures]]
    blocking: Mapping[Mode, Figures] = field(default_factory=dict)
    """Of the run with blocking delays in one process each; empty where there was none."""

    def speed_ups(self, name: str = "steps_per_second") -> list[float]:
        """Return by how much async was faster, in each repetition."""
        pairs = zip(self.runs["async"], self.runs["sync"], strict=True)
        return [one[name] / other[name] for one, other in pairs]

    def predicted(self, mode: Mode) -> dict[str, float]:
        """Return what theory says."""
        return predict(self.work, mode, mean(self.runs[mode]))


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _milliseconds(value: float) -> str:
    return f"{_number(value * 1e3)} ms"


def _seconds(value: float) -> str:
    return f"{_number(value)} s"


def _size(value: float) -> str:
    return f"{value / 1e3:,.1f} kB"


ROWS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("Barriers per episode", "barriers_per_episode", _number),
    ("Time of one barrier", "barrier_seconds", _milliseconds),
    ("Efficiency (1)", "efficiency", _percent),
    ("… of the whole run, start and tail included", "efficiency_whole", _percent),
    ("… outside the update", "efficiency_outside_update", _percent),
    ("Waiting, share of environment time", "waiting_share", _percent),
    ("… for the slowest at the barrier", "waiting_at_barriers_share", _percent),
    ("Environment steps/s", "steps_per_second", _number),
    ("… of the whole run", "steps_per_second_whole", _number),
    ("Episodes/s", "episodes_per_second", _number),
    ("… of the whole run", "episodes_per_second_whole", _number),
    ("CPU of the workers, share of all cores", "worker_cpu_share", _percent),
    ("CPU of the learner, share of all cores", "learner_cpu_share", _percent),
    ("Messages per episode, both ways (2)", "messages_per_episode", _number),
    ("Bytes per episode, both ways", "bytes_per_episode", _size),
    ("Staleness in updates, mean", "lag_mean", _number),
    ("… most", "lag_max", _number),
    ("Time of one update", "update_seconds", _seconds),
    ("Window / whole run", "window_seconds", _seconds),
    ("… whole run", "whole_seconds", _seconds),
)


def to_plain(comparison: Comparison) -> dict[str, Any]:
    """Return all figures as JSON values: means by mode, spread, theory, and every run; null for none."""
    plain: dict[str, Any] = {"title": comparison.title, "work": _work(comparison.work)}
    for mode in MODES:
        runs = comparison.runs[mode]
        spread = {name: [min(run[name] for run in runs), max(run[name] for run in runs)] for name in runs[0]}
        theory = comparison.predicted(mode)
        plain[mode] = {**mean(runs), "spread": spread, "theory": theory, "runs": [dict(run) for run in runs]}
    speed_ups = comparison.speed_ups()
    plain["speed_up"] = {
        "mean": float(np.mean(speed_ups)),
        "runs": speed_ups,
        "runs_whole": comparison.speed_ups("steps_per_second_whole"),
        "theory": _theoretical_speed_up(comparison),
    }
    plain["blocking"] = {mode: dict(figures) for mode, figures in comparison.blocking.items()}
    return dict(_without_nan(plain))


def to_markdown(comparison: Comparison) -> str:
    """Return the table, with what its figures mean underneath."""
    lines = [
        f"**{comparison.title}**",
        "",
        "| | async | theory | sync | theory |",
        "|---|--:|--:|--:|--:|",
    ]
    theory = {mode: comparison.predicted(mode) for mode in MODES}
    for label, name, spell in ROWS:
        cells = []
        for mode in MODES:
            cells += [_spread(comparison.runs[mode], name, spell), _spell(theory[mode], name, spell)]
        if any(cells):
            lines.append(f"| {label} | {' | '.join(cells)} |")
    if comparison.blocking:
        cells = [f"{_spell(comparison.blocking.get(mode, {}), 'efficiency', _percent)} | " for mode in MODES]
        label = f"Efficiency, delays that block in {comparison.work.n_envs} processes (3)"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    speed_ups, whole = comparison.speed_ups(), comparison.speed_ups("steps_per_second_whole")
    predicted = _theoretical_speed_up(comparison)
    lines += [
        f"| **Speed-up of async, steps/s** | **{_range(speed_ups, _times)}** | {_times(predicted)} | 1 | |",
        f"| … of the whole run | {_range(whole, _times)} | | 1 | |",
        "",
        *_notes(comparison),
    ]
    return "\n".join(lines) + "\n"


def _notes(comparison: Comparison) -> list[str]:
    work, runs = comparison.work, comparison.runs
    notes = []
    if work.delay is None:
        notes += [
            "(1) Efficiency means nothing here: environments without delays do not wait, they share the "
            f"cores. One environment's step alone took {work.step_seconds * 1e6:.0f} µs in an idle process.",
        ]
    else:
        notes += [
            f"(1) Environment steps/s, over {work.n_envs} divided by the mean time of a step when nothing "
            f"waits: {work.delay.mean_seconds * 1e3:.3f} ms, the delay's own mean, and "
            f"{work.step_seconds * 1e3:.3f} ms, an environment's step alone in an idle process, measured "
            "before the runs. Counted from the first episode's start until the tickets ran out. A barrier of "
            f"{work.n_envs} such steps takes {work.barrier_seconds * 1e3:.2f} ms, their expected maximum.",
        ]
    notes += [
        "(2) Frames over all sockets. Theory counts episodes alone in async, and an order and an answer for "
        f"each of {work.workers} workers and each barrier in sync; heartbeats, their answers and weights "
        "come on top.",
        *_blocking_note(comparison),
    ]
    repetitions = len(runs["async"])
    foreign = [run["foreign_cores"] for mode in MODES for run in runs[mode]]
    notes.append(
        f"Means{' and extremes' if repetitions > 1 else ''} of {repetitions} "
        f"repetition{'s' if repetitions > 1 else ''}, the modes in alternation, on {work.cores} "
        f"cores, of which other programs kept {min(foreign):.1f} to {max(foreign):.1f} busy just before. "
        "Theory takes the length of an episode and the time of an update from the measurement."
    )
    return ["\n\n".join(notes)]


def _blocking_note(comparison: Comparison) -> list[str]:
    """Say whether scheduled and blocking delays agree, and what a step lost where they do not."""
    work, texts = comparison.work, []
    for mode, blocking in comparison.blocking.items():
        scheduled = mean(comparison.runs[mode])
        difference = blocking["efficiency"] - scheduled["efficiency"]
        text = f"{mode} {difference * 100:+.1f} points"
        if abs(difference) > AGREEMENT:
            cpu = [_step_cpu_seconds(work, run) * 1e6 for run in (blocking, scheduled)]
            used = [run["worker_cpu_share"] + run["learner_cpu_share"] for run in (blocking, scheduled)]
            text += (
                f": a step took the workers {cpu[0]:.0f} µs of CPU, {cpu[1]:.0f} µs where one call steps "
                f"several environments, and the run kept {used[0]:.0%} of the cores busy, not {used[1]:.0%}"
            )
        texts.append(text)
    if not texts:
        return []
    return [
        "(3) Counted from when all processes were there. Against scheduled delays "
        f"(they agree within {AGREEMENT * 100:.0f} points): {'; '.join(texts)}."
    ]


def _step_cpu_seconds(work: Work, run: Figures) -> float:
    return run["worker_cpu_share"] * work.cores / run["steps_per_second"]


def _theoretical_speed_up(comparison: Comparison) -> float:
    one, other = (comparison.predicted(mode)["steps_per_second"] for mode in MODES)
    return one / other


def _work(work: Work) -> dict[str, Any]:
    delay = work.delay
    return {
        "n_envs": work.n_envs,
        "episodes_per_update": work.episodes_per_update,
        "max_lag": work.max_lag,
        "workers": work.workers,
        "cores": work.cores,
        "delay_mean_seconds": delay.mean_seconds if delay else 0.0,
        "step_seconds": work.step_seconds,
        "expected_maximum_seconds": delay.expected_maximum(work.n_envs) if delay else 0.0,
        "ideal_steps_per_second": work.ideal_steps_per_second,
    }


def _spell(figures: Figures, name: str, spell: Callable[[float], str]) -> str:
    value = figures.get(name, math.nan)
    return "" if math.isnan(value) else spell(value)


def _spread(runs: Sequence[Figures], name: str, spell: Callable[[float], str]) -> str:
    values = [run.get(name, math.nan) for run in runs]
    return "" if any(map(math.isnan, values)) else _range(values, spell)


def _range(values: Sequence[float], spell: Callable[[float], str]) -> str:
    """Return the mean, and the extremes where they read differently."""
    low, high = spell(min(values)), spell(max(values))
    middle = spell(float(np.mean(values)))
    return middle if low == high else f"{middle} ({low} – {high})"


def _times(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _without_nan(value: Any) -> Any:
    """Return JSON values with null for NaN, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
