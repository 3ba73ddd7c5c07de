"""Measure the barrier alone: `python benchmarks/barrier.py [--json FILE]`.

One hundred trivial environments, fixed actions, no inference on any side, beside Gymnasium's AsyncVectorEnv
and Stable-Baselines3's SubprocVecEnv with a process for each environment. Ours is all that a run has but the
policy: the learner's barrier with its I/O thread and heartbeats, and whole workers, forked so that they start
fast. Turns alternate, one contender at a time, and figures are medians of turns. On a machine that does
other things, wall-clock favours whoever has the most processes: look at the CPU time of a round.
"""

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # before numpy, as a worker does

import importlib
import importlib.util
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import gymnasium
import numpy as np
import psutil
import typer
import zmq

from learner.barrier import Barrier, Watchers
from learner.collector import Collector
from learner.config import RunConfig
from learner.registry import Registry
from protocol import VERSION
from protocol.addresses import parse_address
from protocol.codec import encode
from protocol.messages import Welcome
from protocol.sockets.frames import send_nowait
from protocol.sockets.learner import LearnerSockets, bind_learner
from protocol.sockets.worker import connect_step
from protocol.specs import EnvironmentSpec, PolicySpec
from protocol.step_messages import SlotReset, Step, Stepped
from protocol.tickets import Ticket
from rollout_worker.environments import registry
from rollout_worker.options import WorkerOptions
from rollout_worker.process import terminate_with_parent
from rollout_worker.worker import run_worker

ENVIRONMENTS = 100
ACTIONS = np.zeros(ENVIRONMENTS, np.int64)
NAME = "Trivial-v0"
START_SECONDS = 120.0
WARM_UP_SECONDS = 0.5

Round = Callable[[], object]
Figures = tuple[float, float]
"""Rounds per second, CPU seconds per round."""
Contender = Callable[[float], Figures]
"""From seconds of measuring to figures; runs in a process of its own, without threads or sockets yet."""

fork = multiprocessing.get_context("fork")


class Trivial(gymnasium.Env[np.ndarray[Any, Any], np.int64]):
    """Four numbers and two actions that do nothing, without an end."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    _observation = np.zeros(4, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        """Begin what never ends."""
        return self._observation, {}

    def step(self, action: np.int64) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        """Do nothing."""
        return self._observation, 0.0, False, False, {}


gymnasium.register(NAME, f"{__name__}:Trivial", max_episode_steps=1_000_000_000)


def make() -> gymnasium.Env[Any, Any]:
    return gymnasium.make(NAME, disable_env_checker=True)


def measure(round_: Round, seconds: float) -> Figures:
    """Return rounds per second, and CPU seconds per round of all processes, after a warm-up."""
    for duration in (WARM_UP_SECONDS, seconds):
        began, cpu, rounds = time.perf_counter(), cpu_seconds(), 0
        while (elapsed := time.perf_counter() - began) < duration:
            round_()
            rounds += 1
    return rounds / elapsed, (cpu_seconds() - cpu) / rounds


def cpu_seconds() -> float:
    """Return what this process and its descendants have used."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


# --- The peers ---


def in_gymnasium(seconds: float) -> Figures:
    environments = gymnasium.vector.AsyncVectorEnv([make] * ENVIRONMENTS)
    try:
        environments.reset(seed=1)
        return measure(lambda: environments.step(ACTIONS), seconds)
    finally:
        environments.close()


def in_sb3(seconds: float) -> Figures:
    vec_env = importlib.import_module("stable_baselines3.common.vec_env")
    environments = vec_env.SubprocVecEnv([make] * ENVIRONMENTS, start_method="fork")
    try:
        environments.reset()
        return measure(lambda: environments.step(ACTIONS), seconds)
    finally:
        environments.close()


# --- What ZeroMQ allows: the same frames over the same sockets, with nothing behind them ---


def in_bare_zeromq(workers: int, seconds: float) -> Figures:
    slots = ENVIRONMENTS // workers
    numbers, flags = np.zeros(slots, np.float32), np.zeros(slots, np.bool_)
    seen, digests = np.zeros((slots, 4), np.float32), np.zeros(slots, np.uint32)
    order = encode(Step(1, 1, np.arange(slots, dtype=np.int32), ACTIONS[:slots]))
    answer = encode(Stepped("0" * 32, 1, 1, seen, numbers, flags, flags, digests))
    receiving, sending = fork.Pipe(duplex=False)
    starter = fork.Process(target=grow, args=(receiving, workers, partial(echo, answer)))
    starter.start()
    try:
        with zmq.Context() as context, bind_learner(context, "127.0.0.1", None) as sockets:
            sending.send(f"127.0.0.1:{sockets.ports.control}")
            peers = [sockets.step.recv_multipart()[0] for _ in range(workers)]

            def round_() -> None:
                for peer in peers:
                    send_nowait(sockets.step, peer, order)
                for _ in peers:
                    sockets.step.recv_multipart()

            return measure(round_, seconds)
    finally:
        starter.terminate()
        starter.join()


def echo(answer: bytes, address: str) -> None:
    terminate_with_parent()
    host, port = parse_address(address)
    with zmq.Context() as context, connect_step(context, host, port + 3, f"{os.getpid()}") as socket:
        socket.rcvtimeo = -1
        socket.send(b"")
        while socket.recv():
            socket.send(answer)


# --- Ours ---


class Hosts(Collector):
    """The learner's I/O thread; `ready` are the sessions that may host."""

    ready: tuple[str, ...] = ()

    def _look_round(self, now: float) -> None:
        super()._look_round(now)
        if (ready := self._registry.roster.hosts()) != self.ready:
            self.ready = ready


def in_fleet(workers: int, seconds: float) -> Figures:
    receiving, sending = fork.Pipe(duplex=False)
    starter = fork.Process(target=grow, args=(receiving, workers, work))
    starter.start()  # before there are threads and sockets here
    try:
        with zmq.Context() as context, bind_learner(context, "127.0.0.1", None) as sockets:
            sending.send(f"127.0.0.1:{sockets.ports.control}")
            return over_barrier(sockets, workers, seconds)
    finally:
        starter.terminate()
        starter.join()


def grow(told: Connection, workers: int, work: Callable[[str], object]) -> None:
    address = told.recv()
    processes = [fork.Process(target=work, args=(address,)) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def work(address: str) -> None:
    run_worker(WorkerOptions(address, log_level="error", die_with_parent=True))


def over_barrier(sockets: LearnerSockets, workers: int, seconds: float) -> Figures:
    environment = EnvironmentSpec(NAME, {}, registry.describe(NAME, {}))
    config = RunConfig(environment=NAME, mode="sync", max_lag=0, n_envs=ENVIRONMENTS, liveness_seconds=60.0)
    policy = PolicySpec(inputs=4, actions=2)
    welcome = Welcome("barrier", 1, 1, "sync", environment, policy, config.heartbeat_seconds, 60.0)
    shares: list[int] = []

    def note_shares(dealt: Mapping[str, int]) -> None:
        shares[:] = dealt.values()

    hosts = Hosts(Registry(config, welcome, VERSION, time.monotonic()), sockets)
    with hosts:
        barrier = Barrier(
            sockets.step,
            welcome.incarnation,
            ENVIRONMENTS,
            environment.spaces,
            reset_of=lambda slot: SlotReset(slot, Ticket("train", slot), np.zeros(0, np.int64)),
            ready=lambda: hosts.ready if len(hosts.ready) == workers else (),  # or the first gets all
            watchers=Watchers(dealt=note_shares),
        )

        def round_() -> None:
            barrier.begin(np.arange(ENVIRONMENTS), ACTIONS)
            if not barrier.wait(time.monotonic() + START_SECONDS):
                raise TimeoutError(f"a round took more than {START_SECONDS:g} s")

        round_()
        assert shares == [ENVIRONMENTS // workers] * workers
        result = measure(round_, seconds)
        hosts.finish("measured")
        return result


# --- All of them, in turns ---


def apart(contender: Contender, seconds: float) -> Figures:
    """Measure in a process of its own."""
    receiving, sending = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: sending.send(contender(seconds)))
    process.start()
    sending.close()
    try:
        rate, cpu = receiving.recv()
        return float(rate), float(cpu)
    finally:
        process.join()


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seconds: Annotated[float, typer.Option(help="Time of one turn.")] = 4.0,
    turns: Annotated[int, typer.Option(help="Turns of each.")] = 3,
) -> None:
    """Measure rounds per second, ours and the peers', side by side."""
    peers: dict[str, Contender] = {"Gymnasium AsyncVectorEnv": in_gymnasium}
    if importlib.util.find_spec("stable_baselines3"):
        peers["Stable-Baselines3 SubprocVecEnv"] = in_sb3
    else:
        typer.echo("Stable-Baselines3 is not installed: its SubprocVecEnv is left out")
    ours: dict[str, Contender] = {}
    for workers in (10, ENVIRONMENTS):
        ours[f"{workers} workers x {ENVIRONMENTS // workers} slots"] = partial(in_fleet, workers)
        ours[f"bare ZeroMQ, {workers} processes"] = partial(in_bare_zeromq, workers)
    contenders = peers | ours
    taken: dict[str, list[Figures]] = {name: [] for name in contenders}
    for turn in range(turns):
        for name, contender in contenders.items():
            taken[name].append(apart(contender, seconds))
            rate, cpu = taken[name][-1]
            typer.echo(f"turn {turn + 1}: {name}: {rate:,.1f} rounds/s, {cpu * 1e3:.2f} ms of CPU a round")
    rates = {name: median(rate for rate, _ in figures) for name, figures in taken.items()}
    cpus = {name: median(cpu for _, cpu in figures) for name, figures in taken.items()}
    best, least = max(rates[name] for name in peers), min(cpus[name] for name in peers)
    for name in contenders:
        typer.echo(
            f"{name}: {rates[name]:,.1f} rounds/s, {rates[name] / best:.2f} of the better peer's;"
            f" {cpus[name] * 1e3:.2f} ms of CPU a round, a peer's {least / cpus[name]:.2f} times that"
        )
    if json_file:
        figures = {
            name: {
                "rounds_per_second": round(rates[name], 1),
                "of_the_better_peer": round(rates[name] / best, 3),
                "cpu_milliseconds_per_round": round(cpus[name] * 1e3, 3),
                "turns": [round(rate, 1) for rate, _ in taken[name]],
            }
            for name in contenders
        }
        json_file.write_text(json.dumps({"environments": ENVIRONMENTS, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
