"""Plays tickets in slots: each at its own pace, each episode under one policy version, no socket in sight."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.messages import LARGEST, Episode, Failure, Version
from protocol.specs import EnvironmentSpec, Scenario, without_greedy
from protocol.tickets import SequenceName, Ticket, action_key, environment_seed
from rollout_worker.environments.slots import RAISED, SlotEnvironments, SlotFailures, failure_reason
from rollout_worker.open_episodes import OpenEpisodes
from rollout_worker.policy import Policy
from rollout_worker.repetition import compared
from rollout_worker.slot_policies import SlotPolicies

logger = logging.getLogger(__name__)

_MOST_DELAYED_ROWS = 16
"""Delayed slots that step together at most: each waits for the whole pass, and few cost little more."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one slot, for whoever watches: what was seen, done and got."""

    environments: SlotEnvironments
    slot: int
    ticket: Ticket
    number: int
    """Counts the episode's steps from 0."""
    observation: NDArray[Any]
    """The one after the step."""
    action: int
    log_prob: float
    reward: float
    terminated: bool
    truncated: bool


@dataclass(frozen=True, slots=True)
class _Play:
    """What a slot plays."""

    ticket: Ticket
    version: Version
    policy: Policy
    began_at: float
    twice: bool = False
    first: Episode | None = None
    """That of the first time, when this is the second."""


class Player:
    """The slots of one worker; `advance` steps all whose time has come. Episodes carry `run` and `session`.

    `clock` is the one of the environments' `ready_at`.
    """

    def __init__(
        self,
        environments: SlotEnvironments,
        spec: EnvironmentSpec,
        run_seed: int,
        run: str = "",
        session: str = "",
        on_step: Callable[[Step], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.passes = self.begun = self.steps = 0
        """Calls of `advance`, episodes begun and environment steps made."""
        self.inside = False
        """Whether `advance` is under way."""
        self._environments, self._spec, self._run_seed = environments, spec, run_seed
        self._run, self._session, self._on_step, self._clock = run, session, on_step, clock
        slots = environments.slots
        self._logged: BaseException | None = None
        self._idle = list(reversed(range(slots)))
        self._plays: dict[int, _Play] = {}
        self._beginning: list[int] = []
        self._again: dict[int, _Play] = {}
        """What was played once and waits for another slot than this one."""
        self._over: dict[int, bool] = {}
        """Slots that made their last step, and whether it terminated."""
        self._begun = self._stepping = np.empty(0, np.int64)
        """Slots that began, and those of them that are not over."""
        self._policies, self._episodes = SlotPolicies(slots), OpenEpisodes(environments)
        self._scenarios: dict[SequenceName, list[tuple[Scenario, bool]]] = {
            "train": [without_greedy(scenario) for scenario in spec.train_scenarios],
            "evaluate": [without_greedy(scenario) for scenario in spec.evaluate_scenarios],
        }

    @property
    def playing(self) -> int:
        """Return the number of slots that play."""
        return len(self._plays)

    @property
    def idle(self) -> int:
        """Return the number of slots that do not."""
        return len(self._idle)

    @property
    def due_in_seconds(self) -> float:
        """Return the time until `advance` has something to do; infinite where nothing plays."""
        if not self._plays:
            return math.inf
        ready_at = self._environments.ready_at
        if ready_at is None or self._beginning:
            return 0.0
        return max(0.0, float(ready_at[self._begun].min()) - self._clock())

    def start(self, ticket: Ticket, version: Version, policy: Policy, twice: bool = False) -> None:
        """Give a ticket to an idle slot; its episode begins with the next `advance`.

        If `twice`, it is then played once more, in another slot where there is one: its first episode is
        returned if the second is the same to the bit, a final failure otherwise.
        """
        self._give(self._idle[-1], _Play(ticket, version, policy, time.perf_counter(), twice))

    def abandon(self, tickets: Iterable[Ticket]) -> None:
        """Stop playing these tickets; those not played are passed over."""
        unwanted = set(tickets)
        self._again = {slot: play for slot, play in self._again.items() if play.ticket not in unwanted}
        for slot in [slot for slot, play in self._plays.items() if play.ticket in unwanted]:
            self._free(slot)
        self._regroup()

    def advance(self) -> list[Episode | Failure]:
        """Begin what was started, then step the playing slots whose last step is over; return what ended.

        Of delayed slots, those that have been ready for longest, a few at a time.
        """
        self.passes, self.inside = self.passes + 1, True
        ended: list[Episode | Failure] = []
        if self._beginning:
            ended += self._begin()
        slots, over, playing = self._stepping, len(self._over), len(self._plays)
        if (ready_at := self._environments.ready_at) is not None:
            slots = slots[ready_at[slots] <= self._clock()]
            if len(slots) > _MOST_DELAYED_ROWS:
                slots = slots[ready_at[slots].argsort()[:_MOST_DELAYED_ROWS]]
        if len(slots):
            ended += self._step(slots)
        if self._over:
            ended += self._finish_over()
        if ended or len(self._over) != over or len(self._plays) < playing:
            self._regroup()
        self.inside = False
        return ended

    def close(self) -> None:
        """Close the environments."""
        self._environments.close()

    def _begin(self) -> list[Failure]:
        slots, self._beginning = np.array(self._beginning, np.int64), []
        seeds, keys, scenarios = np.zeros(len(slots), np.uint64), np.zeros(len(slots), np.uint64), []
        for row, slot in enumerate(slots.tolist()):
            ticket = self._plays[slot].ticket
            seeds[row] = environment_seed(self._run_seed, ticket)
            keys[row] = action_key(self._run_seed, ticket)
            choices = self._scenarios[ticket.sequence]
            scenario, self._policies.greedy[slot] = choices[ticket.number % len(choices)]
            scenarios.append(scenario)
        errors: dict[int, BaseException] = {}
        try:
            self._episodes.begin(slots, keys, self._environments.reset(slots, seeds, scenarios))
        except SlotFailures as failures:
            self._episodes.begin(slots, keys, failures.result)
            errors = dict(failures.errors)
        except RAISED as error:
            errors = dict.fromkeys(slots.tolist(), error)
        self.begun += len(slots) - len(errors)
        failed = [self._fail(slot, error) for slot, error in errors.items()]
        self._regroup()
        return failed

    def _step(self, slots: NDArray[np.int64]) -> list[Failure]:
        steps = self._episodes.steps[slots]
        actions, log_probs = self._policies.act(slots, *self._episodes.inputs(slots, steps))
        errors: dict[int, BaseException] = {}
        try:
            result = self._environments.step(slots, actions)
        except SlotFailures as failures:
            result, errors = failures.result, dict(failures.errors)
        except RAISED as error:
            return [self._fail(slot, error) for slot in slots.tolist()]
        observations, rewards, terminated, truncated = result
        after = self._episodes.add(slots, steps, actions, log_probs, observations, rewards)
        self.steps += len(slots)
        truncated = truncated | (after >= self._environments.max_episode_steps)
        if self._on_step is not None:
            self._show(slots, terminated, truncated, errors)
        if (last := terminated | truncated).any():
            self._over |= zip(slots[last].tolist(), terminated[last].tolist(), strict=True)
        return [self._fail(slot, error) for slot, error in errors.items()]

    def _finish_over(self) -> list[Episode | Failure]:
        ready_at, now = self._environments.ready_at, self._clock()
        over = [slot for slot in self._over if ready_at is None or ready_at[slot] <= now]
        return [ended for slot in over for ended in self._finish(slot, self._over[slot])]

    def _finish(self, slot: int, terminated: bool) -> list[Episode | Failure]:
        play = self._plays[slot]
        episode = Episode(
            run=self._run,
            session=self._session,
            ticket=play.ticket,
            version=play.version,
            terminated=terminated,
            seconds=time.perf_counter() - play.began_at,
            **self._episodes.arrays(slot),
        )
        if name := episode.out_of_range():
            error = f"the environment's {name} are not all finite numbers within {LARGEST:g}"
            return [self._fail(slot, ValueError(error))]
        self._free(slot)
        if play.first is not None:
            return [compared(play.first, episode)]
        if play.twice:
            self._again[slot] = replace(play, first=episode)
            return []
        return [episode]

    def _fail(self, slot: int, error: BaseException) -> Failure:
        ticket = self._plays[slot].ticket
        logger.error(
            "ticket %s failed in slot %d", ticket, slot, exc_info=error is not self._logged and error
        )
        self._logged = error
        self._free(slot)
        return Failure(ticket, failure_reason(error))

    def _give(self, slot: int, play: _Play) -> None:
        self._idle.remove(slot)
        self._plays[slot] = play
        self._beginning.append(slot)

    def _free(self, slot: int) -> None:
        del self._plays[slot]
        self._idle.append(slot)
        self._over.pop(slot, None)
        if slot in self._beginning:
            self._beginning.remove(slot)

    def _regroup(self) -> None:
        """Let idle slots play what waits for one; sort those that began, and assign their policies."""
        for slot in list(self._again):
            others = [idle for idle in self._idle if idle != slot or self._environments.slots == 1]
            if others:
                self._give(others[0], self._again.pop(slot))
        begun = sorted(self._plays.keys() - set(self._beginning))
        self._policies.assign({slot: self._plays[slot].policy for slot in begun})
        self._begun = np.array(begun, np.int64)
        self._stepping = np.array([slot for slot in begun if slot not in self._over], np.int64)

    def _show(
        self,
        slots: NDArray[np.int64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        errors: dict[int, BaseException],
    ) -> None:
        assert self._on_step is not None
        episodes = self._episodes
        for row, slot in enumerate(slots.tolist()):
            if slot in errors:
                continue
            number = int(episodes.steps[slot]) - 1
            self._on_step(
                Step(
                    environments=self._environments,
                    slot=slot,
                    ticket=self._plays[slot].ticket,
                    number=number,
                    observation=episodes.observations[slot, number + 1],
                    action=int(episodes.actions[slot, number]),
                    log_prob=float(episodes.log_probs[slot, number]),
                    reward=float(episodes.rewards[slot, number]),
                    terminated=bool(terminated[row]),
                    truncated=bool(truncated[row]),
                )
            )
