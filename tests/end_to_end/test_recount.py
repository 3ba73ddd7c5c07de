"""Counting again: what a journal that was tampered with, or a learner that cheats, cannot hide."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recount import Played, recount
from tests.end_to_end.fleet_processes import Fleet

Record = dict[str, Any]


def update(incarnation: int, number: int, *tickets: int) -> Record:
    return {
        "incarnation": incarnation,
        "update": number,
        "consumed": [[ticket, ticket + 1] for ticket in tickets],
        "versions": [number - 1] * len(tickets),
        "returns": [float(ticket) for ticket in tickets],
    }


def played(records: Sequence[Mapping[str, Any]]) -> Played:
    """Return the journals of workers that played just what these updates consumed."""
    result = Played()
    for record in records:
        numbers = [number for start, stop in record["consumed"] for number in range(start, stop)]
        result.plays |= set(zip(numbers, record["versions"], record["returns"], strict=True))
        result.pushed |= set(numbers)
    return result


RECOUNT = Path(__file__).parents[2] / "benchmarks" / "recount.py"
WHOLE = [update(1, 1, 0, 1), update(1, 2, 2, 3), update(2, 2, 3, 4), update(2, 3, 2, 5)]
"""Update 2 was rolled back, and done again from other tickets."""


def test_a_run_that_was_rolled_back_counts_each_ticket_once() -> None:
    found = recount(WHOLE, played(WHOLE), last_update=3, expected=6)
    assert found.sound, found.problems
    assert (found.consumed, found.lost, found.duplicated, found.rolled_back) == (6, 0, 0, 2)


@pytest.mark.parametrize(
    ("planted", "what"),
    [
        ([*WHOLE, update(2, 4, 0, 6)], "counted twice: 0"),
        ([*WHOLE[:-1], update(2, 3, 2, 4)], "counted twice: 4"),
        ([*WHOLE, WHOLE[-1]], "counted twice: 2, 5"),
        ([*WHOLE, WHOLE[-1]], "cannot follow update 3"),
        ([*WHOLE[:2], *WHOLE[3:]], "lost: 4"),
        ([*WHOLE[:-1], update(2, 3, 5)], "lost: 2"),
        ([*WHOLE[:-1], update(2, 3, 2)], "5 tickets were consumed, the run ended with 6"),
        (WHOLE[:-1], "the run ended with update 3, its journal with 2"),
        ([*WHOLE[:-1], update(1, 3, 2, 5)], "incarnation 1 writes after 2"),
        ([*WHOLE[:-1], WHOLE[-1] | {"returns": [2.0, 5.5]}], "played by nobody: 5"),
        ([*WHOLE[:-1], WHOLE[-1] | {"versions": [2, 0]}], "played by nobody: 5"),
        ([*WHOLE[:-1], WHOLE[-1] | {"versions": [2]}], "but other versions"),
        ([*WHOLE[:-1], WHOLE[-1] | {"consumed": [[2, 3], [3, 4]]}], "played by nobody: 3"),
        ([update(1, 1, 0, 1), update(2, 3, 2, 3)], "cannot follow update 1"),
    ],
)
def test_what_is_planted_is_found(planted: list[Record], what: str) -> None:
    found = recount(planted, played(WHOLE), last_update=3, expected=6)
    assert any(what in problem for problem in found.problems), found.problems


def test_an_episode_that_nobody_pushed_was_not_received() -> None:
    account = played(WHOLE)
    account.pushed.discard(4)
    assert recount(WHOLE, account).problems == ("1 tickets were played by nobody: 4",)


def test_a_ticket_that_a_worker_could_not_play_is_not_lost() -> None:
    records = [update(1, 1, 0, 2)]
    account = played(records)
    assert recount(records, account).lost == 1
    account.failed.add(1)
    found = recount(records, account)
    assert (found.lost, found.failed, found.problems) == (0, 1, ())


RUN = (
    *("--total-episodes", 500, "--episodes-per-update", 50, "--episode-length", 20, "--minibatch-steps", 500),
    *("--evaluation-episodes", 0, "--checkpoint-every", 4, "--step-delay", "constant:5ms"),
)


def test_a_real_run_is_recounted_and_what_is_planted_in_it_is_found(fleet: Fleet) -> None:
    """1. train, kill the learner past a checkpoint, resume; 2. recount; 3. tamper with the journal."""
    learner, port = fleet.learner(*RUN)
    run = fleet.folder / "runs" / "run"
    journal = run / "updates.jsonl"
    journals = [fleet.folder / f"worker-{number}.journal" for number in range(2)]
    for file in journals:
        fleet.worker(port, 5, "--journal", file)
    fleet.wait_until(lambda: journal.exists() and journal.read_text().count("\n") >= 5, "update 5 was done")
    learner.kill()
    learner.wait()
    fleet.finish(fleet.start("learner", "--resume", "run", "--port", port))

    output = counted_again(run, journals, status=0)
    assert output["consumed"] == "500" and output["lost"] == output["duplicated"] == output["unplayed"] == "0"
    assert int(output["rolled back"]) == fleet.json("ledger", "run")["rolled_back"] > 0

    lines = journal.read_text().splitlines(keepends=True)
    last = json.loads(lines[-1])
    journal.write_text("".join(lines) + json.dumps(last | {"update": last["update"] + 1}) + "\n")
    assert int(counted_again(run, journals, status=1)["duplicated"]) == 50
    kept = list(lines)
    del kept[max(at for at, line in enumerate(lines) if json.loads(line)["update"] == last["update"] - 1)]
    journal.write_text("".join(kept))
    assert int(counted_again(run, journals, status=1)["lost"]) > 0
    journal.write_text("".join(lines))
    counted_again(run, journals[:1], status=1)  # what the other one played was played by nobody


def counted_again(run: Path, journals: list[Path], status: int) -> dict[str, str]:
    """Run the command; return what it printed, by name."""
    command = [sys.executable, str(RECOUNT), str(run), *map(str, journals)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines() if "problem" not in line)
