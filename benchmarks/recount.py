"""Count again what a run consumed: `python benchmarks/recount.py RUN_FOLDER WORKER_JOURNAL...`.

From the run's `updates.jsonl` and the journals that its workers kept (`fleet worker --journal FILE`) alone.

The learner's counters have no say in it. What a later incarnation went back behind was rolled back. Of the
other updates, the surviving lineage, each ticket must stand in one, none may be missing, and each must have
been played, under the version and with the return that the update names, and pushed by some worker, according
to that worker's own journal.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Play = tuple[int, int, float]
"""A train ticket's number, the version it was played under, the return."""


@dataclass(slots=True)
class Played:
    """What the workers say that they did with train tickets."""

    plays: set[Play] = field(default_factory=set)
    pushed: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    episodes: int = 0
    """Played to their end, whatever became of them."""


@dataclass(frozen=True, slots=True)
class Recount:
    """Numbers of tickets; `problems` names what must not be, in words, the first few of each kind."""

    updates: int
    """On the surviving lineage."""
    consumed: int
    lost: int
    """Missing from the surviving lineage."""
    duplicated: int
    unplayed: int
    """Consumed, but by no worker's account played as the journal says, or never pushed."""
    rolled_back: int
    failed: int
    """Missing, but a worker says that it could not play it."""
    played: int
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Say whether nothing was lost, nothing counted twice and nothing made up."""
        return not self.problems


def recount(
    updates: Iterable[Mapping[str, Any]],
    played: Played,
    last_update: int | None = None,
    expected: int | None = None,
) -> Recount:
    """Count again.

    `updates` are the lines of updates.jsonl, `last_update` where the run ended and `expected` how many
    tickets it then had to have consumed, where these are known.
    """
    surviving, rolled_back, problems = surviving_updates(updates, last_update)
    counts: Counter[int] = Counter()
    unplayed: list[int] = []
    for record in surviving:
        numbers = [number for start, stop in record["consumed"] for number in range(start, stop)]
        counts.update(numbers)
        if not len(numbers) == len(record["versions"]) == len(record["returns"]):
            problems.append(f"update {record['update']} names {len(numbers)} tickets, but other versions")
        for play in zip(numbers, record["versions"], record["returns"], strict=False):
            if play not in played.plays or play[0] not in played.pushed:
                unplayed.append(play[0])
    twice = sorted(number for number, count in counts.items() if count > 1)
    missing = sorted(set(range(max(counts, default=-1) + 1)) - counts.keys())
    lost = [number for number in missing if number not in played.failed]
    for what, numbers in (("lost", lost), ("counted twice", twice), ("played by nobody", unplayed)):
        if numbers:
            first = ", ".join(map(str, numbers[:5]))
            problems.append(f"{len(numbers)} tickets were {what}: {first}{', ...' if numbers[5:] else ''}")
    if expected is not None and len(counts) != expected:
        problems.append(f"{len(counts)} tickets were consumed, the run ended with {expected}")
    return Recount(
        updates=len(surviving),
        consumed=len(counts),
        lost=len(lost),
        duplicated=sum(count - 1 for count in counts.values()),
        unplayed=len(unplayed),
        rolled_back=rolled_back,
        failed=len(missing) - len(lost),
        played=played.episodes,
        problems=tuple(problems),
    )


def surviving_updates(
    updates: Iterable[Mapping[str, Any]], last_update: int | None = None
) -> tuple[list[Mapping[str, Any]], int, list[str]]:
    """Return the updates that survived, how many tickets the others had consumed, and what is out of order.

    Each incarnation does its updates one after the other; only a later one may go back, and what it goes back
    behind is undone.
    """
    surviving: list[Mapping[str, Any]] = []
    problems: list[str] = []
    rolled_back = incarnation = 0
    for record in updates:
        done, begins = len(surviving), record["incarnation"] > incarnation
        if record["incarnation"] < incarnation:
            problems.append(f"incarnation {record['incarnation']} writes after {incarnation}")
        in_order = 1 <= record["update"] <= done + 1 if begins else record["update"] == done + 1
        if not in_order:
            problems.append(f"update {record['update']} cannot follow update {done}")
        elif begins:
            rolled_back += sum(map(_tickets, surviving[record["update"] - 1 :]))
            del surviving[record["update"] - 1 :]
        incarnation = max(incarnation, record["incarnation"])
        surviving.append(record)
    if last_update not in (None, len(surviving)):
        problems.append(f"the run ended with update {last_update}, its journal with {len(surviving)}")
    return surviving, rolled_back, problems


def read_updates(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's journal; one cut short by a crash, the last, is left out."""
    text = (run / "updates.jsonl").read_text()
    return [json.loads(line) for line in text.split("\n")[:-1]]


def read_played(journals: Iterable[Path]) -> Played:
    """Return what the workers' journals tell of train tickets."""
    played = Played()
    for journal in journals:
        for line in journal.read_text().split("\n")[:-1]:
            entry = json.loads(line)
            sequence, number = entry.get("ticket", ("", 0))
            if sequence != "train":
                continue
            match entry["event"]:
                case "played":
                    played.plays.add((number, entry["version"][1], entry["return"]))
                    played.episodes += 1
                case "pushed":
                    played.pushed.add(number)
                case "failed":
                    played.failed.add(number)
    return played


def _tickets(record: Mapping[str, Any]) -> int:
    return sum(stop - start for start, stop in record["consumed"])


def main(run: Path, journals: list[Path]) -> int:
    """Print the recount; return 1 where something is wrong."""
    found = recount(read_updates(run), read_played(journals))
    for name in ("updates", "consumed", "lost", "duplicated", "unplayed", "rolled_back", "failed", "played"):
        print(f"{name.replace('_', ' '):12}{getattr(found, name):>10,}")
    for problem in found.problems:
        print(f"problem: {problem}")
    return 0 if found.sound else 1


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), [Path(journal) for journal in sys.argv[2:]]))
