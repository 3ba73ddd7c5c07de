"""`fleet replay`: an episode of a run, played again from its ticket and the weights of its version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.evaluate import AllowEnv
from deploy.runs import find_run
from deploy.settings import number
from learner.config import Range
from protocol.errors import UserError

if TYPE_CHECKING:
    from deploy.playable import Playable
    from protocol.tickets import Ticket
    from rollout_worker.player import Step

_ROUNDED = 1e-3
"""The journal keeps returns with four decimals."""


def replay(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run, by name or folder.")],
    ticket: Annotated[str, typer.Argument(metavar="TICKET", help="Such as 123, train:123 or evaluate:7.")],
    version: Annotated[
        str | None,
        typer.Option(
            "--version", metavar="N", help="Play it under this version (default: that of the record)."
        ),
    ] = None,
    allow_env: AllowEnv = None,
) -> None:
    """Play an episode again, to the bit where its version is kept, and print it step by step."""
    under = None if version is None else number(int, "--version", version, Range(0))

    from rollout_worker.environments.registry import allow
    from rollout_worker.rollout import play

    allow(allow_env or ())
    folder, wanted = find_run(run), parse_ticket(ticket)
    recorded = _recorded(folder, wanted)
    playable = _playable(folder, wanted, under, recorded)
    typer.echo(f"ticket {wanted} under version {playable.version}: {_scenario(playable, wanted)}")
    [episode] = play(
        playable.environment,
        playable.policy,
        playable.arrays,
        playable.seed,
        [wanted],
        slots=1,
        version=playable.version,
        on_step=lambda step: typer.echo(describe(step)),
    )
    end = "terminated" if episode.terminated else "truncated"
    value = episode.rewards.sum(dtype="float64")
    typer.echo(f"return {value:.2f}, {episode.length} steps, {end}")
    if recorded and recorded[0] == playable.version:
        verdict = "the same" if abs(recorded[1] - value) < _ROUNDED else "it was played on another processor"
        typer.echo(f"recorded return {recorded[1]:.2f}: {verdict}")


def parse_ticket(text: str) -> Ticket:
    """Return the ticket of "train:123", "evaluate:7" or "123". Raises UserError."""
    from protocol.tickets import SEQUENCES, Ticket

    name, _, number = text.rpartition(":")
    for sequence in SEQUENCES:
        if number.isdecimal() and name in (sequence, "" if sequence == "train" else sequence):
            return Ticket(sequence, int(number))
    raise UserError(f"{text!r} is no ticket: give a number such as 123, or train:123 or evaluate:7")


def describe(step: Step) -> str:
    """Return a step in one line; of CAGE-2 in the words of its hosts and actions."""
    if hasattr(step.environments, "describe_step"):
        return f"step {step.number}: {step.environments.describe_step(step.slot)}"
    return (
        f"step {step.number}: action {step.action}, reward {step.reward:g}, saw {step.observation.tolist()}"
    )


def _recorded(folder: Path, ticket: Ticket) -> tuple[int, float] | None:
    """Return the version that a train ticket was played under, and its return, by the journal of updates."""
    from learner.run_folder import RunFolder

    if ticket.sequence != "train":
        return None
    found = [record.find(ticket.number) for record in RunFolder(folder).updates()]
    return next((record for record in reversed(found) if record is not None), None)


def _playable(
    folder: Path, ticket: Ticket, version: int | None, recorded: tuple[int, float] | None
) -> Playable:
    """Return the kept weights that a ticket was played under. Raises UserError, naming those kept."""
    from deploy.playable import Playable
    from learner.checkpoints import load

    checkpoints = [load(path) for path in sorted((folder / "checkpoints").glob("update-*"), reverse=True)]
    kept = {number: checkpoint for checkpoint in checkpoints for number in checkpoint.versions}
    if not kept:
        raise UserError(f"run {folder.name} has no checkpoint yet, and so no weights to play with")
    mend = f"--version takes one of those kept: {', '.join(map(str, sorted(kept)))}"
    if version is None and ticket.sequence == "evaluate":
        version = max(kept)
    elif version is None and recorded:
        version = recorded[0]
    if version is None:
        raise UserError(f"no update of run {folder.name} has consumed ticket {ticket}; {mend}")
    if version not in kept:
        raise UserError(f"ticket {ticket} of run {folder.name} needs version {version}; {mend}")
    return Playable.of(kept[version], version)


def _scenario(playable: Playable, ticket: Ticket) -> str:
    scenario = playable.environment.scenario(ticket.sequence, ticket.number)
    return ", ".join(f"{name} {value}" for name, value in scenario.items()) or playable.environment.name
