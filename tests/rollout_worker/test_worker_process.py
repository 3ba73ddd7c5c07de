"""A worker as a process of its own, against a scripted learner over real sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from protocol.codec import encode
from protocol.messages import Hello, Refuse, Version, Weights
from protocol.specs import EnvironmentSpec, PolicySpec
from protocol.step_messages import SlotReset, Step
from protocol.tickets import Ticket
from rollout_worker.environments import registry
from rollout_worker.events import ExitCode
from rollout_worker.host import Host
from rollout_worker.rollout import play
from tests.rollout_worker.scripted_learner import ScriptedLearner, made_up_weights, numbers

CARTPOLE = EnvironmentSpec("CartPole-v1", {}, registry.describe("CartPole-v1", {}))
POLICY = PolicySpec(inputs=4, actions=2, hidden=(16,))
END_SECONDS = 20.0  # a deadline for a busy machine; the worker itself keeps to 2 s

ODD_ENVIRONMENTS = """
import sys
HEAVY = sorted({"_hashlib", "numba", "torch"} & sys.modules.keys())
import hashlib, secrets, ssl, time, gymnasium
WHOLE = secrets.token_hex(8) and hashlib.scrypt and ssl.create_default_context()
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

class Raising(CartPoleEnv):
    def step(self, action):
        raise OSError("the simulator is gone")

class Curious(CartPoleEnv):
    def step(self, action):
        raise OSError(f"heavy: {HEAVY}, whole: {bool(WHOLE)}")

class Stuck(CartPoleEnv):
    steps = 0
    def step(self, action):
        Stuck.steps += 1
        while Stuck.steps > 100:  # the probe passes
            time.sleep(0.01)
        return super().step(action)

class Leaving(CartPoleEnv):
    def step(self, action):
        raise SystemExit(0)

class Endless(CartPoleEnv):
    def reset(self, **options):
        time.sleep(1e6)

gymnasium.register("Leaving-v0", Leaving, max_episode_steps=50)
gymnasium.register("Endless-v0", Endless, max_episode_steps=50)
gymnasium.register("Raising-v0", Raising, max_episode_steps=50)
gymnasium.register("Curious-v0", Curious, max_episode_steps=50)
gymnasium.register("Stuck-v0", Stuck, max_episode_steps=50)
"""


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def ends_with(self, code: ExitCode) -> None:
        assert self.process.wait(END_SECONDS) == code, self.log()


Launch = Callable[..., Worker]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    workers: list[Worker] = []
    (tmp_path / "odd_environments.py").write_text(ODD_ENVIRONMENTS)

    def start(address: str, *options: str) -> Worker:
        log = tmp_path / f"worker-{len(workers)}.log"
        command = [
            sys.executable,
            "-m",
            "rollout_worker",
            "--learner",
            address,
            "--log-file",
            str(log),
            *options,
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        workers.append(Worker(subprocess.Popen(command, env=environment), log))
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture
def learner() -> Iterator[ScriptedLearner]:
    scripted = ScriptedLearner(CARTPOLE, POLICY)
    yield scripted
    scripted.close()


def play_some(learner: ScriptedLearner, more: int = 20) -> None:
    wanted = len(learner.received) + more
    learner.until(lambda: len(learner.received) >= wanted)


def test_it_plays_each_ticket_as_a_local_replay_does_and_leaves_at_sigterm(
    launch: Launch, learner: ScriptedLearner
) -> None:
    ports = ",".join(map(str, astuple(learner.sockets.ports)))
    worker = launch("127.0.0.1:1", "--slots", "3", "--ports", ports)
    play_some(learner)
    worker.process.send_signal(signal.SIGTERM)
    learner.until(lambda: learner.goodbyes)
    worker.ends_with(ExitCode.DONE)
    (goodbye,) = learner.goodbyes
    assert goodbye.reason == "SIGTERM" and not goodbye.holdings.running and not goodbye.holdings.outbox
    tickets = [Ticket("train", number) for number in sorted(learner.received)[:10]]
    weights = made_up_weights(POLICY)
    for replayed in play(CARTPOLE, POLICY, weights, 7, tickets, slots=1):
        episode = learner.episodes[replayed.ticket.number]
        assert episode.version == Version(1, 0) and (episode.run, episode.session) == (
            "scripted",
            goodbye.session,
        )
        for name in ("observations", "actions", "rewards", "log_probs"):
            assert getattr(episode, name).tobytes() == getattr(replayed, name).tobytes()


def test_its_journal_tells_what_it_played_before_the_learner_hears_of_it(
    launch: Launch, learner: ScriptedLearner, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    worker = launch(learner.address, "--slots", "3", "--journal", str(journal))
    play_some(learner)
    worker.process.kill()
    worker.process.wait()
    begins, *entries = [json.loads(line) for line in journal.read_text().splitlines()]
    (session,) = learner.sessions
    assert begins == {"event": "begins", "session": session, "pid": worker.process.pid}
    played = {entry["ticket"][1]: entry for entry in entries if entry["event"] == "played"}
    pushed = [entry["ticket"] for entry in entries if entry["event"] == "pushed"]
    for number, episode in learner.episodes.items():
        assert ["train", number] in pushed
        assert played[number]["return"] == pytest.approx(episode.rewards.sum())
        assert Version(*played[number]["version"]) == episode.version


def test_a_journal_that_cannot_be_written_is_said_at_once(launch: Launch, learner: ScriptedLearner) -> None:
    launch(learner.address, "--journal", "/proc/journal").ends_with(ExitCode.USAGE)


def test_new_weights_are_followed_and_exact_ones_asked_for(launch: Launch, learner: ScriptedLearner) -> None:
    learner.exact = True
    launch(learner.address, "--slots", "4")
    play_some(learner)
    for version in (1, 2, 3):
        learner.publish(version)
        learner.until(lambda: any(e.version.number == learner.version for e in learner.episodes.values()))
    learner.version = 7  # never published
    learner.until(lambda: any(episode.version.number == 7 for episode in learner.episodes.values()))
    assert 7 in learner.snapshots or None in learner.snapshots


def test_a_worker_started_first_waits_for_its_learner(launch: Launch, learner: ScriptedLearner) -> None:
    ports, address = learner.ports, learner.address
    learner.close()
    worker = launch(address, "--slots", "1")
    deadline = time.monotonic() + END_SECONDS
    while f"no learner at {address} yet: waiting" not in worker.log():
        assert time.monotonic() < deadline, worker.log()
        time.sleep(0.02)
    learner.ports = ports
    learner.__post_init__()
    play_some(learner)


def test_a_learner_that_is_killed_and_comes_back_loses_no_ticket(
    launch: Launch, learner: ScriptedLearner
) -> None:
    learner.tickets = 400
    launch(learner.address, "--slots", "4")
    play_some(learner)
    for incarnation in (2, 3):
        learner.close()  # without a word; what was on its way is lost
        learner.incarnation = incarnation
        learner.lose_everyone()
        learner.__post_init__()
        learner.until(learner.ready)
        play_some(learner)
    learner.until(lambda: len(learner.received) == learner.tickets)
    assert {learner.episodes[number].version.incarnation for number in learner.received} == {1, 2, 3}


def test_a_frozen_worker_says_hello_again_and_goes_on(launch: Launch, learner: ScriptedLearner) -> None:
    worker = launch(learner.address, "--slots", "4")
    play_some(learner)
    worker.process.send_signal(signal.SIGSTOP)
    learner.lose_everyone()
    learner.serve(0.1)
    worker.process.send_signal(signal.SIGCONT)
    learner.until(learner.ready)
    play_some(learner)


def test_frames_that_do_not_decode_are_counted_and_dropped(launch: Launch, learner: ScriptedLearner) -> None:
    worker = launch(learner.address, "--slots", "2")
    play_some(learner)
    (session,) = learner.sessions.values()
    foreign = Weights("another", Version(1, 9), POLICY.fingerprint(), made_up_weights(POLICY))
    misshapen = Weights(learner.run, Version(1, 9), POLICY.fingerprint(), {})
    frames = [b"", b"\x00" * 100, os.urandom(500), encode(session.hello), encode(foreign), encode(misshapen)]
    for frame in frames:
        learner.sockets.control.send_multipart([session.identity, frame])
    learner.until(lambda: (beat := learner.heartbeat()) and beat.rejected >= len(frames))
    learner.sockets.weights.send(b"no weights")
    learner.until(lambda: (beat := learner.heartbeat()) and beat.rejected == len(frames) + 1)
    play_some(learner)
    assert "that does not decode" in worker.log()


def test_drain_finishes_what_runs(launch: Launch, learner: ScriptedLearner) -> None:
    worker = launch(learner.address, "--slots", "4")
    play_some(learner)
    learner.desired = "drain"
    learner.until(lambda: learner.goodbyes)
    worker.ends_with(ExitCode.DONE)
    assert learner.goodbyes[0].reason == "drained"


def test_pause_keeps_nothing_and_play_resumes(launch: Launch, learner: ScriptedLearner) -> None:
    launch(learner.address, "--slots", "4")
    play_some(learner)
    learner.desired = "pause"

    def at_rest() -> bool:
        beat = learner.heartbeat()
        holdings = beat.holdings if beat is not None and beat.state == "paused" else None
        return holdings is not None and not (holdings.queued or holdings.running or holdings.outbox)

    learner.until(at_rest)
    learner.desired = "play"
    play_some(learner)


def test_an_environment_that_raises_ends_the_worker_with_its_traceback(
    launch: Launch, learner: ScriptedLearner
) -> None:
    learner.environment = EnvironmentSpec("Raising-v0", {}, CARTPOLE.spaces)
    worker = launch(learner.address, "--slots", "2", "--max-failures", "3", "--allow-env", "odd_environments")
    learner.until(lambda: learner.goodbyes)
    worker.ends_with(ExitCode.ERROR)
    assert {failure.reason for failure in learner.failures} == {"OSError: the simulator is gone"}
    assert "failures in a row" in learner.goodbyes[0].reason
    assert "Traceback" in worker.log() and "odd_environments.py" in worker.log()


def test_it_imports_nothing_heavy_and_an_environment_may_import_anything(
    launch: Launch, learner: ScriptedLearner
) -> None:
    learner.environment = EnvironmentSpec("Curious-v0", {}, CARTPOLE.spaces)
    worker = launch(learner.address, "--slots", "1", "--max-failures", "1", "--allow-env", "odd_environments")
    learner.until(lambda: learner.goodbyes)
    worker.ends_with(ExitCode.ERROR)
    assert "heavy: [], whole: True" in learner.goodbyes[0].reason


def test_a_stuck_environment_shows_as_stalled_and_does_not_hinder_the_end(
    launch: Launch, learner: ScriptedLearner
) -> None:
    learner.environment = EnvironmentSpec("Stuck-v0", {}, CARTPOLE.spaces)
    worker = launch(learner.address, "--slots", "2", "--allow-env", "odd_environments")
    learner.until(lambda: (beat := learner.heartbeat()) and numbers(beat.holdings.stalled))
    worker.process.send_signal(signal.SIGTERM)
    learner.until(lambda: learner.goodbyes)
    worker.ends_with(ExitCode.DONE)
    last = worker.log().splitlines()[-1]
    assert f"ends: {learner.goodbyes[0].reason} (exit status 0), while an environment" in last


@pytest.mark.parametrize(("name", "told"), [("Stuck-v0", "makes no step"), ("Endless-v0", "is not built")])
def test_an_environment_that_holds_it_up_for_too_long_ends_it(
    launch: Launch, learner: ScriptedLearner, name: str, told: str
) -> None:
    learner.environment = EnvironmentSpec(name, {}, CARTPOLE.spaces)
    learner.stuck_after_seconds = 0.2
    worker = launch(learner.address, "--slots", "2", "--allow-env", "odd_environments")
    learner.until(lambda: learner.goodbyes)
    worker.ends_with(ExitCode.ERROR)
    assert f"environment {name} {told}" in learner.goodbyes[0].reason and told in worker.log()


def test_an_environments_own_exit_costs_its_ticket_only(launch: Launch, learner: ScriptedLearner) -> None:
    learner.environment = EnvironmentSpec("Leaving-v0", {}, CARTPOLE.spaces)
    worker = launch(learner.address, "--slots", "2", "--max-failures", "3", "--allow-env", "odd_environments")
    learner.until(lambda: learner.goodbyes)
    worker.ends_with(ExitCode.ERROR)
    assert {failure.reason for failure in learner.failures} == {"SystemExit: 0"}


# --- Synchronous mode ---


@pytest.fixture
def stepping() -> Iterator[ScriptedLearner]:
    scripted = ScriptedLearner(CARTPOLE, POLICY, mode="sync")
    yield scripted
    scripted.close()


def begin(slot: int, *actions: int) -> SlotReset:
    return SlotReset(slot, Ticket("train", slot), np.array(actions, np.uint8))


def present(learner: ScriptedLearner, incarnation: int = 1) -> None:
    """Serve until the worker has said, anew, that it is here."""
    before = len(learner.presents)
    learner.until(lambda: len(learner.presents) > before and learner.presents[-1].incarnation == incarnation)


def test_it_hosts_what_a_learner_plays(launch: Launch, stepping: ScriptedLearner) -> None:
    worker = launch(stepping.address, "--slots", "1")
    present(stepping)
    local = Host(registry.build(CARTPOLE, 1), CARTPOLE, 7)
    orders: list[tuple[dict[int, int], tuple[SlotReset, ...]]] = [
        ({}, tuple(map(begin, range(30, 36)))),
        (dict.fromkeys(range(30, 36), 1), ()),
        (dict.fromkeys(range(30, 36), 0), (begin(3, 0, 1, 1),)),
        ({3: 0, 33: 1}, ()),
    ]
    for actions, resets in orders:
        answer = stepping.ask(actions, *resets)
        slots, taken = np.array([*actions], np.int32), np.array([*actions.values()], np.int64)
        same = local.step(Step(1, answer.number, slots, taken, resets), answer.session)
        assert encode(answer) == encode(same) and not answer.failures
    assert not stepping.snapshots
    stepping.until(lambda: (beat := stepping.heartbeat()) and beat.steps == local.steps)
    worker.process.send_signal(signal.SIGTERM)
    stepping.until(lambda: stepping.goodbyes)
    worker.ends_with(ExitCode.DONE)
    assert stepping.goodbyes[0].reason == "SIGTERM"


def test_steps_that_come_twice_or_late_or_wrong_change_nothing(
    launch: Launch, stepping: ScriptedLearner
) -> None:
    launch(stepping.address)
    present(stepping)
    first = stepping.ask({}, begin(0), begin(1))
    stepping.order_again(Step(1, 1, np.empty(0, np.int32), np.empty(0, np.int64), (begin(0), begin(1))))
    stepping.until(lambda: len(stepping.answers) == 2)
    assert encode(stepping.answers[1]) == encode(first)
    twice = stepping.order({0: 1, 1: 1})
    stepping.order_again(twice)
    stepping.until(lambda: len(stepping.answers) == 4)
    assert encode(stepping.answers[2]) == encode(stepping.answers[3])
    stepping.order({0: 1}, number=1)
    noise = [b"", os.urandom(100), encode(stepping.presents[0]), encode(stepping.welcome())]
    for frame in noise:
        stepping.sockets.step.send_multipart([stepping.presents[0].session.encode(), frame])
    answer = stepping.ask({0: 0, 1: 0, 77: 0})
    assert [failure.slot for failure in answer.failures] == [77] and len(stepping.answers) == 5
    stepping.until(lambda: (beat := stepping.heartbeat()) and beat.rejected == len(noise) and beat.steps == 4)


def test_an_environment_that_raises_is_a_failure_and_too_many_end_the_worker(
    launch: Launch, stepping: ScriptedLearner
) -> None:
    stepping.environment = EnvironmentSpec("Raising-v0", {}, CARTPOLE.spaces)
    worker = launch(stepping.address, "--max-failures", "3", "--allow-env", "odd_environments")
    present(stepping)
    stepping.ask({}, begin(0), begin(1))
    answer = stepping.ask({0: 0, 1: 0})
    assert {failure.reason for failure in answer.failures} == {"OSError: the simulator is gone"}
    assert stepping.ask({}, begin(0)).failures == ()
    stepping.ask({0: 1})
    stepping.until(lambda: stepping.goodbyes)
    worker.ends_with(ExitCode.ERROR)
    assert "3 failures in a row" in stepping.goodbyes[0].reason
    assert "Traceback" in worker.log() and "odd_environments.py" in worker.log()


def test_a_frozen_host_answers_late_and_is_present_again(launch: Launch, stepping: ScriptedLearner) -> None:
    worker = launch(stepping.address)
    present(stepping)
    stepping.ask({}, begin(0))
    worker.process.send_signal(signal.SIGSTOP)
    late = stepping.order({0: 1})
    stepping.lose_everyone()
    stepping.serve(0.1)
    worker.process.send_signal(signal.SIGCONT)
    present(stepping)
    stepping.until(lambda: stepping.answers[-1].number == late.number)
    stepping.until(stepping.ready)
    again = stepping.ask({}, begin(0, 1, 0))
    assert encode(stepping.ask({0: 1})) and not again.failures and again.digests[0]


def test_a_learner_that_comes_back_finds_its_hosts(launch: Launch, stepping: ScriptedLearner) -> None:
    launch(stepping.address)
    present(stepping)
    seen = [stepping.ask({}, begin(0)), stepping.ask({0: 1}), stepping.ask({0: 1})]
    stepping.close()
    stepping.incarnation, stepping.steps_ordered = 2, 0
    stepping.lose_everyone()
    stepping.__post_init__()
    present(stepping, incarnation=2)
    answer = stepping.ask({}, begin(0, 1, 1))
    assert (answer.incarnation, answer.number) == (2, 1)
    assert answer.observations.tobytes() == seen[-1].observations.tobytes()
    stepping.order({0: 1}, number=9, incarnation=1)
    assert stepping.ask({0: 0}).number == 3


def test_a_host_that_shall_pause_answers_on_and_one_that_shall_drain_leaves(
    launch: Launch, stepping: ScriptedLearner
) -> None:
    worker = launch(stepping.address)
    present(stepping)
    stepping.desired = "pause"
    stepping.until(lambda: (beat := stepping.heartbeat()) and beat.state == "paused")
    assert not stepping.ask({}, begin(0)).failures
    stepping.desired = "drain"
    stepping.until(lambda: stepping.goodbyes)
    worker.ends_with(ExitCode.DONE)


def test_a_stuck_host_beats_on_and_does_not_hinder_the_end(launch: Launch, stepping: ScriptedLearner) -> None:
    stepping.environment = EnvironmentSpec("Stuck-v0", {}, CARTPOLE.spaces)
    worker = launch(stepping.address, "--allow-env", "odd_environments")
    present(stepping)
    stepping.ask({}, *map(begin, range(50)))
    for _ in range(3):
        stepping.order(dict.fromkeys(range(50), 0))
    beats = stepping.sessions[stepping.presents[0].session].heartbeats
    stepping.until(lambda: stepping.sessions[stepping.presents[0].session].heartbeats > beats + 3)
    assert len(stepping.answers) < 4
    worker.process.send_signal(signal.SIGTERM)
    stepping.until(lambda: stepping.goodbyes)
    worker.ends_with(ExitCode.DONE)


def test_it_says_why_it_cannot_work(launch: Launch, learner: ScriptedLearner) -> None:
    launch("no-port").ends_with(ExitCode.USAGE)
    launch(learner.address, "--slots", "0").ends_with(ExitCode.USAGE)
    launch(learner.address, "--label", "x" * 101).ends_with(ExitCode.USAGE)
    learner.environment = EnvironmentSpec("CartPole-v9", {}, CARTPOLE.spaces)
    worker = launch(learner.address)
    learner.until(lambda: learner.goodbyes)
    worker.ends_with(ExitCode.ERROR)
    assert "'CartPole-v9' is unknown: did you mean CartPole-v1" in learner.goodbyes[0].reason
    assert "Traceback" not in worker.log()


def test_a_refused_worker_ends_with_the_reason(
    launch: Launch, learner: ScriptedLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(identity: bytes, message: Any) -> None:
        assert isinstance(message, Hello)
        learner.send(identity, Refuse("yours is version 1, ours 2"))

    monkeypatch.setattr(learner, "handle", refuse)
    worker = launch(learner.address)
    learner.until(lambda: worker.process.poll() is not None)
    worker.ends_with(ExitCode.REFUSED)
    assert "yours is version 1, ours 2" in worker.log()


def test_without_a_learner_it_gives_up(launch: Launch, learner: ScriptedLearner) -> None:
    address = learner.address
    learner.close()
    worker = launch(address, "--give-up-after", "0.5")
    worker.ends_with(ExitCode.GAVE_UP)
    assert "no word from a learner" in worker.log()


def test_no_orphan_outlives_its_parent(learner: ScriptedLearner) -> None:
    script = (
        "import subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'rollout_worker', '--die-with-parent', '--learner']\n"
        "subprocess.Popen([*command, sys.argv[1]])\n"
        "time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", script, learner.address], env=environment)
    try:
        learner.until(learner.ready)
        (session,) = learner.sessions.values()
        child = psutil.Process(session.hello.pid)
    finally:
        parent.kill()
        parent.wait()
    learner.until(lambda: learner.goodbyes)
    child.wait(END_SECONDS)
