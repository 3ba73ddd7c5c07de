"""`fleet pause`, `fleet resume` and `fleet drain`: what workers shall do, told to a learner at work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deploy.access import KeyFile
from deploy.exits import Exit, complain
from deploy.live import LearnerOption, find_learner, labels_at
from protocol.errors import UserError
from protocol.wording import counted

if TYPE_CHECKING:
    from deploy.query import Line

_LOOK_SECONDS = 0.5
_SAY_SECONDS = 5.0
_GONE = ("left", "lost", "refused")

Some = Annotated[
    list[str] | None,
    typer.Argument(metavar="[WORKER|HOST|POOL]...", help="Labels, host:pid, hosts or pools; none is all."),
]
These = Annotated[
    list[str], typer.Argument(metavar="WORKER|HOST|POOL...", help="Labels, host:pid, hosts or pools.")
]


def pause(targets: Some = None, learner: LearnerOption = "", key: KeyFile = None) -> Exit:
    """Let workers finish their episodes and take no others, until `fleet resume`.

    Without a name: all workers, and those that join later. In synchronous mode the slots of a paused worker
    go on elsewhere, and with all paused the rounds stop where they are.
    """
    from deploy.query import Line

    with Line(find_learner(learner), key) as line:
        return _command(line, "pause", targets or ())[1]


def resume(targets: Some = None, learner: LearnerOption = "", key: KeyFile = None) -> Exit:
    """Let paused workers play again, and draining ones stay.

    Without a name: all workers, and those that join later. (`fleet train --resume RUN` goes on with a run
    that has ended.)
    """
    from deploy.query import Line

    with Line(find_learner(learner), key) as line:
        return _command(line, "play", targets or ())[1]


def drain(
    targets: These,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until they have left.")] = False,
    learner: LearnerOption = "",
    key: KeyFile = None,
) -> Exit:
    """Let workers finish their episodes, hand them over and leave; none is lost by that."""
    from deploy.query import Line

    with Line(find_learner(learner), key) as line:
        report, status = _command(line, "drain", targets)
        if report["count"] and not no_wait:
            status = max(status, _wait_until_gone(line, frozenset(report["workers"])))
        return status


def _command(
    line: Line, what: Literal["play", "pause", "drain"], targets: Sequence[str]
) -> tuple[Mapping[str, Any], Exit]:
    """Send a command and say whom it reached; return the report, and FAILED where a name is nobody's."""
    from protocol.messages import Command

    report = line.ask(Command(what, tuple(labels_at(line.address, targets))))
    count, matched = report["count"], list(report["matched"])
    doing = {"play": "play", "pause": "pause after the episodes that run", "drain": "drain"}[what]
    if targets:
        names = ", ".join(matched[:3]) + (f" and {count - 3:,} more" if count > 3 else "")
        which = f": {names}"
    else:
        which = ", and those that join later, too"
    if count or not targets:
        typer.echo(f"{counted(count, 'worker')} shall {doing}{which}")
    if unknown := list(report["unknown"]):
        known = _names(line.status()["workers"])
        for name in unknown:
            near = get_close_matches(name, known, n=3) or sorted(known)[:3]
            mend = f"there are {', '.join(near)}" if near else "no worker is there"
            complain(f"no worker, host or pool is called {name}: {mend}")
    return report, Exit.FAILED if unknown else Exit.OK


def _wait_until_gone(line: Line, numbers: frozenset[int]) -> Exit:
    """Show progress until the workers of these numbers have left; FAILED where one was lost instead.

    Raises UserError where they will not leave, or nobody can tell.
    """
    from deploy.query import NoAnswer

    began = said = time.monotonic()
    seen: dict[int, Mapping[str, Any]] = {}
    incarnation, first = 0, 0
    while True:
        try:
            status = line.status()
        except NoAnswer as error:
            raise UserError(f"the learner went away while workers drained: {error}") from error
        seen |= {worker["number"]: worker for worker in status["workers"] if worker["number"] in numbers}
        finished = sum(worker["episodes"] for worker in seen.values())
        if not incarnation:
            incarnation, first = status["incarnation"], finished
        if status["incarnation"] != incarnation:
            raise UserError("the learner was restarted meanwhile, and lets all workers play: drain again")
        stay = [worker for worker in seen.values() if worker["state"] not in _GONE]
        if kept := [worker for worker in stay if worker["desired"] != "drain"]:
            raise UserError(
                f"{counted(len(kept), 'worker')} shall not drain any more: another command came after"
            )
        if not stay:
            break
        if time.monotonic() - said >= _SAY_SECONDS:
            said = time.monotonic()
            running, waiting = (sum(worker[place] for worker in stay) for place in ("running", "outbox"))
            gone = len(seen) - len(stay)
            typer.echo(f"{gone:,} of {len(seen):,} have left; {running:,} episodes run, {waiting:,} wait")
        time.sleep(_LOOK_SECONDS)
    seconds = time.monotonic() - began
    finished -= first
    played = counted(finished, "episode")
    typer.echo(f"{counted(len(seen), 'worker')} left in {seconds:.1f} s; {played} finished meanwhile")
    missed = [worker for worker in seen.values() if worker["state"] != "left"]
    for worker in missed:
        why = worker["error"] or "it fell silent, and what it held is issued again"
        name = worker["label"] or f"{worker['host']}:{worker['pid']}"
        complain(f"{name} was {worker['state']} before it was drained: {why}")
    return Exit.FAILED if missed else Exit.OK


def _names(seen: Sequence[Mapping[str, Any]]) -> set[str]:
    def all_of(worker: Mapping[str, Any]) -> Iterator[str]:
        yield from (worker["label"], worker["pool"], worker["host"], f"{worker['host']}:{worker['pid']}")

    return {name for worker in seen if worker["state"] not in _GONE for name in all_of(worker) if name}
