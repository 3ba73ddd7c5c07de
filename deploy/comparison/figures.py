"""What a comparison measures of a run, and what theory says it should be.

Figures are plain mappings by name, so that tables and files are made of them; NaN where one means nothing.
They are of the *window*: from the first episode's start until the last ticket is issued.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploy.comparison.run import Recording, Sample
from protocol.errors import FleetError
from rollout_worker.environments.delays import StepDelay

Mode = Literal["async", "sync"]
Figures = Mapping[str, float]

_OF_PLAY = frozenset({"steps", "rounds", "barrier_seconds"})
"""Counts that are 0 until the first ticket is issued."""


@dataclass(frozen=True, slots=True)
class Work:
    """What both modes are given to do."""

    n_envs: int
    episodes_per_update: int
    max_lag: int
    workers: int
    cores: int
    delay: StepDelay | None
    step_seconds: float
    """An environment's own step, alone in an idle process."""

    @property
    def ideal_steps_per_second(self) -> float:
        """Steps/s of environments that never wait; NaN without delays, when they share cores instead."""
        if self.delay is None:
            return math.nan
        times = [self.delay.law.mean_seconds * self.delay.factor(slot) for slot in range(self.n_envs)]
        return sum(1 / (seconds + self.step_seconds) for seconds in times)

    @property
    def barrier_seconds(self) -> float:
        """Mean time of a barrier over all environments: the expected maximum, and the step itself."""
        if self.delay is None:
            return math.nan
        return self.delay.expected_maximum(self.n_envs) + self.step_seconds


def measure(recording: Recording, work: Work, mode: Mode, all_present: int = 0) -> dict[str, float]:
    """Return the figures of one run. FleetError if it was too short to see its window.

    Where `all_present` workers are given, the window begins when so many are at work, and ends with the run.
    """
    samples = recording.samples
    issued = [sample for sample in samples if not math.isnan(sample.last_issued_at)]
    if not (samples if all_present else issued):
        raise FleetError("the run was too short to be measured: give it more --episodes")
    # A report's way adds to its age, so the earliest moment is the truest.
    first = min(sample.first_issued_at for sample in samples if sample.first_issued_at > 0)
    began, ended = first, min((sample.last_issued_at for sample in issued), default=samples[-1].at)
    if all_present:
        began = max(began, all_at_work(samples, all_present, mode))
    if began >= ended:
        raise FleetError("the tickets ran out before all workers were there: give it more --episodes")
    seconds, ideal = ended - began, work.ideal_steps_per_second

    def learner(name: str) -> float:
        counts = [(sample.at, sample.measured[name]) for sample in samples]
        return _gain(counts, began, ended, first if name in _OF_PLAY else None)

    def workers(name: str) -> float:
        beats = [[s.workers[w] for s in samples if w in s.workers] for w in samples[-1].workers]
        counts = ([(beat.at, float(getattr(beat, name))) for beat in mine] for mine in beats)
        return sum(_gain(mine, began, ended, first if name in _OF_PLAY else None) for mine in counts)

    total = sum(float(row["steps"]) for row in recording.rows)
    episodes_all = sum(float(row["episodes"]) for row in recording.rows)
    length = total / episodes_all
    steps = learner("steps") if mode == "sync" else workers("steps")
    episodes, whole = steps / length, recording.ended - recording.began
    updates = [float(row["update_seconds"]) for row in recording.rows]
    figures = {
        "window_seconds": seconds,
        "whole_seconds": whole,
        "episode_steps": length,
        "steps_per_second": steps / seconds,
        "steps_per_second_whole": total / whole,
        "episodes_per_second": episodes / seconds,
        "episodes_per_second_whole": episodes_all / whole,
        "efficiency": steps / seconds / ideal,
        "efficiency_whole": total / whole / ideal,
        "waiting_share": 1 - steps / seconds / ideal,
        "barriers_per_episode": 0.0,
        "worker_cpu_share": workers("cpu_seconds") / seconds / work.cores,
        "learner_cpu_share": learner("cpu_seconds") / seconds / work.cores,
        "messages_per_episode": learner("messages") / episodes,
        "bytes_per_episode": learner("bytes") / episodes,
        "lag_mean": float(np.mean([float(row["lag_mean"]) for row in recording.rows])),
        "lag_max": max(float(row["lag_max"]) for row in recording.rows),
        "update_seconds": float(np.mean(updates[1:] or updates)),  # the first one warms torch up
        "foreign_cores": recording.foreign_cores,
    }
    if mode == "sync":
        done = [next(sample.version for sample in samples if sample.at >= time) for time in (began, ended)]
        outside = seconds - sum(updates[done[0] : done[1]])
        rounds = learner("rounds")
        figures |= {
            "barriers_per_episode": rounds * work.n_envs / episodes,
            "barrier_seconds": learner("barrier_seconds") / rounds,
            "waiting_at_barriers_share": learner("barrier_seconds") / seconds - steps / seconds / ideal,
            "efficiency_outside_update": steps / outside / ideal,
            "steps_per_second_outside_update": steps / outside,
        }
    return figures


def predict(work: Work, mode: Mode, measured: Figures) -> dict[str, float]:
    """Return what theory says of these figures, for episodes of one length.

    Taken from `measured` are the length of an episode and the time of an update, which no theory knows.
    """
    length, update, ideal = measured["episode_steps"], measured["update_seconds"], work.ideal_steps_per_second
    batch, n = work.episodes_per_update, work.n_envs
    if mode == "async":
        # An episode goes into its batch one episode's time and one update after it began.
        batches_per_second = measured["episodes_per_second"] / batch
        lag = n / batch + update * batches_per_second
        found = {
            "steps_per_second": ideal,
            "barriers_per_episode": 0.0,
            "messages_per_episode": 1.0,
            "lag_mean": min(float(work.max_lag), lag),
            "lag_max": float(work.max_lag),
        }
    else:
        waves = math.ceil(batch / n)
        at_barriers = waves * length * work.barrier_seconds
        found = {
            "steps_per_second": batch * length / (at_barriers + update),
            "steps_per_second_outside_update": batch * length / at_barriers,
            "barriers_per_episode": (length + 1) * waves * n / batch,  # the first one brings the reset
            "barrier_seconds": work.barrier_seconds * length / (length + 1),
            "messages_per_episode": 2 * work.workers * (length + 1) * waves / batch,
            "lag_mean": 0.0,
            "lag_max": 0.0,
        }
        outside, whole = at_barriers / (at_barriers + update), found["steps_per_second"] / ideal
        found["waiting_at_barriers_share"] = outside - whole
        found["efficiency_outside_update"] = whole / outside
    found["episodes_per_second"] = found["steps_per_second"] / length
    found["efficiency"] = found["steps_per_second"] / ideal
    found["waiting_share"] = 1 - found["efficiency"]
    return found


def curve(recording: Recording) -> list[tuple[float, float, float]]:
    """Return (seconds since the learner was there, environment steps, mean return) of each update."""
    steps = np.cumsum([float(row["steps"]) for row in recording.rows]).tolist()
    return [
        (float(row["seconds"]), step, float(row["return_mean"]))
        for row, step in zip(recording.rows, steps, strict=True)
    ]


def mean(runs: Sequence[Figures]) -> dict[str, float]:
    """Return the mean of each figure over repetitions."""
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def all_at_work(samples: Sequence[Sample], workers: int, mode: Mode) -> float:
    """Return when so many workers were there and had their share of the slots; infinite if never.

    In sync that is at the end of the update then under way: until then the first comers host all.
    """
    present = [sample for sample in samples if sample.ready >= workers]
    if mode == "sync":
        present = [sample for sample in present if sample.version > present[0].version]
    return present[0].at if present else math.inf


def _gain(counts: Sequence[tuple[float, float]], began: float, ended: float, zero: float | None) -> float:
    """Return by how much a count grew between two times, a straight line between those of `counts`.

    Until `zero` it was 0, where that is known.
    """
    if zero is not None:
        counts = [(zero, 0.0), *((at, value) for at, value in counts if at > zero)]
    times, values = zip(*counts, strict=True)
    before, after = np.interp([began, ended], times, values).tolist()
    return float(after - before)
