"""A delayed slot is untouched until its time, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.errors import UserError
from protocol.messages import Version
from protocol.specs import EnvironmentSpec, PolicySpec
from protocol.tickets import Ticket, environment_seed
from rollout_worker.environments import registry
from rollout_worker.environments.delayed_slots import DelayedSlots
from rollout_worker.environments.delays import parse
from rollout_worker.environments.slots import SlotFailures
from rollout_worker.player import Player
from rollout_worker.probe import probe
from rollout_worker.rollout import play
from tests.rollout_worker.scripted_learner import ScriptedLearner, made_up_weights
from tests.rollout_worker.test_delays import sample
from tests.rollout_worker.test_player import POLICIES, SPEC, Walk, run, same, train

CARTPOLE = EnvironmentSpec("CartPole-v1", {}, registry.describe("CartPole-v1", {}))
POLICY = PolicySpec(inputs=4, actions=2, hidden=(16,))


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
