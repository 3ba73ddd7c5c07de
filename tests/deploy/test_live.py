"""Which learner a command means, where runs live and are dead."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.app import run_command
from deploy.exits import Exit, complain
from deploy.live import find_learner, labels_at, run_at
from protocol.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, port: int) -> Path:
    """Make a run that is dead; each is newer than the one before."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    for file, text in (("config.toml", ""), ("lock", ""), ("address", f"0.0.0.0:{port}\n")):
        (folder / file).write_text(text)
    os.utime(folder / "address", (port, port))
    return folder


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_run_at_work_is_meant_rather_than_a_newer_dead_one() -> None:
    first, second = run("cage2", 1111), run("second", 2222)
    assert find_learner("") == "127.0.0.1:2222"
    with at_work(first):
        assert find_learner("") == "127.0.0.1:1111"
        with at_work(second), pytest.raises(UserError, match="2 runs are at work: name one of cage2, second"):
            find_learner("")
        assert find_learner("second") == "127.0.0.1:2222"


def test_of_runs_at_one_address_the_living_is_there() -> None:
    first, second = run("a", 1111), run("b", 1111)
    assert run_at("127.0.0.1:1112") is None
    with at_work(first):
        assert run_at("127.0.0.1:1111") == first
    with at_work(second):
        assert run_at("127.0.0.1:1111") == second


def test_an_error_names_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    run("second", 1)
    assert run_command(["drain", "here"]) == Exit.USAGE
    assert "no learner answered at 127.0.0.1:1, where runs/second listens" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x" * 300, "é:5555", "*:5", "a b:5"])
def test_what_is_no_learner_is_told_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["status", name]) == Exit.USAGE
    assert capsys.readouterr().err.count("\n") == 1


def test_an_error_holds_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain("a \x1b[2J\x07b\x9b1m\nc") == Exit.FAILED
    assert capsys.readouterr().err == "fleet: a [2J b 1m c\n"


def test_a_host_as_the_file_names_it_becomes_the_labels_there() -> None:
    fleet = run("cage2", 1111) / "fleet"
    fleet.mkdir()
    members = [
        {"name": f"lab-{n}", "host": host} for n, host in ((1, "cpu01"), (2, "me@cpu02"), (3, "cpu01"))
    ]
    (fleet / "observed.json").write_text(json.dumps({"pools": {"lab": {"members": members}}}))
    asked = ["cpu01", "cpu02", "me@cpu02", "lab", "lab-9"]
    assert labels_at("127.0.0.1:1111", asked) == ["lab-1", "lab-3", "lab-2", "lab-2", "lab", "lab-9"]
    assert labels_at("127.0.0.1:9", asked) == asked
