"""`fleet up`, `fleet scale` and `fleet down`: they write what is wanted; the supervisor brings it about."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.exits import Exit
from deploy.settings import number
from learner.config import Range
from protocol.errors import UserError
from protocol.wording import counted

if TYPE_CHECKING:
    from deploy.fleet.state import Desired, FleetFolder

_LOOK_SECONDS = 0.2
_SILENT_SECONDS = 20.0
"""A supervisor writes down each second what it sees."""
_MOST_WORKERS = 10**6

_Wait = Annotated[
    str, typer.Option("--wait", metavar="SECONDS", help="Watch workers join for at most this long.")
]
_RunOption = Annotated[
    str | None, typer.Option("--run", metavar="RUN", help="Whose fleet, if several are up.")
]


def up(
    file: Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="What the fleet consists of.")],
    wait: _Wait = "120",
) -> Exit:
    """Start what a fleet.toml names, or change what differs from it; show workers joining."""
    from deploy.fleet.desire import desire, differences, going_on, no_pool_line
    from deploy.fleet.file import read_fleet_file
    from deploy.fleet.joining import show_joining
    from deploy.fleet.state import FleetFolder
    from deploy.fleet.supervisor import start_supervisor
    from deploy.runs import RUNS, check_name

    seconds = number(float, "--wait", wait, Range(0))
    plan = read_fleet_file(file)
    check_name(plan.name)
    folder = FleetFolder(RUNS / plan.name)
    before = folder.desired()
    try:
        desire(plan, folder, before)  # a mistake leaves no folder behind
    except OSError as error:
        raise UserError(f"{file}: {error.filename or folder.run} cannot be used: {error.strerror}") from error
    seen = folder.observed()
    with folder.changing():
        before = folder.desired()
        desired = desire(plan, folder, before)
        changes = differences(before, desired)
        further = going_on(folder, desired) + no_pool_line(desired)
        generation = folder.write_desired(desired)
    for line in [*(changes or [f"nothing differs from {file}"]), *further]:
        typer.echo(line)
    start_supervisor(folder)
    return Exit.OK if show_joining(folder, generation, seen, seconds) else Exit.FAILED


def scale(
    pools: Annotated[list[str], typer.Argument(metavar="POOL=N|+N|-N", help="How many workers, or more.")],
    run: _RunOption = None,
    wait: _Wait = "120",
) -> Exit:
    """Change how many workers pools have, while the run trains."""
    from deploy.fleet.joining import show_joining
    from deploy.fleet.state import find_fleet
    from deploy.fleet.supervisor import start_supervisor

    seconds = number(float, "--wait", wait, Range(0))
    folder = find_fleet(run)
    seen = folder.observed()
    with folder.changing():
        desired = _up(folder)
        changed = dict(desired.pools)
        lines = []
        for text in pools:
            name, count = scaled(text, folder, replace(desired, pools=changed))
            was = changed[name].count
            changed[name] = replace(changed[name], count=count)
            lines.append(f"{name}: {'all there is room for' if was is None else was} -> {count}")
        generation = folder.write_desired(replace(desired, pools=changed))
    for line in lines:
        typer.echo(line)
    start_supervisor(folder)
    return Exit.OK if show_joining(folder, generation, seen, seconds) else Exit.FAILED


def down(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Whose fleet; the only one that is up, if not said.")
    ] = None,
    now: Annotated[
        bool, typer.Option("--now", help="Workers return their tickets instead of finishing episodes.")
    ] = False,
) -> Exit:
    """End a fleet: workers finish what they play, the learner stops at a checkpoint, nothing is left."""
    from deploy.fleet.learner_process import LocalLearner
    from deploy.fleet.state import find_fleet
    from deploy.fleet.supervisor import log_to, supervise

    folder = find_fleet(run)
    with folder.changing():
        desired = folder.desired()
        if desired is None:
            raise UserError(f"{folder.path / 'desired.json'} is gone: fleet up -f FILE writes it anew")
        generation = folder.write_desired(replace(desired, phase="down" if now else "drain"))
    log_to(folder.log)
    tell = _Teller(folder, generation)
    began = time.time()
    while not supervise(folder, tell, patience=0.0):  # another process does
        tell()
        if time.time() - max(began, folder.observed().get("written_at", 0.0)) > _SILENT_SECONDS:
            typer.echo("its supervisor has done nothing for long: it is killed")
            folder.kill_supervisor()
            began = time.time()
        time.sleep(_LOOK_SECONDS)
    begun = desired.learner.place.host or LocalLearner(folder.run).began()
    again = "fleet up goes on with it" if begun else "its run never began, fleet up -f FILE begins it"
    typer.echo(f"the fleet of {folder.run.name} is down; {again}")
    return Exit.OK


class _Teller:
    """Tells what is left of a fleet that goes down, when that changes."""

    def __init__(self, folder: FleetFolder, generation: int) -> None:
        self._folder, self._generation, self._last = folder, generation, ""

    def __call__(self) -> bool:
        """Tell; return True, because one goes on."""
        observed = self._folder.observed()
        if observed.get("generation") != self._generation:
            return True
        pools = observed["pools"]
        left = [f"{len(pool['members'])} of {name}" for name, pool in pools.items() if pool.get("members")]
        left += [f"{name} ({pool['error']})" for name, pool in pools.items() if pool.get("error")]
        learner = observed["learner"]
        if learner["error"]:
            left.append(f"the learner ({learner['error']})")
        elif learner.get("alive"):
            left.append("the learner")
        line = f"left: {', '.join(left)}" if left else ""
        if line and line != self._last:
            typer.echo(line)
        self._last = line
        return True


def _up(folder: FleetFolder) -> Desired:
    """Return what is wanted of a fleet that is up. Raises UserError."""
    desired = folder.desired()
    name = folder.run.name
    if desired is None or desired.phase != "up":
        raise UserError(f"the fleet of {name} is down: fleet up -f FILE begins again")
    if folder.observed().get("phase") == "finished":
        raise UserError(f"the run {name} is complete, its fleet is down")
    return desired


def scaled(text: str, folder: FleetFolder, desired: Desired) -> tuple[str, int]:
    """Return pool and count of POOL=N, POOL=+N or POOL=-N. Raises UserError."""
    found = re.fullmatch(r"([^=]+)=([+-]?)(\d{1,9})", text)
    if not found:
        raise UserError(f"{text!r} is not understood: give POOL=N, POOL=+N or POOL=-N, such as lab=64")
    name, sign, amount = found[1], found[2], int(found[3])
    pool = desired.pools.get(name)
    if pool is None or pool.removed:
        known = ", ".join(name for name, pool in desired.pools.items() if not pool.removed)
        raise UserError(f"no pool {name!r} in the fleet of {folder.run.name}; there are {known or 'none'}")
    if pool.target:
        raise UserError(
            f"{name} scales itself between {pool.min} and {pool.max} ({pool.target}): change that in the file"
        )
    had = pool.count
    if had is None and sign:
        had = folder.observed().get("pools", {}).get(name, {}).get("count")
        if had is None:
            raise UserError(f"how many workers {name} has is not known yet: give {name}=N")
    count = (had or 0) + (amount if sign == "+" else -amount) if sign else amount
    if count < 0:
        raise UserError(f"{name} has {counted(had or 0, 'worker')}, {amount} fewer are less than none")
    most = _MOST_WORKERS if pool.max is None else pool.max
    if count > most:
        raise UserError(f"{name}={count} is above its max, which is {most}")
    return name, count
