"""What a policy does, counted over fresh episodes: step by step at first, then by situation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deploy.playable import Playable
from protocol.messages import Episode
from protocol.tickets import Ticket

FIRST_STEPS = 8
_RARE = 0.005
_APART = 0.5


def played(playable: Playable, per_scenario: int) -> dict[str, list[Episode]]:
    """Return episodes of all evaluate scenarios by red agent; by "" in environments without one."""
    from rollout_worker.rollout import play

    spec = playable.environment
    tickets = [Ticket("evaluate", number) for number in range(per_scenario * len(spec.evaluate_scenarios))]
    found: dict[str, list[Episode]] = {}
    episodes = play(
        spec, playable.policy, playable.arrays, playable.seed, tickets, slots=min(100, len(tickets))
    )
    for episode in sorted(episodes, key=lambda episode: episode.ticket.number):
        red = str(spec.scenario("evaluate", episode.ticket.number).get("red_agent", ""))
        found.setdefault(red, []).append(episode)
    return found


def habits(playable: Playable, episodes: Sequence[Episode], names: Sequence[str]) -> dict[str, Any]:
    """Return as JSON values what these episodes count; of CAGE-2 by situation as well."""
    steps = sum(episode.length for episode in episodes)
    plain: dict[str, Any] = {
        "episodes": len(episodes),
        "mean_return": float(np.mean([episode.undiscounted_return for episode in episodes])),
        "actions": _shares(Counter(int(a) for e in episodes for a in e.actions), steps, names),
        "first_steps": [
            _shares(Counter(int(e.actions[at]) for e in episodes if e.length > at), None, names)
            for at in range(min(FIRST_STEPS, max(episode.length for episode in episodes)))
        ],
    }
    for title, words in situations(playable).items():
        groups: dict[str, Counter[int]] = {}
        for history, action in _seen(playable, episodes):
            groups.setdefault(words(history), Counter())[action] += 1
        plain[title] = [
            {"situation": key, "share": found.total() / steps, "actions": _shares(found, None, names)}
            for key, found in sorted(groups.items(), key=lambda item: -item[1].total())
            if found.total() >= _RARE * steps
        ]
    return plain


def situations(playable: Playable) -> Mapping[str, Callable[[Any], str]]:
    """Return the ways to tell situations apart that an environment's observations allow."""
    from deploy.config import CAGE2_ENVIRONMENTS

    if playable.environment.name not in CAGE2_ENVIRONMENTS:
        return {}
    from deploy.explanation.sight import Sight, just_seen, scanned_so_far

    parts = Sight(playable.environment).parts
    found = {"just_seen": ("bits", just_seen), "scanned_so_far": ("scans", scanned_so_far)}
    return {title: words for title, (part, words) in found.items() if part in parts}


def differ_from(found: Mapping[str, Sequence[Episode]], actions: int) -> int | None:
    """Return the first step at which two red agents meet mostly different actions, None where none is."""
    shortest = min(episode.length for episodes in found.values() for episode in episodes)
    for at in range(shortest):
        shares = [
            np.bincount([e.actions[at] for e in episodes], minlength=actions) / len(episodes)
            for episodes in found.values()
        ]
        apart = max(float(np.abs(one - two).sum()) / 2 for one in shares for two in shares)
        if apart > _APART:
            return at
    return None


def _seen(playable: Playable, episodes: Sequence[Episode]) -> Any:
    from deploy.explanation.sight import Sight

    sight = Sight(playable.environment)
    for episode in episodes:
        yield from zip(sight.histories(episode.observations[:-1]), episode.actions.tolist(), strict=True)


def _shares(found: Counter[int], total: int | None, names: Sequence[str]) -> dict[str, float]:
    whole = found.total() if total is None else total
    return {names[action]: count / whole for action, count in found.most_common()}
