"""Time CAGE-2: `python benchmarks/simulator.py [--json FILE]`.

Single environments through `gymnasium.make`, batches through the slot interface of a worker, and the real
CybORG where it can be imported. Uniform actions. A rate is environment steps per second of one core's time
(what other programs take does not count), resets included, the best of several runs.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import typer

import rollout_worker.environments  # registers CAGE2-v0
from protocol.errors import UserError
from rollout_worker.environments.cage2.cyborg_slots import CyborgSlots
from rollout_worker.environments.cage2.scenario import Cage2Options
from rollout_worker.environments.cage2.slots import Cage2Slots
from rollout_worker.environments.slots import SlotEnvironments

BATCHES = (1, 10, 100, 1000)
VIEWS = {
    "52 bits, 145 actions": Cage2Options(observation="bits", actions="full"),
    "history, 37 actions": Cage2Options(observation="history", actions="compact"),
    "true state, 37 actions": Cage2Options(observation="state", actions="compact"),
}
EPISODE_STEPS = 100


def best_rate(steps: int, run: Callable[[], None], seconds: float) -> float:
    """Return the steps per second of the fastest of the runs that fit the given time, after a first one."""
    run()
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.thread_time()
        run()
        best = max(best, steps / (time.thread_time() - start))
    return best


def single(red: str, seconds: float) -> float:
    env = gymnasium.make("CAGE2-v0", red=red, max_steps=EPISODE_STEPS)
    actions = np.random.default_rng(0).integers(0, 145, 100 * EPISODE_STEPS).tolist()

    def episodes() -> None:
        env.reset(seed=0)
        for action in actions:
            if env.step(action)[3]:
                env.reset()

    return best_rate(len(actions), episodes, seconds)


def batched(slots: SlotEnvironments, red: str, seconds: float, repeats: int) -> float:
    everyone = np.arange(slots.slots)
    seeds, scenarios = everyone.astype(np.uint64), [{"red_agent": red}] * slots.slots
    actions = np.random.default_rng(0).integers(0, slots.actions, (EPISODE_STEPS, slots.slots))

    def episodes() -> None:
        for _ in range(repeats):
            slots.reset(everyone, seeds, scenarios)
            for step in range(EPISODE_STEPS):
                slots.step(everyone, actions[step])

    return best_rate(repeats * EPISODE_STEPS * slots.slots, episodes, seconds)


def real(red: str, seconds: float) -> float | None:
    """Return the rate of the real CybORG, or nothing where it is not installed."""
    try:
        return batched(CyborgSlots(1), red, seconds, 1)
    except UserError as error:
        typer.echo(f"Skipped the real CybORG: {error}")
        return None


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seconds: Annotated[float, typer.Option(help="Time for each figure.")] = 1.0,
) -> None:
    """Measure the environment steps per second of one core."""
    rows: list[dict[str, Any]] = []

    def note(what: str, red: str, batch: int, rate: float) -> None:
        rows.append({"what": what, "red": red, "batch": batch, "steps_per_second": round(rate)})
        typer.echo(f"{what:32} {red:8} batch {batch:5} {rate:14,.0f} steps/s")

    for red in ("sleep", "b_line", "meander"):
        note("gymnasium.make", red, 1, single(red, seconds))
        for view, options in VIEWS.items():
            for batch in BATCHES:
                slots = Cage2Slots(batch, options)
                note(view, red, batch, batched(slots, red, seconds, max(1, 1000 // batch)))
    for red in ("b_line", "meander"):
        rate = real(red, seconds)
        if rate is None:
            break
        note("real CybORG", red, 1, rate)
    if json_file:
        json_file.write_text(json.dumps({"simulator": rows}, indent=1) + "\n")


if __name__ == "__main__":
    assert rollout_worker.environments
    typer.run(main)
