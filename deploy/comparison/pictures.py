"""The two pictures of a comparison: who waits for whom, and what was learned by when."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.comparison.timeline import SLOTS, Span

Curve = Sequence[tuple[float, float, float]]
"""Seconds, environment steps and mean return at each update."""

_COLOURS = {"async": "#0b6e99", "sync": "#d1603d"}
_WAITS, _INK, _GRID = "#d9d9d9", "#333333", "#e4e4e4"


def draw_timelines(spans: Mapping[str, Sequence[Span]], n_envs: int, seconds: float, picture: Path) -> None:
    """Draw `seconds` of a few environments, a panel for each mode: steps coloured while they last."""
    figure = _figure((10, 5))
    panels = figure.subplots(len(spans), 1, sharex=True)
    for axes, (mode, shown) in zip(panels, spans.items(), strict=True):
        origin = min(span.seen for span in shown)
        for slot in range(SLOTS):
            mine = [span for span in shown if span.slot == slot]
            busy = [(_ms(span.began - origin), _ms(span.over - span.began)) for span in mine]
            idle = [(_ms(span.over - origin), _ms(span.seen - span.over)) for span in mine]
            place = (slot - 0.38, 0.76)
            axes.broken_barh(idle, place, color=_WAITS, linewidth=0)
            axes.broken_barh(busy, place, facecolor=_COLOURS[mode], edgecolor="white", linewidth=0.4)
        steps = len(shown)
        axes.set_title(f"{mode}: {steps} steps of {SLOTS} of {n_envs} environments", **_TITLE)
        axes.set(ylabel="environment", ylim=(SLOTS - 0.5, -0.5), yticks=range(SLOTS))
        _plain(axes)
    panels[-1].set_xlabel(
        "milliseconds; coloured: the step lasts, grey: it waits for others, white: for the learner"
    )
    panels[-1].set_xlim(0, _ms(seconds))
    figure.savefig(picture)


def draw_returns(curves: Mapping[str, Sequence[Curve]], picture: Path) -> None:
    """Draw the mean return against wall time and against steps, a line for each repetition."""
    figure = _figure((10, 3.6))
    for axes, place, label in zip(
        figure.subplots(1, 2, sharey=True), (0, 1), ("seconds", "thousand environment steps"), strict=True
    ):
        for mode, repetitions in curves.items():
            for number, curve in enumerate(repetitions):
                across = [point[place] / (1 if place == 0 else 1e3) for point in curve]
                returns = [point[2] for point in curve]
                name = mode if number == 0 else None
                axes.plot(across, returns, color=_COLOURS[mode], linewidth=1.3, alpha=0.8, label=name)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(color=_GRID, linewidth=0.8)
        _plain(axes)
        if place == 0:
            axes.set_ylabel("mean return of a batch")
            axes.legend(loc="lower right", frameon=False, labelcolor=_INK)
    figure.savefig(picture)


_TITLE: dict[str, Any] = {"loc": "left", "color": _INK, "fontsize": 11, "fontweight": "bold"}


def _figure(size: tuple[float, float]) -> Any:
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from matplotlib.figure import Figure  # 0.3 s

    return Figure(figsize=size, dpi=110, layout="constrained")


def _plain(axes: Any) -> None:
    """Leave of the frame only what guides the eye."""
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(colors=_INK, length=0)
    axes.set_axisbelow(True)


def _ms(seconds: float) -> float:
    return seconds * 1000
