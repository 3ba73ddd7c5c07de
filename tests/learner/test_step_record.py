"""The record of steps: what is written comes back, also after a crash and a restart."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from learner.step_record import StepRecorder, read_record
from protocol.errors import UserError


def write(path: Path, rounds: range, go_on: bool = False) -> None:
    recorder = StepRecorder(path, go_on)
    for number in rounds:
        for worker in range(3):
            slots = np.arange(worker * 4, worker * 4 + 4)
            recorder.note(number, f"host:{worker}", slots, 10.0 + number, 10.25 + number + worker)
    recorder.close()


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "steps", range(1, 6))
    orders = list(read_record(tmp_path / "steps"))
    assert [(o.life, o.round, o.worker) for o in orders[:4]] == [
        (0, 1, "host:0"), (0, 1, "host:1"), (0, 1, "host:2"), (0, 2, "host:0")
    ]  # fmt: skip
    assert orders[2].slots.tolist() == [8, 9, 10, 11]
    assert [round(o.answered - o.sent, 5) for o in orders[:3]] == [0.25, 1.25, 2.25]
    assert round(orders[3].sent - orders[0].sent, 5) == 1
    assert (tmp_path / "steps").stat().st_size < 5 * 12 * 20


@pytest.mark.parametrize("cut", [1, 3, 17])
def test_a_record_cut_short_is_read_up_to_there_and_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "steps"
    write(path, range(1, 6))
    whole = list(read_record(path))
    path.write_bytes(path.read_bytes()[:-cut])
    assert [o.round for o in read_record(path)] == [o.round for o in whole[:-1]]
    write(path, range(1, 3), go_on=True)
    lives = [(o.life, o.round) for o in read_record(path)]
    assert lives == [(0, o.round) for o in whole[:-1]] + [(1, n) for n in (1, 1, 1, 2, 2, 2)]


def test_a_new_run_begins_a_new_record_but_overwrites_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "steps", range(1, 6))
    write(tmp_path / "steps", range(1, 2))
    assert len(list(read_record(tmp_path / "steps"))) == 3
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is no record of steps: name another file"):
        StepRecorder(tmp_path / "thesis.txt", go_on=False)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_full_disk_ends_the_record_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = StepRecorder(tmp_path / "steps", go_on=False)
    recorder._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")
    for number in range(1000):
        recorder.note(number, "host:1", np.arange(100), 0.0, 1e9 + 2 * number)
    recorder.close()
    [warning] = caplog.records
    assert "the record of steps ends here" in warning.getMessage()


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "steps"
    write(path, range(1, 3))
    content = path.read_bytes()
    path.write_bytes(content[:40] + b"\xc1\x00" + content[42:])
    with pytest.raises(UserError, match="is damaged"):
        list(read_record(path))
