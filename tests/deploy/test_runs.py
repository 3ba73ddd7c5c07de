"""Whole runs as real processes: interrupted, resumed, their processes killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deploy.exits import Exit
from deploy.local import LocalWorkers
from deploy.settings import resolve
from learner.progress import Progress
from protocol.errors import UserError

FLEET = str(Path(sys.executable).with_name("fleet"))
DEADLINE_SECONDS = 90.0
SMALL = ["--n-envs", "8", "--episodes-per-update", "20", "--hidden", "8", "--minibatch-steps", "500"]

Start = Callable[..., subprocess.Popen[str]]


def wait_until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `fleet` in an empty folder; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen([FLEET, *arguments], cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str], status: int = Exit.OK) -> str:
    """Wait for a process, hold it to its exit status and return what it printed."""
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == status, err
    return out + err


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [
        process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def test_a_run_is_interrupted_resumed_evaluated_and_replayed(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    training = start("train", "--name", "mine", "--total-episodes", "10000000", "--workers", "2", *SMALL)
    wait_until((folder / "updates.jsonl").exists, "a first update")
    workers = psutil.Process(training.pid).children()
    assert len(workers) == 2
    for number in (signal.SIGINT, signal.SIGTERM):  # the second is the same wish, as of a scheduler
        training.send_signal(number)
    said = finished(training, Exit.INTERRUPTED)
    assert not alive(workers)
    assert "fleet train --resume mine goes on" in said and "Traceback" not in said

    update = int(said.split("Stopped after update ")[1].split(";")[0])
    last = update + 4  # beyond the tickets that were out when it was interrupted
    total = str(last * 20)
    resumed = start(
        "train",
        "--resume",
        "mine",
        "--total-episodes",
        total,
        "--evaluation-episodes",
        "5",
        "--json",
        "table.json",
    )
    assert "100 steps" in finished(resumed)
    table = json.loads((tmp_path / "table.json").read_text())["returns"]
    cells = [(red, steps) for red in ("b_line", "meander") for steps in (30, 50, 100)]
    assert [(row["red"], row["steps"]) for row in table] == cells
    for name in ("metrics.csv", "learning_curve.png", "evaluation.json"):
        assert (folder / name).stat().st_size

    evaluating = start("evaluate", "mine", "--episodes", "1000000")
    wait_until(psutil.Process(evaluating.pid).children, "processes to play in")
    evaluating.send_signal(signal.SIGINT)
    said = finished(evaluating, Exit.INTERRUPTED)
    assert "fleet: interrupted" in said and "Traceback" not in said

    ledger = finished(start("ledger", "mine"))
    assert f"train: {int(total):,} issued = {int(total):,} consumed + 0 discarded + 0 outstanding" in ledger
    for name in ("once.json", "again.json"):
        finished(start("evaluate", "mine", "--episodes", "5", "--json", name))
    once, again = (json.loads((tmp_path / name).read_text()) for name in ("once.json", "again.json"))
    assert once == again and [(row["red"], row["steps"]) for row in once["returns"]] == cells
    ticket = max(number for number in range(int(total)) if number % 6 == 1)  # red agents alternate, 30 first
    replay = finished(start("replay", "mine", str(ticket), "--version", str(last)))
    assert replay.startswith(f"ticket train:{ticket} under version {last}: red_agent meander")
    assert "step 29: Blue" in replay and "30 steps, truncated" in replay
    assert len(finished(start("hash", "mine"))) == 65
    assert resolve({}, folder / "config.toml").run.total_episodes == int(total)


def test_a_killed_worker_is_replaced_and_a_killed_learner_takes_its_workers_along(
    start: Start, tmp_path: Path
) -> None:
    training = start("train", "--name", "mine", "--total-episodes", "10000000", "--workers", "2", *SMALL)
    wait_until((tmp_path / "runs/mine/updates.jsonl").exists, "a first update")
    learner = psutil.Process(training.pid)
    first = learner.children()
    first[0].kill()
    wait_until(
        lambda: len(set(learner.children()) - set(first)) == 1, "a worker in the place of the killed one"
    )
    workers = learner.children()
    training.kill()
    wait_until(lambda: not alive(workers), "the workers to end with their learner")


def replace_worker(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LocalWorkers start this program instead of a worker, without a pause."""
    package = folder / "instead" / "rollout_worker"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(program)
    monkeypatch.setattr("deploy.backoff.FIRST_SECONDS", 0.0)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))  # the module is found here first


@pytest.mark.parametrize("status", [0, 1])
def test_workers_that_cannot_run_end_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    program = f"import sys; print('the disk is made of cheese'); sys.exit({status})"
    replace_worker(program, tmp_path, monkeypatch)
    nobody = Progress("waiting for workers", 0, 1, 0, 1, 0.0, 0.0, 0.0)
    with LocalWorkers("127.0.0.1:1", [1], tmp_path / "logs", threading.Event()) as workers:
        refusals: list[str] = []

        def refused() -> bool:
            try:
                workers.check(nobody)
            except UserError as error:
                refusals.append(str(error))
            return bool(refusals)

        wait_until(refused, "the workers to be given up")
    assert f"every worker ends as soon as it starts, with status {status}" in refusals[0]
    assert refusals[0].endswith("the disk is made of cheese")


def test_a_worker_that_was_ready_is_replaced_however_often_it_dies_until_the_run_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    births = tmp_path / "births"
    births.touch()
    program = f"import os; print(os.getpid(), file=open({str(births)!r}, 'a'), flush=True); os._exit(0)"
    replace_worker(program, tmp_path, monkeypatch)
    playing = Progress("training", 0, 1, 0, 1, 0.0, 0.0, 0.0)
    with LocalWorkers("127.0.0.1:1", [1], tmp_path / "logs", threading.Event()) as workers:

        def born_ten_times() -> bool:
            born = frozenset(map(int, births.read_text().split()))
            workers.check(replace(playing, processes=born))
            return len(born) >= 10

        wait_until(born_ten_times, "ten workers, each in the place of the one before")
        workers.check(replace(playing, phase="done"))
        wait_until(lambda: not workers.process_ids, "the last worker to end")
        born = births.read_text()
    assert births.read_text() == born
