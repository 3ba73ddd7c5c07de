"""Workers of this machine: found again by any process, never mistaken, their ends told once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.engines import Engine, Member, WorkerLaunch
from deploy.engines.local import PROCESSES, LocalEngine, LocalOptions, worker_command
from deploy.engines.processes import KeptProcesses
from protocol.errors import UserError

LAUNCH = WorkerLaunch(run="run.1", pool="lab", learner="127.0.0.1:9", slots=2)
SLEEP = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(100)"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[KeptProcesses]:
    kept = KeptProcesses(tmp_path / PROCESSES)
    yield kept
    for name in kept.living():
        kept.signal(name, signal.SIGKILL)
    wait_until(lambda: not kept.living())


def start(kept: KeptProcesses, name: str, tmp_path: Path, command: list[str] = SLEEP) -> int:
    return kept.start(name, command, dict(os.environ), tmp_path / "logs" / f"{name}.log")


def engine(tmp_path: Path, pool: str = "lab", *, pin: bool = False) -> Engine:
    launch = WorkerLaunch(run="run.1", pool=pool, learner="127.0.0.1:9", slots=2)
    return LocalEngine(launch, LocalOptions(pin), tmp_path)


def test_the_command_is_a_worker_with_its_name() -> None:
    command = worker_command(LAUNCH, "lab-7")
    assert command[:4] == [sys.executable, "-P", "-m", "rollout_worker"]
    assert command[-6:] == ["--slots", "2", "--pool", "lab", "--label", "lab-7"]


def test_another_process_finds_them_and_is_told_of_their_end_once(
    kept: KeptProcesses, tmp_path: Path
) -> None:
    process_id = start(kept, "lab-1", tmp_path)
    start(kept, "lab-b-1", tmp_path)
    assert KeptProcesses(kept.folder).living()["lab-1"] == process_id
    [member] = engine(tmp_path).members()
    assert (member.name, member.state) == ("lab-1", "running")
    with pytest.raises(UserError, match="running already"):
        start(kept, "lab-1", tmp_path)
    wait_until(lambda: "begun" in engine(tmp_path).log("lab-1", 1))
    os.kill(process_id, signal.SIGKILL)
    kept._children["lab-1"].wait()
    other = engine(tmp_path)
    [member] = other.members()
    assert (member.name, member.state, "begun" in member.detail) == ("lab-1", "failed", True)
    assert other.members() == []
    assert other.log("lab-1", 5) == "begun"
    assert other.log("../../lab-1", 5) == ""


def test_they_outlive_who_started_them(tmp_path: Path) -> None:
    starter = (
        "import os, signal, sys; from pathlib import Path\n"
        "from deploy.engines.processes import KeptProcesses\n"
        f"KeptProcesses(Path({str(tmp_path / PROCESSES)!r})).start('lab-1', {SLEEP!r}, dict(os.environ), "
        f"Path({str(tmp_path / 'log')!r}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", starter], check=False)
    kept = KeptProcesses(tmp_path / PROCESSES)
    assert list(kept.living()) == ["lab-1"]
    engine(tmp_path).stop(["lab-1", "lab-2"])
    wait_until(lambda: not kept.living())


def test_a_process_id_that_another_process_has_now_is_not_mistaken(
    kept: KeptProcesses, tmp_path: Path
) -> None:
    bystander = subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        kept.folder.mkdir(parents=True)
        (kept.folder / "lab-1").write_text(f"{bystander.pid}\n")
        assert kept.living() == {}
        kept.signal("lab-1", signal.SIGKILL)
        assert [member.state for member in engine(tmp_path).members()] == ["failed"]
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_killing_takes_what_a_worker_started_along(kept: KeptProcesses, tmp_path: Path) -> None:
    child = f"{sys.executable} -c 'import time; print(1, flush=True); time.sleep(100)'"
    start(kept, "lab-1", tmp_path, ["/bin/sh", "-c", f"{child} & wait"])
    wait_until(lambda: engine(tmp_path).log("lab-1", 1) == "1")
    os.kill(kept.living()["lab-1"], signal.SIGKILL)
    kept._children["lab-1"].wait()
    assert list(kept.living()) == ["lab-1"], "its child lives"
    kept.signal("lab-1", signal.SIGKILL)
    wait_until(lambda: not kept.living())


def test_what_cannot_be_started_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    [member] = engine(tmp_path).start(["lab-1"])
    assert member.state == "failed" and "cannot be started" in member.detail
    host = member.host
    assert engine(tmp_path).start(["lab-2"], avoid=[host]) == [
        Member("lab-2", "", "failed", f"{host}, the only host, is put aside")
    ]


def test_pinned_workers_have_a_core_each_in_turn(kept: KeptProcesses, tmp_path: Path) -> None:
    pinned = engine(tmp_path, pin=True)
    names = [f"lab-{number}" for number in range(len(os.sched_getaffinity(0)))]
    assert all(member.state == "running" for member in pinned.start(names))
    living = kept.living()
    assert sorted(next(iter(os.sched_getaffinity(living[name]))) for name in names) == sorted(
        os.sched_getaffinity(0)
    )
    assert all(len(os.sched_getaffinity(living[name])) == 1 for name in names)
    pinned.stop(names, kill=True)
