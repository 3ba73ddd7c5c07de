"""What a defender of CAGE-2 sees, in words: a history's facts, and the observation without one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.specs import EnvironmentSpec
from rollout_worker.environments.cage2 import defender_view as view
from rollout_worker.environments.cage2.description import blue_action_name
from rollout_worker.environments.cage2.options import (
    HISTORY_PARTS,
    HISTORY_SIZE,
    actions_named,
    observation_named,
)
from rollout_worker.environments.cage2.spaces import shown_columns
from rollout_worker.environments.cage2.tables import DECOYS, HOSTS, N_HOSTS

_HELD = "User0"
"""Red holds it from the beginning, whatever Blue does: named last."""
_BELIEFS = ("", "Unknown", "User", "Privileged")
_STARTS = dict(zip(HISTORY_PARTS, np.cumsum([0, *HISTORY_PARTS.values()]).tolist(), strict=False))
_RECENT = N_HOSTS + 1 + view.N_AGES + 1
_OWN = view.COMPACT_ACTIONS + 1
_DECOYS = [
    (HOSTS[view.DEFENDED_HOSTS[place]], DECOYS[decoy])
    for place in range(view.N_DEFENDED)
    for decoy in view.DECOY_LADDERS[place]
    if decoy != view.NO_DECOY
]

Bits = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is seen, and the columns of the history that tell it, each with its value unseen."""

    words: str
    columns: NDArray[np.int64]
    unseen: Bits


class Sight:
    """The observations of one environment of CAGE-2, read as histories (see `defender_view`)."""

    def __init__(self, spec: EnvironmentSpec) -> None:
        observation = str(spec.options.get("observation", "history"))
        shown = shown_columns(observation, spec.options.get("actions", "compact"))
        self.parts = observation_named(observation).parts
        self._columns = shown[shown < HISTORY_SIZE]

    def histories(self, observations: NDArray[Any]) -> Bits:
        """Return [n, HISTORY_SIZE], with 0 where a part is not shown."""
        found = np.zeros((len(observations), HISTORY_SIZE), np.uint8)
        found[:, self._columns] = observations[:, : len(self._columns)]
        return found

    def without(self, observation: NDArray[Any], facts: list[Fact]) -> NDArray[Any]:
        """Return the observation once for each fact, [facts, size], with that one unseen."""
        rows = np.repeat(observation[np.newaxis], len(facts), axis=0)
        histories = self.histories(rows)
        for row, fact in zip(histories, facts, strict=True):
            row[fact.columns] = fact.unseen
        rows[:, : len(self._columns)] = histories[:, self._columns]
        return rows

    def facts(self, observation: NDArray[Any]) -> list[Fact]:
        """Return what an observation tells, each with all columns that tell it."""
        history = self.histories(observation[np.newaxis])[0]
        found = [
            *_activities(history),
            *_beliefs(history),
            *_scans(history),
            *_decoys(history),
            *_own_actions(history),
        ]
        shown = set(self._columns.tolist())
        return [fact for fact in found if shown & set(fact.columns.tolist())]


def action_names(spec: EnvironmentSpec) -> list[str]:
    """Return the names of the actions that a policy chooses from."""
    chosen = actions_named(spec.options.get("actions", "compact"))
    if not chosen.compact:
        return [blue_action_name(action) for action in chosen.offered]
    return [_compact_name(action) for action in chosen.offered]


def just_seen(history: Bits) -> str:
    """Return the situation of a step in words: the newest activity, or what is believed, or neither."""
    hosts = history[: 4 * N_HOSTS].reshape(N_HOSTS, 4)
    exploits, scans = hosts[:, 0] & hosts[:, 1], hosts[:, 0] & (1 - hosts[:, 1])
    beliefs = hosts[:, 2] + 2 * hosts[:, 3]
    for title, places in (
        ("exploit on", exploits),
        ("scan on", scans),
        ("marked Privileged:", beliefs == 3),
        ("marked User:", beliefs == 2),
        ("marked Unknown:", beliefs == 1),
    ):
        if names := sorted((HOSTS[host] for host in np.flatnonzero(places)), key=_HELD.__eq__):
            return f"{title} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return "nothing new, nothing marked"


def scanned_so_far(history: Bits) -> str:
    """Return how far red's scans have come, in words."""
    start = _STARTS["scans"]
    names = [HOSTS[host] for host in np.flatnonzero(history[start : start + N_HOSTS])]
    if any(name.startswith("Op_") for name in names):
        return "as far as the Operational net"
    if any(name.startswith(("Enterprise", "Defender")) for name in names):
        return "as far as the Enterprise net"
    return f"{len(names)} User host{'s' * (len(names) > 1)}" if names else "nothing"


def _compact_name(action: int) -> str:
    return view.compact_action_name(action).replace("NextDecoy", "Decoy")


def _recent(history: Bits) -> list[tuple[str, int, NDArray[np.int64]]]:
    """Return words, age and columns of the last activities that are kept."""
    found = []
    for place in range(view.N_RECENT):
        start = _STARTS["activities"] + place * _RECENT
        row = history[start : start + _RECENT]
        if not row[-1] and row[:N_HOSTS].any():
            kind = "exploit" if row[N_HOSTS] else "scan"
            age = int(row[N_HOSTS + 1 : -1].argmax())
            found.append((f"{kind} on {HOSTS[row.argmax()]}", age, start + np.arange(_RECENT)))
    return found


def _activities(history: Bits) -> list[Fact]:
    hosts = history[: 4 * N_HOSTS].reshape(N_HOSTS, 4)
    new = [f"{'exploit' if hosts[h, 1] else 'scan'} on {HOSTS[h]}" for h in np.flatnonzero(hosts[:, 0])]
    bits = (4 * np.arange(N_HOSTS)[:, np.newaxis] + np.arange(2)).ravel()
    absent = np.array([0] * (_RECENT - 1) + [1], np.uint8)
    recent = _recent(history)
    now = [columns for _, age, columns in recent if age == 0]
    facts = []
    if new:
        unseen = np.concatenate([np.zeros(len(bits), np.uint8), *[absent] * len(now)])
        facts.append(Fact("now: " + ", ".join(new), np.concatenate([bits, *now]), unseen))
    for words, age, columns in recent:
        if age:
            ago = f"{age}{' or more' * (age == view.N_AGES - 1)} step{'s' * (age > 1)} ago"
            facts.append(Fact(f"{ago}: {words}", columns, absent))
    return facts


def _beliefs(history: Bits) -> list[Fact]:
    facts = []
    for host, name in enumerate(HOSTS):
        columns = 4 * host + np.array([2, 3])
        if belief := int(history[columns[0]] + 2 * history[columns[1]]):
            facts.append(Fact(f"{name} marked {_BELIEFS[belief]}", columns, np.zeros(2, np.uint8)))
    return facts


def _scans(history: Bits) -> list[Fact]:
    parts = ("scans", "ages", "repeats")  # together: each of them alone tells of the scan
    columns = np.concatenate([_STARTS[part] + np.arange(HISTORY_PARTS[part]) for part in parts])
    names = [HOSTS[host] for host in np.flatnonzero(history[columns[:N_HOSTS]])]
    if not names:
        return []
    listed = ", ".join(names) if len(names) < 4 else f"{len(names)} hosts"
    repeats = history[columns[-HISTORY_PARTS["repeats"] :: view.N_REPEATS]]
    again = [HOSTS[view.DEFENDED_HOSTS[place]] for place in np.flatnonzero(repeats)]
    words = f"scanned so far: {listed}" + (f"; again since treated: {', '.join(again)}" if again else "")
    return [Fact(words, columns, np.zeros(len(columns), np.uint8))]


def _decoys(history: Bits) -> list[Fact]:
    start, facts = _STARTS["decoys"], []
    for host in dict.fromkeys(host for host, _ in _DECOYS):
        places = [place for place, (where, _) in enumerate(_DECOYS) if where == host]
        columns = start + np.array([2 * place + which for place in places for which in (0, 1)])
        if history[columns].any():
            names = [_DECOYS[place][1] for place in places if history[start + 2 * place]]
            words = f"decoys on {host}: {', '.join(names)}" if names else f"former decoys on {host}"
            facts.append(Fact(words, columns, np.zeros(len(columns), np.uint8)))
    return facts


def _own_actions(history: Bits) -> list[Fact]:
    start = _STARTS["actions"]
    columns = start + np.arange(view.N_OWN * _OWN)
    own = history[columns].reshape(view.N_OWN, _OWN)
    names = [_compact_name(int(row.argmax())) for row in own if row[:-1].any()]
    unseen = np.tile(np.array([0] * (_OWN - 1) + [1], np.uint8), view.N_OWN)
    facts = [Fact("own last actions: " + ", ".join(names), columns, unseen)] if names else []
    if history[start + view.N_OWN * _OWN]:
        columns = np.array([start + view.N_OWN * _OWN])
        facts.append(Fact("Op_Server0 was restored", columns, np.zeros(1, np.uint8)))
    return facts
