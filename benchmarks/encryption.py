"""What encryption costs: `python benchmarks/encryption.py [--json FILE]`.

Real sockets over loopback, in the clear and with keys, in turns; medians of turns. *Episodes*: whole CAGE-2
episodes of 100 steps, encoded, from PUSH to PULL, received, decoded. *Rounds*: what a barrier sends and gets,
a Step to each of so many hosts and their Stepped back. CPU time is of the whole process, both sides and
ZeroMQ's threads. A learner's share of it is about half.
"""

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
import zmq

from learner.access import Access
from protocol.codec import decode, encode
from protocol.keys import Keyring, PeerKey
from protocol.messages import Episode, Version
from protocol.sockets import Context, Socket
from protocol.sockets.frames import receive_keyed, receive_nowait, send_nowait
from protocol.sockets.learner import LearnerSockets, bind_learner
from protocol.sockets.worker import Dialling, connect_episodes, connect_step
from protocol.step_messages import Step, Stepped
from protocol.tickets import Ticket
from protocol.zap import Doorkeeper
from rollout_worker.environments import registry

HOSTS, SLOTS = 10, 100
STEPS = 100
SPACES = registry.describe("cage2", {})

Figures = tuple[float, float]
"""Per second; CPU microseconds of each."""


class Pair:
    """A learner's sockets and a worker's context, with keys or without."""

    def __init__(self, opened: ExitStack, keyed: bool) -> None:
        self.access: Access | None = None
        self.dialling = Dialling()
        self.context: Context = opened.enter_context(zmq.Context())
        if keyed:
            keyring = Keyring(Path(opened.enter_context(tempfile.TemporaryDirectory())) / "keys")
            _, file = keyring.new("bench", "worker")
            self.dialling = Dialling(PeerKey.read(file))
            self.access = Access(keyring)
            opened.enter_context(Doorkeeper(self.context, self.access.admits))
        self.learner: LearnerSockets = opened.enter_context(
            bind_learner(self.context, "127.0.0.1", None, security=self.access.pair if self.access else None)
        )
        self.abroad: Context = opened.enter_context(zmq.Context())
        opened.callback(self.abroad.destroy, 0)

    def receive(self, socket: Socket, line: Any) -> bytes | None:
        """Take a frame as the learner does, its key looked at where there are any."""
        if self.access is None:
            received = receive_nowait(socket)
            return received[1] if received else None
        keyed = receive_keyed(socket)
        if keyed is None:
            return None
        self.access.passes(keyed[2], line, time.monotonic())
        self.access.useful(keyed[2], line, time.monotonic())
        return keyed[1]


def measure(once: Callable[[], int], seconds: float) -> Figures:
    for duration in (0.2 * seconds, seconds):
        began, cpu, count = time.perf_counter(), time.process_time(), 0
        while (elapsed := time.perf_counter() - began) < duration:
            count += once()
    return count / elapsed, (time.process_time() - cpu) / count * 1e6


def episodes(keyed: bool, seconds: float) -> Figures:
    draw = np.random.default_rng(1)
    episode = Episode(
        "run",
        "session",
        Ticket("train", 1),
        Version(1, 1),
        False,
        1.0,
        draw.integers(0, 2, (STEPS + 1, SPACES.observation_size)).astype(SPACES.observation_dtype),
        draw.integers(0, SPACES.actions, STEPS),
        draw.normal(size=STEPS).astype(np.float32),
        np.full(STEPS, -1.0, np.float32),
    )
    frame = encode(episode)
    with ExitStack() as opened:
        pair = Pair(opened, keyed)
        push = connect_episodes(pair.abroad, "127.0.0.1", pair.learner.ports.episodes, pair.dialling)
        opened.callback(push.close, 0)

        def once() -> int:
            while send_nowait(push, frame):
                pass
            count = 0
            if pair.learner.episodes.poll(20):
                while (received := pair.receive(pair.learner.episodes, "episodes")) is not None:
                    decode(received)
                    count += 1
            return count

        return measure(once, seconds)


def rounds(keyed: bool, seconds: float) -> Figures:
    share = SLOTS // HOSTS
    step = encode(Step(1, 1, np.arange(share, dtype=np.int32), np.zeros(share, np.int64)))
    flags = np.zeros(share, np.bool_)
    observations = np.zeros((share, SPACES.observation_size), SPACES.observation_dtype)
    stepped = Stepped(
        "host", 1, 1, observations, np.zeros(share, np.float32), flags, flags, np.zeros(share, np.uint32)
    )
    answer = encode(stepped)
    with ExitStack() as opened:
        pair = Pair(opened, keyed)
        hosts = []
        for number in range(HOSTS):
            host = connect_step(
                pair.abroad, "127.0.0.1", pair.learner.ports.step, f"host{number}", pair.dialling
            )
            opened.callback(host.close, 0)
            host.poll(2_000, zmq.POLLOUT)
            send_nowait(host, answer)
            hosts.append(host)

        def gather() -> None:
            for _ in hosts:
                while (received := pair.receive(pair.learner.step, "step")) is None:
                    pair.learner.step.poll(100)
                decode(received)

        def once() -> int:
            for number in range(HOSTS):
                send_nowait(pair.learner.step, b"host%d" % number, step)
            for host in hosts:
                host.poll()
                host.recv()
                send_nowait(host, answer)
            gather()
            return 1

        gather()
        return measure(once, seconds)


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seconds: Annotated[float, typer.Option(help="Time of one turn.")] = 2.0,
    turns: Annotated[int, typer.Option(help="Turns of each.")] = 5,
) -> None:
    """Measure episodes and barrier rounds in the clear and with keys, and print their ratios."""
    figures: dict[str, dict[str, float]] = {}
    for name, contender in (("episodes", episodes), ("rounds", rounds)):
        taken: dict[bool, list[Figures]] = {False: [], True: []}
        for turn in range(turns):
            for keyed in (False, True) if turn % 2 else (True, False):
                taken[keyed].append(contender(keyed, seconds))
        rate, cpu = ({k: median(one[place] for one in taken[k]) for k in taken} for place in (0, 1))
        figures[name] = {
            "per_second_in_the_clear": round(rate[False], 1),
            "per_second_with_keys": round(rate[True], 1),
            "rate_ratio": round(rate[True] / rate[False], 3),
            "cpu_microseconds_in_the_clear": round(cpu[False], 1),
            "cpu_microseconds_with_keys": round(cpu[True], 1),
            "cpu_ratio": round(cpu[True] / cpu[False], 2),
        }
        one = figures[name]
        typer.echo(
            f"{name}: {rate[False]:,.0f}/s in the clear, {rate[True]:,.0f}/s with keys"
            f" ({one['rate_ratio']:.2f}); CPU of each {cpu[False]:,.0f} and {cpu[True]:,.0f} µs"
            f" ({one['cpu_ratio']:.2f} times)"
        )
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
