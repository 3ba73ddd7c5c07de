"""`fleet up`, `scale` and `down` with real processes: killed at will, found again, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.end_to_end.fleet_processes import Fleet

RUN = """
[learner]
name = "lab"
port = "auto"
total_episodes = {episodes}
episodes_per_update = 40
episode_length = 30
checkpoint_every = 5
evaluation_episodes = 2

[pools.here]
engine = "local"
slots = 5
count = {count}
"""


class LocalFleet:
    """A fleet of this machine in a folder of its own."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.folder = fleet, fleet.folder
        self.run = self.folder / "runs" / "lab"

    def write(self, count: int = 2, episodes: int = 4_000_000, more: str = "") -> None:
        (self.folder / "fleet.toml").write_text(RUN.format(count=count, episodes=episodes) + more)

    def up(self, status: int = 0) -> str:
        return self.fleet.run("up", "-f", "fleet.toml", status=status)

    def observed(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "fleet" / "observed.json").read_text()))

    def desired(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "fleet" / "desired.json").read_text()))

    def processes(self, *words: str) -> list[psutil.Process]:
        """Return this fleet's living processes whose command line has all these words."""
        found = []
        for process in psutil.process_iter(["cmdline", "cwd", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            mine = process.info["cwd"] == str(self.folder) and process.info["status"] != psutil.STATUS_ZOMBIE
            if (
                mine
                and process.pid not in {p.pid for p in self.fleet.processes}
                and all(w in line for w in words)
            ):
                found.append(process)
        return found

    def workers(self) -> list[str]:
        lines = [process.cmdline() for process in self.processes("rollout_worker")]
        return sorted(line[line.index("--label") + 1] for line in lines if "--label" in line)

    def supervisor(self) -> psutil.Process:
        [process] = self.processes("deploy.fleet.supervisor")
        return process

    def learner(self) -> psutil.Process:
        [process] = self.processes("-m deploy learner")
        return process

    def updates(self) -> int:
        journal = self.run / "updates.jsonl"
        return len(journal.read_text().splitlines()) if journal.exists() else 0

    def wait_for_updates(self, more: int = 2) -> None:
        until = self.updates() + more
        self.fleet.wait_until(lambda: self.updates() >= until, f"{more} more updates were done")

    def log(self) -> str:
        return (self.run / "fleet" / "supervisor.log").read_text()

    def close(self) -> None:
        for process in self.processes():
            process.kill()


@pytest.fixture
def local(fleet: Fleet) -> Iterator[LocalFleet]:
    local = LocalFleet(fleet)
    yield local
    local.close()


def test_a_fleet_changes_while_it_trains_survives_kills_and_ends_without_a_trace(local: LocalFleet) -> None:
    # Up: what is named in the file, and again what differs from it.
    local.write(count=2)
    output = local.up()
    assert "here: 2 workers of 5 slots, local" in output
    assert "here-1: joined in" in output and "all there: the learner and 2 workers" in output
    assert local.workers() == ["here-1", "here-2"]
    before = {process.pid for process in local.processes()}
    assert "nothing differs from fleet.toml" in local.up()
    assert {process.pid for process in local.processes()} == before

    # Scaled while it trains, up and down: no episode is lost.
    assert "here: 2 -> 3" in local.fleet.run("scale", "here=+1")
    assert local.workers() == ["here-1", "here-2", "here-3"]
    local.wait_for_updates()
    assert "here: 3 -> 1" in local.fleet.run("scale", "here=1")
    assert local.workers() == ["here-1"]
    port = local.observed()["learner"]["address"]
    ledger = local.fleet.json("ledger", port)
    assert ledger["train"]["discarded"] == {} and ledger["violations"] == []
    assert ledger["deliveries"]["received"] == ledger["deliveries"]["first_copies"]
    local.write(count=2)
    assert "here: count 1 -> 2" in local.up()

    # A worker killed is replaced by one of another name.
    [victim] = local.processes("--label here-1")
    victim.kill()
    local.fleet.wait_until(lambda: local.workers() == ["here-4", "here-5"], "a killed worker was replaced")

    # The supervisor killed: up takes the members over, and nothing starts twice.
    local.supervisor().kill()
    assert "nothing differs" in local.up()
    assert local.workers() == ["here-4", "here-5"]
    assert len(local.processes("-m deploy learner")) == 1

    # The learner killed: it goes on from its checkpoint, and the workers with it.
    local.learner().kill()
    local.wait_for_updates(4)
    assert local.workers() == ["here-4", "here-5"], "workers wait for their learner"

    # Down, with nobody to see to it.
    local.supervisor().kill()
    local.fleet.run("down")
    assert local.processes() == []
    ledger = local.fleet.json("ledger", "lab")
    assert ledger["violations"] == [] and ledger["train"]["discarded"] == {}


@pytest.mark.slow
def test_a_run_that_is_complete_takes_its_fleet_down(local: LocalFleet) -> None:
    local.write(count=1, episodes=400)
    local.fleet.start("up", "-f", "fleet.toml")
    observed = local.run / "fleet" / "observed.json"
    local.fleet.wait_until(
        lambda: observed.exists() and local.observed()["phase"] == "finished" and not local.processes(),
        "the fleet went down with its run",
    )
    assert "is complete" in local.up(status=2)
    assert "is complete" in local.fleet.run("scale", "here=2", "--run", "lab", status=2)
    local.write(count=1, episodes=800)
    assert "learner: goes on with run lab at update 10 of 20, to 800 episodes" in local.up()
    local.fleet.wait_until(lambda: local.updates() == 20, "a run that was made longer went on")
    local.fleet.run("down", "lab")
    assert local.processes() == []


def test_what_cannot_start_is_told_and_the_rest_is_kept(local: LocalFleet) -> None:
    local.write(count=1, more='[pools.broken]\nengine = "local"\ncount = 1\nallow_env = ["no_such_module"]\n')
    output = local.up(status=1)
    assert "here-1: joined" in output
    assert "broken-" in output and "no_such_module" in output and "put aside" in output
    assert "pool broken: 0 of 1 workers are there" in output
    assert "no_such_module" in local.fleet.run("logs", "broken-1")
    assert local.workers() == ["here-1"]

    other = local.fleet.run("learner", "--resume", "lab", "--port", "auto", status=2)
    assert "another learner is training" in other
    local.write(count=1)
    assert "broken: is gone from the file" in local.up()
    local.fleet.run("down", "--now")
    assert local.processes() == []


def test_a_run_that_another_learner_trains_is_refused(local: LocalFleet) -> None:
    local.fleet.learner("--total-episodes", 4000, name="lab")
    local.write()
    output = local.up(status=2)
    assert "another learner is training" in output and len(output.splitlines()) == 1
    assert not (local.run / "fleet").exists()


def test_a_fleet_without_a_pool_says_that_no_workers_come(local: LocalFleet) -> None:
    local.write(count=0)
    file = local.folder / "fleet.toml"
    file.write_text(file.read_text().partition("[pools")[0])
    output = local.fleet.run("up", "-f", "fleet.toml", "--wait", 0, status=1)
    address = local.desired()["learner"]["address"]
    said = f"no pool is named, so no workers are started: fleet worker --learner {address} starts one by hand"
    assert said in output.splitlines()
    local.fleet.run("down")
    local.write(count=0)
    assert "no pool" not in local.fleet.run("up", "-f", "fleet.toml", "--wait", 0, status=1)
    local.fleet.run("down")


def test_mistakes_are_one_line(local: LocalFleet) -> None:
    for arguments, said in (
        (("up", "-f", "none.toml"), "none.toml cannot be read"),
        (("scale", "lab=3"), "no fleet under runs/"),
        (("scale", "lab=3", "--run", "x"), "no fleet of a run 'x'"),
        (("down",), "no fleet under runs/"),
        (("down", "x"), "no fleet of a run 'x'"),
    ):
        output = local.fleet.run(*arguments, status=2)
        assert said in output and len(output.splitlines()) == 1, output
    (local.folder / "fleet.toml").write_text('[pools.x]\nengine = "local"\ncuont = 2\n')
    assert "fleet.toml:3: pools.x.cuont is no key here: did you mean count?" in local.up(status=2)
    assert not (local.folder / "runs").exists()


def test_a_run_that_never_began_takes_other_options(local: LocalFleet) -> None:
    """Its learner refuses what is found out only at its start."""
    local.write(count=0)
    file = local.folder / "fleet.toml"
    text = file.read_text()
    file.write_text(text.replace("[learner]", '[learner]\nmode = "sync"\nrecord_steps = "."'))
    local.fleet.run("up", "-f", "fleet.toml", "--wait", 0, status=1)
    assert "its run never began, fleet up -f FILE begins it" in local.fleet.run("down")
    file.write_text(text.replace("[learner]", "[learner]\nseed = 3"))
    assert "all there: the learner and 0 workers" in local.up()
    assert "the fleet of lab is down; fleet up goes on with it" in local.fleet.run("down")
