"""The picture of a run: return against environment steps, and how stale and how fast it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401 - now, because later no file may be opened
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from learner.metrics import Row, read_metrics

Floats = NDArray[np.float64]

_COLOURS = ("#0b6e99", "#d1603d", "#4f8a3c", "#7b4b94", "#b08900", "#5b5b5b")
_INK, _GRID = "#333333", "#e4e4e4"
_WINDOWS_PER_RUN = 30
"""The smoothed line averages over a run's updates divided by this."""
_FIRST_PART = 10
"""The first tenth of a run does not stretch the axis of returns: a bad beginning would flatten all else."""
_MARGIN = 0.15


def draw(metrics: Path, picture: Path, title: str = "") -> None:
    """Draw the learning curve of a metrics.csv as a PNG; nothing is drawn of a run without an update."""
    rows = read_metrics(metrics)
    if not rows:
        return
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    steps = np.cumsum(_column(rows, "steps")) / 1e6
    names = [name for name in rows[0] if name.startswith("return/")] or ["return_mean"]
    figure = Figure(figsize=(9, 6), dpi=140, layout="constrained")
    curve, rates = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    settled: list[Floats] = []
    for name, colour in zip(names, _COLOURS * len(names), strict=False):
        returns = _column(rows, name)
        curve.plot(steps, returns, ".", color=colour, alpha=0.25, markersize=4, markeredgewidth=0)
        smooth = smoothed(returns, max(1, len(rows) // _WINDOWS_PER_RUN))
        settled.append(smooth[len(rows) // _FIRST_PART :])
        label = name.removeprefix("return/").replace("return_mean", "all episodes")
        curve.plot(steps, smooth, color=colour, linewidth=2, label=f"{label}, {smooth[-1]:.1f} at the end")
    curve.set_ylabel("mean return of an episode")
    curve.set_ylim(*_span(np.concatenate(settled)))
    curve.legend(loc="lower right", frameon=False, labelcolor=_INK)
    if title:
        curve.set_title(title, loc="left", color=_INK, fontsize=12, fontweight="bold")

    rates.plot(steps, _column(rows, "lag_mean"), color=_INK, linewidth=1.2)
    rates.fill_between(steps, 0, _column(rows, "lag_max"), color=_INK, alpha=0.12, linewidth=0)
    rates.set_ylabel("lag (updates)\nmean, max")
    rates.set_ylim(bottom=0)
    rates.set_xlabel("environment steps (millions)")
    if "steps_per_second" in rows[0]:
        speed = rates.twinx()
        speed.plot(steps, _column(rows, "steps_per_second") / 1e3, color=_COLOURS[2], linewidth=1.2)
        speed.set_ylim(bottom=0)
        _plain(speed)
        speed.set_ylabel("thousand\nsteps/s", color=_COLOURS[2])
    for axes in (curve, rates):
        _plain(axes)
        axes.grid(color=_GRID, linewidth=0.8)
    figure.savefig(picture)


def smoothed(values: Floats, width: int) -> Floats:
    """Return the mean of the `width` values around each, [n]; of fewer at the ends; of finite ones only."""
    finite = np.isfinite(values)
    kernel = np.ones(min(width | 1, len(values)))
    weights = np.convolve(finite, kernel, mode="same")
    sums = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    return np.where(weights > 0, sums / np.maximum(weights, 1), np.nan)


def _span(values: Floats) -> tuple[float, float] | tuple[None, None]:
    """Return limits that show these values large; a steep beginning may come in from below."""
    lowest, highest = np.nanmin(values), np.nanmax(values)
    margin = _MARGIN * (highest - lowest)
    return (float(lowest - margin), float(highest + margin)) if margin > 0 else (None, None)


def _column(rows: Sequence[Row], name: str) -> Floats:
    return np.array([float(row.get(name) or "nan") for row in rows])


def _plain(axes: Any) -> None:
    """Leave of the frame only what guides the eye."""
    axes.tick_params(colors=_INK, length=0)
    axes.yaxis.label.set_color(_INK)
    axes.xaxis.label.set_color(_INK)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
