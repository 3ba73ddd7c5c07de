"""Record what a real learner reports while its fleet grows and shrinks.

`python benchmarks/record_load.py FILE`; the tests of autoscaling replay the file. Workers come and go as
`--steps` says; each second one line of the learner's load is kept, and how long every update took.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))
from learner.metrics import read_metrics
from tests.end_to_end.fleet_processes import Fleet

SLOTS = 16
LEARNER = (
    *("--step-delay", "lognormal:20ms,0.5", "--episodes-per-update", 40, "--total-episodes", 1_000_000),
    *("--evaluation-episodes", 0, "--epochs", 12),
)


def record(steps: list[int], seconds: float, folder: Path) -> dict[str, Any]:
    """Run a learner with so many workers for so many seconds each; return what it reported."""
    fleet, rows, began = Fleet(folder), [], time.monotonic()
    try:
        _, port = fleet.learner(*LEARNER)
        workers: list[Any] = []
        for count in steps:
            workers += [fleet.worker(port, SLOTS) for _ in range(count - len(workers))]
            for worker in workers[count:]:
                worker.terminate()
            del workers[count:]
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(1.0)
                if status := fleet.status(port):
                    ready = sum(worker["state"] == "ready" for worker in status["workers"])
                    load = {name: round(value or 0, 3) for name, value in status["load"].items()}
                    load["learner_busy"] = status["load"]["learner_busy"] and load["learner_busy"]
                    rows.append({"at": round(time.monotonic() - began, 1), "ready": ready, **load})
    finally:
        fleet.close()
    updates = read_metrics(folder / "runs" / "run" / "metrics.csv")
    return {
        "slots_per_worker": SLOTS,
        "columns": list(rows[0]),
        "loads": [list(row.values()) for row in rows],
        "update_seconds": [round(float(row["update_seconds"]), 3) for row in updates],
    }


def main(
    file: Annotated[Path, typer.Argument(help="Where the recording goes, as JSON.")],
    steps: Annotated[str, typer.Option(help="Workers, one step after the other.")] = "1,2,4,8,4",
    seconds: Annotated[float, typer.Option(help="Time of each step.")] = 30.0,
) -> None:
    """Record, and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        recording = record([int(count) for count in steps.split(",")], seconds, Path(folder))
    file.write_text(json.dumps(recording).replace("], [", "],\n[") + "\n")


if __name__ == "__main__":
    typer.run(main)
