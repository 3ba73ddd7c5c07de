"""A learner killed at any moment: workers wait, it goes on from its checkpoint, every ticket counts once."""

from __future__ import annotations

import json

from tests.end_to_end.fleet_processes import Fleet

UPDATES, BATCH = 16, 60
RUN = (
    *("--total-episodes", UPDATES * BATCH, "--episodes-per-update", BATCH, "--episode-length", 30),
    *("--lag", "exact:1", "--checkpoint-every", 3, "--minibatch-steps", 600, "--evaluation-episodes", 2),
)


def test_a_killed_learner_goes_on_to_the_same_bits(fleet: Fleet) -> None:
    """1. train quietly; 2. train, kill the learner past a checkpoint, resume it on the same port."""
    learner, port = fleet.learner(*RUN, name="quiet")
    fleet.worker(port)
    fleet.finish(learner)

    learner, port = fleet.learner(*RUN, name="killed")
    workers = [fleet.worker(port) for _ in range(2)]
    journal = fleet.folder / "runs" / "killed" / "updates.jsonl"
    fleet.wait_until(
        lambda: journal.exists() and len(journal.read_text().splitlines()) >= 5, "update 5 was done"
    )
    learner.kill()
    learner.wait()
    again = fleet.start("learner", "--resume", "killed", "--port", port)
    fleet.finish(again)
    fleet.finish_survivors(workers)

    assert fleet.run("hash", "killed") == fleet.run("hash", "quiet")
    ledger = fleet.json("ledger", "killed")
    assert ledger["train"]["consumed"] == [[0, UPDATES * BATCH]]
    assert ledger["rolled_back"] == rolled_back(journal.read_text().splitlines()) > 0


def rolled_back(journal: list[str]) -> int:
    """Recount, from the journal alone, the tickets of updates that a later incarnation did again."""
    records = [json.loads(line) for line in journal]
    last = {record["update"]: record["incarnation"] for record in records}
    undone = [record for record in records if last[record["update"]] != record["incarnation"]]
    return sum(stop - start for record in undone for start, stop in record["consumed"])
