"""Plays tickets in slots: each at its own pace, each episode under one policy version, no socket in sight."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import FleetError
from protocol.messages import LARGEST, Arrays, Episode, Failure, Version
from protocol.specs import EnvironmentSpec, PolicySpec, Scenario
from protocol.tickets import SequenceName, Ticket, action_key, action_uniforms, environment_seed
from rollout_worker.environments import registry
from rollout_worker.environments.slots import RAISED, SlotEnvironments, SlotFailures
from rollout_worker.policy import Policy
from rollout_worker.repetition import compared

logger = logging.getLogger(__name__)

_FIRST_CAPACITY_STEPS = 128
_MOST_DELAYED_ROWS = 16
"""Delayed slots that step together at most: each waits for the whole pass, and few cost little more."""
_REASON_CHARACTERS = 300


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
        self._policies: list[Policy] = []
        self._policy_of = np.zeros(slots, np.int64)
        """Places in `_policies`."""
        self._at = np.zeros(slots, np.int64)
        self._keys = np.zeros(slots, np.uint64)
        self._greedy = np.zeros(slots, np.bool_)
        capacity = min(environments.max_episode_steps, _FIRST_CAPACITY_STEPS)
        size, dtype = environments.observation_size, environments.observation_dtype
        self._observations = np.zeros((slots, capacity + 1, size), dtype)
        self._actions = np.zeros((slots, capacity), np.min_scalar_type(environments.actions - 1))
        self._rewards = np.zeros((slots, capacity), np.float32)
        self._log_probs = np.zeros((slots, capacity), np.float32)
        self._uniforms = np.zeros((slots, capacity))
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
        seeds, scenarios = np.zeros(len(slots), np.uint64), []
        for row, slot in enumerate(slots.tolist()):
            ticket = self._plays[slot].ticket
            seeds[row] = environment_seed(self._run_seed, ticket)
            self._keys[slot] = action_key(self._run_seed, ticket)
            choices = self._scenarios[ticket.sequence]
            scenario, self._greedy[slot] = choices[ticket.number % len(choices)]
            scenarios.append(scenario)
        errors: dict[int, BaseException] = {}
        try:
            self._observations[slots, 0] = self._environments.reset(slots, seeds, scenarios)
        except SlotFailures as failures:
            self._observations[slots, 0], errors = failures.result, dict(failures.errors)
        except RAISED as error:
            errors = dict.fromkeys(slots.tolist(), error)
        self._at[slots] = 0
        # Whole episodes at once: a draw for a few slots costs as much as one for all their steps.
        self._uniforms[slots] = self._drawn(self._keys[slots])
        self.begun += len(slots) - len(errors)
        failed = [self._fail(slot, error) for slot, error in errors.items()]
        self._regroup()
        return failed

    def _step(self, slots: NDArray[np.int64]) -> list[Failure]:
        steps = self._at[slots]
        if int(steps.max()) == self._rewards.shape[1]:
            self._grow()
        actions, log_probs = self._act(slots, steps)
        errors: dict[int, BaseException] = {}
        try:
            result = self._environments.step(slots, actions)
        except SlotFailures as failures:
            result, errors = failures.result, dict(failures.errors)
        except RAISED as error:
            return [self._fail(slot, error) for slot in slots.tolist()]
        observations, rewards, terminated, truncated = result
        after = steps + 1
        self._observations[slots, after] = observations
        self._actions[slots, steps] = actions
        self._rewards[slots, steps] = rewards
        self._log_probs[slots, steps] = log_probs
        self._at[slots] = after
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

    def _act(
        self, slots: NDArray[np.int64], steps: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        observations = self._observations[slots, steps]
        uniforms = self._uniforms[slots, steps]
        greedy = self._greedy[slots] if self._greedy[slots].any() else None
        if len(self._policies) == 1:
            return self._policies[0].act(observations, uniforms, greedy)
        actions, log_probs = np.empty(len(slots), np.int64), np.empty(len(slots), np.float32)
        places = self._policy_of[slots]
        for place, policy in enumerate(self._policies):
            if len(rows := np.flatnonzero(places == place)):
                actions[rows], log_probs[rows] = policy.act(
                    observations[rows], uniforms[rows], None if greedy is None else greedy[rows]
                )
        return actions, log_probs

    def _finish(self, slot: int, terminated: bool) -> list[Episode | Failure]:
        play, length = self._plays[slot], int(self._at[slot])
        episode = Episode(
            run=self._run,
            session=self._session,
            ticket=play.ticket,
            version=play.version,
            terminated=terminated,
            seconds=time.perf_counter() - play.began_at,
            observations=self._observations[slot, : length + 1].copy(),
            actions=self._actions[slot, :length].copy(),
            rewards=self._rewards[slot, :length].copy(),
            log_probs=self._log_probs[slot, :length].copy(),
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
        """Let idle slots play what waits for one; sort those that began, and note whose policy they play."""
        for slot in list(self._again):
            others = [idle for idle in self._idle if idle != slot or self._environments.slots == 1]
            if others:
                self._give(others[0], self._again.pop(slot))
        begun = sorted(self._plays.keys() - set(self._beginning))
        self._policies = list({id(policy := self._plays[slot].policy): policy for slot in begun}.values())
        places = {id(policy): place for place, policy in enumerate(self._policies)}
        for slot in begun:
            self._policy_of[slot] = places[id(self._plays[slot].policy)]
        self._begun = np.array(begun, np.int64)
        self._stepping = np.array([slot for slot in begun if slot not in self._over], np.int64)

    def _grow(self) -> None:
        """Double the steps that an episode may have."""
        more = min(self._rewards.shape[1], self._environments.max_episode_steps - self._rewards.shape[1])
        for name in ("_observations", "_actions", "_rewards", "_log_probs"):
            array = getattr(self, name)
            room = np.zeros((array.shape[0], more, *array.shape[2:]), array.dtype)
            setattr(self, name, np.concatenate((array, room), axis=1))
        self._uniforms = self._drawn(self._keys)

    def _drawn(self, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return the action uniforms of episodes [k, capacity]."""
        return action_uniforms(keys[:, np.newaxis], np.arange(self._rewards.shape[1]))

    def _show(
        self,
        slots: NDArray[np.int64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        errors: dict[int, BaseException],
    ) -> None:
        assert self._on_step is not None
        for row, slot in enumerate(slots.tolist()):
            if slot in errors:
                continue
            number = int(self._at[slot]) - 1
            self._on_step(
                Step(
                    environments=self._environments,
                    slot=slot,
                    ticket=self._plays[slot].ticket,
                    number=number,
                    observation=self._observations[slot, number + 1],
                    action=int(self._actions[slot, number]),
                    log_prob=float(self._log_probs[slot, number]),
                    reward=float(self._rewards[slot, number]),
                    terminated=bool(terminated[row]),
                    truncated=bool(truncated[row]),
                )
            )


def play(
    spec: EnvironmentSpec,
    policy_spec: PolicySpec,
    arrays: Arrays,
    run_seed: int,
    tickets: Iterable[Ticket],
    *,
    slots: int = 50,
    version: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> Iterator[Episode]:
    """Play tickets in this process, taken in order, under one policy; yield episodes as they end.

    The environment's delays are left out.
    FleetError where the environment raises (its traceback is in the log), UserError where it cannot be built,
    ProtocolError where the arrays do not fit the policy.
    """
    policy = Policy(policy_spec, arrays)
    player = Player(registry.build(replace(spec, step_delay=""), slots), spec, run_seed, on_step=on_step)
    waiting = iter(tickets)
    try:
        while True:
            while player.idle and (ticket := next(waiting, None)) is not None:
                player.start(ticket, Version(0, version), policy)
            if not player.playing:
                return
            for ended in player.advance():
                if isinstance(ended, Failure):
                    raise FleetError(f"ticket {ended.ticket} failed: {ended.reason}")
                yield ended
    finally:
        player.close()


def failure_reason(error: BaseException) -> str:
    """Return what an environment raised in one short line."""
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"[:_REASON_CHARACTERS]


def without_greedy(scenario: Scenario) -> tuple[Scenario, bool]:
    """Split a scenario into the environment's part and whether the most probable action is played."""
    return {key: value for key, value in scenario.items() if key != "greedy"}, bool(scenario.get("greedy"))
