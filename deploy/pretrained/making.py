"""From a finished run to a shipped policy, and from a card to a run that repeats it."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from deploy.commands.evaluate import with_cells
from deploy.config import CAGE2_ENVIRONMENTS
from deploy.local import usable_cores
from deploy.playable import Playable
from deploy.playing import play_returns
from deploy.pretrained.card import EVALUATION_SEED, Card, command_of, repeatable, to_text
from deploy.pretrained.policy_file import write
from deploy.runs import FINISHED, OUTCOME, best_checkpoint, check_name, find_run
from deploy.settings import resolve, settings_of, to_toml
from deploy.table import Table
from learner.checkpoints import load
from learner.evaluation import Cell, evaluation_cells
from learner.metrics import read_metrics
from protocol import VERSION
from protocol.errors import FleetError, UserError
from rollout_worker.probe import processor

Say = Callable[[str], None]

_EQUAL = 1e-6


def ship(run: str, name: str, folder: Path, episodes: int, say: Say) -> Card:
    """Write the best policy of a finished run and its card to `folder`, measured anew; return the card.

    Raises UserError where the run is not finished, not of CAGE-2 or not from scratch.
    """
    check_name(name)
    where = find_run(run)
    outcome = where / OUTCOME
    if not outcome.exists() or not outcome.read_text().startswith(FINISHED):
        raise UserError(f"run {where.name} is not finished: fleet train --resume {where.name}")
    told = resolve({}, where / "config.toml")
    if told.run.environment not in CAGE2_ENVIRONMENTS:
        raise UserError(f"run {where.name} plays {told.run.environment}; what is shipped defends CAGE-2")
    if told.launch.init_from:
        raise UserError(
            f"run {where.name} began with the weights of {told.launch.init_from}: its command alone would "
            "not train another, so ship a run that began from scratch"
        )
    playable = Playable.of(load(best_checkpoint(str(where))))
    settings, rows = repeatable(told), read_metrics(where / "metrics.csv")
    card = Card(
        name=name,
        command=command_of(settings),
        seed=told.run.seed,
        episodes=round(sum(float(row["episodes"]) for row in rows)),
        steps=round(sum(float(row["steps"]) for row in rows)),
        wall_seconds=round(float(rows[-1]["seconds"]), 1),
        cores=usable_cores(),
        processor=processor(),
        version=playable.version,
        updates=told.run.updates,
        rules=told.run.rules,
        observation=told.run.observation,
        actions=told.run.actions,
        red_agents=tuple(dict.fromkeys(told.run.red_agents)),
        date=date.fromtimestamp(outcome.stat().st_mtime),
        release=VERSION,
        returns=measure(playable, episodes, say),
        settings=settings_of(to_toml(settings)),
    )
    write(folder / f"{name}.safetensors", playable)
    (folder / f"{name}.toml").write_text(to_text(card), encoding="utf-8")
    return card


def measure(playable: Playable, episodes: int, say: Say) -> tuple[Cell, ...]:
    """Return the cells of a card: its red agents and the sleeping one, all lengths, greedy and sampled.

    They are what `fleet evaluate --seed 2026` plays for the same red agents, to the bit.
    """
    spec = playable.environment
    trained = [str(scenario["red_agent"]) for scenario in spec.train_scenarios]
    spec = replace(spec, name="cage2")
    cells: list[Cell] = []
    for greedy in (True, False):
        began = time.monotonic()
        reds = list(dict.fromkeys((*trained, "sleep")))
        chosen = replace(
            with_cells(replace(playable, environment=spec), reds, [], greedy), seed=EVALUATION_SEED
        )
        scenarios = chosen.environment.evaluate_scenarios
        returns = dict(play_returns(chosen, episodes * len(scenarios)))
        found = ((scenarios[ticket % len(scenarios)], returns[ticket]) for ticket in sorted(returns))
        cells += evaluation_cells("cage2", found)
        way = "greedy" if greedy else "sampled"
        say(f"{len(returns):,} {way} episodes played in {time.monotonic() - began:.0f} s")
    return tuple(cells)


def retrain(card: Card, seed: int, name: str, episodes: int, say: Say) -> tuple[Cell, ...]:
    """Train again by a card's command, from scratch, under another seed; return what that is worth.

    A run of this name that is finished is not trained again. Raises FleetError where the training ends
    otherwise.
    """
    settings = replace(card.settings, run=replace(card.settings.run, seed=seed))
    folder = Path("runs") / name
    if not (folder / OUTCOME).exists():
        resumed = folder / "config.toml"
        told = (
            ["--resume", name]
            if resumed.exists()
            else [*shlex.split(command_of(settings))[2:], "--name", name]
        )
        say(f"fleet train {' '.join(told)}")
        status = subprocess.run([sys.executable, "-m", "deploy", "train", *told], check=False).returncode
        if status:
            raise FleetError(f"the training ended with status {status}; make defenders again goes on with it")
    if repeatable(resolve({}, folder / "config.toml")) != settings:
        raise UserError(
            f"{folder} is another run than the card's command with seed {seed}: give another --name"
        )
    return measure(Playable.of(load(best_checkpoint(str(folder)))), episodes, say)


def side_by_side(card: Card, cells: Sequence[Cell], new: str) -> list[str]:
    """Return the lines of both tables, with differences in combined standard errors."""
    places = {(c.red, c.greedy, c.steps): c for c in card.returns if c.environment == "cage2"}
    lengths = sorted({cell.steps for cell in cells})
    table = Table(["against", "policy", *(f">{steps} steps" for steps in lengths)])
    largest, apart = 0.0, 0
    for red, greedy in dict.fromkeys((cell.red, cell.greedy) for cell in cells):
        ours = [next(c for c in cells if (c.red, c.greedy, c.steps) == (red, greedy, n)) for n in lengths]
        theirs = [places.get((red, greedy, steps)) for steps in lengths]
        table.add(f"{red} {'greedy' if greedy else 'sampled'}", "the card's", *map(spell, theirs))
        table.add("", new, *map(spell, ours))
        told = []
        for old, now in zip(theirs, ours, strict=True):
            errors = None if old is None else difference(old, now)
            largest, apart = max(largest, abs(errors or 0.0)), apart + (errors is None)
            by = "" if old is None else f"{now.mean - old.mean:+.2f}"
            told.append(by if errors is None else f"{by} ({errors:+.1f} se)")
        table.add("", "difference", *told)
    rest = f"; {apart} cells differ without an error to compare with" if apart else ""
    return [
        *table.lines(200, colours=False),
        f"largest difference: {largest:.1f} combined standard errors{rest}",
    ]


def difference(old: Cell, new: Cell) -> float | None:
    """Return how much better the new one is, in combined standard errors; None where it is, and has none."""
    error, apart = math.hypot(old.se or 0.0, new.se or 0.0), new.mean - old.mean
    return apart / error if error else (0.0 if abs(apart) < _EQUAL else None)


def spell(cell: Cell | None) -> str:
    """Return mean ± standard error."""
    return "" if cell is None else f"{cell.mean + 0.0:.2f} ± {cell.se or 0.0:.2f}"


def markdown(cards: Sequence[Card]) -> str:
    """Return the tables of docs/defenders.md: how each was made, and what each is worth."""
    lines = [
        "| policy | trained against | rules | episodes | steps | wall time | seed | version |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for card in cards:
        reds, minutes = ", ".join(card.red_agents), card.wall_seconds / 60
        lines.append(
            f"| `{card.name}` | {reds} | {card.rules} | {card.episodes:,} | {card.steps:,} "
            f"| {minutes:.1f} min on {card.cores} cores | {card.seed} | {card.version} of {card.updates} |"
        )
    for card in cards:
        lengths = sorted({cell.steps for cell in card.returns})
        lines += ["", f"### {card.name}", f"`{card.command}`", ""]
        lines += [
            "| simulator | red agent | actions | "
            + " | ".join(f"{n} steps" for n in lengths)
            + " | episodes |"
        ]
        lines += ["|---|---|---" + "|--:" * (len(lengths) + 1) + "|"]
        places = {(c.environment, c.red, c.greedy, c.steps): c for c in card.returns}
        for place in dict.fromkeys((c.environment, c.red, c.greedy) for c in card.returns):
            found = [places.get((*place, steps)) for steps in lengths]
            counts = {cell.episodes for cell in found if cell}
            spelled = f"{min(counts):,}" + (f" to {max(counts):,}" if len(counts) > 1 else "")
            who = "embedded" if place[0] == "cage2" else "CybORG"
            way = "greedy" if place[2] else "sampled"
            lines.append(f"| {who} | {place[1]} | {way} | {' | '.join(map(spell, found))} | {spelled} |")
        lines += ["", "Sum over all cells: " + ", ".join(_sums(card.returns)) + "."]
    return "\n".join(lines)


def _sums(cells: Sequence[Cell]) -> list[str]:
    """Return what the cells of each simulator and way sum up to, as the challenge's leaderboard does."""
    groups: dict[tuple[str, bool], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.environment, cell.greedy), []).append(cell)
    found = []
    for (environment, greedy), some in groups.items():
        whole = replace(
            some[0], mean=sum(cell.mean for cell in some), se=math.hypot(*(cell.se or 0.0 for cell in some))
        )
        who, way = "embedded" if environment == "cage2" else "CybORG", "greedy" if greedy else "sampled"
        found.append(f"{who} {way} {spell(whole)} ({len(some)} cells)")
    return found
