"""Delays follow law and ticket, a slot is untouched until its time, and what is malformed is told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.errors import UserError
from protocol.messages import Version
from protocol.specs import EnvironmentSpec, PolicySpec
from protocol.tickets import Ticket, environment_seed
from rollout_worker.environments import registry
from rollout_worker.environments.delays import DelayedSlots, StepDelay, parse
from rollout_worker.environments.slots import SlotFailures
from rollout_worker.player import Player, play
from rollout_worker.probe import probe
from tests.rollout_worker.scripted_learner import ScriptedLearner, made_up_weights
from tests.rollout_worker.test_player import POLICIES, SPEC, Walk, run, same, train

CARTPOLE = EnvironmentSpec("CartPole-v1", {}, registry.describe("CartPole-v1", {}))
POLICY = PolicySpec(inputs=4, actions=2, hidden=(16,))
LAWS = {
    "constant:10ms": (0.010, 0.0),
    "straggler:8ms,50ms,0.05": (0.0101, 0.05 * 0.95 * 0.042**2),
    "exponential:10ms": (0.010, 1e-4),
    "lognormal:10ms,0.5": (0.010, 1e-4 * np.expm1(0.25)),
    "exponential:.5s,slow=0.25x3": (0.75, 0.75 * 2 * 0.5**2 + 0.25 * 2 * 1.5**2 - 0.75**2),
    "lognormal:200us,1.5,slow=0.1x4,blocking": (2.6e-4, 4e-8 * np.exp(2.25) * 2.5 - 2.6e-4**2),
}
"""Mean seconds and variance."""


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def delayed(text: str, time: Time, slots: int = 3, **walk: Any) -> DelayedSlots:
    return DelayedSlots(Walk(slots, **walk), parse(text), time, time.sleep)


def sample(delay: StepDelay, slot: int, seed: int, count: int) -> NDArray[np.float64]:
    return np.fromiter(islice(delay.draws(seed, slot), count), np.float64, count)


@pytest.mark.parametrize("text", LAWS)
def test_draws_follow_the_law(text: str) -> None:
    delay = parse(text)
    mean, variance = LAWS[text]
    assert delay.mean_seconds == pytest.approx(mean) and delay.variance == pytest.approx(variance, abs=1e-12)
    count = 20_000
    draws = sample(delay, 0, 7, count)
    assert draws.mean() == pytest.approx(delay.law.mean_seconds, rel=0.05)
    grid = np.quantile(draws, np.linspace(0, 1, 50))
    below = np.searchsorted(np.sort(draws), grid, "right") / count
    assert np.abs(below - (1 - delay.law.survival(grid))).max() < 1.95 / np.sqrt(count)  # KS, 0.1 %


@pytest.mark.parametrize("text", LAWS)
@pytest.mark.parametrize("n", [1, 10, 100])
def test_the_expected_maximum_is_that_of_a_simulation(text: str, n: int) -> None:
    delay, rounds = parse(text), 5000
    uniforms = np.random.default_rng(n).random(rounds * n)
    factors = np.array([delay.factor(slot) for slot in range(n)])
    maxima = (delay.law.quantile(uniforms).reshape(rounds, n) * factors).max(axis=1)
    error = 4.5 * maxima.std() / np.sqrt(rounds) + 1e-12
    assert delay.expected_maximum(n) == pytest.approx(maxima.mean(), abs=error)


def test_the_expected_maximum_is_exact_where_it_has_a_formula() -> None:
    assert parse("constant:10ms").expected_maximum(1000) == pytest.approx(0.010, rel=1e-13)
    bound = 0.050 - 0.042 * 0.95**100
    assert parse("straggler:8ms,50ms,0.05").expected_maximum(100) == pytest.approx(bound, rel=1e-13)
    harmonic = sum(1 / k for k in range(1, 101))
    assert parse("exponential:2s").expected_maximum(100) == pytest.approx(2 * harmonic, rel=1e-12)
    for sigma in (0.01, 0.5, 2):
        assert parse(f"lognormal:3s,{sigma}").expected_maximum(1) == pytest.approx(3, rel=1e-12)
    assert parse("constant:10ms,slow=0.01x4").expected_maximum(99) == pytest.approx(0.010, rel=1e-13)
    assert parse("constant:10ms,slow=0.01x4").expected_maximum(100) == pytest.approx(0.040, rel=1e-13)


def test_a_share_of_the_slots_is_slow_and_by_its_number() -> None:
    delay = parse("constant:10ms,slow=0.3x2")
    assert [slot for slot in range(10) if delay.factor(slot) == 2] == [3, 6, 9]
    assert delay.ideal_rate(10) == pytest.approx(7 / 0.010 + 3 / 0.020)
    assert sum(parse("constant:1s,slow=0.29x2").factor(slot) - 1 for slot in range(100)) == 29
    assert (sample(delay, 3, 1, 5) == 0.020).all() and (sample(delay, 4, 1, 5) == 0.010).all()


def test_delays_depend_on_the_seed_and_the_step_alone() -> None:
    delay = parse("exponential:10ms")
    assert (sample(delay, 0, 5, 300) == sample(delay, 9, 5, 300)).all()
    assert len(np.unique(sample(delay, 0, 5, 300))) == 300
    assert not (sample(delay, 0, 6, 300) == sample(delay, 0, 5, 300)).any()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is no law"),
        ("uniform:1ms", "'uniform' is no law"),
        ("constant", "constant takes 1 values, not 0"),
        ("constant:10", "'10' is no TIME"),
        ("constant:1e3ms", "'1e3ms' is no TIME"),
        ("constant:1.2.3ms", "'1.2.3' is no number"),
        ("constant:-1ms", "'-1ms' is no TIME"),
        ("constant:0ms", "'0ms' is not above 0"),
        ("constant:2000000ms,5000s", "constant takes 1 values, not 2"),
        ("exponential:3601s", "at most an hour"),
        ("straggler:8ms,50ms", "straggler takes 3 values, not 2"),
        ("straggler:8ms,50ms,1.5", "'1.5' is not between 0 and 1"),
        ("straggler:8ms,50ms,nan", "'nan' is no number"),
        ("straggler:8ms,50ms,", "'' is no number"),
        ("lognormal:10ms,0", "sigma 0 is not above 0"),
        ("constant:10ms,slow=0.1", "'slow=0.1' is not slow=SHARExFACTOR"),
        ("constant:10ms,slow=0.1x0.5", "the factor is not between 1 and 1000"),
        ("constant:10ms,slow=2x2", "'2' is not between 0 and 1"),
        ("constant:10ms,blocking,slow=0.1x4", "constant takes 1 values, not 2"),
        ("constant:10ms,sleeping", "constant takes 1 values, not 2"),
    ],
)
def test_a_malformed_delay_is_told_with_its_part_and_the_forms(text: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    told = str(caught.value)
    assert told.startswith(f"--step-delay {text}: ") and problem in told
    assert "straggler:TIME,TIME,PROBABILITY" in told and "\n" not in told


@given(st.text("constantstraggler:,.=x0123456789mµus") | st.text())
def test_no_text_does_worse_than_a_user_error(text: str) -> None:
    try:
        assert 0 < parse(text).mean_seconds < np.inf
    except UserError as error:
        assert text in str(error)


def test_a_scheduled_step_returns_at_once_and_its_slot_is_ready_later() -> None:
    time = Time()
    slots = delayed("straggler:8ms,50ms,0.5", time)
    seeds = np.array([3, 4, 5], np.uint64)
    slots.reset(np.arange(3), seeds, [{"slow": True}] * 3)
    plain = Walk(3)
    plain.reset(np.arange(3), seeds, [{"slow": True}] * 3)
    for step in range(4):
        time.now += 1
        pair = np.array([0, 2])
        for mine, its in zip(slots.step(pair, pair), plain.step(pair, pair), strict=True):
            np.testing.assert_array_equal(mine, its)
        wanted = [time.now + sample(slots.delay, 0, int(seeds[slot]), 4)[step] for slot in pair]
        assert slots.ready_at is not None and slots.ready_at.tolist() == [wanted[0], 0.0, wanted[1]]
    assert time.slept == []
    slots.wait(np.array([1]))
    assert time.slept == []
    slots.wait(pair)
    assert time.now == max(wanted)
    slots.reset(pair, seeds[pair], [{"slow": True}] * 2)
    assert slots.ready_at is not None and not slots.ready_at.any()
    assert slots.ready_at.tolist() == [0.0, 0.0, 0.0]


def test_a_blocking_step_sleeps_for_each_of_its_slots() -> None:
    time = Time()
    slots = delayed("constant:10ms,slow=0.34x4,blocking", time)
    slots.reset(np.arange(3), np.arange(3, dtype=np.uint64), [{"slow": True}] * 3)
    slots.step(np.arange(3), np.arange(3))
    assert slots.ready_at is None and time.slept == [pytest.approx(0.060)]
    slots.wait(np.arange(3))
    assert len(time.slept) == 1


def test_a_learner_s_numbers_say_which_slots_are_slow() -> None:
    slots = delayed("constant:10ms,slow=0.1x4", Time())
    slots.numbers = [8, 9, 10]
    slots.reset(np.arange(3), np.arange(3, dtype=np.uint64), [{"slow": True}] * 3)
    slots.step(np.arange(3), np.arange(3))
    assert slots.ready_at is not None
    np.testing.assert_allclose(slots.ready_at - 100.0, [0.010, 0.040, 0.010])


def test_the_neighbours_of_a_failure_are_delayed() -> None:
    slots = delayed("constant:10ms", Time(), raises_at=0)
    slots.reset(np.arange(3), np.array([0, 1, 1], np.uint64), [{}] * 3)
    with pytest.raises(SlotFailures):
        slots.step(np.arange(3), np.arange(3))
    assert slots.ready_at is not None and (slots.ready_at[1:] == 100.010).all()


@pytest.mark.parametrize("text", ["straggler:8ms,50ms,0.2,slow=0.2x3", "lognormal:10ms,1"])
def test_a_player_steps_slots_whose_time_has_come_and_nothing_else_changes(text: str) -> None:
    time, tickets = Time(), train(*range(30))
    environments = delayed(text, time, slots=5)
    stepped: list[tuple[float, int]] = []
    inner_step = environments.step

    def step(slots: NDArray[np.int64], actions: NDArray[np.int64]) -> Any:
        assert environments.ready_at is not None and (environments.ready_at[slots] <= time.now).all()
        stepped.extend((time.now, slot) for slot in slots.tolist())
        return inner_step(slots, actions)

    environments.step = step  # type: ignore[method-assign]  # looks on
    player = Player(environments, SPEC, run_seed=3, clock=time)
    waiting, ended = list(tickets), dict[Ticket, Any]()
    began, lasted = dict[Ticket, float](), dict[Ticket, float]()
    while waiting or player.playing:
        while waiting and player.idle:
            ticket = waiting.pop(0)
            player.start(ticket, Version(1, ticket.number % 3), POLICIES[ticket.number % 3])
            began[ticket] = time.now
        assert player.due_in_seconds == 0
        for result in player.advance():
            ended[result.ticket], lasted[result.ticket] = result, time.now - began[result.ticket]
        if player.playing and (seconds := player.due_in_seconds) > 0:
            passes, steps = player.passes, player.steps
            assert player.advance() == [] and (player.passes, player.steps) == (passes + 1, steps)
            time.now += seconds
            while player.due_in_seconds > 0:  # the sum was rounded down
                time.now = float(np.nextafter(time.now, np.inf))
    assert player.due_in_seconds == np.inf and len(stepped) == player.steps
    undelayed = run(Player(Walk(5), SPEC, run_seed=3), tickets)
    for ticket in tickets:
        assert same(ended[ticket], undelayed[ticket])
        draws = sample(parse(text), 0, environment_seed(3, ticket), ended[ticket].length).sum()
        ratio = lasted[ticket] / draws
        factors = [parse(text).factor(slot) for slot in range(5)]
        assert min(abs(ratio - factor) for factor in factors) < 1e-6


def test_an_abandoned_step_is_not_waited_for() -> None:
    time = Time()
    player = Player(delayed("constant:1s", time, slots=1), SPEC, run_seed=3, clock=time)
    for ticket in train(1, 3):
        player.start(ticket, Version(1, 0), POLICIES[0])
        player.advance()
        assert player.due_in_seconds == 1.0
        player.abandon([ticket])
        assert player.due_in_seconds == np.inf
    assert player.steps == 2


def test_the_registry_delays_and_neither_probe_nor_play_does() -> None:
    spec = replace(CARTPOLE, step_delay="constant:3600s")
    environments = registry.build(spec, 2)
    assert isinstance(environments, DelayedSlots) and environments.ready_at is not None
    assert probe(environments, spec, POLICY) == probe(registry.build(CARTPOLE, 2), CARTPOLE, POLICY)
    (episode,) = play(spec, POLICY, made_up_weights(POLICY), 1, train(0))
    assert episode.length > 1
    with pytest.raises(UserError, match="'never' is no law"):
        registry.build(replace(spec, step_delay="never"), 2)
    assert not isinstance(registry.build(CARTPOLE, 1), DelayedSlots)


@pytest.mark.parametrize("text", ["straggler:1ms,20ms,0.05", "constant:1ms,blocking"])
def test_a_worker_process_takes_the_time_and_plays_the_same(text: str) -> None:
    spec = replace(CARTPOLE, step_delay=text)
    learner = ScriptedLearner(spec, POLICY, tickets=12)
    command = [sys.executable, "-m", "rollout_worker", "--learner", learner.address, "--slots", "4"]
    worker = subprocess.Popen(command)
    try:
        learner.until(lambda: len(learner.episodes) == 12)
    finally:
        worker.kill()
        worker.wait()
        learner.close()
    weights = made_up_weights(POLICY)
    for undelayed in play(CARTPOLE, POLICY, weights, learner.welcome().run_seed, train(*range(12))):
        episode = learner.episodes[undelayed.ticket.number]
        assert episode.actions.tobytes() == undelayed.actions.tobytes()
        seed = environment_seed(learner.welcome().run_seed, episode.ticket)
        assert episode.seconds >= sample(parse(text), 0, seed, episode.length).sum()
