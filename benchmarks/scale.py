"""Measure one learner with 10 to 1,000 workers: `python benchmarks/scale.py [--json FILE]`.

The learner is a process of its own with the real registry, collector and sockets; only the training is left
out, whole batches are consumed at once. The workers are real memberships over real sockets on this machine,
hundreds to a process (`crowd.py`), and play recorded episodes. Figures of the learner's own cost are CPU
seconds of its process, so other programs hardly count; waits are wall-clock, the best of several where said.

- join: from the first hello to the moment when the last worker is READY, was answered and holds the weights;
  all of them at once, with the default policy and with one of about 1 MB.
- heartbeat: workers play episodes without end and only their heartbeats, one a second, come and go.
- fan-out: from publishing a version to its last receipt.
- episodes: each worker finishes one a second, recorded ones of CAGE-2.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, TypeVar

import psutil
import typer
import zmq

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.crowd import Counts, record, serve_crowd
from learner.collector import Collector
from learner.config import RunConfig
from learner.registry import Registry
from protocol import VERSION
from protocol.addresses import Ports
from protocol.messages import Built, Episode, Welcome
from protocol.sockets.learner import bind_learner
from protocol.specs import EnvironmentSpec, PolicySpec
from rollout_worker.environments import registry
from rollout_worker.player import Player
from rollout_worker.policy import Policy
from tests.rollout_worker.scripted_learner import made_up_weights

T = TypeVar("T")

SLOTS = 4
CROWDS = 4
"""Processes that share the workers."""
RECORDED = 16
BATCH = 400
LARGE_HIDDEN = (440, 440)
PUBLICATIONS = 5
DEADLINE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What is played, by whom."""

    environment: EnvironmentSpec
    policy: PolicySpec
    built: Built
    episodes: list[Episode]


def setting() -> Setting:
    """Build CAGE-2 once, and record what the crowd plays."""
    spec = EnvironmentSpec(
        "cage2", {}, registry.describe("cage2", {}), train_scenarios=({"red_agent": "meander"},)
    )
    policy = policy_of(spec, (64, 64))
    player = Player(registry.build(spec, RECORDED), spec, run_seed=1)
    episodes = record(player, Policy(policy, made_up_weights(policy)), RECORDED)
    return Setting(spec, policy, Built(spec.spaces, "recorded", "recorded"), episodes)


def policy_of(environment: EnvironmentSpec, hidden: tuple[int, ...]) -> PolicySpec:
    spaces = environment.spaces
    return PolicySpec(spaces.inputs, spaces.actions, spaces.masked, hidden=hidden)


# --- The learner's process ---


def serve_learner(pipe: Connection, environment: EnvironmentSpec, policy: PolicySpec, tickets: int) -> None:
    """Be a learner that consumes whole batches at once, and does what the pipe says."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    lag = max(2, tickets // BATCH)
    config = RunConfig(total_episodes=10**9, episodes_per_update=BATCH, max_lag=lag, evaluation_episodes=0)
    with bind_learner(zmq.Context.instance(), "127.0.0.1", None) as sockets:
        welcome = Welcome("scale", 1, 1, "async", environment, policy, 1.0, 5.0)
        arrays = made_up_weights(policy)
        with Collector(Registry(config, welcome, VERSION, time.monotonic()), sockets) as collector:
            collector.inherit(0, arrays)
            pipe.send(sockets.ports)
            version = 0
            while True:
                while collector.next_batch(0.02):
                    version += 1
                    collector.publish(version, arrays)
                if pipe.poll():
                    match pipe.recv():
                        case "publish":
                            collector.inherit(version, arrays)
                        case "measure":
                            pipe.send(measured(collector))
                        case "end":
                            return


def measured(collector: Collector) -> dict[str, float]:
    """Return what the learner's process has used, and who is there."""
    process = psutil.Process()
    return collector.measured() | {
        "at": time.monotonic(),
        "resident_mb": process.memory_info().rss / 1e6,
        "files": process.num_fds(),
        "ready": collector.view.status.ready,
        "episodes": collector.episodes_received,
        "rejected": collector.view.rejected,
    }


# --- The benchmark's process ---


class Processes:
    """A learner and the crowds that dial it."""

    def __init__(self, learner: Connection, ports: Ports, crowds: list[Connection]) -> None:
        self._learner, self._ports, self._crowds = learner, ports, crowds

    def join(self, workers: int, episode_seconds: float) -> None:
        """Let so many workers join at once."""
        for place, crowd in enumerate(self._crowds):
            share = len(range(place, workers, len(self._crowds)))
            crowd.send(("join", share, SLOTS, self._ports, episode_seconds))

    def learner(self) -> dict[str, float]:
        """Ask the learner for its figures."""
        self._learner.send("measure")
        return dict(self._learner.recv())

    def publish(self) -> float:
        """Let the learner publish its weights once more; return when that was asked for."""
        at = time.monotonic()
        self._learner.send("publish")
        return at

    def crowd(self) -> Counts:
        """Ask all crowds for their counts; return the sums, and of times the extremes."""
        for crowd in self._crowds:
            crowd.send(("count",))
        counts = [asdict(crowd.recv()) for crowd in self._crowds]
        merge = {"first_hello_at": min, "playable_at": max, "published_at": max}
        return Counts(**{name: merge.get(name, sum)(c[name] for c in counts) for name in counts[0]})

    def until(self, what: str, condition: Callable[[Counts], bool]) -> Counts:
        """Wait until the crowds' counts fulfil a condition; return them."""
        return self._until(what, self.crowd, condition)

    def wait(self, what: str, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Wait until the learner's figures fulfil a condition; return them."""
        return self._until(what, self.learner, condition)

    def _until(self, what: str, look: Callable[[], T], condition: Callable[[T], bool]) -> T:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition(found := look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not {what} in {DEADLINE_SECONDS:.0f} s: {found}")
            time.sleep(0.1)
        return found


@contextmanager
def processes(setting: Setting, policy: PolicySpec, workers: int) -> Iterator[Processes]:
    """Start a learner and the crowds; end them."""
    spawn = multiprocessing.get_context("spawn")
    pipes, started = [], []
    arguments: list[tuple[Any, ...]] = [(serve_learner, setting.environment, policy, 4 * SLOTS * workers)]
    arguments += [(serve_crowd, setting.episodes, setting.built)] * min(CROWDS, workers)
    for target, *given in arguments:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=target, args=(theirs, *given), daemon=True)
        process.start()
        pipes.append(ours)
        started.append(process)
    try:
        yield Processes(pipes[0], pipes[0].recv(), pipes[1:])
    finally:
        for pipe, process in reversed(list(zip(pipes, started, strict=True))):
            pipe.send("end" if pipe is pipes[0] else ("end",))
            process.join(5.0)
            process.kill()


def joining(setting: Setting, workers: int, hidden: tuple[int, ...]) -> dict[str, float]:
    """Let all workers join at once; return how long that took and what it cost."""
    policy = policy_of(setting.environment, hidden)
    with processes(setting, policy, workers) as running:
        before = running.learner()
        running.join(workers, 1e6)
        counts = running.until("joined", lambda counts: counts.playable == workers)
        time.sleep(0.2)  # the learner's picture of itself is that old at most
        after = running.learner()
    return {
        "seconds": counts.playable_at - counts.first_hello_at,
        "learner_cpu_seconds": after["cpu_seconds"] - before["cpu_seconds"],
        "snapshots": counts.snapshots,
        "hellos": counts.hellos,
        "ready": after["ready"],
    }


def living(setting: Setting, workers: int, seconds: float) -> dict[str, Any]:
    """Measure heartbeats and fan-out with episodes that do not end."""
    with processes(setting, setting.policy, workers) as running:
        time.sleep(1.0)
        alone = running.learner()
        time.sleep(seconds / 2)
        idle = share(alone, running.learner())
        running.join(workers, 1e6)
        running.until("joined", lambda counts: counts.playable == workers)
        time.sleep(2.0)  # the last grants and their answers
        before, beats = running.learner(), running.crowd().heartbeats
        time.sleep(seconds)
        after, beats = running.learner(), running.crowd().heartbeats - beats
        fanout = [fan_out(running, workers) for _ in range(PUBLICATIONS)]
        last = running.learner()
    busy, wall = share(before, after) - idle, after["at"] - before["at"]
    return {
        "heartbeats_per_second": beats / wall,
        "cpu_microseconds_per_heartbeat": 1e6 * busy * wall / max(beats, 1),
        "core_percent": 100 * busy,
        "core_percent_per_100_workers": 100 * busy / workers * 100,
        "core_percent_without_workers": 100 * idle,
        "resident_mb": after["resident_mb"],
        "resident_mb_without_workers": alone["resident_mb"],
        "files": after["files"],
        "ready": last["ready"],
        "fan_out_seconds": min(took for took, _ in fanout),
        "fan_out_worst_seconds": max(took for took, _ in fanout),
        "fan_out_bytes": fanout[0][1],
        "fan_out_learner_cpu_seconds": (last["cpu_seconds"] - after["cpu_seconds"]) / PUBLICATIONS,
    }


def fan_out(running: Processes, workers: int) -> tuple[float, int]:
    """Publish once; return the seconds until the last worker has it, and the bytes that went out."""
    before = running.crowd()
    at = running.publish()
    after = running.until("published", lambda counts: counts.published >= before.published + workers)
    return after.published_at - at, after.published_bytes - before.published_bytes


def playing(setting: Setting, workers: int, seconds: float) -> dict[str, float]:
    """Measure with one episode a second from each worker."""
    with processes(setting, setting.policy, workers) as running:
        running.join(workers, float(SLOTS))
        running.until("playing", lambda counts: counts.episodes >= 2 * workers)
        before = running.learner()
        time.sleep(seconds)
        after, counts = running.learner(), running.crowd()
    wall = after["at"] - before["at"]
    arrived = after["episodes"] - before["episodes"]
    return {
        "episodes_per_second": arrived / wall,
        "megabytes_per_second": (after["bytes"] - before["bytes"]) / wall / 1e6,
        "messages_per_second": (after["messages"] - before["messages"]) / wall,
        "core_percent": 100 * share(before, after),
        "cpu_microseconds_per_episode": 1e6 * share(before, after) * wall / max(arrived, 1),
        "resident_mb": after["resident_mb"],
        "ready": after["ready"],
        "rejected": after["rejected"],
        "crowd_cpu_seconds": counts.cpu_seconds,
    }


def share(before: dict[str, float], after: dict[str, float]) -> float:
    """Return the share of a core that the learner used between two measurements."""
    return (after["cpu_seconds"] - before["cpu_seconds"]) / (after["at"] - before["at"])


def measure(setting: Setting, workers: int, seconds: float) -> dict[str, Any]:
    """Return all figures with so many workers."""
    return {
        "workers": workers,
        "join": joining(setting, workers, (64, 64)),
        "join_1_mb": joining(setting, workers, LARGE_HIDDEN),
        "living": living(setting, workers, seconds),
        "playing": playing(setting, workers, seconds),
    }


ROWS = (
    ("join, s", "join", "seconds", ".2f"),
    ("  learner CPU, s", "join", "learner_cpu_seconds", ".2f"),
    ("join with 1 MB, s", "join_1_mb", "seconds", ".2f"),
    ("heartbeats/s", "living", "heartbeats_per_second", ",.0f"),
    ("  learner CPU each, µs", "living", "cpu_microseconds_per_heartbeat", ",.0f"),
    ("  of a core, %", "living", "core_percent", ".2f"),
    ("  of a core, % per 100", "living", "core_percent_per_100_workers", ".2f"),
    ("fan-out, best, s", "living", "fan_out_seconds", ".3f"),
    ("  MB", "living", "fan_out_bytes", ",.0f"),
    ("  learner CPU, s", "living", "fan_out_learner_cpu_seconds", ".3f"),
    ("memory, MB", "living", "resident_mb", ",.0f"),
    ("open files", "living", "files", ",.0f"),
    ("episodes/s", "playing", "episodes_per_second", ",.0f"),
    ("  MB/s", "playing", "megabytes_per_second", ",.1f"),
    ("  of a core, %", "playing", "core_percent", ".1f"),
    ("  learner CPU each, µs", "playing", "cpu_microseconds_per_episode", ",.0f"),
    ("  memory, MB", "playing", "resident_mb", ",.0f"),
)


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'workers':26}" + "".join(f"{result['workers']:>12,}" for result in results))
    for label, part, name, form in ROWS:
        values = [result[part][name] / (1e6 if name == "fan_out_bytes" else 1) for result in results]
        print(f"{label:26}" + "".join(f"{value:>12{form}}" for value in values))


def main(
    workers: Annotated[str, typer.Option(help="Numbers of workers.")] = "10,100,500,1000",
    seconds: Annotated[float, typer.Option(help="Time of each measurement.")] = 10.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Measure, print, and write."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    what, results = setting(), []
    for count in map(int, workers.split(",")):
        results.append(measure(what, count, seconds))
        print(f"{count} workers: done, load average {os.getloadavg()[0]:.1f}", flush=True)
    show(results)
    if json_file:
        json_file.write_text(
            json.dumps({"load_average": os.getloadavg()[0], "scale": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
