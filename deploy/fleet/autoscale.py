"""How many workers a pool needs so that the learner is busy, and hardly more: a pure controller.

For whoever keeps the pools, about once a second for each pool that has a `target`:

    rule = Rule.of(minimum, maximum, "learner_busy:0.9")     # UserError in words of the fleet's file
    state = State()                                          # kept by the caller; a fresh one does no harm
    load = load_of(report)                                   # of a status Report; None without one
    state, count, reason = decide(rule, state, load, Pool(desired, ready, slots), now)

`desired` is what the pool was last asked to have, `ready` how many of its workers the learner calls ready,
`slots` those of one worker, `coming` the slots asked for in other pools and not ready yet. `count` is what it
shall be asked to have now, `reason` one line; `now` is monotonic. Call it for one pool after the other, with
what the pools before it were just given among `coming`.

How it decides. Episodes per second go with the slots that play, so over one and the same window

    slots that the target needs = mean slots x target / learner busy            while the slots play
                                = mean slots that play x target / learner busy   while some of them wait

whatever came and went in between: workers just started are in both means for as long as they were there.

- More, at once, where the learner is less busy than the target by more than BAND, at most MOST_AT_ONCE times
  the slots there are; never while half of all slots wait for credit: then it is not workers that are missing.
  Who was asked for and is not there yet is waited for, START_SECONDS at most, and so is an update that they
  had a part in, for as long as the window at most.
- Fewer, after DOWN_SECONDS of the same finding with all workers there, at most half of them, where the
  learner is busier than the target by more than half of BAND, or never had tickets for all slots.
- A size that was found too small is not gone back to for REMEMBER_SECONDS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from protocol.errors import UserError
from protocol.wording import counted

BAND = 0.06
"""Nothing is done while the learner is busy within this of the target."""
SPARE = 0.15
"""Nor while fewer than this share of the workers could be spared."""
UP_SECONDS, DOWN_SECONDS = 10.0, 60.0
"""How long after a change more may be asked for; how long a finding must last before fewer are."""
START_SECONDS = 60.0
"""How long those asked for are waited for before more are."""
MOST_AT_ONCE = 4
REMEMBER_SECONDS = 900.0
STARVED = 0.5
"""Where a smaller share of the slots than this has a ticket, more slots would not help."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What the user asks of a pool."""

    minimum: int
    maximum: int
    target: float
    """Share of the time that the learner shall be busy."""

    @classmethod
    def of(cls, minimum: int, maximum: int | None, target: str) -> Rule:
        """Return the rule of a pool's `min`, `max` and `target`. Raises UserError."""
        figure, _, number = target.partition(":")
        try:
            busy = float(number)
        except ValueError:
            busy = math.nan
        if figure != "learner_busy" or not 0.1 <= busy <= 0.95:
            raise UserError(f'target = "{target}": write "learner_busy:0.9", from 0.1 to 0.95')
        if maximum is None:
            raise UserError(f'target = "{target}" needs max: the most workers that it may ask for')
        if not 0 <= minimum <= maximum or maximum < 1:
            raise UserError(f"min = {minimum} and max = {maximum}: 0 <= min <= max and 1 <= max must hold")
        return cls(minimum, maximum, busy)


@dataclass(frozen=True, slots=True)
class Load:
    """What the learner reports, over one window; its fields are told in `learner/load.py`."""

    learner_busy: float | None
    window_seconds: float
    slots: float
    slots_busy: float
    slots_busy_most: int
    slots_now: int
    version: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool's workers: asked for, ready in the learner's eyes, slots of each; see above."""

    desired: int
    ready: int
    slots: int
    coming: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """What the controller remembers of a pool."""

    changed_at: float = -math.inf
    fewer_since: float = math.inf
    """Since when fewer were found enough, without a break."""
    too_few: int = -1
    too_few_at: float = -math.inf
    version: int = -1
    """The learner's, when the pool last grew."""


Decision = tuple[State, int, str]
"""The state to keep, how many workers the pool shall have, and why."""


def load_of(report: Mapping[str, Any] | None) -> Load | None:
    """Return the load in a learner's status report; None if it has none, as in synchronous mode."""
    if report is None or not report.get("load"):
        return None
    return Load(**report["load"], version=report["version"])


def decide(rule: Rule, state: State, load: Load | None, pool: Pool, now: float) -> Decision:
    """Return how many workers a pool shall have now; see the module."""
    held = min(max(pool.desired, rule.minimum), rule.maximum)
    if held != pool.desired:
        reason = f"min = {rule.minimum}, max = {rule.maximum}: {pool.desired} -> {counted(held, 'worker')}"
        return replace(state, changed_at=now, fewer_since=math.inf), held, reason
    wanted, finding = _wanted(rule, load, pool)
    count = min(max(wanted, rule.minimum), rule.maximum)
    if count > held:
        return _more(state, load, pool, count, finding, now)
    if count < held:
        assert load is not None
        return _fewer(state, load, pool, count, finding, now)
    if wanted > rule.maximum:
        finding += f", more would help, max = {rule.maximum}"
    return replace(state, fewer_since=math.inf), held, f"{finding}: {counted(held, 'worker')}, as it is"


def _wanted(rule: Rule, load: Load | None, pool: Pool) -> tuple[int, str]:
    """Return how many workers the window calls for, whatever the pool's limits, and what it shows."""
    if load is None:
        return pool.desired, "the learner reports no load"
    if load.slots_now == 0 and pool.desired == 0 and not pool.coming:
        return 1, "no worker is there"
    if load.slots_now == 0 or load.slots == 0:
        return pool.desired, "no worker is ready"
    if load.learner_busy is None:
        return pool.desired, "no update is done yet"
    busy, plays = load.learner_busy, load.slots_busy / load.slots
    others = load.slots_now - pool.ready * pool.slots + pool.coming
    finding = f"learner busy {busy:.0%} of the last {load.window_seconds:.0f} s, target {rule.target:.0%}"

    def workers(slots: float) -> int:
        return max(0, math.ceil((slots - others) / pool.slots - 1e-6))

    if busy < rule.target - BAND:
        if load.slots_busy_most < load.slots_now * (1 - BAND):  # by the peak: the mean says nothing here
            needed = workers(load.slots_busy_most / (1 - 1.5 * BAND))
            finding += f"; at most {load.slots_busy_most} of {load.slots_now} slots had a ticket"
            return needed if needed <= pool.desired * (1 - SPARE) else pool.desired, finding
        if plays < STARVED:
            return pool.desired, f"{finding}, but {1 - plays:.0%} of the slots wait for credit (--max-lag)"
        slots = min(load.slots * rule.target / max(busy, 1e-6), MOST_AT_ONCE * load.slots_now)
        return max(pool.desired, workers(slots)), finding
    if busy > rule.target + BAND / 2:
        needed = workers(load.slots_busy * rule.target / busy)
        if needed <= pool.desired * (1 - SPARE):
            waiting = f"{1 - plays:.0%} of the slots wait for credit"
            return min(needed, pool.desired), f"{finding}, {waiting}"
    return pool.desired, finding


def _more(state: State, load: Load | None, pool: Pool, count: int, finding: str, now: float) -> Decision:
    """Ask for more, unless those asked for before may still be on their way."""
    state = replace(state, fewer_since=math.inf)
    since = now - state.changed_at
    version, window = (load.version, load.window_seconds) if load else (0, 0.0)
    missing, stays = pool.desired - pool.ready, f"{finding}: {counted(pool.desired, 'worker')}"
    if missing > 0 and since < START_SECONDS:
        return state, pool.desired, f"{stays}, waits for {missing} on their way"
    if since < UP_SECONDS or (version in (state.version, state.version + 1) and since < window):
        return state, pool.desired, f"{stays}, waits for what the last ones bring"
    state = replace(state, changed_at=now, too_few=pool.desired, too_few_at=now, version=version)
    return state, count, f"{finding}: {pool.desired} -> {counted(count, 'worker')}"


def _fewer(state: State, load: Load, pool: Pool, count: int, finding: str, now: float) -> Decision:
    """Let some go, once that was right for long, and not down to what was too few not long ago."""
    stays = f"{finding}: {counted(pool.desired, 'worker')}"
    if now - state.too_few_at < REMEMBER_SECONDS:
        count = max(count, state.too_few + 1)
    if count >= pool.desired:
        state = replace(state, fewer_since=math.inf)
        return state, pool.desired, f"{stays}, {state.too_few} were too few"
    if pool.ready < pool.desired:
        return replace(state, fewer_since=math.inf), pool.desired, f"{stays}, some are not ready"
    state = replace(state, fewer_since=min(state.fewer_since, now))
    patience = max(DOWN_SECONDS, load.window_seconds)
    if now - state.fewer_since < patience or now - state.changed_at < patience:
        return state, pool.desired, f"{stays}, fewer if it lasts"
    count = max(count, pool.desired // 2)
    state = replace(state, changed_at=now, fewer_since=math.inf)
    return state, count, f"{finding}: {pool.desired} -> {counted(count, 'worker')}"
