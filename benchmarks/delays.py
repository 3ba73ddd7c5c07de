"""What delayed steps lose to the worker: `python benchmarks/delays.py [--json FILE]`.

Worker processes play CAGE-2 alone, for a scripted learner that grants tickets as fast as they are played.
Efficiency is the steps/s over those of slots that wait for nothing but the law's own delays; what each step
lost is that difference in time: overslept, queued behind other slots, stepped and inferred.
"""

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # before numpy, as a worker does

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from protocol.messages import Heartbeat
from rollout_worker.environments.delays import parse
from rollout_worker.process import wake_precisely

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.worker import environment, processes
from tests.rollout_worker.scripted_learner import ScriptedLearner

LAWS = (
    "constant:10ms",
    "straggler:8ms,50ms,0.05",
    "exponential:10ms",
    "lognormal:10ms,0.5",
    "constant:10ms,slow=0.1x4",
    "constant:1ms",
)
WAITS = 500


def playing_alone(law: str, workers: int, slots: int, seconds: float) -> dict[str, Any]:
    """Return what worker processes make of a law's delays, once every slot is in its second episode."""
    spec, policy = environment("cage2")
    delay = parse(law)
    learner = ScriptedLearner(
        replace(spec, step_delay=law), policy, keep_episodes=False, heartbeat_seconds=1.0, liveness_seconds=5
    )
    seen: dict[str, tuple[float, Heartbeat]] = {}

    def look() -> dict[str, tuple[float, Heartbeat]]:
        """Return each session's newest heartbeat and when it came."""
        learner.serve(0.001)
        for session in learner.sessions.values():
            beat = session.heartbeat
            if beat and (beat.session not in seen or seen[beat.session][1] is not beat):
                seen[beat.session] = time.perf_counter(), beat
        return dict(seen)

    try:
        with processes(workers, learner.address, slots):
            deadline = time.perf_counter() + 60
            while len(first := look()) < workers or any(b.episodes < slots for _, b in first.values()):
                if time.perf_counter() > deadline:
                    raise SystemExit("the workers do not play")
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                last = look()
        rate = cpu = 0.0
        for session, (began, before) in first.items():
            ended, after = last[session]
            rate += (after.steps - before.steps) / (ended - began)
            cpu += (after.cpu_seconds - before.cpu_seconds) / (ended - began)
        ideal = workers * delay.ideal_rate(slots)
        return {
            "law": law,
            "workers": workers,
            "slots": slots,
            "steps_per_second": round(rate),
            "efficiency": round(rate / ideal, 4),
            "lost_microseconds_per_step": round((1 / rate - 1 / ideal) * workers * slots * 1e6),
            "cpu_microseconds_per_step": round(cpu / rate * 1e6, 1),
            "cpu_cores": round(cpu, 2),
        }
    finally:
        learner.close()


def overslept_microseconds(milliseconds: float) -> dict[str, float]:
    """Return how late a wait for news ends, as the worker waits."""
    late, news = [], threading.Condition()
    wake_precisely()
    with news:
        for _ in range(WAITS):
            due = time.monotonic() + milliseconds * 1e-3
            news.wait(due - time.monotonic())
            late.append(time.monotonic() - due)
    median, most = np.quantile(late, (0.5, 0.99)) * 1e6
    return {"milliseconds": milliseconds, "median": round(median), "percentile_99": round(most)}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seconds: Annotated[float, typer.Option(help="Time for each law.")] = 5.0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    slots: Annotated[int, typer.Option(help="Environments of each.")] = 50,
    laws: Annotated[list[str] | None, typer.Option("--law", help="Instead of the usual ones.")] = None,
) -> None:
    """Measure waits, and playing alone under each law."""
    waits = [overslept_microseconds(milliseconds) for milliseconds in (0.2, 1.0, 8.0)]
    for wait in waits:
        typer.echo("a wait of {milliseconds} ms is {median} µs late, 99 %: {percentile_99} µs".format(**wait))
    playing = [playing_alone(law, workers, slots, seconds) for law in laws or LAWS]
    for figures in playing:
        typer.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items()))
    if json_file:
        json_file.write_text(json.dumps({"waits": waits, "playing": playing}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
