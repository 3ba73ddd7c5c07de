"""Whether another action would be better: `python benchmarks/alternatives.py CHECKPOINT --red-agent b_line`.

Plays a CAGE-2 policy greedily, and prints its returns by the host that Red goes for first. Then it takes the
most frequent observations, and whenever one of them comes, every other action in place of the policy's own.
The best is chosen on one set of episodes and its gain measured on another, since the best of many looks
better than it is. Where nothing gains, more return takes several changes at once, or another observation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from deploy.commands.evaluate import with_cells
from deploy.explanation.sight import Sight, action_names
from deploy.playable import Playable
from deploy.pretrained import resolve
from deploy.table import Table
from protocol.tickets import Ticket, environment_seed
from rollout_worker.environments import registry
from rollout_worker.environments.cage2.tables import HOSTS, N_HOSTS
from rollout_worker.policy import Policy

_BITS = 4 * N_HOSTS
_USER_HOSTS = [HOSTS.index(f"User{number}") for number in range(1, 5)]
_BELIEFS = ("", "Unknown", "User", "Privileged")

Situation = bytes
"""The challenge's 52 bits of one step."""


@dataclass(slots=True)
class Habits:
    """What a policy does, by situation, over all steps of all episodes."""

    counts: Counter[Situation] = field(default_factory=Counter)
    actions: defaultdict[Situation, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    first_host: list[int] = field(default_factory=list)
    """Of each episode: which of User1 to User4 was scanned first, by place in `HOSTS`; -1 if none was."""


class Trial:
    """Greedy episodes under one seed, as often as wanted, with one action replaced or none."""

    def __init__(self, playable: Playable, episodes: int) -> None:
        self._playable, self._episodes = playable, episodes
        self._policy, self._sight = Policy(playable.policy, playable.arrays), Sight(playable.environment)

    def returns(
        self, situation: Situation = b"", action: int = 0, habits: Habits | None = None
    ) -> NDArray[np.float64]:
        """Return [episodes] undiscounted returns where `action`, if legal, is taken in every `situation`."""
        spec, rows = self._playable.environment, np.arange(self._episodes)
        slots = registry.build(spec, self._episodes)
        tickets = [Ticket("evaluate", number) for number in range(self._episodes)]
        seeds = np.array([environment_seed(self._playable.seed, one) for one in tickets], np.uint64)
        scenario = {name: value for name, value in spec.evaluate_scenarios[0].items() if name != "greedy"}
        observations = slots.reset(rows, seeds, [scenario] * self._episodes)
        total, first = np.zeros(self._episodes), np.full(self._episodes, -1)
        draws, greedy = np.zeros(self._episodes), np.ones(self._episodes, np.bool_)
        for _ in range(spec.spaces.max_episode_steps):
            bits = self._sight.histories(observations)[:, :_BITS]
            actions, _ = self._policy.act(observations, draws, greedy)
            if habits is not None:
                for host in _USER_HOSTS:
                    first[(first < 0) & (bits[:, 4 * host] == 1)] = host
                for seen, taken in zip(bits, actions.tolist(), strict=True):
                    habits.counts[seen.tobytes()] += 1
                    habits.actions[seen.tobytes()][taken] += 1
            if situation:
                here = (bits == np.frombuffer(situation, np.uint8)).all(axis=1)
                actions[here & self._legal(observations, action)] = action
            observations, rewards, _, _ = slots.step(rows, actions)
            total += rewards
        if habits is not None:
            habits.first_host = first.tolist()
        slots.close()
        return total

    def _legal(self, observations: NDArray[np.generic], action: int) -> NDArray[np.bool_]:
        spec = self._playable.policy
        masked: NDArray[np.bool_] = observations[:, spec.inputs + action] != 0
        return masked if spec.masked else np.ones(len(observations), np.bool_)


def in_words(situation: Situation) -> str:
    """Return what a situation shows."""
    hosts = np.frombuffer(situation, np.uint8).reshape(N_HOSTS, 4)
    found = []
    for host, (active, exploit, low, high) in zip(HOSTS, hosts.tolist(), strict=True):
        if active:
            found.append(f"{'exploit' if exploit else 'scan'} on {host}")
        if low or high:
            found.append(f"{host} {_BELIEFS[low + 2 * high]}")
    return ", ".join(found) or "nothing"


def by_first_host(returns: NDArray[np.float64], first: list[int]) -> str:
    """Return a table of the mean returns by the host that Red goes for first."""
    shown = Table(("first host", ">episodes", ">return"))
    for host in _USER_HOSTS:
        some = returns[np.array(first) == host]
        if len(some) > 1:
            shown.add(HOSTS[host], f"{len(some):,}", with_error(some, ".2f"))
    return _text(shown)


def with_error(values: NDArray[np.float64], form: str) -> str:
    """Return mean and standard error."""
    return f"{values.mean():{form}} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"


def _text(shown: Table) -> str:
    return "\n".join(shown.lines(200, colours=False))


def main(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, a run, pretrained:NAME.")],
    red_agent: Annotated[str, typer.Option(help="Who plays Red.")] = "b_line",
    steps: Annotated[int, typer.Option(help="Of an episode.")] = 100,
    episodes: Annotated[int, typer.Option(help="Of each of the two sets.")] = 500,
    situations: Annotated[int, typer.Option(help="The most frequent ones.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the first set; the second has the next.")] = 4242,
) -> None:
    """Play, replace and print both tables."""
    fresh = with_cells(resolve(checkpoint), [red_agent], [str(steps)], greedy=True)
    names = action_names(fresh.environment)
    choosing, measuring = (Trial(replace(fresh, seed=seed + number), episodes) for number in (0, 1))
    habits = Habits()
    own, own_measured = choosing.returns(habits=habits), measuring.returns()
    typer.echo(f"{fresh.environment.name}, {red_agent}, {steps} steps: {own.mean():.2f}\n")
    typer.echo(by_first_host(own, habits.first_host) + "\n")
    shown = Table(("seen", ">an episode", "it does", "best if always taken", ">gain"))
    for number, (situation, count) in enumerate(habits.counts.most_common(situations), 1):
        gains = [(choosing.returns(situation, action) - own).mean() for action in range(len(names))]
        best = int(np.argmax(gains))
        gain = measuring.returns(situation, best) - own_measured
        usual, times = habits.actions[situation].most_common(1)[0]
        does = f"{names[usual]} {times / count:.0%}"
        shown.add(in_words(situation), f"{count / episodes:.1f}", does, names[best], with_error(gain, "+.2f"))
        typer.echo(f"{number} of {situations}", err=True)
    typer.echo(_text(shown))


if __name__ == "__main__":
    typer.run(main)
