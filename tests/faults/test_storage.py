"""A disk that is full and a folder that is read-only: one line, nothing lost, and --resume goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.fleet_processes import Argument, Fleet


def lacking_mounts() -> str:
    if os.geteuid() != 0:
        return "needs root, for mounts"
    allowed = subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    return "" if allowed else "this machine lets nobody mount"


pytestmark = [
    pytest.mark.skipif(bool(lacking_mounts()), reason=lacking_mounts()),
    pytest.mark.timeout(400),
]
BATCH = 12
RUN: tuple[Argument, ...] = (
    *("--env", "CartPole-v1", "--episode-length", 20, "--episodes-per-update", BATCH, "--hidden", 16),
    *("--total-episodes", 100_000 * BATCH, "--evaluation-episodes", 0, "--selection-episodes", 0),
    *("--epochs", 2, "--checkpoint-every", 3, "--lag", "exact:1"),
)


@pytest.fixture
def runs(fleet: Fleet) -> Iterator[Path]:
    """Give a small file system of its own, where the fleet's runs lie."""
    runs = fleet.folder / "runs"
    runs.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", runs)
    yield runs
    fleet.close()
    while subprocess.run(["umount", "--lazy", runs], capture_output=True).returncode == 0:
        pass


def mount(*arguments: Argument) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def make_read_only(folder: Path, aside: Path) -> None:
    """Lay a read-only view over a folder; made elsewhere, for one that is written to cannot be changed."""
    aside.mkdir()
    mount("--bind", folder, aside)
    mount("-o", "remount,ro,bind", aside)
    mount("--bind", aside, folder)
    subprocess.run(["umount", aside], check=True)


def updates(runs: Path) -> int:
    journal = runs / "run" / "updates.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def goes_on(fleet: Fleet, runs: Path, port: int) -> None:
    """Resume the run, see it train with the worker that waited, and end it in order."""
    before = updates(runs)
    again = fleet.start("learner", "--resume", "run", "--port", port)
    fleet.wait_until(lambda: updates(runs) >= before + 4, "the run went on")
    again.terminate()
    fleet.finish(again, 143)
    ledger = fleet.json("ledger", "run")
    assert ledger["violations"] == []


def test_a_full_disk_ends_the_learner_in_one_line_and_room_lets_it_go_on(fleet: Fleet, runs: Path) -> None:
    learner, port = fleet.learner(*RUN)
    worker = fleet.worker(port, 6)
    fleet.wait_until(lambda: updates(runs) >= 8, "some updates were done")
    with (runs / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
    output = fleet.finish(learner, 1)
    told = "No space left on device in runs/run: make room, then --resume run"
    assert output.splitlines()[-1].endswith(told) and "Traceback" not in output
    assert not list((runs / "run" / "checkpoints").glob(".*")), "a draft takes room that is needed"
    (runs / "ballast").unlink()
    goes_on(fleet, runs, port)
    assert worker.poll() is None


def test_a_folder_that_becomes_read_only_is_told_and_can_still_be_read(fleet: Fleet, runs: Path) -> None:
    learner, port = fleet.learner(*RUN)
    fleet.worker(port, 6)
    fleet.wait_until(lambda: updates(runs) >= 8, "some updates were done")
    make_read_only(runs, fleet.folder / "aside")
    told = "Read-only file system in runs/run: mount it writable, then --resume run"
    for process in (learner, fleet.start("learner", "--resume", "run", "--port", "auto")):
        output = fleet.finish(process, 1)
        assert output.splitlines()[-1].endswith(told) and "Traceback" not in output
    assert fleet.run("hash", "run") and fleet.run("ledger", "run")
    subprocess.run(["umount", runs], check=True)
    goes_on(fleet, runs, port)
