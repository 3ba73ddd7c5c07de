"""A run's folder: who owns it, its journal, and what damage is told as."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from learner.ledger import Undone
from learner.metrics import MetricsWriter
from learner.run_folder import RunFolder, UpdateRecord
from protocol.errors import UserError


def record(update: int, incarnation: int = 1) -> UpdateRecord:
    return UpdateRecord(
        incarnation, update, ((4 * update, 4 * update + 4),), (0, 0, 1, 1), (0.5, 1.0, 2.0, 3.0)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path) as folder:
        yield folder


def test_each_start_raises_the_incarnation_of_the_same_run(tmp_path: Path) -> None:
    lives = []
    for _ in range(3):
        with RunFolder(tmp_path) as folder:
            lives.append((folder.run, folder.incarnation))
            with pytest.raises(UserError, match="another learner"), RunFolder(tmp_path):
                pass
    assert lives == [(lives[0][0], number) for number in (1, 2, 3)]


def test_only_the_folder_says_that_a_later_incarnation_has_replaced_this_one(folder: RunFolder) -> None:
    folder.append_update(record(1))
    folder.check_owned()
    (folder.path / "incarnation").write_text(f"{folder.run} {folder.incarnation + 1}\n")
    for ask in (folder.check_owned, lambda: folder.append_update(record(2))):
        with pytest.raises(UserError, match=r"incarnation 2 .* has replaced 1"):
            ask()
    assert list(folder.updates()) == [record(1)]


@pytest.mark.parametrize("torn", [b'{"incarn', b"\xff\xfe", b'{"incarnation": 1}'])
def test_a_line_cut_short_is_left_out_and_removed_by_the_next(folder: RunFolder, torn: bytes) -> None:
    folder.append_update(record(1))
    with (folder.path / "updates.jsonl").open("ab") as journal:
        journal.write(torn)
    assert list(folder.updates()) == [record(1)]
    folder.append_update(record(2))
    folder.append_update(record(3))
    assert list(folder.updates()) == [record(1), record(2), record(3)]
    (undone,) = folder.undone([(1, 1)])
    assert undone == Undone(1, (2, 3), ((8, 16),)) and undone.count == 8
    assert folder.undone([(1, 3)]) == () and folder.undone([])[0].count == 12


def test_each_life_names_what_of_it_did_not_survive(folder: RunFolder) -> None:
    """Life 1 does updates 1-4; life 2 goes on from 2 and does 3-5; life 3 goes on from 4."""
    for number, incarnation in ((1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (4, 2), (5, 2)):
        folder.append_update(record(number, incarnation))
    assert folder.undone([(1, 2), (2, 4)]) == (
        Undone(1, (3, 4), ((12, 20),)),
        Undone(2, (5, 5), ((20, 24),)),
    )


@pytest.mark.parametrize("line", [b"\xff", b"[1]", b'{"a": 1}', b"", b'{"incarnation": 1'])
def test_a_whole_line_that_is_no_record_is_told(folder: RunFolder, line: bytes) -> None:
    folder.append_update(record(1))
    with (folder.path / "updates.jsonl").open("ab") as journal:
        journal.write(line + b"\n")
    with pytest.raises(UserError, match=r"updates\.jsonl is damaged: line 2"):
        list(folder.updates())


@pytest.mark.parametrize(
    "content", [b"", b"x y", b"\xff", b"run 99999999999999999999", b"run 1 2", b"run -1"]
)
def test_a_damaged_incarnation_is_told_and_begins_no_other_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "incarnation").write_bytes(content)
    for _ in range(2):  # the lock is let go of
        with pytest.raises(UserError, match="incarnation is damaged"), RunFolder(tmp_path):
            pass
    assert (tmp_path / "incarnation").read_bytes() == content


def test_a_lock_that_is_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(UserError, match="lock is a folder"), RunFolder(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"update\n\xff\n", b"loss,lag\n1,2\n", b"update\none\n"])
def test_damaged_metrics_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
        MetricsWriter(tmp_path, 1)
