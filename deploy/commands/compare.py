"""`fleet compare`: both modes on the same work, in alternation, and what theory says of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.json_file import JsonFile, write_json
from deploy.options import with_settings
from deploy.runs import best_checkpoint
from deploy.settings import Settings, read_toml, resolve
from deploy.storage import storage_told
from protocol.errors import FleetError, UserError

if TYPE_CHECKING:
    from deploy.comparison.figures import Mode, Work
    from deploy.comparison.run import Sample
    from protocol.specs import EnvironmentSpec

_SET_HERE: tuple[str, ...] = ("mode", "name", "total_episodes", "evaluation_episodes", "selection_episodes")
_SET_HERE += ("record_steps", "step_hook", "bind", "port", "keys", "insecure")
_TIMELINE_SECONDS, _BLOCKING_SECONDS = 1.0, 30.0
_STEP_SAMPLES, _STEP_SECONDS = 20, 2.0


@with_settings(without=_SET_HERE)
def compare(
    given: Mapping[str, Any],
    episodes: Annotated[int, typer.Option(help="Episodes of each run.")] = 3000,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of each mode.")] = 3,
    blocking: Annotated[
        bool, typer.Option(help="Repeat with delays that block, a process for each environment.")
    ] = True,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="For runs, table and pictures (default: runs/compare-TIME)."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE.toml", help="Settings; the command line wins over them."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Run async and sync on the same work; print efficiency, speed, waiting, CPU and messages beside theory.

    A batch is of --n-envs episodes unless --episodes-per-update says otherwise. All are of one length, the
    environment's own, unless --episode-length says otherwise: theory is of such.
    """
    settings = asynchronous(given, episodes, config)
    where = folder or Path("runs") / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    with storage_told(where):
        if where.exists() and any(where.iterdir()):
            raise UserError(f"--folder {where} is not empty: name another")
        where.mkdir(parents=True, exist_ok=True)
        text, plain = _compare(settings, where, repetitions, blocking)
        typer.echo(text)
        (where / "comparison.md").write_text(text, encoding="utf-8")
        (where / "comparison.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    write_json(json_file, plain)
    typer.echo(f"This table, its figures as JSON, the pictures and all runs are in {where}", err=True)


def asynchronous(given: Mapping[str, Any], episodes: int, config: Path | None) -> Settings:
    """Return the settings of the asynchronous runs."""
    told = {"mode": "async", "total_episodes": episodes, "evaluation_episodes": 0, **given}
    chosen = {*given, *(read_toml(config) if config else ())}
    if "episode_length" not in chosen:
        told["episode_length"] = "0"
    if "episodes_per_update" not in chosen:
        told["episodes_per_update"] = resolve(
            {"n_envs": given["n_envs"]} if "n_envs" in given else {}
        ).run.n_envs
    settings = resolve(told, config)
    if settings.run.step_delay.endswith(",blocking"):
        raise UserError("leave ,blocking out of --step-delay: fleet compare adds a run with it by itself")
    if start := settings.launch.init_from:
        launch = replace(settings.launch, init_from=str(best_checkpoint(start).resolve()))
        settings = replace(settings, launch=launch)
    return settings


def synchronous(settings: Settings) -> Settings:
    """Return the same work for the other mode."""
    return replace(settings, run=replace(settings.run, mode="sync", max_lag=0, order="arrival", exact=False))


def blocking_version(settings: Settings) -> Settings:
    """Return the same work, without an end, with delays that really sleep, each in a process of its own."""
    run = settings.run
    endless = replace(run, step_delay=run.step_delay + ",blocking", total_episodes=run.total_episodes * 1000)
    launch = replace(settings.launch, workers=run.n_envs, slots=1)
    return replace(settings, run=endless, launch=launch)


def _compare(settings: Settings, where: Path, repetitions: int, blocking: bool) -> tuple[str, dict[str, Any]]:
    """Measure, draw, and return the table and all figures."""
    from deploy.comparison.figures import all_at_work, curve, measure
    from deploy.comparison.pictures import draw_returns
    from deploy.comparison.run import record
    from deploy.comparison.table import Comparison, to_markdown, to_plain
    from deploy.environment import environment_spec

    spec = environment_spec(settings.run, settings.launch.allow_env)
    work = _work(settings, spec)
    both: dict[Mode, Settings] = {"async": settings, "sync": synchronous(settings)}
    figures: dict[Mode, list[dict[str, float]]] = {"async": [], "sync": []}
    curves: dict[str, list[Any]] = {"async": [], "sync": []}

    def run(mode: Mode, name: str) -> None:
        recording = record(both[mode], where, name)
        found = measure(recording, work, mode)
        _say(name, found)
        figures[mode].append(found)
        curves[mode].append(curve(recording))

    def run_blocking(mode: Mode, seconds: float) -> dict[str, float]:
        told, name = blocking_version(both[mode]), f"{mode}-blocking"

        def enough(samples: Sequence[Sample]) -> bool:
            return bool(samples) and samples[-1].at - all_at_work(samples, work.n_envs, mode) > seconds

        found = measure(record(told, where, name, enough), work, mode, all_present=work.n_envs)
        _say(name, found)
        return found

    slept: dict[Mode, dict[str, float]] = {}
    for mode, name in _order(repetitions):
        run(mode, name)
    if work.delay and blocking:
        for mode in both:
            try:
                slept[mode] = run_blocking(mode, min(_BLOCKING_SECONDS, figures[mode][0]["window_seconds"]))
            except FleetError as error:  # the rest is worth telling
                typer.echo(f"without blocking delays in {mode}: {error}", err=True)
    draw_returns(curves, where / "returns.png")
    if work.delay:
        _draw_timelines(settings, spec, where)
    comparison = Comparison(_title(settings, work), work, figures, slept)
    return to_markdown(comparison), to_plain(comparison)


def _say(name: str, found: Mapping[str, float]) -> None:
    efficiency = "" if math.isnan(found["efficiency"]) else f", efficiency {found['efficiency']:.1%}"
    typer.echo(f"{name}: {found['steps_per_second']:,.0f} steps/s{efficiency}", err=True)


def _order(repetitions: int) -> Iterator[tuple[Mode, str]]:
    """Yield which mode runs next, and its name; each goes first in every other repetition."""
    modes: list[Mode] = ["async", "sync"]
    for number in range(1, repetitions + 1):
        for mode in modes:
            yield mode, f"{mode}-{number}"
        modes.reverse()


def _title(settings: Settings, work: Work) -> str:
    run = settings.run
    delay = run.step_delay or "no delays"
    return (
        f"{run.environment}, {run.n_envs} environments in {work.workers} workers, {delay}; "
        f"{run.total_episodes:,} episodes, {run.episodes_per_update} an update, --max-lag {run.max_lag}"
    )


def _work(settings: Settings, spec: EnvironmentSpec) -> Work:
    from deploy.comparison.figures import Work
    from deploy.local import deal_slots, usable_cores
    from rollout_worker.environments.delays import parse

    run, launch = settings.run, settings.launch
    slots = deal_slots(run.n_envs, launch.workers, launch.slots)
    if sum(slots) != run.n_envs:
        raise UserError(f"--workers and --slots make {sum(slots)} environments, not --n-envs {run.n_envs}")
    return Work(
        n_envs=run.n_envs,
        episodes_per_update=run.episodes_per_update,
        max_lag=run.max_lag,
        workers=len(slots),
        cores=usable_cores(),
        delay=parse(run.step_delay) if run.step_delay else None,
        step_seconds=step_seconds(spec),
    )


def step_seconds(spec: EnvironmentSpec) -> float:
    """Return the time of a step of one environment alone, its delay left out: the median over episodes.

    Actions are the first legal ones; building and resetting do not count.
    """
    import numpy as np

    from protocol.specs import without_greedy
    from rollout_worker.environments import registry

    environments = registry.build(replace(spec, step_delay=""), 1)
    slot, means = np.zeros(1, np.int64), []
    end = time.perf_counter() + _STEP_SECONDS
    try:
        for number in range(_STEP_SAMPLES):
            scenario, _ = without_greedy(spec.scenario("train", number))
            observation = environments.reset(slot, np.array([number], np.uint64), [scenario])
            took, steps, over = 0.0, 0, False
            while not over and steps < spec.spaces.max_episode_steps:
                legal = observation[0, -spec.spaces.actions :] if spec.spaces.masked else np.ones(1)
                action = np.array([int(np.argmax(legal))])
                began = time.perf_counter()
                observation, _, terminated, truncated = environments.step(slot, action)
                took, steps = took + time.perf_counter() - began, steps + 1
                over = bool(terminated[0] or truncated[0])
            means.append(took / steps)
            if time.perf_counter() > end:
                break
    finally:
        environments.close()
    return float(np.median(means))


def _draw_timelines(settings: Settings, spec: EnvironmentSpec, where: Path) -> None:
    """Run two more updates of sync with its steps on record, play a moment of async, and draw both."""
    from deploy.comparison.pictures import draw_timelines
    from deploy.comparison.run import record
    from deploy.comparison.timeline import (
        ROUNDS_FILE,
        around_an_update,
        asynchronous_spans,
        synchronous_spans,
    )
    from deploy.local import deal_slots
    from learner.models import policy_spec
    from rollout_worker.environments.delays import parse

    run, file = settings.run, where / "steps.record"
    short = synchronous(replace(settings, run=replace(run, total_episodes=2 * run.episodes_per_update)))
    hook = f"{asynchronous_spans.__module__}:note"
    launch = replace(short.launch, record_steps=str(file.resolve()), step_hook=hook)
    typer.echo("timelines …", err=True)
    record(replace(short, launch=launch), where, "timelines")
    delay, slots = (
        parse(run.step_delay),
        deal_slots(run.n_envs, settings.launch.workers, settings.launch.slots),
    )
    seconds = max(_TIMELINE_SECONDS, 20 * delay.expected_maximum(run.n_envs))
    sync = synchronous_spans(where / ROUNDS_FILE, file, delay, run.seed)
    policy = policy_spec(spec, settings.ppo)
    spans = {
        "async": asynchronous_spans(spec, policy, run.seed, slots[0], seconds),
        "sync": around_an_update(sync, seconds),
    }
    draw_timelines(spans, run.n_envs, seconds, where / "timelines.png")
