"""Episodes depend on ticket and weights alone, failures stay with their ticket, probes tell hosts apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.errors import FleetError
from protocol.messages import Arrays, Episode, Failure, Version
from protocol.specs import EnvironmentSpec, PolicySpec, Spaces
from protocol.tickets import Ticket, mix64
from rollout_worker.environments.slots import SlotFailures, StepResult
from rollout_worker.player import Player, Step
from rollout_worker.policy import Policy
from rollout_worker.probe import probe

ACTIONS, SIZE, LONGEST = 3, 4, 300
SPACES = Spaces(SIZE, "float32", ACTIONS, False, LONGEST)
SPEC = EnvironmentSpec(
    "walk", {}, SPACES, train_scenarios=({}, {"slow": True}), evaluate_scenarios=({"greedy": True},)
)
POLICY = PolicySpec(inputs=SIZE, actions=ACTIONS, hidden=(8,))


class Walk:
    """Hashes seed and actions into its observations; ends by itself after 1 to 200 steps, slow ones never."""

    observation_size, actions, masked, max_episode_steps = SIZE, ACTIONS, False, LONGEST
    ready_at: NDArray[np.float64] | None = None
    observation_dtype = np.dtype(np.float32)

    def __init__(self, slots: int, raises_at: int = -1, shows_nan: bool = False) -> None:
        self.slots, self.raises_at, self.shows_nan = slots, raises_at, shows_nan
        self.state, self.left = np.zeros(slots, np.uint64), np.zeros(slots, np.int64)

    def reset(
        self, slots: NDArray[np.int64], seeds: NDArray[np.uint64], scenarios: Sequence[Mapping[str, Any]]
    ) -> NDArray[Any]:
        assert all(scenario in ({}, {"slow": True}) for scenario in scenarios)
        self.state[slots] = seeds
        slow = np.array([bool(scenario) for scenario in scenarios])
        self.left[slots] = np.where(slow, 10 * LONGEST, seeds % np.uint64(200) + np.uint64(1))
        return self.shown(slots)

    def step(self, slots: NDArray[np.int64], actions: NDArray[np.int64]) -> StepResult:
        self.state[slots] = mix64(self.state[slots] + actions.astype(np.uint64))
        self.left[slots] -= 1
        rewards = (actions - 1).astype(np.float32)
        ended = self.left[slots] == 0
        result = self.shown(slots), rewards, ended, np.zeros(len(slots), np.bool_)
        if failed := [slot for slot in slots.tolist() if self.left[slot] == self.raises_at]:
            raise SlotFailures({slot: RuntimeError("it broke\nand more") for slot in failed}, result)
        return result

    def shown(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = self.state[slots, np.newaxis] >> np.arange(0, 64, 16, dtype=np.uint64) & np.uint64(0xFFFF)
        observations: NDArray[np.float32] = parts.astype(np.float32) / np.float32(2**15) - np.float32(1)
        return np.full_like(observations, np.nan) if self.shows_nan else observations

    def close(self) -> None: ...


class Cheaper(Walk):
    """The same but for its rewards."""

    def step(self, slots: NDArray[np.int64], actions: NDArray[np.int64]) -> StepResult:
        observations, rewards, terminated, truncated = super().step(slots, actions)
        return observations, rewards - 1, terminated, truncated


class Leaky(Walk):
    """Counts the episodes of a slot and shows the count at one step, in its observation or reward."""

    def __init__(self, slots: int, shows_at: int) -> None:
        super().__init__(slots)
        self.shows_at, self.episodes, self.at = shows_at, np.zeros(slots), np.zeros(slots, np.int64)

    def reset(
        self, slots: NDArray[np.int64], seeds: NDArray[np.uint64], scenarios: Sequence[Mapping[str, Any]]
    ) -> NDArray[Any]:
        self.episodes[slots] += 1
        self.at[slots] = 0
        observations = super().reset(slots, seeds, scenarios)
        return observations + (self.shows_at == 0) * self.episodes[slots, np.newaxis].astype(np.float32)

    def step(self, slots: NDArray[np.int64], actions: NDArray[np.int64]) -> StepResult:
        observations, rewards, terminated, truncated = super().step(slots, actions)
        self.at[slots] += 1
        leak = (self.at[slots] == self.shows_at) * self.episodes[slots].astype(np.float32)
        return observations, rewards + leak, terminated, truncated


def weights(seed: int) -> Arrays:
    draw = np.random.default_rng(seed)
    return {name: draw.normal(0, 1, shape).astype(np.float32) for name, shape in POLICY.shapes().items()}


POLICIES = [Policy(POLICY, weights(seed)) for seed in range(3)]


def train(*numbers: int) -> list[Ticket]:
    return [Ticket("train", number) for number in numbers]


def run(
    player: Player, tickets: Sequence[Ticket], twice: Sequence[Ticket] = ()
) -> dict[Ticket, Episode | Failure]:
    """Play tickets, number n under version n % 3, and some of them twice."""
    waiting, ended = list(tickets), dict[Ticket, Episode | Failure]()
    while waiting or player.playing:
        while waiting and player.idle:
            ticket = waiting.pop(0)
            version = ticket.number % 3
            player.start(ticket, Version(1, version), POLICIES[version], ticket in twice)
        ended |= {result.ticket: result for result in player.advance()}
    return ended


def same(a: object, b: object) -> bool:
    assert isinstance(a, Episode) and isinstance(b, Episode)
    names = ("observations", "actions", "rewards", "log_probs")
    arrays = all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in names)
    return arrays and replace(a, seconds=0, **_no_arrays) == replace(b, seconds=0, **_no_arrays)


_no_arrays: dict[str, Any] = dict.fromkeys(("observations", "actions", "rewards", "log_probs"))


@pytest.mark.parametrize("slots", [2, 7, 40])
def test_an_episode_depends_on_its_ticket_and_weights_alone(slots: int) -> None:
    tickets = train(*range(60))
    alone = run(Player(Walk(1), SPEC, run_seed=3), tickets)
    order = np.random.default_rng(slots).permutation(60)
    together = run(Player(Walk(slots), SPEC, run_seed=3), [tickets[i] for i in order])
    assert together.keys() == alone.keys()
    assert all(same(alone[ticket], together[ticket]) for ticket in tickets)
    other_run = run(Player(Walk(1), SPEC, run_seed=4), tickets[:2])
    assert not same(alone[tickets[0]], other_run[tickets[0]])


def test_episodes_are_whole_and_truncated_ones_say_so() -> None:
    player = Player(Walk(8), SPEC, run_seed=3, run="run", session="session")
    ended = run(player, train(*range(20)))
    for ticket, episode in ended.items():
        assert isinstance(episode, Episode)
        length = episode.length
        assert episode.terminated == (ticket.number % 2 == 0) and (episode.terminated or length == LONGEST)
        assert (episode.run, episode.session, episode.version) == (
            "run",
            "session",
            Version(1, ticket.number % 3),
        )
        assert episode.observations.shape == (length + 1, SIZE) and episode.actions.shape == (length,)
        dtypes = [getattr(episode, name).dtype.name for name in _no_arrays]
        assert dtypes == ["float32", "uint8", "float32", "float32"]
        assert (episode.rewards == episode.actions.astype(np.float32) - 1).all() and (
            episode.log_probs < 0
        ).all()
    assert player.steps == sum(episode.length for episode in ended.values() if isinstance(episode, Episode))


def test_an_abandoned_ticket_leaves_nothing_and_may_be_played_again() -> None:
    player = Player(Walk(4), SPEC, run_seed=3)
    for ticket in train(0, 2, 4, 6):
        player.start(ticket, Version(1, 0), POLICIES[0])
    player.abandon(train(6, 99))
    player.advance()
    player.abandon(train(0, 4))
    assert player.idle == 3
    expected = run(Player(Walk(1), SPEC, run_seed=3), train(0, 6))
    ended = run(player, train(0, 6))
    assert all(same(expected[ticket], ended[ticket]) for ticket in train(0, 6))


def shown(player: Player, steps: list[Step]) -> dict[Ticket, list[int]]:
    """Return the slots in which each ticket was played, in order."""
    slots: dict[Ticket, list[int]] = {}
    for step in steps:
        if step.number == 0:
            slots.setdefault(step.ticket, []).append(step.slot)
    return slots


@pytest.mark.parametrize("slots", [1, 2, 7])
def test_a_ticket_may_be_played_twice_in_two_slots_and_changes_nothing(slots: int) -> None:
    tickets, steps = train(*range(40)), list[Step]()
    alone = run(Player(Walk(1), SPEC, run_seed=3), tickets)
    player = Player(Walk(slots), SPEC, run_seed=3, on_step=steps.append)
    ended = run(player, tickets, twice=train(0, 7, 8, 39))
    assert all(same(alone[ticket], ended[ticket]) for ticket in tickets)
    played_in = shown(player, steps)
    for ticket in tickets:
        if ticket in train(0, 7, 8, 39):
            first, second = played_in[ticket]
            assert (first == second) == (slots == 1)
        else:
            assert len(played_in[ticket]) == 1


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("shows_at", [0, 1, 40])
def test_an_environment_that_does_not_reset_fully_fails_finally(slots: int, shows_at: int) -> None:
    player = Player(Leaky(slots, shows_at), SPEC, run_seed=3)
    run(player, train(2, 4, 6))  # slots of one, two or three episodes
    ended = run(player, train(1, 3, 5), twice=train(1))
    reason = (
        f"the environment does not reset fully: ticket train:1 differs at step {shows_at} when played again"
    )
    assert ended[Ticket("train", 1)] == Failure(Ticket("train", 1), reason, final=True)
    assert isinstance(ended[Ticket("train", 3)], Episode) and player.idle == slots


def test_an_episode_that_ends_elsewhere_the_second_time_differs_where_the_shorter_one_ends() -> None:
    walk = Walk(1)
    player = Player(walk, SPEC, run_seed=3)
    ticket = Ticket("train", 0)
    length = run(Player(Walk(1), SPEC, run_seed=3), [ticket])[ticket]
    assert isinstance(length, Episode)
    player.start(ticket, Version(1, 0), POLICIES[0], twice=True)
    while player.begun < 2:
        assert not player.advance()
    walk.left[0] = 2  # one step was made
    ended = [result for _ in range(2) for result in player.advance()]
    assert [result.reason for result in ended if isinstance(result, Failure)] == [
        "the environment does not reset fully: ticket train:0 differs at step 3 when played again"
    ]


def test_a_ticket_that_waits_for_another_slot_can_be_abandoned() -> None:
    player = Player(Walk(2), SPEC, run_seed=3)
    short, endless = Ticket("train", 0), Ticket("train", 1)
    player.start(endless, Version(1, 0), POLICIES[0])
    player.start(short, Version(1, 0), POLICIES[0], twice=True)
    while player.playing == 2:
        assert not player.advance()
    player.abandon([short])
    player.abandon([endless])
    assert (player.idle, player.playing) == (2, 0)


def test_a_failure_stays_with_its_ticket() -> None:
    tickets = train(*range(0, 40, 2))
    healthy = run(Player(Walk(5), SPEC, run_seed=3), tickets)
    ended = run(Player(Walk(5, raises_at=100), SPEC, run_seed=3), tickets)
    failed = {ticket for ticket, result in ended.items() if isinstance(result, Failure)}
    assert failed == {
        ticket for ticket, result in healthy.items() if isinstance(result, Episode) and result.length > 100
    }
    assert failed and failed != set(tickets)
    assert all(ended[ticket] == Failure(ticket, "RuntimeError: it broke") for ticket in failed)
    assert all(same(ended[ticket], healthy[ticket]) for ticket in set(tickets) - failed)


def test_an_environment_that_raises_for_all_and_one_that_shows_nan_fail_their_tickets() -> None:
    broken = Walk(3)
    broken.step = lambda slots, actions: 1 / 0  # type: ignore[method-assign,assignment,return-value]  # raises
    assert set(run(Player(broken, SPEC, 1), train(0, 1, 2)).values()) == {
        Failure(ticket, "ZeroDivisionError: division by zero") for ticket in train(0, 1, 2)
    }
    (failure,) = run(Player(Walk(1, shows_nan=True), SPEC, 1), train(0)).values()
    assert isinstance(failure, Failure) and "not all finite" in failure.reason


def test_greedy_scenarios_play_the_most_probable_action() -> None:
    ticket = Ticket("evaluate", 0)
    (episode,) = run(Player(Walk(1), SPEC, run_seed=3), [ticket]).values()
    assert isinstance(episode, Episode)
    greedy = POLICIES[0].logits(episode.observations[:-1]).argmax(axis=1)
    assert (episode.actions == greedy).all()


def test_the_probe_is_the_same_for_any_number_of_slots_and_differs_with_the_environment() -> None:
    probes = {probe(Walk(slots), SPEC, POLICY) for slots in (1, 3, 50)}
    assert len(probes) == 1
    assert probe(Cheaper(2), SPEC, POLICY) not in probes
    assert probe(Walk(2), SPEC, replace(POLICY, hidden=(9,))) not in probes
    broken = Walk(2)
    broken.reset = lambda slots, seeds, scenarios: 1 / 0  # type: ignore[method-assign,assignment,return-value]  # raises
    with pytest.raises(FleetError, match="cannot begin an episode: ZeroDivisionError"):
        probe(broken, SPEC, POLICY)
