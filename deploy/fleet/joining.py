"""How a fleet comes together, as its supervisor sees it: shown line by line until all is there, or is not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from deploy.engines.processes import last_lines
from deploy.fleet.state import FleetFolder
from protocol.wording import counted

_LOOK_SECONDS = 0.2
_MOST_LINES = 8
"""Workers of a pool that join at the same time are told one by one up to this number."""
_THERE = ("ready", "paused", "draining")
_SUPERVISOR_SECONDS = 5.0
"""Of silence, after which a supervisor is looked for."""


def show_joining(
    folder: FleetFolder, generation: int, before: Mapping[str, Any], wait_seconds: float
) -> bool:
    """Show who joins until all are there, or those who lack do not come; return whether all are.

    Who was there `before`, when the command was given, is not told of again.
    """
    joining = _Joining(before)
    deadline = time.monotonic() + wait_seconds
    while True:
        observed = folder.observed()
        current = observed.get("generation") == generation
        if observed.get("generation", 0) > generation:
            typer.secho("fleet: a later command has changed what is wanted", err=True, fg=typer.colors.RED)
            return False
        if current:
            for line in joining.news(observed):
                typer.echo(line)
            if observed["phase"] == "finished":
                typer.echo("the run is complete")
                return True
            if joining.complete(observed):
                return True
        lost = time.time() - observed.get("written_at", 0) > _SUPERVISOR_SECONDS and not folder.supervised()
        if lost or time.monotonic() > deadline or (current and _hopeless(observed)):
            break
        time.sleep(_LOOK_SECONDS)
    for line in joining.lacking(observed if current else {}):
        typer.secho(f"fleet: {line}", err=True, fg=typer.colors.RED)
    if lost:
        why = f"its supervisor ended: {last_lines(folder.log, 1)}; fleet up starts another"
        typer.secho(f"fleet: {why}", err=True, fg=typer.colors.RED)
    return False


class _Joining:
    """What was shown already."""

    def __init__(self, before: Mapping[str, Any]) -> None:
        self._began = time.monotonic()
        pools = before.get("pools", {}).values()
        there = {m["name"] for pool in pools for m in pool.get("members", ()) if m["state"] in _THERE}
        self._learner = bool(there and before["learner"]["answers"])
        self._shown: set[str] = there

    def news(self, observed: Mapping[str, Any]) -> Iterator[str]:
        """Yield what came since the last call."""
        answers, told = observed["learner"]["answers"], self._learner
        self._learner = answers
        if answers and not told:
            took = time.monotonic() - self._began
            yield f"learner: answers at {observed['learner']['address']} ({took:.1f} s)"
        for name, pool in observed["pools"].items():
            joined = [m for m in pool["members"] if m["state"] in _THERE and m["name"] not in self._shown]
            self._shown.update(member["name"] for member in joined)
            if len(joined) > _MOST_LINES:
                slowest = max((member["joined_seconds"] or 0.0) for member in joined)
                yield f"{name}: {counted(len(joined), 'worker')} joined, the slowest in {slowest:.1f} s"
            else:
                for member in joined:
                    took = member["joined_seconds"]
                    how = "is there already" if took is None else f"joined in {took:.1f} s"
                    yield f"{member['name']}: {how}, on {member['host']}"

    def complete(self, observed: Mapping[str, Any]) -> bool:
        """Say whether learner and workers are all there, and nobody else."""
        pools = observed["pools"].values()
        there = all(
            not pool.get("error")
            and pool["generation"] == observed["generation"]
            and len(pool["members"]) == pool["count"]
            and all(member["state"] in _THERE for member in pool["members"])
            for pool in pools
        )
        if there and observed["learner"]["answers"]:
            total = sum(pool["count"] for pool in pools)
            typer.echo(f"all there: the learner and {total} worker{'s' * (total != 1)}")
            return True
        return False

    def lacking(self, observed: Mapping[str, Any]) -> Iterator[str]:
        """Yield a line for whatever is not as wanted."""
        if not observed:
            yield "its supervisor has not seen what is wanted yet; see runs/NAME/fleet/supervisor.log"
            return
        learner = observed["learner"]
        if problem := learner.get("failed") or learner.get("error"):
            yield f"learner: {problem}"
        elif not learner["answers"]:
            died = f"; one that was started ended: {words}" if (words := learner.get("last_words")) else ""
            yield f"learner: does not answer at {learner['address']} yet{died}"
        for name, pool in observed["pools"].items():
            if pool.get("error"):
                yield f"pool {name}: {pool['error']}"
            lost = {failure["name"]: failure for failure in pool.get("failures", ())}
            by_host = {failure["host"]: failure for failure in lost.values()}  # the last of each
            for host, failure in by_host.items():
                aside = "; this host is put aside until the next fleet up" if host in pool["aside"] else ""
                where = f" on {host}" if host else ""
                yield f"{failure['name']}{where}: {' '.join(failure['detail'].split())}{aside}"
            for member in pool.get("members", ()):
                if member["state"] not in _THERE:
                    detail = f": {member['detail']}" if member["detail"] else ""
                    where = f" on {member['host']}" if member["host"] else ""
                    yield f"{member['name']}{where}: {member['state']}{detail}"
            here = sum(member["state"] in _THERE for member in pool.get("members", ()))
            if pool.get("count") is not None and here != pool["count"]:
                yield f"pool {name}: {here} of {pool['count']} workers are there; the rest is tried further"


def _hopeless(observed: Mapping[str, Any]) -> bool:
    """Return whether everyone who lacks failed again and again."""
    if observed["learner"].get("failed"):
        return True
    lacking = False
    for pool in observed["pools"].values():
        if pool["generation"] != observed["generation"]:
            return False
        states = {member["state"] for member in pool["members"]} - set(_THERE)
        if states - {"pending"}:
            return False
        if states or len(pool["members"]) < pool["count"]:
            if not (pool["despairs"] or (states and pool["aside"])):
                return False
            lacking = True
    return lacking and bool(observed["learner"]["answers"])
