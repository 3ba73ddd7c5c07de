"""Do both modes learn alike? `python benchmarks/modes.py [--json FILE] [--picture FILE]`.

Trains a fleet in async and in sync with each seed, on the same number of episodes, and compares the returns
of that play, update by update: a band over seeds for each mode, red agent and length. Trainings that are
in `--folder` already are not repeated when the command is given again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray

from learner.learning_curve import smoothed
from learner.metrics import read_metrics
from protocol.errors import UserError

MODES: Mapping[str, Sequence[str]] = {"async": (), "sync": ("--mode", "sync")}
COLOURS = {"async": "#0b6e99", "sync": "#d1603d"}
SMOOTHED_OVER = 5
"""Updates around each, in the picture and in the table."""
SHOWN_FROM = 0.2
"""The share of a training that the picture leaves out: at first returns are far below."""

Floats = NDArray[np.float64]


def train(folder: Path, mode: str, seed: int, options: Sequence[str]) -> Path:
    """Train one fleet, if that was not done before; return its metrics.csv. Raises UserError if it fails."""
    run = folder / "runs" / f"{mode}-{seed}"
    if not (run / "evaluation.json").exists():
        fleet = str(Path(sys.executable).with_name("fleet"))
        command = [fleet, "train", "--name", run.name, "--seed", str(seed), *MODES[mode], *options]
        folder.mkdir(parents=True, exist_ok=True)
        if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
            raise UserError(f"{' '.join(command)} failed: see {run}/logs")
    return run / "metrics.csv"


def curves(metrics: Sequence[Path]) -> tuple[Floats, Mapping[str, Floats]]:
    """Return the steps behind each update in millions [updates], and returns by column [seeds, updates]."""
    runs = [read_metrics(path) for path in metrics]
    names = [name for name in runs[0][0] if name.startswith("return/")]
    steps = np.cumsum([float(row["steps"]) for row in runs[0]]) / 1e6
    returns = {
        name: np.array(
            [smoothed(np.array([float(row[name]) for row in rows]), SMOOTHED_OVER) for rows in runs]
        )
        for name in names
    }
    return steps, returns


def draw(found: Mapping[str, tuple[Floats, Mapping[str, Floats]]], picture: Path) -> None:
    """Draw each red agent's returns against steps: the mean over seeds, and from the worst to the best."""
    names = list(next(iter(found.values()))[1])
    columns = len({name.split("/")[1] for name in names})
    figure = Figure(figsize=(9, 2.6 * len(names) / columns), dpi=140, layout="constrained")
    panels = np.ravel(figure.subplots(len(names) // columns, columns))
    for axes, name in zip(panels, names, strict=True):
        for mode, (steps, returns) in found.items():
            late = slice(round(len(steps) * SHOWN_FROM), None)
            low, mean, high = (f(returns[name], axis=0) for f in (np.min, np.mean, np.max))
            axes.fill_between(steps[late], low[late], high[late], color=COLOURS[mode], alpha=0.2, linewidth=0)
            axes.plot(steps[late], mean[late], color=COLOURS[mode], label=mode)
        axes.set_title(name.removeprefix("return/"))
        axes.set_xlabel("million environment steps")
        axes.legend(loc="lower right", frameon=False)
    figure.savefig(picture)


def spell(values: Floats) -> str:
    """Return mean ± standard error over seeds."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{np.mean(values):.2f} ± {error:.2f}"


def main(
    seeds: Annotated[str, typer.Option(help="One training in each mode for each, by commas.")] = "1,2,3",
    total_episodes: Annotated[int, typer.Option(help="Of each training.")] = 60_000,
    folder: Annotated[Path, typer.Option(help="Keep the trainings here.")] = Path("modes"),
    picture: Annotated[Path | None, typer.Option(help="Draw the bands here, a PNG.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Train, compare and print the table."""
    options = ("--total-episodes", str(total_episodes), "--evaluation-episodes", "1")
    metrics: dict[str, list[Path]] = {mode: [] for mode in MODES}
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds is {seeds!r}: give whole numbers, such as 1,2,3") from None
    for seed in numbers:
        for mode in MODES:
            typer.echo(f"{mode}, seed {seed}", err=True)
            metrics[mode].append(train(folder, mode, seed, options))
    found = {mode: curves(paths) for mode, paths in metrics.items()}
    steps, names = found["async"][0], list(found["async"][1])
    points = [round(share * len(steps)) - 1 for share in (0.25, 1.0)]
    heads = [f"{mode}, {steps[at]:.1f} M steps" for at in points for mode in found]
    typer.echo(f"| episodes | {' | '.join(heads)} |\n|---|{'--:|' * len(heads)}")
    for name in names:
        cells = [returns[name][:, at] for at in points for _, returns in found.values()]
        typer.echo(f"| {name.removeprefix('return/')} | {' | '.join(map(spell, cells))} |")
    if json_file:
        written = {
            mode: {name: values.tolist() for name, values in returns.items()}
            for mode, (_, returns) in found.items()
        }
        json_file.write_text(json.dumps({"million_steps": steps.tolist(), **written}))
    if picture:
        draw(found, picture)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
