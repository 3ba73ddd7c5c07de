"""How a report of the status reads, with few workers and with many."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.status_view import MOST_SHOWN, picture
from learner.status import WorkerStatus


def worker(number: int, **fields: Any) -> dict[str, Any]:
    usual = {
        "number": number,
        "host": f"cpu{number % 50:02}",
        "pid": 1000 + number,
        "pool": "lab",
        "label": f"lab-{number}",
        "state": "ready",
        "desired": "play",
        "slots": 10,
        "running": 10,
        "queued": 10,
        "outbox": 0,
        "episodes": 500,
        "steps": 50_000,
        "version": 12,
        "staleness": 0,
        "heartbeat_age_seconds": 0.4,
        "episodes_per_second": 5.0,
        "steps_per_second": 500.0,
        "cpu_percent": 97.0,
        "resident_bytes": 180 * 2**20,
        "cpu_seconds": 33.0,
        "error": "",
    }
    assert {*usual, "session"} == set(WorkerStatus.__dataclass_fields__)
    return usual | fields


def report(workers: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {
        "run": "ab12",
        "incarnation": 2,
        "version": 12,
        "updates": 1250,
        "binds": "workers",
        "ticket": None,
        "issued": 5200,
        "consumed": 4800,
        "discarded": 0,
        "received": 120,
        "ready": len(workers),
        "rejected": {},
        "progress": {
            "phase": "training",
            "episodes_per_second": 1234.5,
            "steps_per_second": 123_450.0,
            "returns": {"b_line/30": -3.5, "b_line/100": -35.25, "meander/30": -9.0},
        },
        "workers": workers,
    } | fields


def shown(*workers: dict[str, Any], **options: Any) -> str:
    return "\n".join(picture(report(list(workers)), **options))


def test_a_small_fleet_is_shown_whole() -> None:
    text = shown(worker(1), worker(2, pool="", label="", state="paused", desired="pause"), worker(3))
    assert "update 12 of 1,250, mean return b_line -3.5 / -35.2, meander -9.0, 1,234.5 episodes/s, " in text
    assert all(f"cpu0{number}:100{number}" in text for number in (1, 2, 3))
    nameless, lab = (line for line in text.splitlines() if line.startswith(("lab ", "- ")))
    assert lab.split()[:3] == ["lab", "2", "2"] and "10.0" in lab and "360 MiB" in lab
    assert "1 paused" in nameless


def test_of_a_thousand_only_the_odd_ones_have_a_line() -> None:
    workers = [worker(number) for number in range(1000)]
    workers[17] |= {"steps_per_second": 20.0}
    workers[400] |= {"error": "OSError: the simulator is gone"}
    workers[555] |= {"heartbeat_age_seconds": 8.0}
    workers[600] |= {"desired": "drain"}
    workers[700] |= {"staleness": 5, "version": 7}
    workers[800] |= {"resident_bytes": 2**30}
    workers.append(worker(1001, state="refused", error="the worker is version 2.0.0, the learner 0.1.0"))
    lines = picture(report(workers))
    assert len(lines) < 20
    notes = {number: next(line for line in lines if f"lab-{number} " in line) for number in (17, 400, 555)}
    assert "slow" in notes[17] and "simulator is gone" in notes[400] and "silent for 8 s" in notes[555]
    text = "\n".join(lines)
    assert "ready -> drain" in text and "stale" in text and "big" in text and "version 2.0.0" in text
    assert "994 workers in good order are not shown; --all shows them" in text


def test_all_shows_all_and_pool_shows_one() -> None:
    workers = [worker(number, pool="lab" if number % 2 else "spot") for number in range(1000)]
    assert len(picture(report(workers), every=True)) > 1000
    text = "\n".join(picture(report(workers), pool="spot"))
    assert "spot" in text and "lab " not in text.split("\n\n")[1]
    assert picture(report(workers), pool="nope")[-1] == "no worker of pool nope has joined"


def test_when_everything_is_odd_the_list_still_ends() -> None:
    workers = [worker(number, error="no") for number in range(1000)]
    assert len(picture(report(workers))) < MOST_SHOWN + 15


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"binds": "workers", "ready": 0}, "none is ready"),
        ({"binds": "pause"}, "fleet resume ends it"),
        ({"binds": "credit"}, "--max-lag"),
        ({"binds": "update"}, "the update"),
        (
            {
                "binds": "ticket",
                "ticket": {"number": 4801, "holders": ["cpu07:1007"], "age_seconds": 12.34, "missing": 1},
            },
            "ticket 4,801, held by cpu07:1007, 12.3 s old, the last of its batch",
        ),
        (
            {
                "binds": "ticket",
                "ticket": {"number": 7, "holders": [], "age_seconds": None, "missing": 3},
            },
            "ticket 7, held by nobody yet, of an earlier incarnation; the batch lacks 3",
        ),
    ],
)
def test_what_binds_is_said_in_words(fields: dict[str, Any], words: str) -> None:
    (line,) = (line for line in picture(report([], **fields)) if line.startswith("binds"))
    assert words in line


def test_an_evaluation_shows_how_far_it_is() -> None:
    progress = {"phase": "selecting", "evaluated": 1200, "to_evaluate": 1800}
    assert picture(report([], progress=progress))[0].endswith("selecting, 1,200 of 1,800 episodes")


def test_lines_are_cut_at_the_width_of_the_terminal_and_coloured_there_only() -> None:
    workers = [worker(1, error="x" * 300), worker(2)]
    assert max(map(len, picture(report(workers), width=80))) == 80
    assert not any("\x1b" in line for line in picture(report(workers)))
    assert any("\x1b" in line for line in picture(report(workers), colours=True))


def test_a_fleet_of_nobody_is_no_error() -> None:
    assert picture(report([], progress=None))[-1] == "no worker has joined yet"
