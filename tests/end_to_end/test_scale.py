"""The benchmark of scale at a size for tests: fifty workers of its crowd with one learner, nothing timed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.scale import ROWS, SLOTS, joining, processes, setting, show

WORKERS = 50
FILES_PER_WORKER = 3


def test_fifty_workers_of_the_benchmark_join_receive_weights_and_play() -> None:
    what = setting()
    with processes(what, what.policy, WORKERS) as running:
        alone = running.learner()
        running.join(WORKERS, 0.5)
        running.until("joined", lambda counts: counts.playable == WORKERS)
        counts = running.crowd()
        assert counts.snapshots >= WORKERS and counts.hellos >= WORKERS and counts.ended == 0
        running.publish()
        running.until("published", lambda after: after.published >= counts.published + WORKERS)
        running.until("playing", lambda counts: counts.episodes >= 4 * SLOTS * WORKERS)
        running.wait("received", lambda figures: figures["episodes"] >= 2 * SLOTS * WORKERS)
        figures = running.learner()
    assert figures["ready"] == WORKERS and figures["rejected"] == 0
    assert figures["files"] - alone["files"] == FILES_PER_WORKER * WORKERS


def test_a_join_is_measured_and_figures_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    what = setting()
    figures = joining(replace(what, episodes=what.episodes[:1]), 4, (64, 64))
    assert figures["ready"] == 4 and figures["snapshots"] >= 4 and figures["seconds"] > 0
    result: dict[str, Any] = {part: {} for _, part, _, _ in ROWS} | {"workers": 1000}
    for place, (_, part, name, _) in enumerate(ROWS):
        result[part][name] = place
    show([result, result])
    assert len(capsys.readouterr().out.splitlines()) == len(ROWS) + 1
