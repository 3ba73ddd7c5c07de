"""How busy the trainer is, as its learner reports it, and whether there is room for more workers."""

from __future__ import annotations

import pytest

from learner.load import LoadWindow
from learner.reporter import crowded


def test_before_the_first_update_is_done_nothing_says_how_busy_it_will_be() -> None:
    window = LoadWindow()
    assert window.load(5.0).learner_busy is None
    window.waits(10.0)
    window.works(20.0)
    assert window.load(25.0).learner_busy is None
    window.waits(30.0)
    load = window.load(30.0)
    assert (load.learner_busy, load.window_seconds) == (0.5, 20.0)


def test_busy_is_the_share_of_the_last_thirty_seconds_with_a_batch_in_hand() -> None:
    window = LoadWindow()
    for start in range(0, 100, 4):  # 3 s of waiting, 1 s of work
        window.waits(start)
        window.waits(start + 1)  # while it waits, again is of no effect
        window.works(start + 3)
    window.waits(100)
    assert window.load(100.0).learner_busy == pytest.approx(8 / 30)
    assert (window.load(160.0).learner_busy or 0.0) < 0.1  # nothing comes any more


def test_long_updates_lengthen_the_window_to_four_batches() -> None:
    window = LoadWindow()
    for start in range(0, 1000, 100):
        window.waits(start)
        window.works(start + 50)
    load = window.load(1000.0)
    assert load.window_seconds == 450.0
    assert load.learner_busy == pytest.approx(250 / 450)


def test_slots_are_means_and_a_peak_over_the_same_window() -> None:
    window = LoadWindow()
    for second in range(0, 60, 4):
        window.waits(second)
        window.works(second + 1)
    for second in range(60):
        window.sample(100 if second < 45 else 50, 80 if second < 45 else 40, float(second))
    load = window.load(60.0)
    assert load.window_seconds == 30.0
    assert load.slots == pytest.approx(75.0) and load.slots_busy == pytest.approx(60.0)
    assert (load.slots_busy_most, load.slots_now) == (80, 50)


def test_a_limit_of_open_files_is_told_before_the_workers_come_to_it() -> None:
    assert crowded(200, 3, 1024) == ""
    line = crowded(280, 3, 1024)
    assert "about 341 workers fit" in line and "ulimit -Hn" in line and "\n" not in line
