"""A pool of workers on a real Slurm cluster, which takes them away and gives them back as clusters do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest

from deploy.engines import Member, WorkerLaunch
from deploy.engines.slurm import SlurmEngine, SlurmOptions
from tests.end_to_end.fleet_processes import Fleet
from tests.slurm_cluster import CPUS, SlurmCluster, needs_slurm

pytestmark = needs_slurm

ENDLESS = (
    *("--env", "CartPole-v1", "--total-episodes", 4_000_000, "--episodes-per-update", 100),
    *("--minibatch-steps", 400, "--step-delay", "constant:20ms", "--selection-episodes", 0),
)
OTHER_PROCESS = """
import sys
from pathlib import Path
from deploy.engines import WorkerLaunch
from deploy.engines.slurm import SlurmEngine, SlurmOptions
run, pool, folder = sys.argv[1:]
engine = SlurmEngine(WorkerLaunch(run, pool, "nowhere:1", 1), SlurmOptions(), Path(folder))
print(*sorted(f"{member.name}:{member.state}" for member in engine.members()))
"""


@dataclass
class Pool:
    """A pool with its engine, and the learner that its workers play for."""

    fleet: Fleet
    cluster: SlurmCluster
    port: int
    name: str
    options: SlurmOptions = field(default_factory=SlurmOptions)
    """With squeue asked often."""

    def __post_init__(self) -> None:
        launch = WorkerLaunch("run", self.name, f"127.0.0.1:{self.port}", 2)
        self.folder = self.fleet.folder / "runs, 100% of them"
        self.engine = SlurmEngine(launch, replace(self.options, poll_seconds=0.2), self.folder)
        self.told: dict[str, Member] = {}
        """All that was ever told of workers that failed."""

    def names(self, first: int, last: int) -> list[str]:
        return [f"{self.name}-{number}" for number in range(first, last + 1)]

    def states(self) -> dict[str, str]:
        members = self.engine.members()
        assert len({member.name for member in members}) == len(members)
        self.told |= {member.name: member for member in members if member.state == "failed"}
        return {member.name: member.state for member in members if member.state != "failed"}

    def wait_for(self, states: Mapping[str, str]) -> None:
        self.fleet.wait_until(lambda: self.states() == states, f"workers were {states}, not {self.states()}")

    def playing(self) -> set[str]:
        """Return the labels of this pool's workers that the learner says are ready."""
        workers = (self.fleet.status(self.port) or {"workers": []})["workers"]
        return {w["label"] for w in workers if w["pool"] == self.name and w["state"] == "ready"}

    def wait_until_playing(self, names: list[str]) -> None:
        self.fleet.wait_until(lambda: self.playing() == set(names), f"{names} played")

    def task_of(self, name: str) -> str:
        """Return the task of a worker that has begun, as Slurm calls it: its log has that name too."""
        logs = self.folder / "logs"
        files = logs.glob("[0-9]*_[0-9]*.log")
        return next(file.stem for file in files if file.samefile(logs / f"{name}.log"))

    def ledger_is_in_order(self) -> None:
        ledger = self.fleet.json("ledger", f"127.0.0.1:{self.port}")
        assert not ledger["violations"] and not ledger["train"]["discarded"]
        assert ledger["deliveries"]["received"] == ledger["deliveries"]["first_copies"]

    def close(self) -> None:
        self.engine.stop(list(self.states()), kill=True)
        self.wait_for({})


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, int]]:
    fleet = Fleet(tmp_path_factory.mktemp("slurm"))
    try:
        yield fleet, fleet.learner(*ENDLESS)[1]
    finally:
        fleet.close()


@pytest.fixture
def pool(cluster: SlurmCluster, learner: tuple[Fleet, int], request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool = Pool(learner[0], cluster, learner[1], request.function.__name__.removeprefix("test_")[:12])
    yield pool
    pool.close()


def test_growing_waiting_and_shrinking(pool: Pool) -> None:
    pool.engine.start(pool.names(1, 3))
    pool.wait_until_playing(pool.names(1, 3))
    started = pool.engine.start(pool.names(4, CPUS + 2))
    assert {member.state for member in started} == {"pending"}
    running, waiting = pool.names(1, CPUS), pool.names(CPUS + 1, CPUS + 2)
    pool.wait_for(dict.fromkeys(running, "running") | dict.fromkeys(waiting, "pending"))
    pool.wait_until_playing(running)
    details = [member.detail for member in pool.engine.members() if member.state == "pending"]
    assert all("(Resources)" in detail or "(Priority)" in detail for detail in details), details
    seen = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, "run", pool.name, str(pool.folder)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert seen == sorted(
        [*(f"{name}:running" for name in running), *(f"{name}:pending" for name in waiting)]
    )

    pool.engine.stop([waiting[0], *running[:2]])
    staying = [*running[2:], waiting[1]]
    pool.wait_for(dict.fromkeys(staying, "running"))  # there is room for the one that waited
    for name in running[:2]:
        assert "ends: SIGINT (exit status 0)" in pool.engine.log(name, 1)
    pool.wait_until_playing(staying)
    assert not pool.told
    pool.cluster.run("scancel", "--signal=TERM", "--batch", pool.task_of(staying[0]))
    pool.wait_for(dict.fromkeys(staying[1:], "running"))
    [drained] = pool.told.values()
    assert drained.name == staying[0] and "SIGTERM: drained (exit status 0)" in drained.detail
    pool.ledger_is_in_order()
    pool.engine.stop(staying[1:2], kill=True)
    pool.wait_for(dict.fromkeys(staying[2:], "running"))
    assert "ends:" not in pool.engine.log(staying[1], 3) and len(pool.told) == 1


def test_requeued_and_preempted_workers_come_back_under_their_names(pool: Pool) -> None:
    names = pool.names(1, 2)
    pool.engine.start(names)
    pool.wait_until_playing(names)
    pool.cluster.run("scontrol", "requeue", pool.task_of(names[0]))
    pool.wait_for({names[0]: "pending", names[1]: "running"})
    assert any("(BeginTime)" in member.detail for member in pool.engine.members())
    pool.wait_for(dict.fromkeys(names, "running"))
    pool.fleet.wait_until(lambda: pool.engine.log(names[0], 1000).count("ready:") == 2, "it had begun again")
    urgent = pool.cluster.run(
        *("sbatch", "--parsable", "--partition=urgent", f"--cpus-per-task={CPUS}", "--output=/dev/null"),
        *("--wrap", "exec sleep 1000"),
    ).strip()
    pool.wait_for(dict.fromkeys(names, "pending"))
    pool.cluster.run("scancel", urgent)
    pool.wait_for(dict.fromkeys(names, "running"))
    pool.wait_until_playing(names)
    log = pool.engine.log(names[0], 1000)
    assert "DUE TO PREEMPTION" in log and f"worker {names[0]} on {pool.cluster.node}, requeued 2 times" in log
    assert log.count("SIGTERM: drained (exit status 0)") == 2
    pool.ledger_is_in_order()
    assert not pool.told


def test_a_worker_whose_time_is_over_drains(pool: Pool) -> None:
    """Of a job of one minute, Slurm says so when it next looks, each half a minute."""
    timed = Pool(pool.fleet, pool.cluster, pool.port, pool.name, SlurmOptions(time="1"))
    for number in (1, 2):  # Slurm may look while the first one starts
        [name] = timed.names(number, number)
        timed.engine.start([name])
        pool.fleet.wait_until(lambda: not timed.states(), "its time was over")
        if "ready:" in pool.engine.log(name, 1000):
            break
    member = timed.told[name]
    assert member.detail.startswith("ended by itself, task ")
    assert "SIGTERM: drained (exit status 0)" in member.detail
    pool.ledger_is_in_order()


def test_what_fails_is_told_with_its_last_words(pool: Pool) -> None:
    absent = Pool(pool.fleet, pool.cluster, pool.port, pool.name, SlurmOptions(venv="/nowhere"))
    absent.engine.start(absent.names(1, 2))
    pool.fleet.wait_until(lambda: not absent.states(), "both had ended")
    assert absent.told.keys() == set(absent.names(1, 2))
    for member in absent.told.values():
        assert member.host == pool.cluster.node
        assert "ended with an error (NonZeroExitCode)" in member.detail
        assert "/nowhere/bin/fleet: No such file or directory" in member.detail
    unseen = Pool(pool.fleet, pool.cluster, pool.port, pool.name, SlurmOptions(logs="/proc/logs"))
    unseen.engine.start(unseen.names(3, 3))
    pool.fleet.wait_until(lambda: not unseen.states(), "it had ended")
    assert "nothing in /proc/logs, which its node must have" in unseen.told[f"{pool.name}-3"].detail
    for options, complaint in (
        (SlurmOptions(partition="nope"), "sbatch: Invalid partition name specified"),
        (SlurmOptions(mem="999G"), "sbatch: Requested node configuration is not available"),
        (SlurmOptions(sbatch=("--foo=1",)), "sbatch: unrecognized option '--foo=1'"),
    ):
        refused = Pool(pool.fleet, pool.cluster, pool.port, pool.name, options)
        assert {member.detail for member in refused.engine.start(pool.names(7, 9))} == {complaint}
    [nowhere] = pool.engine.start(pool.names(10, 10), avoid=[pool.cluster.node])
    assert nowhere.detail == (
        f"sbatch: Requested node configuration is not available, without {pool.cluster.node}"
    )
    assert not pool.states()
