"""Time and weigh rollout workers: `python benchmarks/worker.py [--json FILE]`.

Inference alone, playing alone, and whole worker processes against a scripted learner that grants tickets as
fast as they are played. READY is from launch to the first heartbeat that says so, with warm kernels. Steps/s
are per second of the worker's own CPU time, so that other programs do not count; wall-clock beside it.
"""

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # before numpy, as a worker does

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import psutil
import typer

from protocol.messages import Heartbeat, Version
from protocol.specs import EnvironmentSpec, PolicySpec
from protocol.tickets import Ticket
from rollout_worker.environments import registry
from rollout_worker.player import Player
from rollout_worker.policy import Policy

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.rollout_worker.scripted_learner import ScriptedLearner, made_up_weights

INFERENCES = 1000
ROWS = 100


def environment(name: str) -> tuple[EnvironmentSpec, PolicySpec]:
    spaces = registry.describe(name, {})
    scenarios = ({"red_agent": "b_line"}, {"red_agent": "meander"}) if name == "cage2" else ({},)
    spec = EnvironmentSpec(name, {}, spaces, train_scenarios=scenarios)
    return spec, PolicySpec(spaces.inputs, spaces.actions, spaces.masked)


def inference_microseconds(spec: PolicySpec) -> float:
    """Return the median time of one call for ROWS rows, sampling included."""
    policy, draw = Policy(spec, made_up_weights(spec)), np.random.default_rng(0)
    observations = draw.integers(0, 2, (ROWS, spec.inputs + spec.actions * spec.masked)).astype(np.uint8)
    uniforms = draw.random(ROWS)

    def once() -> float:
        start = time.perf_counter()
        policy.act(observations, uniforms)
        return time.perf_counter() - start

    return median(once() for _ in range(INFERENCES)) * 1e6


def playing_rate(name: str, slots: int, seconds: float) -> float:
    """Return the steps per CPU second of a player without a process around it."""
    spec, policy_spec = environment(name)
    policy = Policy(policy_spec, made_up_weights(policy_spec))
    player = Player(registry.build(spec, slots), spec, run_seed=1)
    number, cpu, steps, end = 0, time.process_time(), 0, time.perf_counter() + 1.1 * seconds
    warm = end - seconds
    while (now := time.perf_counter()) < end:
        if now < warm:
            cpu, steps = time.process_time(), player.steps
        while player.idle:
            player.start(Ticket("train", number), Version(1, 0), policy)
            number += 1
        player.advance()
    return (player.steps - steps) / (time.process_time() - cpu)


@contextmanager
def processes(count: int, address: str, slots: int) -> Iterator[list[psutil.Process]]:
    command = [sys.executable, "-m", "rollout_worker", "--learner", address, "--slots", str(slots)]
    command += ["--die-with-parent", "--log-level", "warning"]
    started = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield [psutil.Process(process.pid) for process in started]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def fleet(name: str, workers: int, slots: int, seconds: float) -> dict[str, Any]:
    """Run worker processes for so many seconds; return what they took and gave, each figure per worker."""
    spec, policy = environment(name)
    learner = ScriptedLearner(spec, policy, keep_episodes=False, heartbeat_seconds=1.0, liveness_seconds=5.0)

    cpu_at_ready: dict[str, float] = {}

    def heartbeats() -> list[Heartbeat]:
        return [session.heartbeat for session in learner.sessions.values() if session.heartbeat is not None]

    def all_of(condition: Callable[[Heartbeat], bool]) -> Callable[[], bool]:
        return lambda: all([condition(beat) for beat in heartbeats()]) and len(heartbeats()) == workers

    def ready(beat: Heartbeat) -> bool:
        if beat.state == "ready":
            cpu_at_ready.setdefault(beat.session, beat.cpu_seconds)
        return beat.state == "ready"

    try:
        start = time.perf_counter()
        with processes(workers, learner.address, slots) as running:
            learner.until(all_of(ready), 60)
            ready_seconds = time.perf_counter() - start
            learner.until(all_of(lambda beat: beat.episodes >= slots), 60)
            first, start = heartbeats(), time.perf_counter()
            while time.perf_counter() < start + seconds:
                learner.serve(0.02)
            last, wall = heartbeats(), time.perf_counter() - start
            memory = [process.memory_full_info() for process in running]
        steps = sum(beat.steps for beat in last) - sum(beat.steps for beat in first)
        cpu = sum(beat.cpu_seconds for beat in last) - sum(beat.cpu_seconds for beat in first)
        return {
            "environment": name,
            "workers": workers,
            "slots": slots,
            "ready_seconds": round(ready_seconds, 2),
            "ready_cpu_seconds": round(max(cpu_at_ready.values()), 2),
            "steps_per_cpu_second": round(steps / cpu),
            "steps_per_second": round(steps / wall / workers),
            "heartbeats_per_second": round(
                sum(b.number - a.number for a, b in zip(first, last, strict=True)) / wall
            ),
            "resident_mb": round(max(info.rss for info in memory) / 1e6, 1),
            "private_mb": round(max(info.uss for info in memory) / 1e6, 1),
        }
    finally:
        learner.close()


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seconds: Annotated[float, typer.Option(help="Time for each figure.")] = 3.0,
) -> None:
    """Measure inference, playing and worker processes."""
    inference = {
        f"{spec.inputs}-64-64-{spec.actions}": round(inference_microseconds(spec), 1)
        for spec in (environment("cage2")[1], PolicySpec(52, 145))
    }
    for shape, microseconds in inference.items():
        typer.echo(f"inference {shape}: {microseconds:.0f} µs for {ROWS} rows")
    playing = {name: round(playing_rate(name, ROWS, seconds)) for name in ("cage2", "CartPole-v1")}
    for name, rate in playing.items():
        typer.echo(f"playing {name} in {ROWS} slots: {rate:,} steps/s")
    registry.build(environment("cage2")[0], 1)  # compiles what the cache lacks
    shapes = (("cage2", 1, 50), ("cage2", 4, 25), ("CartPole-v1", 1, 50))
    fleets = [fleet(name, workers, slots, seconds) for name, workers, slots in shapes]
    for figures in fleets:
        typer.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items()))
    if json_file:
        figures = {
            "inference_microseconds": inference,
            "playing_steps_per_second": playing,
            "workers": fleets,
        }
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
