"""The synchronous collector: the same episodes whatever the workers do, and what goes wrong with tickets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from learner.config import PPOConfig, RunConfig
from learner.evaluation_requests import Evaluation
from learner.inference import Actor
from learner.models import policy_spec
from learner.registry import Registry
from learner.step_hook import Hook, Round
from learner.step_record import StepRecorder, read_record
from learner.synchronous import NOT_REPRODUCIBLE, SynchronousCollector
from protocol.codec import encode
from protocol.messages import Arrays, Episode, Version, Welcome
from protocol.sockets.learner import bind_learner
from protocol.sockets.worker import connect_episodes
from protocol.specs import EnvironmentSpec
from protocol.step_messages import Stepped
from tests.learner.scripted_hosts import SPACES, ScriptedHost, length, observation, reward

ENVIRONMENT = EnvironmentSpec("toy", {}, SPACES, evaluate_scenarios=({}, {"greedy": True}))
POLICY = policy_spec(ENVIRONMENT, PPOConfig(hidden=(8,), normalise_observations=True))
DEADLINE_SECONDS = 30.0


def config(**changes: Any) -> RunConfig:
    plain: dict[str, Any] = {"mode": "sync", "max_lag": 0, "n_envs": 7, "total_episodes": 80}
    return RunConfig(
        **(plain | {"episodes_per_update": 20, "heartbeat_seconds": 0.1, "liveness_seconds": 0.5} | changes)
    )


def weights(version: int) -> Arrays:
    draw = np.random.default_rng(version)
    return {name: draw.normal(0, 0.5, shape).astype(np.float32) for name, shape in POLICY.shapes().items()}


class Run:
    """A collector and its scripted workers; its updates make up weights."""

    def __init__(
        self,
        config: RunConfig,
        workers: int,
        hook: Hook | None = None,
        recorder: StepRecorder | None = None,
        state: dict[str, Any] | None = None,
        incarnation: int = 1,
    ) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets = bind_learner(self.context, "127.0.0.1", None)
        welcome = Welcome("run", 5, incarnation, "sync", ENVIRONMENT, POLICY, 0.05, config.liveness_seconds)
        self.registry = Registry(config, welcome, "0.1.0", time.monotonic(), state)
        self.collector = SynchronousCollector(self.registry, self.sockets, recorder, hook)
        self.collector.__enter__()
        self.version = state["version"] if state else 0
        self.collector.inherit(self.version, weights(self.version))
        self.workers: list[ScriptedHost] = []
        for _ in range(workers):
            self.join()

    def join(self, **changes: Any) -> ScriptedHost:
        name = f"worker-{len(self.workers)}"
        self.workers.append(ScriptedHost(self.context, self.sockets.ports, name, member=True, **changes))
        return self.workers[-1]

    def turn(self) -> None:
        for worker in self.workers:
            worker.serve()

    def batch(self, amid: Callable[[], None] = lambda: None) -> list[Episode]:
        """Play one batch; `amid` is called between any two turns."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (batch := self.collector.next_batch(0.002)) is None:
            assert time.monotonic() < deadline, self.collector.view
            self.turn()
            amid()
        return batch

    def publish(self) -> None:
        self.version += 1
        self.collector.publish(self.version, weights(self.version))

    def evaluate(self, episodes: int) -> Evaluation:
        self.collector.request_evaluation(self.version, episodes)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (evaluation := self.collector.next_evaluation(0.002)) is None:
            assert time.monotonic() < deadline
            self.turn()
        return evaluation

    def close(self) -> None:
        self.collector.__exit__(None, None, None)
        self.sockets.__exit__(None, None, None)
        self.context.destroy(linger=0)


RunMaker = Callable[..., Run]


@pytest.fixture
def start() -> Iterator[RunMaker]:
    runs: list[Run] = []

    def make(*arguments: Any, **named: Any) -> Run:
        runs.append(Run(*arguments, **named))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


def content(batches: list[list[Episode]]) -> list[tuple[Any, ...]]:
    """Return all that training uses of episodes."""
    return [
        (
            e.ticket,
            e.version.number,
            e.terminated,
            *(getattr(e, name).tobytes() for name in ("observations", "actions", "rewards", "log_probs")),
        )
        for batch in batches
        for e in batch
    ]


def played(run: Run, updates: int, amid: Callable[[], None] = lambda: None) -> list[tuple[Any, ...]]:
    """Return the content of so many batches."""
    batches = []
    for _ in range(updates):
        batches.append(run.batch(amid))
        run.publish()
    return content(batches)


def test_episodes_are_those_of_their_tickets(start: RunMaker) -> None:
    batch = start(config(), 2).batch()
    assert [episode.ticket.number for episode in batch] == list(range(20))
    for episode in batch:
        actions = episode.actions.tolist()
        assert episode.length == length(episode.ticket) and episode.terminated
        assert [row.tolist() for row in episode.observations] == [
            observation(episode.ticket, actions[:n]).tolist() for n in range(len(actions) + 1)
        ]
        assert episode.rewards.tolist() == [reward(actions[: n + 1]) for n in range(len(actions))]


def test_log_probabilities_are_those_of_the_policy(start: RunMaker) -> None:
    episode = start(config(), 1).batch()[3]
    actor = Actor(POLICY)
    actor.load(weights(0))
    rows = np.arange(episode.length)
    logits = actor._logits(episode.observations[:-1]).astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert np.allclose(log_probs[rows, episode.actions], episode.log_probs, atol=1e-5)


def test_workers_and_faults_do_not_change_a_bit(start: RunMaker) -> None:
    alone = played(start(config(), 1), 3)
    assert played(start(config(), 5), 3) == alone
    run = start(config(), 3)

    def freeze(frozen: bool) -> None:
        run.workers[1].frozen = frozen

    faults: list[Callable[[], object]] = [
        run.workers[0].kill,
        run.join,
        lambda: freeze(True),
        lambda: freeze(False),
    ]
    moments = [5, 15, 25, 45]

    def fault() -> None:
        if moments and run.collector.episodes_received >= moments[0]:
            del moments[0]
            faults[-1 - len(moments)]()

    assert played(run, 3, fault) == alone
    assert not moments, "the faults did not all happen"
    assert sum(worker.forwarded for worker in run.workers) > 0
    assert not run.registry.office.check()


def test_a_resumed_run_goes_on_to_the_same_bits(start: RunMaker) -> None:
    whole = played(start(config(), 1), 3)
    first = start(config(), 2)
    head = played(first, 1)
    received = first.collector.episodes_received
    deadline = time.monotonic() + DEADLINE_SECONDS
    while first.collector.episodes_received < received + 3:  # in the middle of the second batch
        assert time.monotonic() < deadline
        assert first.collector.next_batch(0.001) is None
        first.turn()
    state = first.collector.snapshot()
    again = start(config(), 1, state=state, incarnation=2)
    assert head + played(again, 2) == whole
    assert again.registry.ledger.accounts["train"].issued == 60


def test_a_failing_ticket_is_repeated_then_discarded_and_replaced(start: RunMaker) -> None:
    run = start(config(), 0)
    run.join(failing={4})
    batch = run.batch()
    assert [episode.ticket.number for episode in batch] == [0, 1, 2, 3, *range(5, 21)]
    account = run.registry.ledger.accounts["train"]
    assert {reason: list(numbers) for reason, numbers in account.discarded.items()} == {"it broke": [4]}
    again = start(config(order="started"), 0)
    again.join(failing={4})
    assert [episode.ticket.number for episode in again.batch()] == [0, 1, 2, 3, *range(5, 20)]


def test_an_environment_that_does_not_reproduce_is_noticed(start: RunMaker) -> None:
    run = start(config(), 2)
    liar = run.workers[1]

    def fault() -> None:
        if not run.workers[0].frozen and any(
            len(actions) >= 2 for _, actions in run.workers[0].played.values()
        ):
            run.workers[0].kill()

    def lie(answer: Stepped) -> list[Stepped]:
        digests = answer.digests.copy()
        digests[digests > 0] += np.uint32(1)
        return [replace(answer, digests=digests)]

    liar.answer = lie
    run.batch(fault)
    discarded = run.registry.ledger.accounts["train"].discarded
    assert set(discarded) == {NOT_REPRODUCIBLE}
    assert 0 < len(discarded[NOT_REPRODUCIBLE]) <= 7


def test_a_ticket_that_kills_its_workers_is_given_up(start: RunMaker) -> None:
    run = start(config(max_losses=2, n_envs=2, liveness_seconds=0.2), 1)

    def kill_who_plays_ticket_3() -> None:
        for worker in run.workers:
            on_it = any(ticket.number == 3 and actions for ticket, actions in worker.played.values())
            if on_it and not worker.frozen:
                worker.frozen = True
                run.join()

    batch = run.batch(kill_who_plays_ticket_3)
    assert 3 not in [episode.ticket.number for episode in batch]
    assert 3 in run.registry.ledger.accounts["train"].discarded["kills workers"]
    assert len(batch) == 20


def test_evaluation_goes_through_the_same_barrier(start: RunMaker) -> None:
    run = start(config(total_episodes=20), 2)
    run.batch()
    run.publish()
    evaluation = run.evaluate(12)
    assert [episode.ticket.number for episode in evaluation.episodes] == list(range(12))
    assert {episode.version for episode in evaluation.episodes} == {Version(1, 1)}
    actor = Actor(POLICY)
    actor.load(weights(1))
    for episode in evaluation.episodes[1::2]:  # those are greedy
        rows = np.zeros((7, 4), np.uint8)
        for n in range(episode.length):
            rows[0] = episode.observations[n]
            assert actor._logits(rows)[0].argmax() == episode.actions[n]


def test_the_hook_sees_what_the_episodes_hold(start: RunMaker) -> None:
    rounds: list[Round] = []
    batch = start(config(), 2, hook=rounds.append).batch()
    steps: dict[int, list[tuple[Any, ...]]] = {}
    for seen in rounds:
        for row, ticket in enumerate(seen.tickets):
            assert seen.steps[row] == len(steps.setdefault(ticket.number, []))
            steps[ticket.number].append(
                (
                    seen.observations[row].tolist(),
                    seen.actions[row],
                    seen.rewards[row],
                    bool(seen.terminated[row]),
                    seen.next_observations[row].tolist(),
                )
            )
    for episode in batch:
        expected = [
            (
                episode.observations[n].tolist(),
                episode.actions[n],
                episode.rewards[n],
                n == episode.length - 1,
                episode.observations[n + 1].tolist(),
            )
            for n in range(episode.length)
        ]
        assert steps[episode.ticket.number] == expected
    assert [seen.number for seen in rounds] == list(range(1, len(rounds) + 1))


def test_the_record_names_each_slot_once_a_round(start: RunMaker, tmp_path: Path) -> None:
    recorder = StepRecorder(tmp_path / "steps", go_on=False)
    run = start(config(n_envs=4, total_episodes=20), 2, recorder=recorder)
    run.batch()
    run.publish()
    recorder.close()
    slots: dict[int, list[int]] = {}
    for order in read_record(tmp_path / "steps"):
        assert order.sent <= order.answered and order.worker == "host:1"
        slots.setdefault(order.round, []).extend(order.slots.tolist())
    assert all(len(set(found)) == len(found) for found in slots.values())
    assert sorted(slots[1]) == [0, 1, 2, 3]
    assert list(slots) == list(range(1, len(slots) + 1))


def test_a_worker_with_answers_of_another_shape_is_refused(start: RunMaker) -> None:
    run = start(config(), 1)
    bad = run.join()
    bad.answer = lambda answer: [replace(answer, observations=np.zeros((len(answer.rewards), 9), np.uint8))]
    for _ in range(2):
        run.batch()
        run.publish()
    assert "its observations are uint8" in bad.refused and "the run's uint8" in bad.refused


def test_an_episode_pushed_by_a_worker_does_not_count(start: RunMaker) -> None:
    run = start(config(), 1)
    push = connect_episodes(run.context, "127.0.0.1", run.sockets.ports.episodes)
    foreign = run.batch()[0]
    push.send(encode(foreign))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not run.collector.view.rejected:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert run.registry.ledger.deliveries.received == 20
