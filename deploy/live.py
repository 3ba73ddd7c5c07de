"""Which live learner a command means: HOST:PORT, a run, or the one at work here."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.runs import RUNS, find_run
from protocol.errors import UserError

if TYPE_CHECKING:
    from deploy.fleet.state import FleetFolder

_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""A learner that listens at all addresses of its host."""

LearnerOption = Annotated[
    str,
    typer.Option(
        "--learner", metavar="RUN|HOST:PORT", help="Which learner; without it, that of the only run at work."
    ),
]


def is_address(text: str) -> bool:
    """Say whether a text is meant as HOST:PORT and not as a file."""
    return bool(re.fullmatch(r".+:\d+", text)) and not os.path.exists(text)


def find_learner(text: str) -> str:
    """Return HOST:PORT of the learner that a text names; an empty one names the only one that lives here.

    Where none lives it is that of the newest run. Raises UserError where there is no such run, where several
    live, or its learner has not said where it listens.
    """
    if is_address(text):
        return text
    folder = find_run(text) if text else _living_or_newest()
    if not (address := _address(folder)):
        raise UserError(f"no learner has listened in {folder} yet: give its HOST:PORT")
    return address


def run_at(address: str) -> Path | None:
    """Return the run whose learner listens at HOST:PORT, or else the newest whose learner did."""
    there = [run for run in _newest_first() if _address(run) == address]
    return next(filter(_lives, there), there[0] if there else None)


def labels_at(address: str, targets: Sequence[str]) -> list[str]:
    """Return names of workers for what a learner is to be told of, with hosts as the fleet's file has them.

    A learner knows hosts by the names that they give themselves: those of engines become the labels there.
    """
    run = run_at(address)
    pools = _fleet(run).observed().get("pools", {}) if run else {}
    labels: dict[str, list[str]] = {}
    for member in (member for pool in pools.values() for member in pool["members"]):
        for host in {member["host"], member["host"].rpartition("@")[2]} - {"", socket.gethostname()}:
            labels.setdefault(host, []).append(member["name"])
    return [label for target in targets for label in labels.get(target, [target])]


def _living_or_newest() -> Path:
    runs = _newest_first()
    if not runs:
        raise UserError(f"there is no run under {RUNS}/: name the learner as HOST:PORT, such as gpu-box:5555")
    living = list(filter(_lives, runs))
    if len(living) > 1:
        names = ", ".join(sorted(run.name for run in living))
        raise UserError(f"{len(living)} runs are at work: name one of {names}")
    return living[0] if living else runs[0]


def _newest_first() -> list[Path]:
    files = [*RUNS.glob("*/address"), *RUNS.glob("*/fleet/desired.json")]
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    return list(dict.fromkeys(RUNS / file.relative_to(RUNS).parts[0] for file in files))


def _lives(run: Path) -> bool:
    """Say whether a run's learner holds its lock here, or its fleet is up."""
    from deploy.engines.processes import is_locked

    with suppress(OSError):
        return is_locked(run / "lock") or _fleet(run).is_up()
    return False


def _address(run: Path) -> str:
    """Return where a run's learner listens as it is reached from here; empty where that is not known."""
    try:
        address = (run / "address").read_text().strip()
    except (OSError, UnicodeError):  # a learner on another host, of a fleet that is kept here
        with suppress(UserError):
            desired = _fleet(run).desired()
            return desired.learner.address if desired else ""
        return ""
    host, _, port = address.rpartition(":")
    host = _REACHED_AT.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _fleet(run: Path) -> FleetFolder:
    from deploy.fleet.state import FleetFolder  # most commands need none of what it imports

    return FleetFolder(run)
