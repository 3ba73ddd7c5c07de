"""Which faults befall a fleet and when, all from one seed; and how long it took to get over each of them."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "worker killed",
    "worker frozen",
    "worker added",
    "worker removed",
    "network cut",
    "network stalled",
    "learner frozen",
    "learner killed",
]
_WEIGHTS: dict[Kind, int] = {
    "worker killed": 5, "worker frozen": 4, "worker added": 3, "worker removed": 3,
    "network cut": 4, "network stalled": 4, "learner frozen": 1,
}  # fmt: skip
_LASTS: dict[Kind, tuple[float, float]] = {
    "worker frozen": (0.5, 9.0),
    "network cut": (0.5, 6.0),
    "network stalled": (0.5, 9.0),
    "learner frozen": (0.5, 5.0),
}
"""Seconds that a fault lasts, from and to: shorter and longer than a worker's silence is borne."""
BACK_AT = 0.9
"""Throughput is back with this share of what it was before."""
WINDOW_SECONDS = 10.0
"""Over which throughput is taken, before a fault and after."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `place`, from 0 to 1, says whom it hits among those that are there then."""

    at: float
    kind: Kind
    place: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Update:
    """An update as it was seen in the run's journal."""

    at: float
    incarnation: int
    tickets: int


def schedule(seed: int, seconds: float, mean_gap: float, learner_every: float) -> list[Fault]:
    """Return the faults of a run in order: `mean_gap` seconds apart, and a learner's death at fixed times."""
    draw = random.Random(f"chaos {seed}")
    kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    faults: list[Fault] = []
    at = draw.expovariate(1 / mean_gap)
    while at < seconds:
        (kind,) = draw.choices(kinds, weights)
        shortest, longest = _LASTS.get(kind, (0.0, 0.0))
        faults.append(Fault(at, kind, draw.random(), draw.uniform(shortest, longest)))
        at += draw.expovariate(1 / mean_gap)
    deaths = (n * learner_every for n in range(1, 1 + int(seconds / learner_every)))
    faults += [Fault(at, "learner killed", 0.0, 0.0) for at in deaths if at < seconds]
    return sorted(faults, key=lambda fault: fault.at)


def until_next_update(fault: Fault, updates: Sequence[Update], incarnation: int) -> float | None:
    """Return the seconds from a fault to the next update consumed; of a later `incarnation` if that died."""
    for update in updates:
        later = update.incarnation > incarnation if fault.kind == "learner killed" else update.at > fault.at
        if later:
            return update.at - fault.at
    return None


def until_throughput_is_back(fault: Fault, updates: Sequence[Update], end: float) -> float | None:
    """Return the seconds from a fault until consumption is, for a window, at 90 % of the window before it.

    None where that is not seen before the end, or where nothing was consumed in the window before.
    """
    before = _consumed(updates, fault.at - WINDOW_SECONDS, fault.at)
    if not before:
        return None
    starts = [fault.at, *(update.at for update in updates if update.at > fault.at)]
    for start in starts:
        if start + WINDOW_SECONDS > end:
            return None
        if _consumed(updates, start, start + WINDOW_SECONDS) >= BACK_AT * before:
            return start - fault.at
    return None


def _consumed(updates: Sequence[Update], after: float, upto: float) -> int:
    first, last = (bisect_right(updates, at, key=lambda update: update.at) for at in (after, upto))
    return sum(update.tickets for update in updates[first:last])
