"""`fleet steps`: its figures, of a record whose times are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deploy.app import run_command
from deploy.commands.steps import steps
from deploy.exits import Exit
from learner.step_record import StepRecorder
from protocol.errors import UserError


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """One hundred rounds, one a second: slots 0 and 1 answer after 0.1 s, slot 2 after 0.2 s, once 0.5 s."""
    recorder = StepRecorder(tmp_path / "steps", go_on=False)
    for number in range(1, 101):
        recorder.note(number, "quick:1", np.array([0, 1]), number, number + 0.1)
        recorder.note(number, "slow:2", np.array([2]), number, number + (0.5 if number == 60 else 0.2))
    recorder.close()
    return tmp_path / "steps"


def test_the_slowest_come_first(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps(record, json_file=tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rounds"] == 100
    assert [slot["slot"] for slot in found["slots"]] == [2, 0, 1]
    assert found["slots"][0] == pytest.approx(
        {"slot": 2, "answers": 100, "mean_seconds": 0.203, "max_seconds": 0.5, "last_share": 1}, abs=1e-4
    )
    assert [worker["worker"] for worker in found["workers"]] == ["slow:2", "quick:1"]
    assert found["wait_seconds"] == pytest.approx(
        {"p50": 0.2, "p90": 0.2, "p99": 0.203, "max": 0.5}, abs=1e-4
    )
    assert found["wall_seconds"] == pytest.approx(99.2, abs=1e-4)
    assert found["waiting_share"] == pytest.approx(20.3 / 99.2, abs=1e-4)
    printed = capsys.readouterr().out
    assert "100 rounds in 99.2 s" in printed and "20.5% of the wall time was waiting" in printed


def test_the_picture_shows_the_rounds_asked_for(record: Path, tmp_path: Path) -> None:
    steps(record, picture=tmp_path / "timeline.png", around=60)
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="--around 900 is no round of"):
        steps(record, picture=tmp_path / "timeline.png", around=900)


def test_a_record_without_a_round_is_refused(tmp_path: Path) -> None:
    StepRecorder(tmp_path / "steps", go_on=False).close()
    with pytest.raises(UserError, match="holds no round yet"):
        steps(tmp_path / "steps")


@pytest.mark.parametrize(
    ("option", "file", "told"),
    [
        ("--picture", "none/x.png", "there is no folder none"),
        ("--picture", ".", "it is a folder"),
        ("--picture", "/proc/x.png", "cannot be written: "),
        ("--picture", "x.mp3", "is of no known kind: end its name with .png"),
        ("--json", "/proc/x.json", "cannot be written: "),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(
    record: Path,
    option: str,
    file: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(record.parent)
    assert run_command(["steps", "steps", option, file]) == Exit.USAGE
    err = capsys.readouterr().err
    assert err.startswith(f"fleet: {option} {file} ") and told in err and err.count("\n") == 1
