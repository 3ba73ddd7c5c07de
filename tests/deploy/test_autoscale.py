"""Autoscaling: a simulated fleet that the learner's own measure looks at, and a real learner's recording."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from deploy.fleet.autoscale import START_SECONDS, UP_SECONDS, Load, Pool, Rule, State, decide, load_of
from learner.load import LoadWindow
from protocol.errors import UserError

RECORDING: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "learner_load.json").read_text())
TURN_SECONDS = 0.1
RULE = Rule(1, 64, 0.9)


def recorded_loads() -> list[tuple[float, int, Load]]:
    """Return time, ready workers and load of each second of the recording."""
    rows = [dict(zip(RECORDING["columns"], row, strict=True)) for row in RECORDING["loads"]]
    found = [(row.pop("at"), row.pop("ready"), load_of({"load": row, "version": 0})) for row in rows]
    return [(at, ready, load) for at, ready, load in found if load is not None]


@dataclass
class Simulation:
    """Workers, the ticket gate and a trainer, in turns of a tenth of a second; `control` asks for workers.

    What the controller reads is the learner's own `LoadWindow`.
    """

    update_seconds: Callable[[int], float]
    episode_seconds: Callable[[], float]
    batch: int = 40
    max_lag: int = 2
    slots: int = 4
    start_seconds: float = 5.0
    granted: int = 10_000
    """As many workers as the engine gives."""
    now: float = 0.0
    desired: int = 0
    version: int = 0
    issued: int = 0
    received: int = 0
    done_at: float = math.inf
    workers: list[tuple[float, list[float]]] = field(default_factory=list)
    """When each is ready, and when each of its slots has finished its episode; infinite where it has none."""
    window: LoadWindow = field(default_factory=LoadWindow)
    counts: list[tuple[float, int, str]] = field(default_factory=list)
    """What was asked for, when and why; changes only."""
    reason: str = ""
    """Of the last decision."""

    def turn(self) -> None:
        """Let a tenth of a second pass."""
        self.now += TURN_SECONDS
        if self.now >= self.done_at:
            self.version, self.done_at = self.version + 1, math.inf
            self.window.waits(self.now)
        for ready_at, slots in self.workers:
            for slot, ends_at in enumerate(slots if ready_at <= self.now else ()):
                if ends_at <= self.now:
                    self.received, slots[slot] = self.received + 1, math.inf
                if slots[slot] == math.inf and self.issued < (self.version + self.max_lag + 1) * self.batch:
                    self.issued, slots[slot] = self.issued + 1, self.now + self.episode_seconds()
        if self.done_at == math.inf:
            self.window.waits(self.now)
            if self.received >= self.batch:
                self.received -= self.batch
                self.done_at = self.now + self.update_seconds(self.version)
                self.window.works(self.now)
        ready = [slots for ready_at, slots in self.workers if ready_at <= self.now]
        busy = sum(ends_at < math.inf for slots in ready for ends_at in slots)
        self.window.sample(len(ready) * self.slots, busy, self.now)

    def scale(self, count: int) -> None:
        """Be the engine: start what is missing and is granted, stop the newest that are too many."""
        self.desired = count
        while len(self.workers) < min(count, self.granted):
            self.workers.append((self.now + self.start_seconds, [math.inf] * self.slots))
        while len(self.workers) > count:
            self.kill(len(self.workers) - 1)

    def kill(self, worker: int) -> None:
        """End a worker; its tickets are issued again."""
        self.issued -= sum(ends_at < math.inf for ends_at in self.workers.pop(worker)[1])

    @property
    def ready(self) -> int:
        """Return how many workers are ready."""
        return sum(ready_at <= self.now for ready_at, _ in self.workers)

    def control(self, rule: Rule, seconds: float, state: State | None = None) -> State:
        """Run for so long, and ask the controller each second; return its state."""
        state, end, asked_at = state or State(), self.now + seconds, self.now
        while self.now < end:
            self.turn()
            if self.now >= asked_at:
                asked_at += 1.0
                load = load_of({"load": self.window.load(self.now).to_plain(), "version": self.version})
                pool = Pool(self.desired, self.ready, self.slots)
                state, count, self.reason = decide(rule, state, load, pool, self.now)
                assert rule.minimum <= count <= rule.maximum
                if count != self.desired:
                    self.counts.append((self.now, count, self.reason))
                self.scale(count)
        return state

    @property
    def content(self) -> bool:
        """Say whether the trainer is about as busy as it shall be, or more workers would not help."""
        busy = self.window.load(self.now).learner_busy or 0.0
        return busy > 0.75 or "--max-lag" in self.reason or "had a ticket" in self.reason


def simulation(update_seconds: float, episode_seconds: float, seed: int = 0, **options: Any) -> Simulation:
    """Return a fleet whose updates and episodes take so long on average, lognormal both."""
    draw = random.Random(seed)
    return Simulation(
        update_seconds=lambda update: update_seconds * draw.lognormvariate(-0.005, 0.1),
        episode_seconds=lambda: episode_seconds * draw.lognormvariate(-0.045, 0.3),
        **options,
    )


def ideal(update_seconds: float, episode_seconds: float, batch: int = 40, slots: int = 4) -> float:
    """Return how many workers bring a batch in the time of an update."""
    return batch * episode_seconds / update_seconds / slots


@pytest.mark.parametrize("workers", [1, 40], ids=["from below", "from above"])
@pytest.mark.parametrize(("update", "episode"), [(2.0, 2.0), (1.0, 1.5), (5.0, 1.0), (20.0, 40.0)])
def test_a_constant_load_finds_its_size_and_stays_there(update: float, episode: float, workers: int) -> None:
    fleet = simulation(update, episode)
    fleet.scale(workers)
    state = fleet.control(RULE, 1500.0)
    settled = len(fleet.counts)
    fleet.control(RULE, 1000.0, state)
    assert len(fleet.counts) <= settled + 2, fleet.counts  # a smaller size, tried and taken back
    assert fleet.desired <= math.ceil(ideal(update, episode) * 1.4) + 1 and fleet.content, fleet.counts


def test_growth_is_quick_and_does_not_ask_twice_for_those_who_are_starting() -> None:
    fleet = simulation(4.0, 8.0, start_seconds=20.0)
    fleet.scale(4)
    fleet.control(RULE, 400.0)
    counts = [4, *(count for _, count, _ in fleet.counts)]
    assert counts == sorted(counts), fleet.counts
    assert all(after <= 4 * before for before, after in pairwise(counts)), fleet.counts
    assert counts[-1] <= ideal(4.0, 8.0) * 1.4 and fleet.content, fleet.counts
    times = [at for at, _, _ in fleet.counts]
    assert all(later - at >= 20.0 for at, later in pairwise(times))
    assert "learner busy" in fleet.counts[-1][2] and "target 90%" in fleet.counts[-1][2]


def test_a_worker_that_dies_does_not_make_the_fleet_shrink() -> None:
    fleet = simulation(2.0, 2.0)
    fleet.scale(10)
    state = fleet.control(RULE, 600.0)
    size = fleet.desired
    for _ in range(5):
        fleet.granted = size - 1  # its engine has no other for now
        fleet.kill(0)
        state = fleet.control(RULE, 100.0, state)
        assert fleet.desired >= size, fleet.counts
        fleet.granted = 10_000
        state = fleet.control(RULE, 30.0, state)
    assert fleet.desired <= size * 1.4, fleet.counts


def test_what_an_engine_does_not_give_is_not_asked_for_without_end() -> None:
    fleet = simulation(4.0, 8.0, granted=6)
    fleet.scale(4)
    fleet.control(RULE, 900.0)
    assert fleet.desired <= ideal(4.0, 8.0) * 1.4, fleet.counts


def test_a_load_that_falls_is_followed_slowly_and_one_that_rises_at_once() -> None:
    fleet = simulation(2.0, 2.0)
    fleet.scale(10)
    state = fleet.control(RULE, 300.0)
    fleet.update_seconds = lambda update: 8.0
    state = fleet.control(RULE, 900.0, state)
    assert fleet.desired <= 4, fleet.counts
    fleet.update_seconds = lambda update: 2.0
    began = fleet.now
    fleet.control(RULE, 200.0, state)
    assert fleet.desired >= 8, fleet.counts
    assert next(at for at, _, _ in fleet.counts if at > began) < began + 60.0


def test_stragglers_under_a_tight_gate_do_not_make_it_grow_without_end() -> None:
    draw = random.Random(1)
    fleet = simulation(0.5, 1.0, max_lag=0)
    fleet.episode_seconds = lambda: 30.0 if draw.random() < 0.02 else 1.0
    fleet.scale(4)
    fleet.control(Rule(1, 1000, 0.9), 600.0)
    assert fleet.desired * fleet.slots <= 2 * fleet.batch, fleet.counts


def test_a_pool_without_workers_starts_one_only_where_nobody_else_plays() -> None:
    rule, empty = Rule(0, 8, 0.9), Load(0.0, 30.0, 0.0, 0.0, 0, 0)
    _, count, reason = decide(rule, State(), empty, Pool(0, 0, 4), 0.0)
    assert (count, reason) == (1, "no worker is there: 0 -> 1 worker")
    assert decide(rule, State(), empty, Pool(0, 0, 4, coming=4), 0.0)[1] == 0
    assert decide(rule, State(), empty, Pool(1, 0, 4), 0.0)[1] == 1
    assert decide(rule, State(), Load(0.97, 30.0, 40.0, 20.0, 40, 40), Pool(0, 0, 4), 0.0)[1] == 0


def test_an_autoscaled_pool_beside_a_fixed_one_brings_what_that_leaves() -> None:
    load = Load(0.6, 30.0, 80.0, 79.0, 80, 80)
    _, count, reason = decide(Rule(0, 64, 0.9), State(), load, Pool(2, 2, 4), 0.0)
    assert (count, reason) == (12, "learner busy 60% of the last 30 s, target 90%: 2 -> 12 workers")
    assert decide(Rule(0, 64, 0.9), State(), load, Pool(2, 2, 4, coming=20), 0.0)[1] == 7


def test_it_says_why_it_holds_still() -> None:
    def reason(load: Load | None, pool: Pool, state: State = State()) -> str:  # noqa: B008 - frozen
        return decide(Rule(1, 8, 0.9), state, load, pool, 100.0)[2]

    assert reason(None, Pool(2, 2, 4)) == "the learner reports no load: 2 workers, as it is"
    assert "no update is done" in reason(Load(None, 3.0, 8.0, 8.0, 8, 8), Pool(2, 2, 4))
    assert "no worker is ready" in reason(Load(0.1, 30.0, 0.0, 0.0, 0, 0), Pool(2, 0, 4))
    assert "max = 8" in reason(Load(0.1, 30.0, 32.0, 32.0, 32, 32), Pool(8, 8, 4))
    assert "--max-lag" in reason(Load(0.5, 30.0, 32.0, 8.0, 32, 32), Pool(8, 8, 4))
    waits = reason(Load(0.4, 30.0, 8.0, 8.0, 8, 8), Pool(4, 2, 4), State(changed_at=100 - UP_SECONDS))
    assert waits.endswith("4 workers, waits for 2 on their way") and START_SECONDS > UP_SECONDS


@pytest.mark.parametrize(
    ("minimum", "maximum", "target"),
    [
        (0, None, "learner_busy:0.9"),
        (4, 2, "learner_busy:0.9"),
        (-1, 2, "learner_busy:0.9"),
        (0, 0, "learner_busy:0.9"),
        (0, 2, "learner_busy:1.5"),
        (0, 2, "learner_busy:nan"),
        (0, 2, "learner_busy"),
        (0, 2, "cpu:0.9"),
    ],
)
def test_a_wrong_rule_is_refused_in_words(minimum: int, maximum: int | None, target: str) -> None:
    with pytest.raises(UserError, match=r"max|target"):
        Rule.of(minimum, maximum, target)
    assert Rule.of(0, 64, "learner_busy:0.9") == Rule(0, 64, 0.9)


shares = st.floats(0, 1)
sizes = st.integers(0, 10_000)
loads = st.none() | st.builds(
    Load,
    st.none() | shares,
    st.floats(0, 1800),
    st.floats(0, 10_000),
    st.floats(0, 10_000),
    sizes,
    sizes,
)


@given(
    st.tuples(sizes, sizes).map(sorted).filter(lambda pair: pair[1] > 0),
    st.lists(st.tuples(loads, st.floats(0, 1), sizes, st.floats(0.01, 1000)), min_size=1, max_size=20),
    st.integers(0, 20_000),
    st.integers(1, 1000),
)
def test_the_bounds_hold_whatever_is_reported(
    bounds: Sequence[int],
    events: Sequence[tuple[Load | None, float, int, float]],
    desired: int,
    slots: int,
) -> None:
    rule, state, now = Rule(bounds[0], bounds[1], 0.9), State(), 0.0
    for load, ready, coming, seconds in events:
        now += seconds
        pool = Pool(desired, int(ready * desired), slots, coming)
        state, desired, reason = decide(rule, state, load, pool, now)
        assert rule.minimum <= desired <= rule.maximum
        assert reason and "\n" not in reason


@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    st.floats(0.3, 10.0),
    st.floats(0.3, 10.0),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(1, 16),
    st.integers(0, 2**32),
)
def test_any_constant_load_settles(
    update: float, episode: float, workers: int, max_lag: int, slots: int, seed: int
) -> None:
    fleet = simulation(update, episode, seed, max_lag=max_lag, slots=slots)
    fleet.scale(workers)
    state = fleet.control(RULE, 900.0)
    before = len(fleet.counts)
    fleet.control(RULE, 600.0, state)
    assert len(fleet.counts) - before <= 3, fleet.counts
    assert fleet.desired == 64 or fleet.content, fleet.counts


def test_a_real_learners_recorded_updates_are_kept_busy() -> None:
    seconds = RECORDING["update_seconds"]
    fleet = simulation(1.0, 0.5, slots=RECORDING["slots_per_worker"], start_seconds=2.0)
    fleet.update_seconds = lambda update: float(seconds[update % len(seconds)])
    fleet.scale(1)
    state = fleet.control(RULE, 600.0)
    before = len(fleet.counts)
    fleet.control(RULE, 300.0, state)
    assert len(fleet.counts) - before <= 1 and fleet.content, fleet.counts
    mean = sum(seconds) / len(seconds)
    assert fleet.desired <= math.ceil(1.4 * ideal(mean, 0.5, slots=fleet.slots)) + 1, fleet.counts


def test_every_moment_of_a_real_learners_recording_asks_for_about_the_same_size() -> None:
    asked = [
        decide(Rule(1, 64, 0.9), State(), load, Pool(ready, ready, RECORDING["slots_per_worker"]), at)[1]
        for at, ready, load in recorded_loads()
        if ready and load.learner_busy is not None and load.window_seconds >= 20
    ]
    assert len(asked) > 60 and all(2 <= count <= 16 for count in asked), asked
