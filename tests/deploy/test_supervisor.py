"""The supervisor's loop with engines and a learner of our own: who hangs holds up nobody, all is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import deploy.fleet.listener
import deploy.fleet.pool_engine
import deploy.fleet.supervisor
from deploy.commands.up import scaled
from deploy.engines import Member, WorkerLaunch
from deploy.fleet.desire import desire, differences, going_on
from deploy.fleet.file import read_fleet_file
from deploy.fleet.joining import show_joining
from deploy.fleet.learner_process import LocalLearner, Place, learner_arguments
from deploy.fleet.listener import Listener
from deploy.fleet.state import Desired, DesiredLearner, FleetFolder, find_fleet
from deploy.fleet.supervisor import supervise
from deploy.settings import Settings, resolve, settings_of, to_toml
from protocol.errors import UserError
from protocol.keys import Keyring

FILE = """
[learner]
total_episodes = 4000
[pools.one]
engine = "local"
count = 2
slots = 5
[pools.two]
engine = "local"
count = 1
"""


class Machines:
    """Engines whose workers are entries of a mapping, and a learner that is one word."""

    def __init__(self) -> None:
        self.workers: dict[str, dict[str, WorkerLaunch]] = {}
        self.hanging: dict[str, threading.Event] = {}
        self.broken: set[str] = set()
        self.alive = False
        self.complete = False
        self.begun = 0
        self.mute = False
        """It runs, and does not answer."""
        self.left: set[str] = set()
        """Workers that somebody had drained."""

    def engine(self, kind: str, launch: WorkerLaunch, options: object, folder: Path) -> Engine:
        return Engine(self, launch)

    # The learner

    def start(self, config: str, chosen: Settings) -> None:
        self.alive, self.begun = True, self.begun + 1

    def stop(self, *, kill: bool = False) -> None:
        self.alive = False

    def finished(self, chosen: Settings) -> bool:
        return self.complete

    def log(self, lines: int) -> str:
        return "fleet: the disk is made of cheese"

    def close(self) -> None:
        pass

    def ask(self, address: str, what: str, key: Path | None) -> Mapping[str, Any]:
        if not self.alive or self.mute:
            raise UserError("no learner answered")
        states = [
            {"label": name, "pool": pool, "state": "ready", "desired": "play"}
            for pool, workers in self.workers.items()
            for name in list(workers)
        ]
        states += [
            {"label": name, "pool": "one", "state": "left", "desired": "drain"} for name in list(self.left)
        ]
        load = {"learner_busy": 0.2, "window_seconds": 10.0, "slots": 5.0, "slots_busy": 5.0}
        return {"version": 1, "workers": states, "load": {**load, "slots_busy_most": 5, "slots_now": 5}}


class Engine:
    def __init__(self, machines: Machines, launch: WorkerLaunch) -> None:
        self.machines, self.launch = machines, launch
        self.mine = machines.workers.setdefault(launch.pool, {})

    def members(self) -> Sequence[Member]:
        if event := self.machines.hanging.get(self.launch.pool):
            event.wait()
        if self.launch.pool in self.machines.broken:
            raise UserError("the machines are away")
        left = [Member(name, "host", "failed", "ended with status 0") for name in self.machines.left]
        return [Member(name, "host", "running") for name in self.mine] + left

    def start(self, names: Sequence[str], avoid: Collection[str] = ()) -> Sequence[Member]:
        self.mine.update(dict.fromkeys(names, self.launch))
        return [Member(name, "host", "running") for name in names]

    def stop(self, names: Collection[str], *, kill: bool = False) -> None:
        for name in names:
            self.mine.pop(name, None)

    def log(self, name: str, lines: int) -> str:
        return ""

    def close(self) -> None:
        pass


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    machines = Machines()
    process = type("Process", (), {"alive": lambda self: machines.alive})()
    for name in ("start", "stop", "finished", "log", "close"):
        setattr(process, name, getattr(machines, name))
    monkeypatch.setattr(deploy.fleet.pool_engine, "make_engine", machines.engine)
    monkeypatch.setattr(deploy.fleet.supervisor, "learner_process", lambda *_: process)
    monkeypatch.setattr(deploy.fleet.listener, "ask", machines.ask)
    monkeypatch.setattr(
        deploy.fleet.supervisor.Supervisor, "_drain", lambda self, names: _leave(machines, names)
    )
    return machines


def _leave(machines: Machines, names: Sequence[str]) -> None:
    for workers in machines.workers.values():
        for name in names:
            workers.pop(name, None)


class Run:
    """A supervisor in a thread of this process."""

    def __init__(self, folder: FleetFolder) -> None:
        self.folder = folder
        self.goes_on = True
        self.thread = threading.Thread(target=supervise, args=(folder, lambda: self.goes_on), daemon=True)
        self.thread.start()

    def want(self, text: str, file: Path) -> list[str]:
        file.write_text(text)
        with self.folder.changing():
            before = self.folder.desired()
            after = desire(read_fleet_file(file), self.folder, before)
            self.folder.write_desired(after)
        return differences(before, after)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machines: Machines) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    folder = FleetFolder(Path("runs") / "fleet")
    (tmp_path / "fleet.toml").write_text(FILE)
    with folder.changing():
        folder.write_desired(desire(read_fleet_file(Path("fleet.toml")), folder, None))
    run = Run(folder)
    yield run
    run.goes_on = False
    for event in machines.hanging.values():
        event.set()
    run.thread.join(20)
    assert not run.thread.is_alive()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def pool(run: Run, name: str) -> Mapping[str, Any]:
    return dict(run.folder.observed().get("pools", {}).get(name, {}))


def test_an_engine_that_hangs_holds_up_nobody_else_and_one_that_fails_is_told(
    run: Run, machines: Machines, tmp_path: Path
) -> None:
    wait_until(lambda: len(machines.workers.get("one", ())) == 2 and machines.alive, "it came up")
    machines.hanging["one"] = threading.Event()
    machines.broken.add("two")
    wait_until(lambda: pool(run, "two").get("error") == "the machines are away", "its error was told")
    machines.broken.clear()
    said = run.want(FILE.replace("count = 1", "count = 4"), tmp_path / "fleet.toml")
    assert said == ["two: count 1 -> 4"]
    wait_until(lambda: len(machines.workers["two"]) == 4, "the other pool grew")
    machines.hanging.pop("one").set()


def test_what_changes_in_the_file_is_told_and_done(run: Run, machines: Machines, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    wait_until(lambda: len(machines.workers.get("one", ())) == 2, "it came up")
    assert run.want(FILE, file) == []
    assert run.want(FILE.replace("slots = 5", "slots = 7"), file) == [
        "one: slots 5 -> 7: its workers are replaced as they finish"
    ]
    wait_until(lambda: [launch.slots for launch in machines.workers["one"].values()] == [7, 7], "replaced")
    assert sorted(machines.workers["one"]) == ["one-3", "one-4"]
    without = FILE.partition("[pools.two]")[0]
    assert run.want(without, file)[-1] == "two: is gone from the file, its workers leave"
    wait_until(lambda: not machines.workers["two"] and not pool(run, "two").get("members"), "they left")
    assert run.want(without, file) == []
    wait_until(lambda: not pool(run, "two"), "it was forgotten")
    assert run.want(FILE, file) == ["two: new, 1 worker of 50 slots, local"]
    wait_until(lambda: list(machines.workers["two"]) == ["two-2"], "its names go on")
    begun = machines.begun
    assert run.want(FILE.replace("4000", "8000"), file) == [
        "learner: total_episodes 4000 -> 8000; it goes on from a checkpoint"
    ]
    wait_until(lambda: machines.begun == begun + 1 and machines.alive, "the learner was started again")


def test_a_place_that_somebody_drained_stays_empty_until_the_next_command(
    run: Run, machines: Machines, tmp_path: Path
) -> None:
    wait_until(lambda: _states(run, "one") == ["ready", "ready"], "it came up")
    machines.left.add("one-1")  # before it is out of the list: it leaves within one look
    del machines.workers["one"]["one-1"]
    wait_until(lambda: len(pool(run, "one")["members"]) == 1, "it was seen to be gone")
    written = run.folder.observed()["written_at"]
    wait_until(lambda: run.folder.observed()["written_at"] > written + 4, "time passed")
    assert list(machines.workers["one"]) == ["one-2"] and not pool(run, "one")["failures"]
    run.want(FILE, tmp_path / "fleet.toml")
    wait_until(lambda: sorted(machines.workers["one"]) == ["one-2", "one-3"], "fleet up fills it")


def _states(run: Run, name: str) -> list[str]:
    return [member["state"] for member in pool(run, name).get("members", ())]


def test_only_the_learner_that_is_wanted_now_counts_as_there(
    run: Run, machines: Machines, tmp_path: Path
) -> None:
    wait_until(lambda: run.folder.observed().get("learner", {}).get("answers", False), "it answers")
    machines.mute = True
    seen: list[tuple[bool, list[str]]] = []

    def restarted() -> bool:
        observed = run.folder.observed()
        if observed["generation"] == generation:
            seen.append((observed["learner"]["answers"], _states(run, "one")))
        return machines.begun == 2 and len(seen) > 100

    run.want(FILE.replace("4000", "8000"), tmp_path / "fleet.toml")
    desired = run.folder.desired()
    assert desired
    generation = desired.generation
    wait_until(restarted, "the learner was started again")
    assert not any(answers for answers, _ in seen)
    wait_until(lambda: _states(run, "one") == ["away", "away"], "no worker counts as there either")
    machines.mute = False
    wait_until(lambda: run.folder.observed()["learner"]["answers"], "it answers")
    wait_until(lambda: _states(run, "one") == ["ready", "ready"], "all there")


def test_what_a_learner_at_another_address_said_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy.fleet.listener, "ask", lambda address, *_: {"address": address, "workers": []})
    learner = DesiredLearner("", Place(), "127.0.0.1:5555")
    listener = Listener(learner)
    listener.start()
    wait_until(lambda: listener.answer is not None, "it answers")
    listener.end()
    listener.join(20)
    listener.learner = replace(learner, address="127.0.0.1:6666")
    assert listener.answer is None


def test_a_live_learner_is_not_stopped_for_one_that_could_not_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("FLEET_KEY", raising=False)
    monkeypatch.setattr(LocalLearner, "alive", lambda self: True)
    folder, file = FleetFolder(Path("runs") / "fleet"), tmp_path / "fleet.toml"

    def wanted(text: str, before: Desired | None = None) -> Desired:
        file.write_text(text)
        return desire(read_fleet_file(file), folder, before)

    before = wanted(FILE)
    with pytest.raises(UserError, match=r"other hosts reach 0\.0\.0\.0"):
        wanted(FILE.replace("[learner]", '[learner]\nbind = "0.0.0.0"'), before)
    guarded = FILE.replace("[learner]", f'[learner]\nkeys = "{tmp_path / "ring"}"')
    with pytest.raises(UserError, match=r"pool one has no key.*\[pools\.one\]"):
        wanted(guarded, before)
    Keyring(tmp_path / "ring").new("workers", "worker", tmp_path / "workers.key")
    after = wanted(
        guarded.replace("slots = 5", 'key = "workers.key"').replace("count = 1", 'key = "workers.key"'),
        before,
    )
    assert after.pools["two"].key == str(tmp_path / "workers.key")


def test_a_learner_that_dies_is_told_of_before_it_is_given_up(
    run: Run, machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_until(lambda: run.folder.observed().get("learner", {}).get("answers", False), "it answers")
    machines.mute = True
    machines.alive = False
    wait_until(lambda: "cheese" in run.folder.observed()["learner"]["last_words"], "its last words are kept")
    assert not show_joining(run.folder, 1, {}, 0.0)
    assert "yet; one that was started ended: the disk is made of cheese\n" in capsys.readouterr().err
    machines.mute = False
    wait_until(lambda: run.folder.observed()["learner"]["last_words"] == "", "another answers")


def test_autoscaling_says_why(run: Run, machines: Machines, tmp_path: Path) -> None:
    text = FILE.replace("count = 2\n", 'max = 3\ntarget = "learner_busy:0.9"\n')
    run.want(text, tmp_path / "fleet.toml")
    wait_until(lambda: "learner busy 20%" in pool(run, "one").get("reason", ""), "it said why")
    wait_until(lambda: len(machines.workers["one"]) == 3, "it grew to its max")


def test_a_successor_goes_on_with_what_it_finds(run: Run, machines: Machines) -> None:
    wait_until(lambda: len(machines.workers.get("one", ())) == 2 and machines.alive, "it came up")
    run.goes_on = False
    run.thread.join(20)
    [first, _] = machines.workers["one"]
    del machines.workers["one"][first]
    again = Run(run.folder)
    wait_until(lambda: sorted(machines.workers["one"]) == ["one-2", "one-3"], "the dead one was replaced")
    assert machines.begun == 1
    assert sorted(machines.workers["two"]) == ["two-1"]
    with run.folder.changing():
        desired = run.folder.desired()
        assert desired
        run.folder.write_desired(replace(desired, phase="drain"))
    again.thread.join(30)
    assert not again.thread.is_alive() and not machines.alive and not any(machines.workers.values())
    assert run.folder.observed()["phase"] == "down"


def test_a_complete_run_ends_its_fleet(run: Run, machines: Machines) -> None:
    wait_until(lambda: len(machines.workers.get("one", ())) == 2 and machines.alive, "it came up")
    machines.complete, machines.alive = True, False
    run.thread.join(30)
    assert not run.thread.is_alive() and not any(machines.workers.values())
    assert run.folder.observed()["phase"] == "finished"
    with pytest.raises(UserError, match="no fleet is up"):
        find_fleet(None)


def test_a_damaged_wish_is_told_and_the_last_one_kept(run: Run, machines: Machines) -> None:
    wait_until(lambda: len(machines.workers.get("one", ())) == 2, "it came up")
    file = run.folder.path / "desired.json"
    whole = file.read_text()
    file.write_text(whole[:50])
    time.sleep(1)
    assert run.thread.is_alive() and len(machines.workers["one"]) == 2
    with pytest.raises(UserError, match=r"desired\.json is damaged"):
        run.folder.desired()
    plain = json.loads(whole)
    plain["pools"]["one"] |= {"unknown": 1}
    file.write_text(json.dumps(plain))
    with pytest.raises(UserError, match="of another release"):
        run.folder.desired()
    file.write_text(whole)


def test_what_a_run_cannot_change_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, file = FleetFolder(Path("runs") / "fleet"), tmp_path / "fleet.toml"

    def wanted(text: str, before: Desired | None = None) -> Desired:
        file.write_text(text)
        return desire(read_fleet_file(file), folder, before)

    before = wanted(FILE)
    unlike = wanted(FILE.replace("[learner]", "[learner]\nseed = 2"), before)
    assert settings_of(unlike.learner.config).run.seed == 2, "a run that never began has no settings to keep"
    assert unlike.learner.address == before.learner.address
    folder.run.mkdir(parents=True)
    (folder.run / "config.toml").write_text(before.learner.config)
    for old, new, said in (
        ("[learner]", "[learner]\nseed = 2", "--seed cannot change"),
        ("[learner]", '[learner]\nhost = "gpu"', "a run does not move"),
        ('engine = "local"\ncount = 1', 'engine = "slurm"\ncount = 1', "pool two cannot change its engine"),
    ):
        with pytest.raises(UserError, match=said):
            wanted(FILE.replace(old, new), before)
    with pytest.raises(UserError, match=r"listens on 127\.0\.0\.1 alone"):
        wanted(FILE + '[pools.far]\nengine = "slurm"\n')
    tunnelled = wanted(FILE + '[pools.far]\nengine = "ssh"\nhosts = "cpu[1-3]"\ntunnel = true\n')
    assert tunnelled.pools["far"].learner == tunnelled.learner.address
    assert tunnelled.pools["far"].count is None
    fewer = wanted(FILE + '[pools.far]\nengine = "ssh"\nhosts = "cpu[2-3]"\ntunnel = true\n', tunnelled)
    assert fewer.pools["far"].former_hosts == ("cpu1",)
    assert "far: 0 more hosts, 1 fewer" in differences(tunnelled, fewer)
    assert Desired.from_plain(json.loads(json.dumps(asdict(fewer)))).pools["far"].former_hosts == ("cpu1",)


@pytest.mark.parametrize(
    ("complete", "by_fleet_up", "total", "said"),
    [
        (True, False, "", "run fleet is complete and has 7,260 episodes: to train it further give"),
        (True, True, "", "run fleet is complete and has 7,260 episodes"),
        (True, True, "total_episodes = 7260", "run fleet is complete and has 7,260 episodes"),
        (False, False, "", "run fleet was not begun by fleet up and has 7,260 episodes"),
        (False, True, "total_episodes = 660", "run fleet already has 7,260 episodes"),
        (False, True, "", "to 300,300 episodes"),
        (False, False, "total_episodes = 8000", "to 8,580 episodes"),
        (True, False, "total_episodes = 8000", "to 8,580 episodes"),
    ],
)
def test_a_run_that_is_there_goes_on_only_where_that_is_meant(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    complete: bool,
    by_fleet_up: bool,
    total: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, file = FleetFolder(Path("runs") / "fleet"), tmp_path / "fleet.toml"
    (folder.run / "checkpoints" / "update-00011").mkdir(parents=True)
    (folder.run / "config.toml").write_text(to_toml(resolve({"total_episodes": 7260})))
    if complete:
        (folder.run / "outcome").write_text("finished 11\n")
    if by_fleet_up:
        folder.path.mkdir()
    file.write_text(f"[learner]\n{total}\n")
    try:
        lines = going_on(folder, desire(read_fleet_file(file), folder, None))
    except UserError as error:
        assert str(error).startswith(said), error
    else:
        [line] = lines
        assert line.startswith("learner: goes on with run fleet at update 11 of ") and line.endswith(said)


def test_a_complete_run_elsewhere_is_trained_further_only_where_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, file = FleetFolder(Path("runs") / "fleet"), tmp_path / "fleet.toml"

    def wanted(total: str, before: Desired | None) -> Desired:
        file.write_text(f'[learner]\nhost = "gpu-box"\n{total}\n')
        return desire(read_fleet_file(file), folder, before)

    before = wanted("total_episodes = 7260", None)
    folder.path.mkdir(parents=True)
    folder.write_observed({"phase": "finished"})
    with pytest.raises(UserError, match="run fleet is complete and has 7,260 episodes"):
        wanted("", before)
    assert "total_episodes = 8000" in wanted("total_episodes = 8000", before).learner.config


def test_scaling_is_checked_against_what_the_pool_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, file = FleetFolder(Path("runs") / "fleet"), tmp_path / "fleet.toml"
    auto = '[pools.auto]\nengine = "local"\nmax = 3\ntarget = "learner_busy:0.9"\n'
    file.write_text(FILE.replace("count = 1", "count = 1\nmax = 8") + auto)
    desired = desire(read_fleet_file(file), folder, None)
    for text, count in (("two=8", 8), ("two=+7", 8), ("two=-1", 0), ("two=0", 0), ("one=1000", 1000)):
        assert scaled(text, folder, desired) == (text[:3], count)
    for text, said in (
        ("two=9", "two=9 is above its max, which is 8"),
        ("two=+8", "two=9 is above its max"),
        ("two=-2", "two has 1 worker, 2 fewer are less than none"),
        ("one=1000001", "above its max"),
        ("auto=2", r"auto scales itself between 0 and 3 \(learner_busy:0.9\)"),
        ("three=1", "no pool 'three' in the fleet of fleet; there are one, two, auto"),
        ("two", "'two' is not understood"),
        ("two=x", "'two=x' is not understood"),
    ):
        with pytest.raises(UserError, match=said):
            scaled(text, folder, desired)


def test_a_learner_is_told_its_file_at_first_and_later_only_what_may_change() -> None:
    chosen = resolve({"seed": "3", "total_episodes": "80", "insecure": True, "allow_env": ["a", "b"]})
    first = learner_arguments("runs/x", "x", "learner.toml", chosen, resume=False)
    assert first == ["learner", "--name", "x", "--config", "learner.toml"]
    later = learner_arguments("runs/x", "x", "learner.toml", chosen, resume=True)
    assert later[:3] == ["learner", "--resume", "runs/x"]
    joined = " ".join(later)
    assert "--total-episodes 80" in joined and "--insecure" in joined
    assert "--allow-env a --allow-env b" in joined
    assert "--seed" not in joined and "--workers" not in joined
    guarded = resolve({"insecure": False})
    assert "--no-insecure" in learner_arguments("runs/x", "x", "learner.toml", guarded, resume=True)
