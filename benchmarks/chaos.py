"""Break a fleet at random, count again what it did: `python benchmarks/chaos.py [--seconds 600] [--exact]`.

Workers are killed, frozen, added and removed, the network is cut and stalled (a relay in user space stands
between workers and learner), the learner is frozen now and then and killed with SIGKILL every minute and
started again with --resume; which, whom and when follows from --seed. At the end the run is let come to its
end, and everything is counted again from `updates.jsonl` and the workers' own journals. Exit status 1 where a
ticket was lost, counted twice or made up, where the ledger does not balance or weights are not finite.

Before and after, the same fleet runs undisturbed, for half of --seconds each, for the throughput kept. With
--exact it runs with --lag exact:1 and once undisturbed to the same update: both must have the same hash.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.chaos_fleet import FLEET, Fleet
from benchmarks.chaos_schedule import schedule, until_next_update, until_throughput_is_back
from benchmarks.recount import Recount, read_played, read_updates, recount
from learner.checkpoints import load
from protocol.errors import FleetError

BATCH, LAG = 100, {False: 2, True: 1}
ENDLESS = 100_000_000
"""Episodes; a run is ended by hand."""
RUN = (
    *("--episodes-per-update", str(BATCH), "--episode-length", "30", "--minibatch-steps", "1000"),
    *("--evaluation-episodes", "0", "--liveness-seconds", "3", "--max-losses", "10000"),
    *("--checkpoint-every", "5", "--keep-checkpoints", "3"),
)
TURN_SECONDS, SAY_SECONDS, END_SECONDS = 0.05, 5.0, 120.0


def run_quietly(fleet: Fleet, workers: int, over: Callable[[], bool], what: str) -> float:
    """Let an undisturbed fleet run until `over`; return the episodes it consumed per second."""
    for _ in range(workers):
        fleet.add_worker()
    said = began = time.monotonic()
    while not over():
        fleet.turn()
        time.sleep(TURN_SECONDS)
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            say(f"{what}: {said - began:.0f} s, update {len(fleet.updates)}")
    if len(fleet.updates) < 2:
        raise FleetError(f"{what}: too short, only {len(fleet.updates)} updates were done")
    first, last = fleet.updates[0], fleet.updates[-1]
    return sum(update.tickets for update in fleet.updates[1:]) / (last.at - first.at)


def run_in_chaos(
    fleet: Fleet, workers: int, seconds: float, seed: int, gap: float, learner_every: float
) -> None:
    """Inject the schedule's faults, then end them all."""
    for _ in range(workers):
        fleet.add_worker()
    while not fleet.updates:
        fleet.turn()
        time.sleep(TURN_SECONDS)
    faults = schedule(seed, seconds, gap, learner_every)
    began = said = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        while faults and faults[0].at <= elapsed:
            fleet.befall(faults.pop(0))
        fleet.turn()
        time.sleep(TURN_SECONDS)
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            last = fleet.befallen[-1].fault.kind if fleet.befallen else "none yet"
            say(
                f"chaos: {elapsed:.0f} of {seconds:.0f} s, {len(fleet.befallen)} faults (last: {last}),"
                f" {len(fleet.workers)} workers, {len(fleet.updates)} updates"
            )
    fleet.calm()


def end_run(fleet: Fleet, exact: bool) -> None:
    """Stop the learner at a boundary; where order is by arrival, let the last few tickets be played, too."""
    deadline = time.monotonic() + END_SECONDS
    incarnation = fleet.updates[-1].incarnation
    while fleet.updates[-1].incarnation == incarnation and killed_last(fleet) and time.monotonic() < deadline:
        fleet.turn()  # a learner that has only just started again could not be asked to stop
        time.sleep(TURN_SECONDS)
    fleet.stop_learner()
    if exact:
        return
    last = load(fleet.run).update + LAG[exact] + 1
    fleet.resume("--total-episodes", str(last * BATCH))
    assert fleet.learner is not None
    say(f"the run may end, with update {last}")
    try:
        if fleet.learner.wait(END_SECONDS):
            raise FleetError(f"the learner could not end the run: see {fleet.folder}")
    except subprocess.TimeoutExpired:
        raise FleetError(f"the run did not end in {END_SECONDS:.0f} s: a ticket is lost") from None
    fleet.learner = None
    fleet.look(time.monotonic())


def killed_last(fleet: Fleet) -> bool:
    """Say whether no update has been seen since the learner was last killed."""
    killed = [befallen for befallen in fleet.befallen if befallen.fault.kind == "learner killed"]
    return bool(killed) and killed[-1].incarnation == fleet.updates[-1].incarnation


def report(fleet: Fleet) -> dict[str, Any]:
    """Return all that can be said of a run that has ended, `problems` first of all."""
    checkpoint = load(fleet.run)
    found: Recount = recount(
        read_updates(fleet.run), read_played(fleet.journals), checkpoint.update, checkpoint.update * BATCH
    )
    problems = list(found.problems)
    balanced = subprocess.run([FLEET, "ledger", fleet.name], cwd=fleet.folder, capture_output=True, text=True)
    if balanced.returncode:
        problems.append(f"the ledger does not balance: {balanced.stdout} {balanced.stderr}")
    claimed = {
        "consumed": sum(stop - start for start, stop in checkpoint.ledger["train"]["consumed"]),
        "rolled_back": checkpoint.ledger["rolled_back"],
    }
    for name, value in claimed.items():
        if value != getattr(found, name):
            problems.append(f"the ledger says {value} {name}, the recount {getattr(found, name)}")
    finite = all(np.isfinite(array).all() for array in checkpoint.arrays.values() if array.dtype.kind == "f")
    if fleet.gave_up:
        problems.append(f"workers ended by themselves: {', '.join(fleet.gave_up)}")
    if not finite:
        problems.append("the weights are not all finite")
    return {
        **asdict(found),
        "problems": problems,
        "faults": dict(Counter(befallen.fault.kind for befallen in fleet.befallen)),
        "faults_skipped": dict(fleet.skipped),
        "workers_started": fleet.started,
        "incarnations": len({update.incarnation for update in fleet.updates}),
        "ledger_balanced": balanced.returncode == 0,
        "weights_finite": finite,
        "recovery": recovery(fleet),
    }


def recovery(fleet: Fleet) -> dict[str, dict[str, float | int | None]]:
    """Return, by kind of fault and over all, the seconds to the next update and until throughput was back."""
    end = fleet.updates[-1].at
    rows: dict[str, list[tuple[float | None, float | None]]] = {"all": []}
    for befallen in fleet.befallen:
        fault = befallen.fault
        hit = type(fault)(befallen.at, fault.kind, fault.place, fault.seconds)
        figures = (
            until_next_update(hit, fleet.updates, befallen.incarnation),
            until_throughput_is_back(hit, fleet.updates, end),
        )
        for name in ("all", fault.kind):
            rows.setdefault(name, []).append(figures)
    return {name: _summary(*zip(*figures, strict=True)) for name, figures in rows.items() if figures}


def _summary(
    update: Sequence[float | None], throughput: Sequence[float | None]
) -> dict[str, float | int | None]:
    def both(name: str, seconds: Sequence[float | None]) -> dict[str, float | int | None]:
        known = [value for value in seconds if value is not None]
        return {
            f"{name}_median_seconds": round(statistics.median(known), 2) if known else None,
            f"{name}_worst_seconds": round(max(known), 2) if known else None,
            f"{name}_not_seen": len(seconds) - len(known),
        }

    return {"faults": len(update), **both("next_update", update), **both("throughput", throughput)}


def fleet_hash(folder: Path, source: Path) -> str:
    """Return what `fleet hash` says of a run or a checkpoint."""
    return subprocess.run(
        [FLEET, "hash", str(source)], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def say(text: str) -> None:
    """Print progress."""
    print(text, flush=True)


def show(figures: dict[str, Any]) -> None:
    """Print the report."""
    print()
    for name, count in figures["faults"].items():
        print(f"{name:22}{count:>10,}")
    print()
    for name in ("consumed", "lost", "duplicated", "unplayed", "rolled_back", "failed", "updates"):
        print(f"{name.replace('_', ' '):22}{figures[name]:>10,}")
    for name in ("ledger_balanced", "weights_finite", "same_hash"):
        if name in figures:
            print(f"{name.replace('_', ' '):22}{'yes' if figures[name] else 'NO':>10}")
    print(f"\n{'seconds to the next update, and until throughput is back':<60}")
    print(f"{'':22}{'median':>10}{'worst':>10}{'median':>10}{'worst':>10}")
    for kind, row in figures["recovery"].items():
        columns = [
            row[f"{what}_{which}_seconds"]
            for what in ("next_update", "throughput")
            for which in ("median", "worst")
        ]
        print(
            f"{kind:22}"
            + "".join(f"{'-' if value is None else format(value, '.1f'):>10}" for value in columns)
        )
    if "throughput" in figures:
        quiet, chaos, kept = figures["throughput"].values()
        print(f"\nepisodes per second: {chaos:.0f} in chaos, {quiet:.0f} undisturbed: {kept:.0%} kept")
    for problem in figures["problems"]:
        print(f"PROBLEM: {problem}")


def chaos_async(folder: Path, workers: int, slots: int, seconds: float, chaos: Callable[[Fleet], None],
                options: list[str]) -> dict[str, Any]:  # fmt: skip
    """Run half of the time undisturbed, then in chaos, then undisturbed again."""
    rates = []

    def quietly(name: str) -> None:
        with Fleet(folder, name, slots, options) as quiet:
            end = time.monotonic() + seconds / 2
            rates.append(run_quietly(quiet, workers, lambda: time.monotonic() > end, name))

    quietly("quiet-before")
    with Fleet(folder, "chaos", slots, options) as fleet:
        chaos(fleet)
        took = fleet.updates[-1].at - fleet.updates[0].at
        end_run(fleet, exact=False)
        figures = report(fleet)
    quietly("quiet-after")
    undisturbed, disturbed = statistics.mean(rates), figures["consumed"] / took
    kept = {"undisturbed": undisturbed, "chaos": disturbed, "kept": disturbed / undisturbed}
    return {**figures, "throughput": kept, "undisturbed_turns": rates}


def chaos_exact(folder: Path, workers: int, slots: int, chaos: Callable[[Fleet], None],
                options: list[str]) -> dict[str, Any]:  # fmt: skip
    """Run in chaos, then undisturbed to the same update; compare the hashes."""
    with Fleet(folder, "chaos", slots, options) as fleet:
        chaos(fleet)
        end_run(fleet, exact=True)
        figures = report(fleet)
        updates = load(fleet.run).update
    checkpoint = folder / "runs" / "quiet" / "checkpoints" / f"update-{updates:05d}"
    often = ["--checkpoint-every", "1", "--keep-checkpoints", "50"]
    with Fleet(folder, "quiet", slots, [*options, *often]) as quiet:
        run_quietly(quiet, workers, checkpoint.exists, "quiet")
        hashes = [fleet_hash(folder, source) for source in (folder / "runs" / "chaos", checkpoint)]
    figures |= {"same_hash": hashes[0] == hashes[1], "hashes": hashes}
    if not figures["same_hash"]:
        figures["problems"].append(f"the hashes after update {updates} differ: {' and '.join(hashes)}")
    return figures


def main(
    seconds: Annotated[float, typer.Option(min=20.0, help="How long faults are injected.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Faults and run follow from it.")] = 1,
    exact: Annotated[bool, typer.Option("--exact", help="With --lag exact:1; compare hashes.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="To begin with.")] = 4,
    slots: Annotated[int, typer.Option(min=1, help="Of each worker.")] = 8,
    gap: Annotated[float, typer.Option(min=0.1, help="Mean seconds between faults.")] = 4.0,
    learner_every: Annotated[
        float, typer.Option(min=5.0, help="Seconds between kills of the learner.")
    ] = 60.0,
    folder: Annotated[Path | None, typer.Option(help="Keep everything here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here too.")] = None,
) -> None:
    """Run, report, and exit with 1 where anything is wrong."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and kill what was started
    where = folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    where.mkdir(parents=True, exist_ok=True)
    if json_file:
        json_file.touch()  # better found unwritable now than after the run
    options = [*RUN, "--seed", str(seed), "--total-episodes", str(ENDLESS)]
    options += ["--lag", f"exact:{LAG[True]}"] if exact else ["--max-lag", str(LAG[False])]

    def chaos(fleet: Fleet) -> None:
        run_in_chaos(fleet, workers, seconds, seed, gap, learner_every)

    try:
        if exact:
            figures = chaos_exact(where, workers, slots, chaos, options)
        else:
            figures = chaos_async(where, workers, slots, seconds, chaos, options)
    except FleetError as error:
        print(f"PROBLEM: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    show(figures)
    if json_file:
        settings = {"seconds": seconds, "seed": seed, "exact": exact, "workers": workers, "slots": slots}
        json_file.write_text(json.dumps({**settings, **figures}, indent=2) + "\n")
    if figures["problems"]:
        print(f"everything is kept in {where}")
        raise SystemExit(1)
    if folder is None:
        shutil.rmtree(where)


if __name__ == "__main__":
    typer.run(main)
