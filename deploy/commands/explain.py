"""`fleet explain`: what a policy does, and why it did it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.commands.evaluate import AllowEnv, elsewhere, never_seen, with_cells
from deploy.commands.replay import parse_ticket
from deploy.config import CAGE2_ENVIRONMENTS
from deploy.json_file import JsonFile, write_json
from deploy.settings import number
from learner.config import COUNT, SEED, Range
from protocol.wording import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from deploy.playable import Playable

_TITLES = {"just_seen": "what was just seen", "scanned_so_far": "scanned so far"}
_MOST_ROWS = 12


def explain(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run for its best, pretrained:NAME.")
    ],
    red_agents: Annotated[
        list[str] | None,
        typer.Option(
            "--red-agent", "--red", metavar="AGENT", help="Red agents (default: those it trained on)."
        ),
    ] = None,
    episodes: Annotated[
        str, typer.Option("--episodes", metavar="N", help="Fresh episodes to count, against each.")
    ] = "100",
    ticket: Annotated[
        str | None,
        typer.Option("--episode", metavar="TICKET", help="Annotate this one, as fleet replay plays it."),
    ] = None,
    seed: Annotated[
        str | None, typer.Option("--seed", metavar="N", help="Of the episodes (default: the run's plus 1).")
    ] = None,
    steps: Annotated[
        str, typer.Option("--steps", metavar="N", help="Steps of the annotated episode to show.")
    ] = "10",
    greedy: Annotated[
        bool, typer.Option("--greedy/--sampled", help="Play the most probable action, or a drawn one.")
    ] = True,
    allow_env: AllowEnv = None,
    json_file: JsonFile = None,
) -> None:
    """Tell what a policy does in which situation, and annotate an episode: why it did this.

    A reason is a thing that was seen, with the change in the action's probability that it makes.
    """
    per_red, shown = (
        number(int, "--episodes", episodes, COUNT),
        number(int, "--steps", steps, Range(0, 10**6)),
    )
    told_seed = None if seed is None else number(int, "--seed", seed, SEED)
    wanted = None if ticket is None else parse_ticket(ticket)

    from rich.console import Console

    from deploy.explanation.episode import annotated
    from deploy.explanation.habits import differ_from, habits, played
    from deploy.pretrained import resolve
    from protocol.tickets import Ticket
    from rollout_worker.environments.registry import allow

    allow(allow_env or ())
    own = resolve(checkpoint)
    cage2 = own.environment.name in CAGE2_ENVIRONMENTS
    own = elsewhere(own, "cage2") if cage2 else own
    longest = [str(own.environment.spaces.max_episode_steps)] if cage2 else []
    fresh = with_cells(own, red_agents or [], longest, greedy)
    fresh = replace(fresh, seed=own.seed + 1 if told_seed is None else told_seed)
    if unseen := never_seen(fresh):
        typer.echo(f"fleet: note: it never trained against {' or '.join(unseen)}", err=True)
    names = _names(own)
    console = Console(highlight=False, markup=False)
    found = played(fresh, per_red)
    plain: dict[str, Any] = {"red_agents": {}}
    for red, some in found.items():
        counted = plain["red_agents"][red] = habits(fresh, some, names)
        _show_habits(console, red or own.environment.name, counted)
    if cage2:
        if len(found) > 1:
            plain["differ_from_step"] = at = differ_from(found, len(names))
            when = "at no step mostly" if at is None else f"from step {at} on"
            console.print(f"It treats {' and '.join(found)} differently {when}.\n")
        if wanted and not red_agents:
            fresh = own if told_seed is None else replace(own, seed=told_seed)
        plain["episode"] = annotated(fresh, wanted or Ticket("evaluate", 0), names)
        if shown:
            _show_episode(console, plain["episode"], shown)
    write_json(json_file, plain)


def _names(playable: Playable) -> list[str]:
    if playable.environment.name in CAGE2_ENVIRONMENTS:
        from deploy.explanation.sight import action_names

        return action_names(playable.environment)
    return [f"action {action}" for action in range(playable.policy.actions)]


def _show_habits(console: Console, title: str, plain: Mapping[str, Any]) -> None:
    count, value = plain["episodes"], plain["mean_return"]
    console.print(f"{title}: {counted(count, 'episode')}, mean return {value:.2f}", style="bold")
    if not any(name in plain for name in _TITLES):
        table = _table("action", "share")
        for name, share in plain["actions"].items():
            table.add_row(name, f"{share:.1%}")
        console.print(table)
        return
    table = _table("step", "what it does first")
    for at, shares in enumerate(plain["first_steps"]):
        table.add_row(str(at), _spell(shares))
    console.print(table)
    for name in (name for name in _TITLES if name in plain):
        table = _table(_TITLES[name], "share", "actions")
        for row in plain[name][:_MOST_ROWS]:
            table.add_row(row["situation"], f"{row['share']:.1%}", _spell(row["actions"]))
        console.print()
        console.print(table)
    console.print()


def _show_episode(console: Console, plain: Mapping[str, Any], shown: int) -> None:
    from protocol.specs import without_greedy

    environments_part, _ = without_greedy(plain["scenario"])
    scenario = ", ".join(f"{name} {value}" for name, value in environments_part.items())
    console.print(f"Episode {plain['ticket']} under seed {plain['seed']}: {scenario}", style="bold")
    width = min(console.width, 110)
    told = "why: by how many points what was seen raises or lowers the choice's probability"
    console.print(textwrap.fill(told, width))
    for step in plain["steps"][:shown]:
        taken, probability = step["action"], step["probability"]
        others = [f"{name} {_percent(p)}" for name, p in step["top"].items() if name != taken and p >= 0.005]
        rest = f"; or {', '.join(others)}" if others else ""
        reasons = [f"{words} ({_signed(effect)})" for words, effect in step["reasons"].items()]
        console.print()
        for line in (
            f"step {step['step']}: {taken} {_percent(probability)}{rest}",
            f"    why: {'; '.join(reasons[:3])}" if reasons else "    why: no single thing seen decides it",
            f"    then: {step['outcome'].partition(': ')[2]}",
        ):
            console.print(textwrap.fill(line, width, subsequent_indent=" " * 8), soft_wrap=True)
    left = len(plain["steps"]) - shown
    more = f" ({counted(left, 'more step')}: --steps {len(plain['steps'])})" if left > 0 else ""
    console.print(f"\nreturn {plain['return']:.2f} after {counted(len(plain['steps']), 'step')}{more}")


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name == "share" else "left")
    return table


def _spell(shares: Mapping[str, float]) -> str:
    """Return the three most frequent actions with their shares."""
    top = list(shares.items())[:3]
    return ", ".join(f"{name} {_percent(share)}" for name, share in top if share >= 0.005)


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _signed(effect: float) -> str:
    return f"{100 * effect:+.0f}"
