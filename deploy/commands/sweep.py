"""`fleet sweep`: hyperparameter search, each trial a run of the fleet."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.exits import Exit
from deploy.json_file import JsonFile, write_json
from deploy.options import with_settings
from deploy.runs import best_checkpoint, find_sweep, new_run
from deploy.settings import Settings, resolve
from deploy.storage import storage_told
from protocol.errors import UserError
from protocol.wording import counted

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from deploy.sweep.plan import Plan

_SET_HERE = ("seed", "checkpoint_every", "record_steps", "step_hook", "bind", "port", "keys", "insecure")
_SAME_WISH_SECONDS = 1.0
_WIDTH = 200
"""Of the table, where no terminal says."""


@with_settings(without=_SET_HERE)
def sweep(
    given: Mapping[str, Any],
    space: Annotated[
        Path | None,
        typer.Argument(
            metavar="SPACE.toml", help="What to search: a table [space] of options and their values."
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all (default: 20).")] = None,
    parallel: Annotated[
        int | None, typer.Option(help="Trials at a time, which share the cores (default: 1).")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Trainings of each trial, each with another seed (default: 1).")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="worst|mean", help="What counts of several seeds (default: worst).")
    ] = None,
    pruner: Annotated[
        str | None,
        typer.Option(metavar="median|hyperband|none", help="Who ends poor trials early (default: median)."),
    ] = None,
    rungs: Annotated[
        int | None,
        typer.Option(help="Evaluations of each training, after each of which it may be ended (default: 10)."),
    ] = None,
    startup_trials: Annotated[
        int | None, typer.Option(help="So many are drawn at random, and none is pruned before (default: 5).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the search, not of the trainings (default: 1).")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE.toml", help="Options of all trainings; the command line wins."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="SWEEP", help="Go on with this sweep, by name or folder."),
    ] = None,
    json: JsonFile = None,
) -> Exit:
    """Search for hyperparameters: each trial is a training, poor ones end early, best.toml is left."""
    import optuna  # noqa: F401  # before all else, so that its absence is what is told

    told = {
        "trials": trials,
        "parallel": parallel,
        "seeds": seeds,
        "objective": objective,
        "pruner": pruner,
        "rungs": rungs,
        "startup_trials": startup_trials,
        "seed": seed,
    }
    told = {name: value for name, value in told.items() if value is not None}
    if resume is not None:
        return _resume(resume, told, given, (space, config), json)
    return _begin(told, given, space, config, json)


def _begin(
    told: dict[str, Any], given: Mapping[str, Any], file: Path | None, config: Path | None, json: Path | None
) -> Exit:
    from deploy.sweep.plan import Plan, Search, locked, write_plan
    from deploy.sweep.space import parse_space, read_space

    if file is None:
        raise UserError("what is to be searched is missing: give a SPACE.toml, or --resume SWEEP")
    text = read_space(file)
    space, search = parse_space(text, file), Search(**told)
    for parameter in space:
        if parameter.name in given:
            raise UserError(f"{file} searches {parameter.name}, which the command line fixes: leave one out")
    base = _base(given, config, prunes=search.pruner != "none")
    folder = new_run(base.run.name, f"sweep-{base.run.environment}", "sweep")
    with storage_told(folder), locked(folder):
        plan = Plan(folder, search, space, base)
        try:
            write_plan(plan, text, file)
        except BaseException:
            shutil.rmtree(folder)
            raise
        return _run(plan, json)


def _resume(
    name: str, told: dict[str, Any], given: Mapping[str, Any], others: tuple[Any, ...], json: Path | None
) -> Exit:
    from deploy.sweep.plan import locked, read_plan, write_search

    if given or any(others) or told.keys() - {"trials", "parallel"}:
        raise UserError(
            "--resume takes all from the sweep: beside it only --trials, --parallel and --json can stand"
        )
    folder = find_sweep(name)
    with storage_told(folder), locked(folder):
        plan = read_plan(folder)
        plan = replace(plan, search=replace(plan.search, **told))
        write_search(plan)
        return _run(plan, json)


def _base(given: Mapping[str, Any], config: Path | None, *, prunes: bool) -> Settings:
    """Return the options of every training. Raises UserError where no sweep can be made of them."""
    from deploy.environment import environment_spec, refuse_unplayable

    base = resolve(given, config)
    if not base.run.evaluation_episodes:
        raise UserError("--evaluation-episodes is 0: a sweep compares trainings by their final evaluation")
    if prunes and not base.run.selection_episodes:
        raise UserError("--selection-episodes is 0, so nothing tells poor trials: add --pruner none")
    if start := base.launch.init_from:  # the trainings run in another folder
        base = replace(base, launch=replace(base.launch, init_from=str(best_checkpoint(start).resolve())))
    refuse_unplayable(environment_spec(base.run, base.launch.allow_env))
    return base


def _run(plan: Plan, json: Path | None) -> Exit:
    from rich.console import Console

    from deploy.local import usable_cores
    from deploy.sweep import results
    from deploy.sweep.display import SweepDisplay
    from deploy.sweep.study import Sweep

    console, search = Console(stderr=True), plan.search
    if search.parallel > usable_cores():
        typer.echo(f"fleet: {search.parallel} trials share {usable_cores()} cores: each is slower", err=True)
    again = f"fleet sweep --resume {plan.folder.name}"
    typer.echo(
        f"Sweep {plan.folder}: {counted(search.trials, 'trial')}, {search.parallel} at a time", err=True
    )
    display = SweepDisplay(plan, console)

    def tell(trial: FrozenTrial) -> None:
        display.tell(trial)
        results.write(searching.study, plan)

    with _stop_signals() as stop, display:
        searching = Sweep(plan, display.show, tell, lambda: bool(stop))
        display.note(results.ended(searching.study))
        finished = searching.run()
    results.write(searching.study, plan)
    if results.ended(searching.study):
        shown = results.table(searching.study, plan).lines(
            shutil.get_terminal_size((_WIDTH, 1)).columns, colours=False
        )
        typer.echo("\n".join(shown))
    if shares := results.importances(searching.study):
        told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        typer.echo(f"Importance for the score: {told}")
    write_json(json, results.to_plain(searching.study, plan))
    if not finished:
        typer.echo(f"Stopped; {again} goes on", err=True)
        return Exit.INTERRUPTED if stop == [signal.SIGINT] else Exit.TERMINATED
    if results.best(searching.study):
        typer.echo(f"fleet train --config {plan.folder / 'best.toml'} trains with the best", err=True)
    return Exit.OK


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Give a list into which the first Ctrl-C or SIGTERM is put; a later one ends the process as usual."""
    stop: list[int] = []
    again_at = 0.0
    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal again_at
        if not stop:
            stop.append(number)
            again_at = time.monotonic() + _SAME_WISH_SECONDS
        elif time.monotonic() >= again_at:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
