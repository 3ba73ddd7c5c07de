"""A learner's report of its status as text: the run, what binds, then a table of pools and one of workers.

Of many workers only those are shown that one would look for: `oddities` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import typer

from deploy.table import Table
from learner.progress import mean_returns

MOST_SHOWN = 40
"""Up to so many workers each has its line; of more, the odd ones do, up to this number."""
SILENT_SECONDS = 5.0
_SLOW, _BIG = 0.5, 2.0
"""Of the median of a pool: a pace a slot below the first and memory beyond the second are odd."""
_SUSPICIOUS_POINTS = 25
"""Of a key: a thousand workers that join with it bring 20, and what no honest worker does the rest."""
_STALE = 3
"""Versions behind, beyond the median."""
_ASKED = {"play": ("building", "ready", "draining"), "pause": ("paused",), "drain": ("draining", "left")}
_GONE = ("left", "lost", "refused")
_NO_POOL = "-"

Worker = Mapping[str, Any]


def picture(
    report: Mapping[str, Any],
    *,
    pool: str = "",
    every: bool = False,
    width: int = 10_000,
    colours: bool = False,
) -> list[str]:
    """Return the lines that show a report; `pool` shows one pool only, `every` all workers."""
    pools: dict[str, list[Worker]] = {}
    for worker in report["workers"]:
        pools.setdefault(worker["pool"], []).append(worker)
    shown = {name: pools[name] for name in sorted(pools) if not pool or name == pool}
    lines = [*(line[:width] for line in headlines(report)), ""]
    if not shown:
        return [*lines, f"no worker of pool {pool} has joined" if pool else "no worker has joined yet"]
    lines += _pools(shown).lines(width, colours=colours)
    known = [worker for workers in shown.values() for worker in workers]
    notes = {id(worker): text for workers in shown.values() for worker, text in oddities(workers)}
    if every:
        chosen = known
    elif sum(worker["state"] not in _GONE for worker in known) <= MOST_SHOWN:
        chosen = [worker for worker in known if worker["state"] != "left"][:MOST_SHOWN]
    else:
        chosen = [worker for worker in known if id(worker) in notes][:MOST_SHOWN]
    if chosen:
        table = _workers(chosen, notes)
        lines += ["", *table.lines(width, colours=colours)]
    if hidden := sum(worker["state"] not in _GONE for worker in known) - sum(
        worker["state"] not in _GONE for worker in chosen
    ):
        lines += ["", f"{hidden:,} workers in good order are not shown; --all shows them"]
    return lines


def headlines(report: Mapping[str, Any]) -> list[str]:
    """Return what there is to say of the run itself."""
    progress = report.get("progress") or {}
    facts = [
        f"update {report['version']:,} of {report['updates']:,}",
        mean_returns(progress.get("returns", {})),
        f"{progress.get('episodes_per_second', 0):,.1f} episodes/s",
        f"{progress.get('steps_per_second', 0):,.0f} steps/s",
    ]
    rejected = sum(report.get("rejected", {}).values())
    tickets = [
        f"{report['issued']:,} tickets issued, {report['consumed']:,} consumed",
        f"{report['discarded']:,} discarded" if report["discarded"] else "",
        f"{report['received']:,} episodes wait for their batch",
        f"{rejected:,} messages were invalid" if rejected else "",
    ]
    return [
        f"run {report['run']}, incarnation {report['incarnation']}: {_phase(progress)}",
        ", ".join(filter(None, facts)),
        ", ".join(filter(None, tickets)),
        f"binds: {binding(report)}",
        *_suspects(report.get("keys") or ()),
    ]


def _suspects(keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each key that is expelled, held back, or on its way there."""
    lines = []
    for key in keys:
        offences = ", ".join(f"{count:,} x {name}" for name, count in key["offences"].items())
        if key["expelled"]:
            lines.append(f"key {key['name']} is EXPELLED: {key['expelled']}")
        elif key["throttled"] or key["points"] >= _SUSPICIOUS_POINTS:
            held_back = ", held back" if key["throttled"] else ""
            lines.append(f"key {key['name']}{held_back}: {key['points']:g} of 100 points: {offences}")
    return lines


def _phase(progress: Mapping[str, Any]) -> str:
    phase = str(progress.get("phase", "starting"))
    if phase not in ("selecting", "evaluating"):
        return phase
    return f"{phase}, {progress['evaluated']:,} of {progress['to_evaluate']:,} episodes"


def binding(report: Mapping[str, Any]) -> str:
    """Say in words what the run waits for."""
    binds, ticket = report["binds"], report.get("ticket")
    if binds == "ticket" and ticket:
        held = f"held by {' and '.join(ticket['holders'])}" if ticket["holders"] else "held by nobody yet"
        age = (
            "of an earlier incarnation"
            if ticket["age_seconds"] is None
            else f"{ticket['age_seconds']:.1f} s old"
        )
        others = (
            f"; the batch lacks {ticket['missing']:,}" if ticket["missing"] > 1 else ", the last of its batch"
        )
        return f"ticket {ticket['number']:,}, {held}, {age}{others}"
    return {
        "workers": "workers (all slots are busy)" if report["ready"] else "workers (none is ready)",
        "pause": "an operator's pause (fleet resume ends it)",
        "credit": "credit (slots idle until the oldest episodes are in: --max-lag)",
        "update": "the update (episodes wait for it)",
    }.get(binds, str(binds))


def oddities(workers: Sequence[Worker]) -> list[tuple[Worker, str]]:
    """Return the workers of a pool that one would want to know of, the worst first, and why."""
    ready = [worker for worker in workers if worker["state"] == "ready"]

    def typical(values: Sequence[float]) -> float:
        return median(values) if values else 0.0

    pace = typical([_pace(worker) for worker in ready])
    memory = typical([worker["resident_bytes"] for worker in ready])
    behind = typical([worker["staleness"] or 0 for worker in ready])
    found: list[tuple[int, Worker, str]] = []
    for worker in workers:
        age, gone = worker["heartbeat_age_seconds"], worker["state"] in _GONE
        reasons = [
            (worker["state"] in ("refused", "lost"), 0, ""),
            (not gone and age > SILENT_SECONDS, 1, f"silent for {age:.0f} s"),
            (not gone and bool(worker["error"]), 2, ""),
            (worker["outbox"] > max(worker["slots"], 1), 3, "episodes pile up"),
            (not gone and worker["state"] not in _ASKED[worker["desired"]], 4, f"shall {worker['desired']}"),
            (worker["state"] == "ready" and _pace(worker) < _SLOW * pace, 5, "slow"),
            (worker["state"] == "ready" and (worker["staleness"] or 0) > behind + _STALE, 6, "stale"),
            (worker["state"] == "ready" and worker["resident_bytes"] > _BIG * memory, 7, "big"),
        ]
        if holding := [(rank, why) for holds, rank, why in reasons if holds]:
            said = ", ".join(why for _, why in holding if why)
            found.append((holding[0][0], worker, ": ".join(filter(None, (said, worker["error"])))))
    found.sort(key=lambda entry: entry[0])
    return [(worker, text) for _, worker, text in found]


def _pace(worker: Worker) -> float:
    return float(worker["steps_per_second"] / max(worker["slots"], 1))


def _pools(pools: Mapping[str, Sequence[Worker]]) -> Table:
    table = Table(
        ("POOL", ">WORKERS", ">READY", "OTHERS", ">SLOTS", ">BUSY", ">EPISODES/S", ">STEPS/S", ">BEHIND",
         ">OLDEST BEAT", ">MEMORY", ">CPU")
    )  # fmt: skip
    for name, workers in pools.items():
        live = [worker for worker in workers if worker["state"] not in _GONE]
        states = [worker["state"] for worker in workers]
        others = [f"{states.count(s)} {s}" for s in dict.fromkeys(sorted(states)) if s != "ready"]
        versions = [worker["staleness"] for worker in live if worker["staleness"] is not None]
        table.add(
            name or _NO_POOL,
            f"{len(live):,}",
            f"{states.count('ready'):,}",
            ", ".join(others),
            f"{sum(worker['slots'] for worker in live):,}",
            f"{sum(worker['running'] for worker in live):,}",
            f"{sum(worker['episodes_per_second'] for worker in live):,.1f}",
            f"{sum(worker['steps_per_second'] for worker in live):,.0f}",
            f"{max(versions)}" if versions else "",
            f"{max(worker['heartbeat_age_seconds'] for worker in live):.1f} s" if live else "",
            size(sum(worker["resident_bytes"] for worker in live)),
            f"{sum(worker['cpu_percent'] for worker in live):,.0f} %",
        )
    return table


def _workers(workers: Sequence[Worker], notes: Mapping[int, str]) -> Table:
    table = Table(
        ("WORKER", "HOST:PID", "STATE", ">SLOTS", ">EPISODES/S", ">VERSION", ">BEHIND", ">BEAT", ">MEMORY",
         ">CPU", ">OUTBOX", "NOTE")
    )  # fmt: skip
    for worker in workers:
        asked = worker["desired"]
        fits = worker["state"] in _ASKED[asked] or worker["state"] in _GONE
        note = notes.get(id(worker), "")
        colour = None if not note else typer.colors.RED if worker["state"] in _GONE else typer.colors.YELLOW
        table.add(
            worker["label"],
            f"{worker['host']}:{worker['pid']}",
            worker["state"] if fits else f"{worker['state']} -> {asked}",
            f"{worker['slots']:,}",
            f"{worker['episodes_per_second']:,.1f}" if worker["episodes"] else "",
            "" if worker["version"] is None else f"{worker['version']:,}",
            "" if worker["staleness"] is None else f"{worker['staleness']:,}",
            f"{worker['heartbeat_age_seconds']:.1f} s",
            size(worker["resident_bytes"]),
            f"{worker['cpu_percent']:.0f} %",
            f"{worker['outbox']:,}" if worker["outbox"] else "",
            note,
            colour=colour,
        )
    return table


def size(count: float) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f"{count / 2**20:,.0f} MiB" if count < 10 * 2**30 else f"{count / 2**30:,.1f} GiB"
